"""Span annotations: a JSON list of marked stretches of the input, each with a type."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """One marked stretch: its type, its text, and the character on which it begins (0-based)."""

    start: int
    type: str
    text: str


def parse_spans(value: Any) -> list[Span] | str:
    """Spans in order of their start, or what is wrong with the value.

    `value` is a list of objects, or JSON text of one, each with `start`, `type` and its text under `entity` or `text`.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            return f"not JSON: {error}"
    if not isinstance(value, list):
        return "not a list"
    spans = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            return f"span {number} is not an object"
        text = item.get("entity", item.get("text"))
        start = item.get("start")
        if not isinstance(start, int) or isinstance(start, bool):
            return f"span {number} has no whole number as start"
        if not isinstance(item.get("type"), str):
            return f"span {number} has no type"
        if not isinstance(text, str):
            return f"span {number} has no text (entity or text)"
        spans.append(Span(start, item["type"], text))
    return sorted(spans, key=lambda span: span.start)


def texts_of(spans: Collection[Span], types: Collection[str]) -> str:
    """The texts of the spans of these types, as a JSON list."""
    return json.dumps([span.text for span in spans if span.type in types], ensure_ascii=False)
