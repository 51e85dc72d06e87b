"""Structured logs: a JSON object a line, to a file that is rotated or to standard error. Never a body, a key, a query.

`access` lines say what came of each request; every line of a request has its `request_id`, which the client has too.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.service.entrance import Visit

FILE_BYTES, FILES = 10_000_000, 5
"""Size at which a new file is begun, and how many old ones are kept."""
LONGEST_PATH = 200

access = logging.getLogger("tunesmith.access")

_OWN = frozenset({"request_id", "path"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name in _OWN if (value := getattr(record, name, None)) is not None})
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_visit(visit: Visit) -> None:
    """One line for a request that ended; those of health checks only where the level is debug."""
    level = logging.DEBUG if visit.path in _QUIET else logging.INFO
    if not access.isEnabledFor(level):
        return
    first = None if visit.seconds_to_begin is None else round(visit.seconds_to_begin * 1000, 1)
    fields = {
        "request_id": visit.request_id,
        "method": visit.method[:20],
        "path": visit.path[:LONGEST_PATH],
        "route": visit.route,
        "status": visit.status,
        "bytes": visit.bytes,
        "first_byte_ms": first,
        "ms": round(visit.seconds * 1000, 1),
        "key": visit.key_id,
    }
    access.log(level, "request", extra={"fields": fields})


def configure(place: Path | None) -> None:
    """Send all logs of this process to a file, or with None to standard error.

    Raises `ResourceError` where the file cannot be written.
    """
    handler: logging.Handler
    if place is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(
                place, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise ResourceError(
                f"the log cannot be written: {(error.strerror or str(error)).lower()}",
                where=str(place),
                fix="choose another file with --log, or - for standard error",
            ) from error
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # `access` above says more
