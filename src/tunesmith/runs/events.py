"""The event log of a run: one JSON object per line, only ever appended to.

Progress displays, service events and pages all read it. A line counts once its newline is there: what a killed process
left of its last line is cut off when the log is opened again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.errors import VerificationError
from tunesmith.runs.atomic import resource_error, write_all

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """An append-only log with listeners that hear each event after it is written.

    Only the process that holds the run's lock may have it open. Raises `ResourceError` where the file cannot be written
    and `VerificationError` where it holds something else than events.
    """

    def __init__(self, path: Path, listeners: Sequence[Listener] = ()) -> None:
        self.path = path
        self.listeners = list(listeners)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise resource_error(path, error) from error
        try:
            self._size = _cut_torn_line(self._descriptor)
            self._next = _last_seq(path) + 1
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event and tell it to the listeners; returns it with `seq`, `time` (ISO 8601, UTC) and `kind`.

        Numbers that JSON has no word for (NaN, infinities) are written as null.
        """
        event = {
            "seq": self._next,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            **fields,
        }
        line = (json.dumps(event_json(event), ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            write_all(self._descriptor, line)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise resource_error(self.path, error) from error
        self._size += len(line)
        self._next += 1
        for listener in self.listeners:
            listener(event)
        return event

    def relay(self, event: Mapping[str, Any]) -> None:
        """Append an event that comes whole, its `kind` with its fields: a listener for those who hold no log."""
        self.write(event["kind"], **{key: value for key, value in event.items() if key != "kind"})

    def read(self) -> list[dict[str, Any]]:
        """All events so far."""
        return list(read_events(self.path))

    def close(self) -> None:
        """Flush to the disk and close; closing twice is harmless."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.fsync(descriptor)
            os.close(descriptor)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, also while another process writes it; a last line without its end is left out.

    Raises `VerificationError` naming a line that is no event.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise VerificationError(
                    "this line is not an event", where=f"{path}, line {number}", expected="a JSON object",
                    fix="remove the line, or start again with --new",
                )  # fmt: skip
            yield event


def event_json(value: Any) -> Any:
    """A value as JSON knows it: paths as text, numpy and torch scalars as numbers, NaN and infinities as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Path():
            return str(value)
        case Mapping():
            return {str(key): event_json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [event_json(inner) for inner in value]
    if hasattr(value, "item"):
        return event_json(value.item())
    raise TypeError(f"an event cannot hold {type(value).__name__}")


def _cut_torn_line(descriptor: int) -> int:
    """Remove what follows the last newline; returns the size that is left, in bytes."""
    size = os.fstat(descriptor).st_size
    end, block = size, 65_536
    while end > 0:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _last_seq(path: Path) -> int:
    last = 0
    for event in read_events(path):
        last = max(last, int(event.get("seq", 0)))
    return last
