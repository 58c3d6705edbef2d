"""Builds a C++ file into a shared library, once per source, headers, flags, compiler and processor; loads it."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Build:
    """The library, or None and why there is none."""

    library: Path | None
    failure: str = ""


def build_library(source: Path, flags: tuple[str, ...] = FLAGS) -> Build:
    """The shared library of a C++ file, from the cache or built now. Never raises: a failure is told in the result."""
    compiler = find_compiler()
    if compiler is None:
        return Build(None, f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)})")
    try:
        library = cache_directory() / f"{source.stem}-{build_key(source, compiler, flags)}.so"
        return Build(library) if library.exists() else _compile(compiler, source, flags, library)
    except (OSError, subprocess.SubprocessError) as error:
        return Build(None, f"{compiler} could not build {source}: {error}")


def load_library(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library of a C++ file, ready to be called; or None and why there is none."""
    build = build_library(source)
    if build.library is None:
        return None, build.failure
    try:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take cores from those that feed the GPU
        return ctypes.CDLL(str(build.library)), ""
    except OSError as error:
        return None, f"{build.library} cannot be loaded: {error}"


def find_compiler() -> str | None:
    """$CXX if set, else the first of the usual names that is on the path."""
    wanted = os.environ.get("CXX")
    return next((found for name in ((wanted,) if wanted else COMPILERS) if (found := shutil.which(name))), None)


def cache_directory() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/hrm/kernels, ~/.cache/hrm/kernels without it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hrm" / "kernels"


def build_key(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of all that the library depends on; -march=native makes the processor part of it."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_SECONDS, check=True)
    texts = (file.read_text() for file in (source, *sorted(source.parent.glob("*.h"))))
    parts = (*texts, " ".join(flags), version.stdout, processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """Model name and instruction sets of this processor, as far as the system tells them."""
    described = f"{platform.machine()} {platform.processor()}"
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return described
    lines = cpuinfo.read_text().splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([described, *sorted({line for line in lines if line.startswith(wanted)})])


def _compile(compiler: str, source: Path, flags: tuple[str, ...], library: Path) -> Build:
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        command = [compiler, *flags, "-o", str(built), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if result.returncode != 0:
            return Build(None, f"{' '.join(command)} failed:\n{result.stderr.strip()[-2000:]}")
        built.replace(library)  # whole or not at all, whoever builds at the same time
    return Build(library)
