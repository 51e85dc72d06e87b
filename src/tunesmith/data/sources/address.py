"""What `data.train` may name: a file, a folder, a data set of a hub, a query on a database.

`#` separates a part: `#validation` or `#train[:1000]` of a data set, `#select text, label from reviews` or a table's
name of a database. A file whose own name holds `#` is taken as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from tunesmith.errors import DataError

SourceKind = Literal["file", "folder", "hub", "sqlite", "postgresql"]

_SCHEMES: dict[str, SourceKind] = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "hf": "hub",
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXPECTED = "a file, a folder, hf://ORG/NAME, sqlite:///FILE or postgresql://…"
_FILE_ENDINGS = frozenset(
    {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".txt", ".md", ".parquet", ".arrow", ".feather", ".ipc"}
    | {".gz", ".xz", ".zst", ".conll", ".bio", ".iob"}
)


@dataclass(frozen=True, slots=True)
class Address:
    """A source. `place` is a path, a hub id or a URL; `part` what `#` named; `shown` holds no password."""

    kind: SourceKind
    place: str
    part: str | None
    shown: str

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.place)


def address_of(text: str | Path) -> Address:
    """Understand an address. Raises `DataError` for one that names nothing we can read; looks at no content."""
    if isinstance(text, Path):
        return _local(text, None)
    url = _URL.match(text)
    if url is None:
        return _without_scheme(text)
    kind = _SCHEMES.get(url.group(1).lower())
    if kind is None:
        download = url.group(1).lower() in ("http", "https", "s3", "gs", "ftp")
        raise DataError(
            f"addresses that begin with {url.group()} are not read",
            where=hide_password(text),
            expected=_EXPECTED,
            fix="download the file first" if download else "correct the address",
        )
    place, mark, part = text.partition("#")
    if kind == "hub":
        name = place[url.end() :].removeprefix("datasets/").strip("/")
        if not _HUB_ID.fullmatch(name):
            raise DataError("this is not the id of a data set", where=text, expected="hf://ORG/NAME, with #SPLIT")
        return Address(kind, name, part or None, text)
    return Address(kind, place, part if mark else None, hide_password(text))


def hide_password(text: str) -> str:
    """A URL without the password in it, for messages."""
    try:
        parts = urlsplit(text)
        if parts.password is None:
            return text
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
    except ValueError:  # not a URL after all, such as an unclosed bracket around a host
        return re.sub(r"//[^@/]*@", "//***@", text)


def _without_scheme(text: str) -> Address:
    path = Path(text)
    if _exists(path):
        return _local(path, None)
    before, mark, part = text.partition("#")
    if mark and before and _exists(Path(before)):
        return _local(Path(before), part or None)
    endless = Path(before).suffix.lower() not in _FILE_ENDINGS
    if _HUB_ID.fullmatch(before) and endless and not _exists(Path(before).parent):
        return Address("hub", before, part or None, f"hf://{text}")
    return _local(path, None)


def _local(path: Path, part: str | None) -> Address:
    kind: SourceKind = "folder" if _exists(path) and path.is_dir() else "file"
    return Address(kind, str(path), part, f"{path}#{part}" if part else str(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
