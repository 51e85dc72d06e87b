"""Rows of any number, a block at a time and on all cores: what `check` looks through before anything is trained.

    scan = scan_rows("rows.jsonl", look, processes=2)

A JSONL file, packed or not, is cut into blocks of whole lines by one process, which only counts line ends, and each
block is decoded, parsed and looked at by a worker. Of everything else one process reads the rows, as a CSV's open
quotation mark or a JSON array's broken element can reach over any distance, and workers look at them in batches. What
comes back is findings and whatever `look` made of the rows. So memory holds a few blocks, and the order of results is
that of the file; only plain text, tagged text and encodings other than UTF-8 are read whole.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import read_json_lines
from tunesmith.data.reading import HEAD_ROWS, columns_of, head_of, kind_of, open_rows
from tunesmith.data.sources.address import Address, address_of
from tunesmith.data.sources.columnar import is_columnar
from tunesmith.data.sources.decoding import TextStream, decode
from tunesmith.data.sources.packed import Unpacked, packing_of
from tunesmith.data.types import Finding, Row
from tunesmith.errors import ResourceError

Given = TypeVar("Given")
Result = TypeVar("Result")

BLOCK = 4 << 20
"""Bytes of a block: some thousand rows, and small beside what a worker makes of them."""
BATCH = 5_000
"""Rows looked at together where they are not in blocks of lines."""
_WORTH_PROCESSES = 16 << 20
"""Bytes of a file below which starting workers costs more than it saves."""
_WORTH_BATCHES = 4
"""The same in batches, for sources that are no file."""


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


class _Gathered(Generic[Result]):
    """What came back so far."""

    def __init__(self, source: str) -> None:
        self.log = FindingLog(source)
        self.results: list[Result] = []
        self.rows = 0
        self.columns: dict[str, None] = {}

    def take(self, seen: _Seen[Result]) -> None:
        """Add what came of the next block."""
        self.results.append(seen.result)
        self.rows += seen.rows
        self.columns.update(dict.fromkeys(seen.columns))
        self.log.absorb(seen.log)

    def finished(
        self, earlier: Sequence[Finding], left_out: int = 0, columns: tuple[str, ...] | None = None
    ) -> Scan[Result]:
        """The scan, with what the reader of a whole source found and left out."""
        left_out += self.log.left_out
        findings = [*earlier, *self.log.findings()]
        return Scan(self.results, findings, self.rows + left_out, left_out, columns or tuple(self.columns))


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Result]):
    """What a worker sends back."""

    result: Result
    log: FindingLog
    rows: int
    columns: tuple[str, ...]


def scan_rows(
    source: str | Path, look: Look[Result], *, encoding: str = "auto", processes: int | None = None
) -> Scan[Result]:
    """Read all rows of a source and hand them to `look`, in blocks and in the order of the source.

    `processes` is the number of workers, by default one per core; small sources are looked at in this process. Raises
    `DataError` where nothing can be read at all; see `read_rows`.
    """
    address = address_of(source)
    if _is_lines(address, encoding):
        blocks = _Blocks(address.path, address.shown)
        scan = _gather(partial(_look_at_block, look=look), blocks, address, processes)
        if blocks.damage is not None:
            scan.log.leave_out("rest_unread", blocks.last_line, blocks.damage)
        return scan.finished(())
    opened = open_rows(source, encoding=encoding)
    batches = _batches(opened.rows)
    scan = _gather(partial(_look_at_rows, look=look, source=address.shown), batches, address, processes)
    return scan.finished(opened.log.findings(), opened.log.left_out, opened.columns)


def first_rows(source: str | Path, count: int, *, encoding: str = "auto") -> tuple[list[Row], tuple[str, ...]]:
    """The first rows of a source, and the columns of the first `HEAD_ROWS`: for deciding what they are."""
    opened = open_rows(source, encoding=encoding)
    rows = list(islice(opened.rows, max(count, HEAD_ROWS) if opened.columns is None else count))
    columns = opened.columns
    if columns is None:
        columns = columns_of(rows)
    return rows[:count], columns


def map_in_order(
    work: Callable[[Given], Result], jobs: Iterable[Given], processes: int | None = None, *, fresh: bool = False
) -> Iterator[Result]:
    """`work` done on each job, on all cores; results in the order of the jobs, of which few are under way at a time.

    `work` and its jobs go to other processes: a function of a module, or `functools.partial` of one. With one process
    everything is done here. `fresh` processes begin empty, for callers that hold much: a copy of a process shares its
    memory only until either of them writes to it, and counting references and collecting garbage does. Raises
    `ResourceError` where one of them dies.
    """
    workers = processes if processes is not None else os.cpu_count() or 1
    if workers == 1:
        yield from map(work, jobs)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=_context(fresh), initializer=_end_with_parent) as pool:
            waiting: deque[Future[Result]] = deque()
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process that looks at a part of the rows ended before its work was done",
            expected=f"room for {workers} processes",
            fix="free some memory; a script of your own must call Tunesmith under if __name__ == '__main__':",
        ) from error


def _is_lines(address: Address, encoding: str) -> bool:
    """Whether a source is a file of JSONL in UTF-8, which can be cut anywhere between two lines."""
    if address.kind != "file" or encoding not in ("auto", "utf-8"):
        return False
    if is_columnar(head_of(address.path), address.path.suffix.lower()) is not None:
        return False
    return kind_of(TextStream(address.path, encoding)) == "jsonl"


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


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
            if size < BLOCK or (b"\n" not in chunk and b"\r" not in chunk):
                continue
            data = b"".join(parts)
            # Old files end their lines with CR alone; one at the very end may be half of a CRLF.
            end = (data.rfind(b"\n") if b"\n" in data else data.rfind(b"\r", 0, len(data) - 1)) + 1
            if end:
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


def _look_at_block(block: _Block, look: Look[Result]) -> _Seen[Result]:
    """The work on one block of lines, in a worker."""
    log = FindingLog(block.source)
    data = block.data.removeprefix(b"\xef\xbb\xbf") if block.first_line == 1 else block.data
    try:
        text, bad_byte = data.decode(), None
    except UnicodeDecodeError:
        decoded = decode(block.source, data, "utf-8", block.first_line)
        text, bad_byte = decoded.text, decoded.bad_byte
    rows = read_json_lines(text, log, bad_byte, block.first_line)
    return _Seen(look(rows, log), log, len(rows), columns_of(rows))


def _look_at_rows(rows: Sequence[Row], look: Look[Result], source: str) -> _Seen[Result]:
    """The work on rows that were read already, in a worker."""
    log = FindingLog(source)
    return _Seen(look(rows, log), log, len(rows), columns_of(rows))


def _gather(
    work: Callable[[Given], _Seen[Result]], jobs: Iterable[Given], address: Address, processes: int | None
) -> _Gathered[Result]:
    gathered: _Gathered[Result] = _Gathered(address.shown)
    if address.kind == "file" and address.path.stat().st_size < _WORTH_PROCESSES:
        processes = 1
    elif address.kind != "file" and processes is None:
        rest = iter(jobs)
        jobs = list(islice(rest, _WORTH_BATCHES))
        processes = None if len(jobs) == _WORTH_BATCHES else 1
        jobs = chain(jobs, rest)
    for seen in map_in_order(work, jobs, processes):
        gathered.take(seen)
    return gathered


def _end_with_parent() -> None:
    """Have this worker end when the process that started it is gone, however that ended: nobody else would end it."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _context(fresh: bool) -> Any:
    """Workers are copies of this process where that is wanted and safe: not with threads or torch in it."""
    plain = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if plain and not fresh else "spawn")
