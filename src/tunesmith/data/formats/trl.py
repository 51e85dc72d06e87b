"""TRL's types but prompt and completion: `messages`, preferences, ratings, texts and prompts, each with `tools`."""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import expected_of, parallel_of, read_tools, read_turns
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import openai_chat, preference, rated, text, trl_completion
from tunesmith.data.formats.messages import lost_parallel, lost_weights, template_message, tools_of, without_none
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row


class TRL:
    """Writes an example of any kind as TRL takes it, and reads any of its types."""

    name = "trl"
    title = "TRL: messages, preference, rated answer, text, prompt"
    columns = (
        "messages",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "label",
        "text",
        "tools",
        "parallel_tool_calls",
    )
    kinds: frozenset[Kind] = frozenset({"answer", "preference", "rated", "text", "prompt"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Prompts alone; the other types are recognised as formats of their own."""
        if sample.any("completion", "chosen", "rejected", "label") or not trl_completion.prompts_are_messages(sample):
            return None
        return Recognition(0.95, "prompts that are lists of messages")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The row as whichever of TRL's types it is."""
        values = row.values
        if "chosen" in values or "rejected" in values:
            return preference.FORMAT.read(row, log)
        if "label" in values:
            return rated.FORMAT.read(row, log)
        if "messages" in values:
            return openai_chat.FORMAT.read(row, log)
        if "completion" in values:
            return trl_completion.FORMAT.read(row, log)
        if "text" in values and "prompt" not in values:
            return text.FORMAT.read(row, log)
        asked = rated.turn_of(values.get("prompt"), "user")
        turns = read_turns(asked, row.line, log, field="prompt", final="user")
        tools = read_tools(values.get("tools"), row.line, log)
        if turns is None or tools is None:
            return None
        return Content(turns, expected_of(turns), tools, parallel_of(values))

    def losses(self, example: Example) -> list[str]:
        """Weights, and whether calls may be parallel."""
        return without_none([lost_weights((*example.messages, *example.rejected)), lost_parallel(example)])

    def write(self, example: Example) -> dict[str, Any]:
        """A row of the type that the example is."""
        match example.kind:
            case "preference":
                return preference.FORMAT.write(example)
            case "rated":
                return rated.FORMAT.write(example)
            case "text":
                return text.FORMAT.write(example)
        name = "prompt" if example.kind == "prompt" else "messages"
        row: dict[str, Any] = {name: [template_message(m) for m in example.messages]}
        return row | ({"tools": tools_of(example)} if example.tools else {})


FORMAT = TRL()
