"""Packed files: gzip, xz and zstd, unpacked as a stream.

An archive that breaks off gives what came before the break, and says so. One that grows beyond all reason is refused.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK = 1 << 20
_HARMLESS = 1 << 30
"""Bytes an archive may unpack to whatever its ratio."""
_RATIO = 200
"""Times its size that a larger one may grow to: text shrinks 3 to 20 times, archives made to harm 1,000 times."""


class Unpacked:
    """The bytes of a packed file as an iterator of chunks; `damage` says what broke it off, once it is read."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.damage: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        size, total = self.path.stat().st_size, 0
        try:
            with _open(self.path, self.kind) as stream:
                while chunk := stream.read1(_CHUNK):
                    total += len(chunk)
                    if total > max(_HARMLESS, _RATIO * size):
                        raise DataError(
                            f"this archive of {size:,} bytes unpacks to more than {total:,}",
                            where=str(self.path),
                            expected="packed rows, which shrink 3 to 20 times",
                            fix="unpack it yourself, if it is what you think it is",
                        )
                    yield bytes(chunk)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            self.damage = f"the {self.kind} archive is damaged behind byte {total:,} of its content: {error}"
        except OSError as error:
            if self.kind != "zstd":  # Arrow reports damage this way
                raise
            self.damage = f"the zstd archive is damaged behind byte {total:,} of its content: {error}"


def packing_of(head: bytes) -> str | None:
    """gzip, xz or zstd, by the first bytes."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _open(path: Path, kind: str) -> io.BufferedIOBase:
    if kind == "gzip":
        return gzip.open(path)
    if kind == "xz":
        return lzma.open(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            "zstd archives are unpacked by pyarrow, which is not installed",
            where=str(path),
            fix="pip install 'tunesmith[parquet]', or unpack it with zstd -d",
        )
    import pyarrow

    return io.BufferedReader(_Arrow(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")))


class _Arrow(io.RawIOBase):
    """Arrow's stream as one of Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
