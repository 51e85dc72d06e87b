"""TRL's prompt and completion as lists of messages: only the completion is learnt.

So a conversation whose earlier answers have weight 0 is written this way, and read back as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunesmith.data.chat import expected_of, parallel_of, read_tools, read_turns
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import lost_parallel, template_message, tools_of, without_none
from tunesmith.data.formats.rated import turn_of
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row


class TRLCompletion:
    """A conversation of which the last answer is learnt."""

    name = "trl_completion"
    title = "TRL prompt and completion, as messages"
    columns = ("prompt", "completion", "tools", "parallel_tool_calls")
    kinds: frozenset[Kind] = frozenset({"answer"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows whose prompt is a list of messages, with a completion."""
        if (
            not sample.has("completion")
            or sample.any("chosen", "rejected", "label")
            or not prompts_are_messages(sample)
        ):
            return None
        return Recognition(0.95, "prompt and completion that are lists of messages")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """Both as one conversation; answers inside the prompt have weight 0."""
        before = turn_of(row.values.get("prompt"), "user")
        both = [*before, *turn_of(row.values.get("completion"), "assistant")]
        turns = read_turns(both, row.line, log, field="completion")
        tools = read_tools(row.values.get("tools"), row.line, log)
        if turns is None or tools is None:
            return None
        asked = (replace(m, weight=0.0) if m.role == "assistant" else m for m in turns[: len(before)])
        turns = (*asked, *turns[len(before) :])
        return Content(turns, expected_of(turns), tools, parallel_of(row.values))

    def losses(self, example: Example) -> list[str]:
        """Weights other than 0 before and 1 at the end, and whether calls may be parallel."""
        earlier = any(m.weight for m in example.messages[:-1] if m.role == "assistant")
        uneven = earlier or example.messages[-1].weight != 1
        weights = "weights of answers (only the last one would be learnt)" if uneven else None
        return without_none([weights, lost_parallel(example)])

    def write(self, example: Example) -> dict[str, Any]:
        """A row of TRL's conversational prompt-completion type."""
        turns = [template_message(m) for m in example.messages]
        row: dict[str, Any] = {"prompt": turns[:-1], "completion": turns[-1:]}
        return row | ({"tools": tools_of(example)} if example.tools else {})


def prompts_are_messages(sample: Sample) -> bool:
    """Whether there is a column `prompt`, and it holds lists of messages."""
    prompts = list(sample.cells("prompt"))
    return bool(prompts) and all(isinstance(v, list) and v and isinstance(v[0], dict) for v in prompts)


FORMAT = TRLCompletion()
