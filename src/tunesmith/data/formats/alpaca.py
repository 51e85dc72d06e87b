"""Alpaca: `instruction`, `input`, `output`, and LLaMA-Factory's `system` and `history` beside them.

With `chosen` and `rejected` in place of the output it is a preference, with `kto_tag` a rated answer.
"""

from __future__ import annotations

from typing import Any

from tunesmith.data.chat import expected_of, read_turns
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import (
    has_system,
    lost_developer,
    lost_names,
    lost_tools,
    lost_weights,
    shared_turns,
    without_none,
)
from tunesmith.data.formats.preference import read_sides
from tunesmith.data.formats.rated import rated
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Example, Kind, Row


class Alpaca:
    """An instruction, perhaps with an input, and its output."""

    name = "alpaca"
    title = "Alpaca: instruction, input, output"
    columns = ("instruction", "input", "output", "system", "history", "chosen", "rejected", "kto_tag")
    kinds: frozenset[Kind] = frozenset({"answer", "preference", "rated"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with an instruction and an output, or two to choose from."""
        if not sample.has("instruction") or sample.any("instances", "context", "response", "completion", "answer"):
            return None
        if sample.has("output"):
            return Recognition(0.9, f"the columns {', '.join(n for n in self.columns if sample.has(n))}")
        return Recognition(0.9, "instruction, chosen and rejected") if sample.has("chosen", "rejected") else None

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The turns before, then instruction and input as one question, then the output."""
        values = row.values
        needed = ["instruction", *(["chosen", "rejected"] if "chosen" in values and "output" not in values else [])]
        missing = [name for name in (needed if len(needed) > 1 else [*needed, "output"]) if name not in values]
        for name in missing:
            log.add("missing_column", row.line, repr(name), field=name)
        before = _history(values.get("history"))
        if before is None:
            log.add("messages_not_list", row.line, "history is not a list of pairs", field="history")
        if missing or before is None:
            return None
        asked, more = (cell_text(values.get(name)) for name in ("instruction", "input"))
        question = "\n\n".join(part for part in (asked, more) if part.strip())
        system = cell_text(values.get("system"))
        raw = [
            *([{"role": "system", "content": system}] if system.strip() else []),
            *before,
            {"role": "user", "content": question},
        ]
        if len(needed) > 1:
            return read_sides(raw, values["chosen"], values["rejected"], row, log, tools=(), options={})
        whole = [*raw, {"role": "assistant", "content": cell_text(values["output"])}]
        if values.get("kto_tag") is not None:
            return rated(whole, row, log, ())
        turns = read_turns(whole, row.line, log, field="output")
        return Content(turns, expected_of(turns)) if turns is not None else None

    def losses(self, example: Example) -> list[str]:
        """Everything but texts: who speaks, weights, tools."""
        turns = (*example.messages, *example.rejected)
        cut = shared_turns(example.messages, example.rejected) if example.rejected else 0
        long = example.rejected and (len(example.messages) > cut + 1 or len(example.rejected) > cut + 1)
        system = example.messages[0].content if has_system(example.messages) else "-"
        return without_none(
            [
                lost_tools(example),
                "parallel_tool_calls" if example.parallel_tool_calls is not None else None,
                lost_weights(turns),
                lost_names(turns),
                lost_developer(example.messages),
                "turns of an answer but its last" if long else None,
                "a system message without text" if not system.strip() else None,
            ]
        )

    def write(self, example: Example) -> dict[str, Any]:
        """A row LLaMA-Factory takes; earlier turns are its history. Calls of tools are left out."""
        turns = [m for m in example.messages if m.role != "tool"]
        body = turns[1:] if has_system(turns) else turns
        asked = [m.content for m in body if m.role == "user"]
        answered = [m.content for m in body if m.role == "assistant" and not (m.tool_calls and m is not body[-1])]
        row: dict[str, Any] = {"instruction": asked[-1], "input": ""}
        if example.kind == "preference":
            row |= {"chosen": example.messages[-1].content, "rejected": example.rejected[-1].content}
        else:
            row["output"] = example.expected if body[-1].tool_calls else body[-1].content
        if has_system(turns):
            row["system"] = turns[0].content
        if len(asked) > 1:
            row["history"] = [list(pair) for pair in zip(asked[:-1], answered[:-1], strict=False)]
        return row | ({"kto_tag": example.rating} if example.rating is not None else {})


def _history(value: Any) -> list[Any] | None:
    """Earlier turns as messages; None where they are no pairs."""
    if not value:
        return []
    if not isinstance(value, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in value):
        return None
    return [
        {"role": role, "content": text}
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


FORMAT = Alpaca()
