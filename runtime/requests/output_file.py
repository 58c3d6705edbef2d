"""The file of results: a line per finished request, there as soon as it is finished, continued after a kill."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from hrm.errors import RequestError
from runtime.requests.finished_lines import FinishedLines, read_finished
from runtime.requests.identity import RunIdentity, identity_path, read_identity, write_identity

Mode = Literal["new", "resume", "overwrite"]
SYNC_SECONDS = 1.0  # between two fsyncs: what a power cut may cost; a kill costs nothing that was appended


class OutputFile:
    """Whole lines appended to a file that no other run writes. Use: open, `begin(identity)`, `append`, close.

    The order of writes makes every kill harmless: the identity lies beside the results before the first of them, a
    file is emptied before its new identity is written, and only the last line can be torn.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        """Opens and locks the file; changes nothing in it.

        Raises:
            RequestError: cannot be written, is written by another run, is not empty and `mode` is "new", or to be
                continued and not a run's results.
        """
        self.path = path
        self._mode = mode
        self._fd = _open(path)
        try:
            _lock(self._fd, path)
            self._size = os.fstat(self._fd).st_size
            if mode == "new" and self._size:
                raise RequestError(f"{path}: holds results already; continue with --resume or replace with --overwrite")
            continues = mode == "resume" and self._size > 0
            self.earlier = self._earlier() if continues else None
            self._kept = read_finished(path) if continues else FinishedLines(frozenset(), 0)
        except BaseException:
            os.close(self._fd)
            raise
        self._synced = time.monotonic()

    @property
    def finished(self) -> frozenset[str]:
        """Ids that earlier attempts have finished."""
        return self._kept.ids

    def _earlier(self) -> RunIdentity:
        beside = identity_path(self.path)
        earlier = read_identity(beside)
        if earlier is None:
            raise RequestError(f"{self.path}: cannot be continued: {beside} is missing, which says what it belongs to")
        return earlier

    def check(self, identity: RunIdentity) -> None:
        """Whether this run may continue the file; changes nothing in it.

        Raises:
            RequestError: the earlier run was another; names what differs.
        """
        changed = () if self.earlier is None else self.earlier.differences(identity)
        if changed:
            names = ", ".join(changed)
            raise RequestError(
                f"{self.path}: belongs to a run with another {names} (see {identity_path(self.path)}); give the "
                "same again, write to another file, or start again with --overwrite"
            )

    def begin(self, identity: RunIdentity) -> None:
        """Makes the file ready: continues the same run behind its last whole line, or begins a new one.

        Raises:
            RequestError: to be continued, but the earlier run was another; names what differs. Cannot be written.
        """
        self.check(identity)
        self._cut(self._kept.whole_bytes)
        if self.earlier is None:
            write_identity(identity, identity_path(self.path))

    def append(self, line: bytes) -> None:
        """Writes one line, its line feed included; all of it, or nothing.

        Raises:
            RequestError: a full disk or another fault; lines written before are kept.
        """
        try:
            self._write(line)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as failure:
            raise self._error(failure) from None

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            self._sync()
        except OSError as failure:
            raise self._error(failure) from None
        self._size = size

    def _error(self, failure: OSError) -> RequestError:
        return RequestError(
            f"{self.path}: cannot be written ({failure.strerror or failure}); finished requests are kept: make room "
            "and continue with --resume"
        )

    def close(self) -> None:
        """Everything is on the disk after it.

        Raises:
            RequestError: the disk reports a fault.
        """
        try:
            self._sync()
        except OSError as failure:
            raise self._error(failure) from None
        finally:
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise RequestError(f"{path}: cannot be written ({reason}); choose another place") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RequestError(f"{path}: is not a plain file; results are kept in one, so that a run can be continued")
    return fd


def _lock(fd: int, path: Path) -> None:
    """Held until the file is closed or the process dies, however it does."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(f"{path}: another run is writing it; wait for it or choose another file") from None
    except OSError:  # a file system without locks: two runs on one file are then the user's to avoid
        return
