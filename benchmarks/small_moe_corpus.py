"""What training needs in one folder: the tokenizer, and the documents as token ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from small_moe_text import Document, Part
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hrm.errors import HrmError

VOCAB_SIZE = 4096
END = "<|endoftext|>"
END_ID = 0
TOKENIZER_BYTES = 1_500_000  # of text per domain that the tokenizer is trained on
PARTS: tuple[Part, ...] = ("train", "trace_train", "trace_test")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of one part, one after the other.

    tokens: uint16 [tokens], END_ID in front of every document. starts: int64 [documents + 1], where each begins, and
    the end. domain: uint8 [documents], an index of domains.
    """

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    domain: NDArray[np.uint8]
    domains: tuple[str, ...]

    def of_domain(self, index: int) -> list[NDArray[np.uint16]]:
        """The documents of one domain."""
        chosen = np.flatnonzero(self.domain == index)
        return [self.tokens[self.starts[i] : self.starts[i + 1]] for i in chosen]


def train_tokenizer(documents: Sequence[Document], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE: encodes and decodes any text without loss. Trained on documents for training only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    return tokenizer


def _sample(documents: Sequence[Document]) -> list[str]:
    taken: dict[str, int] = {}
    texts = []
    for each in documents:
        if each.part == "train" and taken.get(each.domain, 0) < TOKENIZER_BYTES:
            taken[each.domain] = taken.get(each.domain, 0) + len(each.text.encode())
            texts.append(each.text)
    return texts


def make_corpus(documents: Sequence[Document], part: Part, domains: tuple[str, ...], tokenizer: Tokenizer) -> Corpus:
    """The documents of one part as token ids."""
    mine = [d for d in documents if d.part == part]
    ids = [[END_ID, *e.ids] for e in tokenizer.encode_batch([d.text for d in mine], add_special_tokens=False)]
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    flat = np.fromiter((i for each in ids for i in each), np.uint16, int(starts[-1]))
    return Corpus(flat, starts, np.array([domains.index(d.domain) for d in mine], np.uint8), domains)


def save_corpus(corpus: Corpus, directory: Path, part: Part) -> None:
    """Writes PART.npz; the domains' names are in it."""
    np.savez_compressed(
        directory / f"{part}.npz",
        allow_pickle=False,
        tokens=corpus.tokens,
        starts=corpus.starts,
        domain=corpus.domain,
        domains=np.array(corpus.domains),
    )


def load_corpus(directory: Path, part: Part) -> Corpus:
    """Reads PART.npz.

    Raises:
        HrmError: the file is missing or is not one that `prepare` wrote.
    """
    path = directory / f"{part}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            names = tuple(str(name) for name in file["domains"])
            return Corpus(file["tokens"], file["starts"], file["domain"], names)
    except (OSError, ValueError, KeyError, EOFError) as failure:
        raise HrmError(f"{path}: cannot be read ({failure}); write it with the subcommand prepare") from None


def write_prepared(documents: Sequence[Document], domains: tuple[str, ...], directory: Path) -> dict[str, Corpus]:
    """Tokenizer, all parts, and sizes.json into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(directory / "tokenizer.json"))
    corpora = {part: make_corpus(documents, part, domains, tokenizer) for part in PARTS}
    for part in PARTS:
        save_corpus(corpora[part], directory, part)
    (directory / "sizes.json").write_text(json.dumps(sizes(documents, corpora), indent=2) + "\n")
    return dict(corpora)


def sizes(documents: Sequence[Document], corpora: dict[Part, Corpus]) -> dict[str, dict[str, int]]:
    """By domain: bytes of text, and documents and tokens of each part."""
    table: dict[str, dict[str, int]] = {}
    for index, name in enumerate(corpora["train"].domains):
        row = {"bytes": sum(len(d.text.encode()) for d in documents if d.domain == name)}
        for part, corpus in corpora.items():
            mine = corpus.of_domain(index)
            row |= {f"{part} documents": len(mine), f"{part} tokens": sum(map(len, mine))}
        table[name] = row
    return table
