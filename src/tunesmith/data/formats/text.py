"""Texts to be learnt as they are: a column `text`, and files of plain text."""

from __future__ import annotations

from typing import Any

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Example, Kind, Message, Row

_ABOUT = frozenset({"id", "url", "source", "timestamp", "date", "meta", "metadata", "title", "lang", "language"})
"""Columns that say where a text comes from, and are no answer to it."""


class Text:
    """A text alone, without a question."""

    name = "text"
    title = "plain text"
    columns = ("text",)
    kinds: frozenset[Kind] = frozenset({"text"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with nothing to learn but `text`."""
        if not sample.has("text") or any(name.lower() not in _ABOUT for name in sample.columns if name != "text"):
            return None
        return Recognition(0.8, "texts without questions, in the column text")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The text as the only turn, all of it to be learnt."""
        text = cell_text(row.values.get("text"))
        if not text.strip():
            log.add("empty_answer", row.line, field="text")
            return None
        return Content((Message("assistant", text),), text)

    def losses(self, example: Example) -> list[str]:
        """None: a text is a text."""
        return []

    def write(self, example: Example) -> dict[str, Any]:
        """The text under `text`."""
        return {"text": example.messages[0].content}


FORMAT = Text()
