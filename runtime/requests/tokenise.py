"""Entries of a file to requests in token ids; what cannot become one is refused, and the others go on."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from hrm.errors import RequestError
from runtime.requests.chat_template import ChatTemplate
from runtime.requests.entry import Chat, Entry
from runtime.requests.request import Refusal, Request


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def needs_tokenizer(entries: Iterable[Entry]) -> bool:
    """Whether any entry has text to encode, or stop strings to find in generated text."""
    return any(not isinstance(entry.prompt, tuple) or entry.sampling.stop for entry in entries)


def tokenise(
    entries: Iterable[Entry], tokenizer: Tokenizer | None, template: ChatTemplate | None, vocab_size: int
) -> tuple[Request | Refusal, ...]:
    """A request per entry, in order, or why there is none.

    A chat is written by the checkpoint's template. Without one, a single user message is taken as the plain prompt;
    any other chat is refused, since a made-up layout would quietly give other answers.

    Raises:
        RequestError: text (or a stop string) without a tokenizer; names file and line.
    """
    return tuple(_tokenise(entry, tokenizer, template, vocab_size) for entry in entries)


def _tokenise(
    entry: Entry, tokenizer: Tokenizer | None, template: ChatTemplate | None, vocab_size: int
) -> Request | Refusal:
    if tokenizer is None and needs_tokenizer([entry]):
        raise RequestError(f"{entry.where}: text needs a tokenizer, and this model has none; give prompt_tokens")
    try:
        tokens = _tokens(entry, tokenizer, template)
    except RequestError as refused:
        return Refusal(Request(entry.request_id, (), entry.sampling), str(refused))
    request = Request(entry.request_id, tokens, entry.sampling)
    if not tokens:
        return Refusal(request, "the prompt has no tokens")
    if max(tokens) >= vocab_size:
        return Refusal(request, f"token id {max(tokens)} is beyond the model's vocabulary of {vocab_size:,}")
    return request


def _tokens(entry: Entry, tokenizer: Tokenizer | None, template: ChatTemplate | None) -> tuple[int, ...]:
    prompt = entry.prompt
    if isinstance(prompt, tuple):
        return prompt
    assert tokenizer is not None  # _tokenise has looked
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt))
    if template is not None:
        return tuple(tokenizer.encode(template.render(prompt.messages), add_special_tokens=False))
    return tuple(tokenizer.encode(_only_message(prompt)))


def _only_message(chat: Chat) -> str:
    if len(chat.messages) == 1 and chat.messages[0]["role"] == "user":
        return chat.messages[0]["content"]
    raise RequestError(
        "the checkpoint has no chat template (chat_template in tokenizer_config.json), and without one only a single "
        "user message is taken, as it stands"
    )
