"""Reads and writes of one file, past the page cache."""

import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from hrm.errors import HrmError
from runtime.calibration.plan import Plan
from runtime.calibration.results import DiskResult, Spread, Timing, spread

_REQUEST = 4 * 2**20
_SMALL = 4096
_READERS = 4  # requests in flight
DIRECT, CACHE_DROPPED = "O_DIRECT", "page cache dropped before each read (posix_fadvise)"


def check_directory(directory: Path, file_bytes: int) -> None:
    """Raises HrmError where a file of `file_bytes` bytes cannot be put."""
    if not directory.is_dir():
        raise HrmError(f"--disk {directory}: is not a directory; name one on the disk to measure")
    if not os.access(directory, os.W_OK):
        raise HrmError(f"--disk {directory}: cannot be written; name another directory")
    free = shutil.disk_usage(directory).free
    if free < 2 * file_bytes:
        raise HrmError(f"--disk {directory}: has {free:,} bytes free, {2 * file_bytes:,} are needed; free some")


def measure_disk(directory: Path, plan: Plan) -> DiskResult:
    """Bandwidth with several requests in flight, and latency of 4 KiB. Raises HrmError where the disk fails."""
    usage = shutil.disk_usage(directory)
    repeats = min(5, plan.effort.repeats)
    try:
        with _file(directory) as path:
            writes = tuple(_write_all(path, plan.file_bytes) for _ in range(repeats))
            with _opened(path) as (descriptor, method):
                reads = tuple(_read_all(descriptor, plan.file_bytes) for _ in range(repeats))
                read_latency = _latency(descriptor, plan, _read)
            write_latency = _write_latency(path, plan)
    except OSError as failure:
        raise HrmError(f"--disk {directory}: cannot be measured ({failure.strerror or failure})") from None
    return DiskResult(
        directory=str(directory),
        method=method,
        total_bytes=usage.total,
        free_bytes=usage.free,
        read=Timing(plan.file_bytes, reads, plan.file_bytes),
        write=Timing(plan.file_bytes, writes, plan.file_bytes),
        read_latency=read_latency,
        write_latency=write_latency,
    )


@contextmanager
def _file(directory: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix="hrm-calibrate-", dir=directory)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, str]]:
    """The file opened to read past the page cache, and how that is done."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        descriptor, method = os.open(path, os.O_RDONLY | direct), DIRECT if direct else CACHE_DROPPED
    except OSError:  # tmpfs and some network file systems refuse O_DIRECT
        descriptor, method = os.open(path, os.O_RDONLY), CACHE_DROPPED
    try:
        yield descriptor, method
    finally:
        os.close(descriptor)


def _write_all(path: Path, nbytes: int) -> float:
    block = random.randbytes(_REQUEST)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        start = perf_counter()
        for offset in range(0, nbytes, _REQUEST):
            os.pwrite(descriptor, block, offset)
        os.fsync(descriptor)
        return perf_counter() - start
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, nbytes: int) -> float:
    _drop_cache(descriptor)
    offsets = range(0, nbytes, _REQUEST)
    start = perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(lambda i: _read_some(descriptor, offsets[i::_READERS]), range(_READERS)))
    return perf_counter() - start


def _read_some(descriptor: int, offsets: range) -> None:
    with mmap.mmap(-1, _REQUEST) as buffer:  # O_DIRECT needs memory aligned to the block size
        for offset in offsets:
            os.preadv(descriptor, [buffer], offset)


def _drop_cache(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read(descriptor: int, offset: int, buffer: mmap.mmap) -> None:
    os.preadv(descriptor, [buffer], offset)


def _write(descriptor: int, offset: int, buffer: mmap.mmap) -> None:
    os.pwritev(descriptor, [buffer], offset)
    os.fsync(descriptor)


def _latency(descriptor: int, plan: Plan, access: Callable[[int, int, mmap.mmap], None]) -> Spread:
    seconds = []
    _drop_cache(descriptor)
    with mmap.mmap(-1, _SMALL) as buffer:
        for _ in range(5 if plan.quick else 100):
            offset = random.randrange(plan.file_bytes // _SMALL) * _SMALL
            start = perf_counter()
            access(descriptor, offset, buffer)
            seconds.append(perf_counter() - start)
    return spread(tuple(seconds))


def _write_latency(path: Path, plan: Plan) -> Spread:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        return _latency(descriptor, plan, _write)
    finally:
        os.close(descriptor)
