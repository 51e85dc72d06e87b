"""Compiling and calling the C files of this folder: once per machine, with the C compiler there is, or not at all.

The library lands in the user's cache folder (`$XDG_CACHE_HOME/tunesmith`, else `~/.cache/tunesmith`), named by what it
was made from: source, compiler, flags, processor. Where there is no compiler, or it fails, `library()` is None and
`reason()` says why; `TUNESMITH_NATIVE=0` asks for that. Results then come from torch and differ in the last bits.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_SOURCES = tuple(_FOLDER / name for name in ("pointwise.c", "document_attention.c"))
_HEADERS = (_FOLDER / "exponential.h",)
_BASE_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_FLAG_SETS = (
    (*_BASE_FLAGS, "-mprefer-vector-width=512", "-fopenmp"),
    (*_BASE_FLAGS, "-fopenmp"),  # not x86
    (*_BASE_FLAGS, "-fopenmp-simd"),  # no OpenMP runtime: one thread
)
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Built:
    library: ctypes.CDLL | None
    reason: str


def library() -> ctypes.CDLL | None:
    """The compiled functions, or None."""
    return _built().library


def reason() -> str:
    """Where the library is, or why there is none."""
    return _built().reason


@functools.cache
def _built() -> _Built:
    if os.environ.get("TUNESMITH_NATIVE") == "0":
        return _Built(None, "switched off by TUNESMITH_NATIVE=0")
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return _Built(None, "no C compiler (cc) found")
    try:
        path = _compiled(compiler)
        # torch is loaded by now, so that both use its OpenMP runtime and its number of threads.
        return _Built(_declared(ctypes.CDLL(str(path))), str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return _Built(None, f"it could not be compiled: {error}")


def _compiled(compiler: str) -> Path:
    """Path of the library; raises `OSError` or `SubprocessError` where it cannot be made."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    sources = [path.read_bytes() for path in (*_SOURCES, *_HEADERS)]
    key = hashlib.sha256(repr((sources, version, _FLAG_SETS, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"
    path = folder / f"pointwise-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    error: subprocess.SubprocessError | None = None
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "pointwise.so"
        for flags in _FLAG_SETS:
            command = [compiler, *flags, *map(str, _SOURCES), "-o", str(made), "-lm"]
            try:
                subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
            except subprocess.CalledProcessError as failure:
                error = failure
                continue
            made.replace(path)  # at once, whichever process is first
            return path
    assert error is not None
    raise error


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {flags}"


_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (_P, _P, _F, _F, _P, _P, _I, _I),
    "rms_norm_backward": (_P, _P, _P, _P, _F, _P, _P, _P, _I, _I),
    "swiglu": (_P, _P, _I, _I),
    "swiglu_backward": (_P, _P, _P, _I, _I),
    "split_heads": (_P, _I, _I, _I, _I, _P, _F, _P, _P, _P, _I),
    "split_heads_backward": (_P, _I, _I, _P, _I, _I, _I, _I, _P, _F, _P, _P, _P, _P, _I),
    "softmax_loss": (_P, _P, _P, _P, _I, _I),
    "attend_documents": (*(_P,) * 4, *(_I,) * 5, _F, _I, _P, _P),
    "attend_documents_backward": (*(_P,) * 7, *(_I,) * 5, _F, _I, _P, _P, _P),
}
_RESULTS = {"attend_documents": ctypes.c_int, "attend_documents_backward": ctypes.c_int}


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return library
