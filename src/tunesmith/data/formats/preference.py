"""Preferences as TRL has them: `prompt`, `chosen`, `rejected`, as texts or as lists of messages.

The prompt may be missing: it is then what both answers begin with. LLaMA-Factory's `chosen_messages` and
`rejected_messages` and AutoTrain's `prompt, text, rejected_text` are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.data.chat import expected_of, parallel_of, read_tools, read_turns, shown
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.messages import (
    lost_parallel,
    lost_weights,
    shared_turns,
    template_message,
    tools_of,
    without_none,
)
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Example, Kind, Row

_PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"), ("text", "rejected_text"))
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class Preference:
    """A prompt with a better and a worse answer."""

    name = "preference"
    title = "preference: prompt, chosen, rejected"
    columns = ("prompt", *(name for pair in _PAIRS for name in pair), "tools", "parallel_tool_calls")
    kinds: frozenset[Kind] = frozenset({"preference"})
    keeps_others = True

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with both answers, and no conversation under another name."""
        if sample.any("conversations", "instruction"):
            return None
        pair = next((pair for pair in _PAIRS if sample.has(*pair)), None)
        return Recognition(0.95, " and ".join(pair)) if pair is not None else None

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The row's two conversations."""
        pair = next((pair for pair in _PAIRS if pair[0] in row.values or pair[1] in row.values), _PAIRS[0])
        chosen, rejected = (row.values.get(name) for name in pair)
        tools = read_tools(row.values.get("tools"), row.line, log)
        if tools is None:
            return None
        return read_sides(row.values.get("prompt"), chosen, rejected, row, log, tools=tools, options=row.values)

    def losses(self, example: Example) -> list[str]:
        """Weights, and whether calls may be parallel."""
        turns = (*example.messages, *example.rejected)
        return without_none([lost_weights(turns), lost_parallel(example)])

    def write(self, example: Example) -> dict[str, Any]:
        """A row of TRL's conversational preference type."""
        cut = shared_turns(example.messages, example.rejected)
        row: dict[str, Any] = {
            "prompt": [template_message(m) for m in example.messages[:cut]],
            "chosen": [template_message(m) for m in example.messages[cut:]],
            "rejected": [template_message(m) for m in example.rejected[cut:]],
        }
        return row | ({"tools": tools_of(example)} if example.tools else {})


def read_sides(
    prompt: Any,
    chosen: Any,
    rejected: Any,
    row: Row,
    log: FindingLog,
    *,
    tools: tuple[str, ...],
    options: Mapping[str, Any],
) -> Content | None:
    """Both conversations of a preference, from a prompt (a text, messages, or nothing) and two answers."""
    before = _messages(prompt, "user")
    if before is None:
        log.add("messages_not_list", row.line, f"the prompt is {shown(prompt)}", field="prompt")
        return None
    whole: list[Any] = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side is None or side == "" or side == []:
            log.add("empty_answer", row.line, f"there is no {name} answer", field=name)
            return None
        after = _messages(side, "assistant")
        if after is None:
            log.add("messages_not_list", row.line, f"{name} is {shown(side)}", field=name)
            return None
        whole.append([*before, *after])
    if not before and isinstance(chosen, str) and isinstance(rejected, str):
        whole = _without_prompt(chosen, rejected)
    better = read_turns(whole[0], row.line, log, field="chosen")
    worse = read_turns(whole[1], row.line, log, field="rejected") if better is not None else None
    if better is None or worse is None:
        return None
    if better == worse:
        log.add("preference_equal", row.line)
        return None
    if shared_turns(better, worse) == 0:
        log.add("preference_apart", row.line)
        return None
    return Content(better, expected_of(better), tools, parallel_of(options), worse)


def _messages(value: Any, role: str) -> list[Any] | None:
    """A text, a message or a list of them, as a list of messages; None for anything else."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [value]
    return value if isinstance(value, list) else None


def _without_prompt(chosen: str, rejected: str) -> list[Any]:
    """The messages of two texts that begin with their prompt: told apart by speakers, or at the last common space."""
    if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
        return [_dialogue(chosen), _dialogue(rejected)]
    limit = min(len(chosen), len(rejected))
    same = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
    cut = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same)) + 1
    prompt = {"role": "user", "content": chosen[:cut].rstrip()}
    return [[prompt, {"role": "assistant", "content": side[cut:]}] for side in (chosen, rejected)]


def _dialogue(text: str) -> list[Any]:
    pieces = _SPEAKER.split(text)[1:]
    return [{"role": _ROLES[name], "content": said} for name, said in zip(pieces[::2], pieces[1::2], strict=True)]


FORMAT = Preference()
