"""Text to token ids and back, by the tokenizer.json of a checkpoint directory."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from hrm.errors import CheckpointError


class Tokenizer:
    """Encodes as transformers' fast tokenizers do; prompts are never cut or padded."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens (such as a leading BOS) that tokenizer.json adds."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Raises:
        CheckpointError: no tokenizer.json, or one that cannot be read.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        advice = "copy it from the published model, or give prompts as token ids"
        raise CheckpointError(f"{directory}: holds no tokenizer.json; {advice}")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as failure:  # the library raises plain Exception
        raise CheckpointError(f"{file}: cannot be read ({str(failure)[:200]}); download it again") from None
