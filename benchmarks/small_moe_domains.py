"""Where text of several domains lies on a machine with Python."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

_LIBRARY = Path(sysconfig.get_path("stdlib"))
_PACKAGES = Path(sysconfig.get_path("purelib"))
_DOC, MANUALS = Path("/usr/share/doc"), Path("/usr/share/man")
_SCRIPTS = (Path("/usr/share/javascript"), Path("/usr/lib/node_modules/npm"), Path("/usr/share/nodejs"))
_LICENCES = ("copyright", "license*", "licence*", "copying*", "notice*")


@dataclass(frozen=True, slots=True)
class Domain:
    """Where a kind of text lies.

    patterns, but: lower-case file names that belong, and that do not. family_limit: most files of a package or program.
    """

    name: str
    roots: tuple[Path, ...]
    patterns: tuple[str, ...]
    but: tuple[str, ...] = ()
    family_limit: int = 400


DOMAINS = (
    Domain("python", (_LIBRARY, _PACKAGES), ("*.py",)),
    Domain("c", (Path("/usr/include"), Path(sysconfig.get_path("include")), _PACKAGES), ("*.h", "*.hpp", "*.c")),
    Domain("manual", tuple(MANUALS / f"man{i}" for i in range(1, 9)), ("*.gz", "*.[1-8]"), family_limit=60),
    Domain("translated manual", (MANUALS,), ("*.gz",), family_limit=400),
    Domain("perl", (Path("/usr/share/perl"), Path("/usr/share/perl5")), ("*.pm", "*.pl", "*.pod")),
    Domain("web", (*_SCRIPTS, _DOC, _LIBRARY, _PACKAGES), ("*.js", "*.mjs", "*.css", "*.html", "*.htm", "*.json")),
    Domain("licence", (Path("/usr/share/common-licenses"), _DOC, _PACKAGES), (*_LICENCES, "gpl*", "lgpl*")),
    Domain(
        "documentation",
        (_DOC, _LIBRARY, _PACKAGES, *_SCRIPTS),
        ("*.md", "*.rst", "*.txt", "*.txt.gz", "readme*", "metadata", "news*", "changelog*", "topics.py"),
        _LICENCES,
    ),
)
