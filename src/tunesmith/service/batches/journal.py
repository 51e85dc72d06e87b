"""The finished rows of a batch: a file of JSON lines, one flushed to the disk for each row.

A process that dies leaves at most half a line at its end, which is cut off when the file is opened again; the row that
it belonged to is done once more. Each line holds the row's place in the input, so that no row is there twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.service.json_lines import json_line


class Journal:
    """Rows by their place. Safe from several threads; of several processes one has it, until it closes it or dies."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._offsets: dict[int, int] = {}
        self._file = path.open("a+b")
        # A server that has lost its lease may still write its last row; the next one waits for it.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._end = self._read()

    @property
    def places(self) -> frozenset[int]:
        """Of the rows that are finished."""
        return frozenset(self._offsets)

    def add(self, place: int, row: Mapping[str, Any]) -> None:
        """Keep a row; when this returns it is on the disk. A place that is there already is left as it is."""
        data = json_line({"place": place, "row": row})
        with self._lock:
            if place in self._offsets:
                return
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._offsets[place] = self._end
            self._end += len(data)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Places and rows, in the order of the input."""
        with self.path.open("rb") as file:
            for place, offset in sorted(self._offsets.items()):
                file.seek(offset)
                yield place, json.loads(file.readline())["row"]

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Close it and take the file away."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> int:
        """Where the rows begin; returns the end of the last whole one, to which the file is cut."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._offsets.setdefault(json.loads(line)["place"], end)
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        return end
