"""Rows of OpenAI's evals: samples of the registry (`input`, `ideal`), and items of the Evals API (`{"item": {…}}`).

In a registry's input, system messages named `example_user` and `example_assistant` are examples that were shown, and
become turns. An item's fields have names of their own; they are read where well-known names leave no doubt, and
`data.columns` or `data.template` says it otherwise (`item.ticket`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.chat import read_turns
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Message, Row

_INPUTS = ("input", "messages", "prompt", "question", "query", "instruction", "text")
_ANSWERS = (
    *("ideal", "expected", "expected_output", "expected_answer", "reference", "reference_answer", "answer", "target"),
    *("label", "correct_label", "ground_truth", "correct_answer", "completion", "output"),
)
_SHOWN = {"example_user": "user", "example_assistant": "assistant"}


class OpenAIEvals:
    """What was asked and the answers that are right; of several the first is learnt."""

    name = "openai_evals"
    title = "OpenAI evals: input and ideal, or items"
    columns = ("input", "ideal", "item", "sample")

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with `input` and `ideal`, or with nothing but an object `item` and perhaps a `sample`."""
        if sample.has("input", "ideal"):
            return Recognition(0.95, "input and ideal")
        if sample.has("item") and {*sample.columns} <= {"item", "sample"} and sample.share("item", dict) == 1.0:
            return Recognition(0.95, "objects under item")
        return None

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The conversation, and the ideal answer or all of them as a JSON list."""
        item = row.values.get("item")
        if isinstance(item, Mapping):
            names = _fields(item)
            if names is None:
                log.add("eval_item_unclear", row.line, f"its fields are {', '.join(map(str, item))}", field="item")
                return None
            asked, right = item[names[0]], item[names[1]]
        else:
            missing = [name for name in ("input", "ideal") if row.values.get(name) is None]
            for name in missing:
                log.add("missing_column", row.line, repr(name), field=name)
            if missing:
                return None
            asked, right = row.values["input"], row.values["ideal"]
        return with_answers(asked, right, row, log)


def with_answers(asked: Any, right: Any, row: Row, log: FindingLog) -> Content | None:
    """A conversation (a text or a list of turns) with the answers that are right, or None with every reason noted."""
    turns = _turns(asked, row, log)
    answers = _answers(right)
    if answers is None:
        log.add("ideal_not_text", row.line)
    elif not answers:
        log.add("empty_answer", row.line)
    if turns is None or not answers:
        return None
    if len(answers) > 1:
        log.add("several_answers", row.line)
    expected = answers[0] if len(answers) == 1 else json.dumps(answers, ensure_ascii=False)
    return Content((*turns, Message("assistant", answers[0])), expected)


def _turns(asked: Any, row: Row, log: FindingLog) -> tuple[Message, ...] | None:
    if isinstance(asked, list):
        return read_turns([_spoken(turn) for turn in asked], row.line, log, field="input", final="user")
    text = cell_text(asked)
    if not text.strip():
        log.add("empty_prompt", row.line)
        return None
    return (Message("user", text),)


def _spoken(turn: Any) -> Any:
    """A shown example as the turn it stands for: nothing of it is learnt, it is what the model is asked with."""
    role = _SHOWN.get(str(turn.get("name"))) if isinstance(turn, dict) and turn.get("role") == "system" else None
    if role is None:
        return turn
    spoken = {**turn, "role": role, **({"weight": 0} if role == "assistant" else {})}
    spoken.pop("name")
    return spoken


def _answers(right: Any) -> list[str] | None:
    """The different right answers; None where they are no texts. Numbers are texts as they are written."""
    several = right if isinstance(right, list) else [right]
    if any(not isinstance(one, str | int | float) for one in several):
        return None
    texts = (one if isinstance(one, str) else json.dumps(one) for one in several)
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _fields(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of input and answer: one of each is well known, or there are two fields and one of them is."""
    inputs = [name for name in item if name in _INPUTS]
    answers = [name for name in item if name in _ANSWERS]
    if len(inputs) == 1 and len(answers) == 1:
        return inputs[0], answers[0]
    if len(item) == 2 and len(answers) == 1:
        return next(name for name in item if name != answers[0]), answers[0]
    if len(item) == 2 and len(inputs) == 1:
        return inputs[0], next(name for name in item if name != inputs[0])
    return None


FORMAT = OpenAIEvals()
