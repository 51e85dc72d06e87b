"""Single answers judged good or bad (TRL's unpaired preference).

`prompt`, `completion` and `label`, or `messages` and `label`; LLaMA-Factory calls the label `kto_tag`.
"""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import expected_of, parallel_of, read_tools, read_turns, shown
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import lost_parallel, lost_weights, template_message, tools_of, without_none
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row

_LABELS = ("label", "kto_tag")
_WORDS = {"true": True, "1": True, "false": False, "0": False}


class Rated:
    """A conversation whose last answer is good or bad."""

    name = "rated"
    title = "unpaired preference: prompt, completion, label"
    columns = ("messages", "prompt", "completion", *_LABELS, "tools", "parallel_tool_calls")
    kinds: frozenset[Kind] = frozenset({"rated"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with a label that is true or false beside an answer."""
        if not is_rated(sample) or not (sample.has("messages") or sample.has("prompt", "completion")):
            return None
        return Recognition(0.95, f"an answer with a {sample.any(*_LABELS)} that is true or false")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The conversation and what is thought of it."""
        raw = row.values.get("messages")
        if raw is None:
            raw = [*turn_of(row.values.get("prompt"), "user"), *turn_of(row.values.get("completion"), "assistant")]
        return rated(raw, row, log, read_tools(row.values.get("tools"), row.line, log))

    def losses(self, example: Example) -> list[str]:
        """Weights, and whether calls may be parallel."""
        return without_none([lost_weights(example.messages), lost_parallel(example)])

    def write(self, example: Example) -> dict[str, Any]:
        """A row of TRL's conversational unpaired preference type."""
        row: dict[str, Any] = {
            "prompt": [template_message(m) for m in example.messages[:-1]],
            "completion": [template_message(example.messages[-1])],
            "label": example.rating,
        }
        return row | ({"tools": tools_of(example)} if example.tools else {})


def is_rated(sample: Sample) -> bool:
    """Whether rows have a label, and it is true or false wherever it says something."""
    label = sample.any(*_LABELS)
    if label is None:
        return False
    read = [read_rating(value) for value in sample.cells(label)]
    return bool(read) and None not in read


def read_rating(value: Any) -> bool | None:
    """True or false, as such, as a number or as text; None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str):
        return _WORDS.get(str(value).strip().lower())
    return None


def rated(raw: Any, row: Row, log: FindingLog, tools: tuple[str, ...] | None) -> Content | None:
    """The content of a conversation with its rating; None with every reason noted."""
    value = next((row.values[name] for name in _LABELS if name in row.values), None)
    rating = read_rating(value)
    if rating is None:
        log.add("rating_unclear", row.line, f"it is {shown(value)}", field="label")
    turns = read_turns(raw, row.line, log)
    if rating is None or turns is None or tools is None:
        return None
    return Content(turns, expected_of(turns), tools, parallel_of(row.values), (), rating)


def turn_of(value: Any, role: str) -> list[Any]:
    """Messages as they are, and a text as one message."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return [value]
    return [{"role": role, "content": value}]


FORMAT = Rated()
