"""Text of several domains that a machine has anyway: documents, without copies, split into parts by their content."""

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from small_moe_domains import MANUALS, Domain

Part = Literal["train", "trace_train", "trace_test"]

MOST_CHARACTERS = 40_000  # of one document; the rest is left out
FEWEST_CHARACTERS = 500
LONG_LINE = 40  # characters from which a line tells a copy


@dataclass(frozen=True, slots=True)
class Document:
    """digest: of the content; says which part the document belongs to."""

    domain: str
    text: str
    digest: bytes

    @property
    def part(self) -> Part:
        """10 % of the documents are held out of training; a quarter of those are for tests of what learns on traces."""
        if self.digest[0] >= 26:
            return "train"
        return "trace_test" if self.digest[1] < 64 else "trace_train"


def document(domain: str, text: str) -> Document:
    """One document, cut to its first MOST_CHARACTERS."""
    text = text[:MOST_CHARACTERS]
    return Document(domain, text, hashlib.sha256(" ".join(text.split()).encode()).digest())


def collect(domains: Iterable[Domain], most_bytes: int) -> list[Document]:
    """Documents of every domain in the order of their digests, up to most_bytes each; each content once.

    The order leaves out the two bytes that decide the part, so that all parts are cut alike.

    The first domain that has a content keeps it. Which files there are differs from machine to machine.
    """
    seen: set[bytes] = set()
    found: list[Document] = []
    for domain in domains:
        documents = {d.digest: d for d in read_domain(domain) if d.digest not in seen}
        seen |= documents.keys()
        found += _first(sorted(documents.values(), key=lambda d: d.digest[2:]), most_bytes)
    return without_copies(found)


def read_domain(domain: Domain) -> Iterator[Document]:
    """All documents of one domain that are text, long enough and within their family's limit."""
    families: Counter[str] = Counter()
    for file, family in sorted(_files(domain), key=lambda pair: _name_digest(pair[0])):
        if families[family] >= domain.family_limit:
            continue
        text = _read(file)
        if text is not None and len(text) >= FEWEST_CHARACTERS:
            families[family] += 1
            yield document(domain.name, text)


def without_copies(documents: list[Document]) -> list[Document]:
    """Leaves out held-out documents most of whose long lines stand in a document for training.

    Licences, vendored packages and generated pages repeat each other; a hash of the content does not see that.
    """
    known = {line for d in documents if d.part == "train" for line in _long_lines(d.text)}
    return [d for d in documents if d.part == "train" or not _copied(d.text, known)]


def _copied(text: str, known: set[str]) -> bool:
    lines = _long_lines(text)
    return 2 * sum(line in known for line in lines) > len(lines)


def _long_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= LONG_LINE]


def _first(documents: list[Document], most_bytes: int) -> Iterator[Document]:
    taken = 0
    for each in documents:
        size = len(each.text.encode())
        if taken + size <= most_bytes:
            taken += size
            yield each


def _files(domain: Domain) -> Iterator[tuple[Path, str]]:
    """Files with their family: the first folder under the root, or the first word of a manual page's name."""
    for root in domain.roots:
        for file in root.rglob("*") if root.is_dir() else ():
            inside, name = file.relative_to(root), file.name.lower()
            if not any(fnmatch(name, p) for p in domain.patterns) or any(fnmatch(name, p) for p in domain.but):
                continue
            if _elsewhere(domain, inside) or file.is_symlink() or not file.is_file():
                continue
            manual = MANUALS in file.parents and domain.name == "manual"
            family = name.replace(".", "-").replace("_", "-").split("-")[0] if manual else inside.parts[0]
            yield file, f"{root}/{family}"


def _elsewhere(domain: Domain, inside: Path) -> bool:
    """Packages of another installation below the library; English pages below the translations."""
    if domain.name == "translated manual":
        return inside.parts[0].startswith("man")
    return inside.parts[0] in ("site-packages", "dist-packages")


def _name_digest(file: Path) -> bytes:
    """Orders files in a way that has nothing to do with their names."""
    return hashlib.sha256(str(file).encode()).digest()


def _read(file: Path) -> str | None:
    """None: not readable, or not text in UTF-8."""
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return None
    return None if "\0" in text else text
