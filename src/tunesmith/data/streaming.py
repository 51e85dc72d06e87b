"""Rows of any number, a block at a time and on all cores: what `check` looks through before anything is trained.

    scan = scan_rows("rows.jsonl", look, processes=2)

A JSONL file, packed or not, is cut into blocks of whole lines by one process, which only counts line ends, and each
block is decoded, parsed and looked at by a worker; what comes back is findings and whatever `look` made of the rows. So
memory holds a few blocks, and the order of results is that of the file. Everything else is read whole, by `read_rows`,
and looked at in batches: a CSV's open quotation mark or a JSON array's broken element can reach over any distance.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import JsonParser, read_json_lines
from tunesmith.data.reading import decode, head_of, read_rows, recognise_kind, unpacked_name
from tunesmith.data.sources.address import address_of
from tunesmith.data.sources.columnar import is_columnar
from tunesmith.data.sources.packed import Unpacked, packing_of
from tunesmith.data.types import Finding, Row
from tunesmith.errors import DataError

Result = TypeVar("Result")

BLOCK = 4 << 20
"""Bytes of a block: some thousand rows, and small beside what a worker makes of them."""
BATCH = 5_000
"""Rows looked at together where a source is read whole."""
_LOOK_AT = 50
"""Lines of which one must be a row."""
_WORTH_PROCESSES = 16 << 20
"""Bytes below which starting workers costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Scan(Generic[Result]):
    """What came of all rows: `results` are those of each block, in order."""

    results: list[Result]
    findings: list[Finding]
    rows: int
    left_out: int
    columns: tuple[str, ...]


Look = Callable[[Sequence[Row], FindingLog], Result]
"""Looks at the rows of one block, and notes what is wrong with them. Runs in another process: a function of a module,
or `functools.partial` of one."""


@dataclass(frozen=True, slots=True)
class _Block:
    data: bytes
    first_line: int
    source: str


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Result]):
    """What a worker sends back; notes are the arguments of `FindingLog.add`."""

    result: Result
    notes: list[tuple[str, int, str, str | None]]
    rows: int
    left_out: int
    columns: tuple[str, ...]


class NoteTaker(FindingLog):
    """A log that keeps what is noted in the order it came, so that another log can be told."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.notes: list[tuple[str, int, str, str | None]] = []

    def add(self, code: str, line: int, detail: str = "", *, field: str | None = None) -> None:
        """Note one occurrence of `code` on `line` (1-based)."""
        self.notes.append((code, line, detail, field))

    def has(self, code: str) -> bool:
        """Whether `code` was noted at all."""
        return any(note[0] == code for note in self.notes)


def scan_rows(
    source: str | Path, look: Look[Result], *, encoding: str = "auto", processes: int | None = None
) -> Scan[Result]:
    """Read all rows of a source and hand them to `look`, in blocks and in the order of the source.

    `processes` is the number of workers, by default one per core; small files are looked at in this process. Raises
    `DataError` where nothing can be read at all; see `read_rows`.
    """
    address = address_of(source)
    first = _first_block(address.path, encoding) if address.kind == "file" else None
    if first is None:
        return _scan_whole(source, look, encoding)
    log = FindingLog(address.shown)
    blocks = _Blocks(address.path, address.shown)
    workers = processes if processes is not None else os.cpu_count() or 1
    if workers == 1 or address.path.stat().st_size < _WORTH_PROCESSES:
        seen: Iterator[_Seen[Result]] = (_look_at(block, look) for block in blocks)
        return _gather(seen, log, blocks)
    with ProcessPoolExecutor(workers, mp_context=_context()) as pool:
        return _gather(_in_order(pool, blocks, look, workers), log, blocks)


def first_rows(source: str | Path, count: int, *, encoding: str = "auto") -> tuple[list[Row], tuple[str, ...]]:
    """The first rows of a source and their columns: for deciding what they are. A JSONL file is not read further."""
    address = address_of(source)
    block = _first_block(address.path, encoding) if address.kind == "file" else None
    if block is None:
        read = read_rows(source, encoding=encoding)
        return read.rows[:count], read.columns
    seen = _look_at(block, _keep_rows)
    return seen.result[:count], seen.columns


def _keep_rows(rows: Sequence[Row], log: FindingLog) -> list[Row]:
    return list(rows)


def _first_block(path: Path, encoding: str) -> _Block | None:
    """The first block of a file of JSONL in UTF-8; None for everything else, which is read whole."""
    head = head_of(path)
    if encoding not in ("auto", "utf-8") or is_columnar(head, path.suffix.lower()) is not None:
        return None
    block = next(iter(_Blocks(path, str(path))), None)
    if block is None or not block.data.strip():
        return None
    try:
        text = decode(str(path), block.data, encoding).text
        if recognise_kind(unpacked_name(path), text, str(path)) != "jsonl":
            return None
    except DataError:  # said by `read_rows`, with the whole file at hand
        return None
    # An object over many lines looks like JSONL as long as its end is not in sight.
    lines = [line.strip() for line in text.split("\n", _LOOK_AT)[:_LOOK_AT] if line.strip()]
    parser = JsonParser()
    whole = lines[0] not in ("{", "[") and any(isinstance(parser.parse(line).value, dict) for line in lines)
    return block if whole else None


class _Blocks:
    """The blocks of a file; `damage` and `last_line` are known once all are read."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self.damage: str | None = None
        self.last_line = 1

    def __iter__(self) -> Iterator[_Block]:
        """Blocks of whole lines."""
        packing = packing_of(head_of(self.path))
        unpacked = Unpacked(self.path, packing) if packing is not None else None
        chunks = iter(unpacked) if unpacked is not None else _chunks(self.path)
        parts: list[bytes] = []
        size = 0
        first = 1
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size < BLOCK or b"\n" not in chunk:
                continue
            data = b"".join(parts)
            end = data.rindex(b"\n") + 1
            yield _Block(data[:end], first, self.source)
            first += _line_ends(data[:end])
            parts, size = [data[end:]], len(data) - end
        rest = b"".join(parts)
        if rest:
            yield _Block(rest, first, self.source)
        self.last_line = first + _line_ends(rest)
        self.damage = unpacked.damage if unpacked is not None else None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def _look_at(block: _Block, look: Look[Result]) -> _Seen[Result]:
    """The work on one block, in a worker."""
    log = NoteTaker(block.source)
    data = block.data.removeprefix(b"\xef\xbb\xbf") if block.first_line == 1 else block.data
    try:
        text, bad_byte = data.decode(), None
    except UnicodeDecodeError:
        decoded = decode(block.source, data, "utf-8", block.first_line)
        text, bad_byte = decoded.text, decoded.bad_byte
    rows, left_out = read_json_lines(text, log, bad_byte, block.first_line)
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return _Seen(look(rows, log), log.notes, len(rows), left_out, columns)


def _in_order(pool: ProcessPoolExecutor, blocks: _Blocks, look: Look[Result], workers: int) -> Iterator[_Seen[Result]]:
    """Results in the order of the blocks, with no more blocks under way than keep the workers busy."""
    waiting: deque[Future[_Seen[Result]]] = deque()
    for block in blocks:
        waiting.append(pool.submit(_look_at, block, look))
        if len(waiting) > workers + 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _gather(seen: Iterator[_Seen[Result]], log: FindingLog, blocks: _Blocks) -> Scan[Result]:
    results: list[Result] = []
    columns: dict[str, None] = {}
    rows = left_out = 0
    for part in seen:
        results.append(part.result)
        rows += part.rows
        left_out += part.left_out
        columns.update(dict.fromkeys(part.columns))
        for code, line, detail, field in part.notes:
            log.add(code, line, detail, field=field)
    if blocks.damage is not None:
        log.add("rest_unread", blocks.last_line, blocks.damage)
        left_out += 1
    return Scan(results, log.findings(), rows + left_out, left_out, tuple(columns))


def _scan_whole(source: str | Path, look: Look[Result], encoding: str) -> Scan[Result]:
    read = read_rows(source, encoding=encoding)
    log = FindingLog(read.rows[0].source if read.rows else str(source))
    results = [look(read.rows[start : start + BATCH], log) for start in range(0, len(read.rows), BATCH)]
    return Scan(results, [*read.findings, *log.findings()], len(read.rows) + read.left_out, read.left_out, read.columns)


def _context() -> Any:
    """Workers are copies of this process where that is safe: with threads or torch in it, they start afresh."""
    plain = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if plain else "spawn")
