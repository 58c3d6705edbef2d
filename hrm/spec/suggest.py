"""One way of saying that a name does not exist, with the names that come close."""

from collections.abc import Iterable
from difflib import get_close_matches

from hrm.errors import UnknownNameError


def unknown_name(what: str, name: object, known: Iterable[str], where: str = "") -> UnknownNameError:
    """The error for a `what` called `name` that is not among `known`; `where` names file and field.

    Returned, not raised, so that the caller's `raise` ends its own branch.
    """
    names = sorted(known)
    text = str(name)[:80]
    close = get_close_matches(text, names, n=3, cutoff=0.5)
    prefix = f"{where}: " if where else ""
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return UnknownNameError(f"{prefix}unknown {what} {text!r}; {hint}known: {', '.join(names) or 'none'}")
