"""Pages of lists that are no list of the store: parts of one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.service.http import unknown_cursor
from tunesmith.service.store.interface import Page


def page_of(items: Sequence[Mapping[str, Any]], page: Page) -> tuple[list[Mapping[str, Any]], bool]:
    """A page of items that are given oldest first, and whether there are more. Raises `ApiError` 400 for a cursor that
    names none of them.
    """
    ordered = list(items) if page.order == "asc" else list(reversed(items))
    start = 0
    if page.after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == page.after]
        if not places:
            raise unknown_cursor(page.after)
        start = places[0] + 1
    end = start + page.limit
    return ordered[start:end], end < len(ordered)
