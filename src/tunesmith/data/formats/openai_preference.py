"""OpenAI's preference rows (DPO).

`{"input": {"messages": […], "tools": …}, "preferred_output": [m], "non_preferred_output": [m]}`; the API reference
calls the two `preferred_completion` and `non_preferred_completion`, and both are read.
"""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import read_tools
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import lost_weights, openai_message, shared_turns, tools_of, without_none
from tunesmith.data.formats.preference import read_sides
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row

CHOSEN = ("preferred_output", "preferred_completion")
REJECTED = ("non_preferred_output", "non_preferred_completion")


class OpenAIPreference:
    """A conversation with a better and a worse answer."""

    name = "openai_dpo"
    title = "OpenAI preference (DPO)"
    columns = ("input", *CHOSEN, *REJECTED)
    kinds: frozenset[Kind] = frozenset({"preference"})
    keeps_others = False

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with an input and both outputs."""
        chosen, rejected = sample.any(*CHOSEN), sample.any(*REJECTED)
        if chosen is None or rejected is None or not sample.has("input"):
            return None
        return Recognition(1.0, f"input, {chosen} and {rejected}")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The row's two conversations."""
        given = row.values.get("input")
        if not isinstance(given, dict):
            log.add("messages_not_list", row.line, "input is not an object with messages", field="input")
            return None
        chosen = next((row.values[name] for name in CHOSEN if name in row.values), None)
        rejected = next((row.values[name] for name in REJECTED if name in row.values), None)
        tools = read_tools(given.get("tools") or given.get("functions"), row.line, log)
        if tools is None:
            return None
        return read_sides(given.get("messages"), chosen, rejected, row, log, tools=tools, options=given)

    def losses(self, example: Example) -> list[str]:
        """Answers of several turns: OpenAI takes one message per side."""
        cut = shared_turns(example.messages, example.rejected)
        long = len(example.messages) > cut + 1 or len(example.rejected) > cut + 1
        return without_none(
            [
                "turns of an answer but its last" if long else None,
                lost_weights((*example.messages[cut:], *example.rejected[cut:])),
            ]
        )

    def write(self, example: Example) -> dict[str, Any]:
        """A row OpenAI's preference tuning takes; where an answer has several turns, they become input."""
        given: dict[str, Any] = {"messages": [openai_message(m) for m in example.messages[:-1]]}
        if example.tools:
            given["tools"] = tools_of(example)
        if example.parallel_tool_calls is not None:
            given["parallel_tool_calls"] = example.parallel_tool_calls
        chosen, rejected = openai_message(example.messages[-1]), openai_message(example.rejected[-1])
        for side in (chosen, rejected):
            side.pop("weight", None)
        return {"input": given, "preferred_output": [chosen], "non_preferred_output": [rejected]}


FORMAT = OpenAIPreference()
