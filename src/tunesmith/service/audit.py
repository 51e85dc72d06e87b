"""Who changed what: an entry in the store for every request that changes something, written before its answer goes out.

Asking models is not a change, and requests that were refused for their key leave nothing: otherwise a stranger could
fill the disk.
"""

from __future__ import annotations

import logging
import time

from starlette.concurrency import run_in_threadpool

from tunesmith.service.auth import asks_a_model
from tunesmith.service.entrance import Visit
from tunesmith.service.ids import new_id
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import AuditEntry

log = logging.getLogger("tunesmith.service")

LONGEST_TARGET = 300
"""Characters of a path that an entry keeps."""

_REFUSED = frozenset({401, 404, 405, 413, 429, 503})


def is_change(visit: Visit) -> bool:
    """Whether a request, as it was answered, is one to remember."""
    if visit.method in ("GET", "HEAD", "OPTIONS") or visit.route == "unmatched" or visit.status in _REFUSED:
        return False
    return not asks_a_model(visit.method, visit.path)


class Audit:
    """Writes entries; a store that cannot take one does not undo the change, and the log has the entry then."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def __call__(self, visit: Visit) -> None:
        if not is_change(visit):
            return
        entry = AuditEntry(
            id=new_id("audit"),
            created_at=int(time.time()),
            key_id=visit.key_id,
            action=f"{visit.method} {visit.route}",
            target=visit.path[:LONGEST_TARGET],
            status=visit.status,
            request_id=visit.request_id,
        )
        try:
            await run_in_threadpool(self.store.add, entry)
        except Exception:
            # Whatever the store's trouble is, the answer is true and must go out.
            log.exception("audit entry not stored: %s", entry, extra={"request_id": visit.request_id})
