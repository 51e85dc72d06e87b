"""Questions without answers: OpenAI's rows for reinforcement fine-tuning, whose other fields a grader looks at."""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import CHAT_FIELDS, read_chat
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import openai_message, tools_of
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row


class Prompts:
    """Conversations that end with the user. All other fields are the grader's `item`, and kept."""

    name = "openai_rft"
    title = "OpenAI reinforcement fine-tuning (questions)"
    columns = CHAT_FIELDS
    kinds: frozenset[Kind] = frozenset({"prompt"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows whose messages nearly all end with the user."""
        lists = [value for value in sample.cells("messages") if isinstance(value, list) and value]
        asked = sum(isinstance(turns[-1], dict) and turns[-1].get("role") == "user" for turns in lists)
        if not lists or asked < 0.9 * len(lists):
            return None
        return Recognition(0.98, "conversations that end with a question")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The conversation, up to the question."""
        return read_chat(row.values, row.line, log, final="user")

    def losses(self, example: Example) -> list[str]:
        """None."""
        return []

    def write(self, example: Example) -> dict[str, Any]:
        """The messages; fields for the grader come beside them."""
        row: dict[str, Any] = {"messages": [openai_message(m) for m in example.messages]}
        if example.tools:
            row["tools"] = tools_of(example)
        if example.parallel_tool_calls is not None:
            row["parallel_tool_calls"] = example.parallel_tool_calls
        return row


FORMAT = Prompts()
