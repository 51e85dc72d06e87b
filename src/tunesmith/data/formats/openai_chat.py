"""OpenAI's chat rows: `{"messages": […], "tools": […], "parallel_tool_calls": …}`, also with `functions`.

Azure's files are the same with a byte-order mark. TRL's `messages` and LLaMA-Factory's text parts are read here too.
"""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import CHAT_FIELDS, read_chat
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import openai_message, tools_of
from tunesmith.data.formats.rated import is_rated
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row


class OpenAIChat:
    """Conversations that end with an answer."""

    name = "chat"
    title = "OpenAI chat messages"
    columns = CHAT_FIELDS
    kinds: frozenset[Kind] = frozenset({"answer"})
    keeps_others = False

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with `messages` that are not rated."""
        if not sample.has("messages") or is_rated(sample):
            return None
        lists = sample.share("messages", list) > 0.5
        return Recognition(0.95 if lists else 0.5, "conversations under messages" if lists else "a column messages")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """See `read_chat`."""
        return read_chat(row.values, row.line, log)

    def losses(self, example: Example) -> list[str]:
        """A share as weight: OpenAI takes 0 and 1."""
        broken = any(0 < m.weight < 1 for m in example.messages)
        return ["weights between 0 and 1"] if broken else []

    def write(self, example: Example) -> dict[str, Any]:
        """A row OpenAI's fine-tuning takes."""
        row: dict[str, Any] = {"messages": [openai_message(m) for m in example.messages]}
        if example.tools:
            row["tools"] = tools_of(example)
        if example.parallel_tool_calls is not None:
            row["parallel_tool_calls"] = example.parallel_tool_calls
        return row


FORMAT = OpenAIChat()
