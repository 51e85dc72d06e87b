"""Tool calls: which function is called, with which arguments, and whether one should be called at all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.extraction import EntityF1, first_json, items, normalise
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import FloatArray, Metric

_ATTEMPT = re.compile(r'<tool_call>|^\s*[\[{]|"(?:name|arguments)"\s*:')
"""What looks like a call; where none can be read in it the answer is unreadable."""
DEEPEST = 100
"""Levels of lists and objects in a call; one with more is not read."""
_ARGUMENTS = ("arguments", "parameters", "args", "input")


@dataclass(frozen=True)
class ToolCalls(TextTask):
    """The calls an answer makes: JSON `{"name": …, "arguments": {…}}`, one, several or a list of them, or a text.

    A text without a call says that none is to be made. OpenAI's `tool_calls` and `function` around a call are read too,
    and arguments given as JSON text. A value that was read is a list of {"name", "arguments"}; [] makes no call.
    `native` says that rows define their tools: then these are offered in the model's own way, which says how to call.
    """

    native: bool = False
    name: ClassVar[str] = "tool_calls"
    default_instruction: ClassVar[str] = "Call the function that does what is asked, if there is one."
    answer_wording: ClassVar[str] = (
        'To call, reply with {"name": …, "arguments": {…}} only (a JSON list of these for several calls); '
        "if no function fits, answer in words."
    )

    @property
    def full_instruction(self) -> str:
        """The instruction; where tools are not offered with the question, how to call."""
        return (self.instruction or self.default_instruction) if self.native else super().full_instruction

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Exactly right calls decide; right names, F1 of arguments, and right decisions whether to call beside it.

        The order of calls does not matter, nor do the case and white space of texts among the arguments, nor 2 for 2.0.
        All else of the arguments does: the order and nesting of lists, "5" for 5, null or [] for an argument left out.
        """
        return (
            MeanMetric("call_accuracy", binary=True, score=lambda a, b: float(_whole(a) == _whole(b))),
            MeanMetric("name_accuracy", binary=True, score=lambda a, b: float(_names(a) == _names(b))),
            ArgumentF1(),
            MeanMetric("decision_accuracy", binary=True, score=lambda a, b: float(bool(a) == bool(b))),
        )

    def parse(self, text: str) -> list[dict[str, Any]] | None:
        """The calls in an answer; None where it begins to call and no call can be read."""
        bare = without_closing(text, self.closing)
        found = calls_in(bare)
        return None if not found and bare.strip() != "[]" and _ATTEMPT.search(bare) else found

    def target(self, example: Example) -> list[dict[str, Any]]:
        """The calls that are expected."""
        return calls_in(example.expected)

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the function that is called, and by how many calls there are."""
        wanted = self.target(example)
        count = len(wanted)
        name = "none" if not wanted else str(wanted[0]["name"]) if count == 1 else "several"
        return {"function": name, "calls": str(count) if count < 3 else "3 and more"}


def calls_in(text: str) -> list[dict[str, Any]]:
    """Every call in a text, in order; [] where there is none."""
    found: list[dict[str, Any]] = []
    rest = text
    for _ in range(100):  # a model that loops may write calls without end
        value, after = _next_json(rest)
        if value is None or _too_deep(value):
            return found
        found += _calls(value)
        rest = rest[after:]
    return found


def _next_json(text: str) -> tuple[Any, int]:
    """The first JSON list or object in a text and where it ends; (None, 0) without one."""
    value = first_json(text)
    if value is None:
        return None, 0
    decoder = json.JSONDecoder()
    for position, char in enumerate(text):
        if char in "[{":
            try:
                return decoder.raw_decode(text, position)
            except (ValueError, RecursionError):
                continue
    return None, 0


def _calls(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [call for element in value for call in _calls(element)]
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("tool_calls"), list):
        return _calls(value["tool_calls"])
    if isinstance(value.get("function"), dict):
        return _calls(value["function"])
    name = value.get("name")
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str):
        arguments = first_json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict) or _too_deep(arguments):
        return []
    return [{"name": name, "arguments": arguments}]


def _too_deep(value: Any) -> bool:
    """Whether a JSON value has more than `DEEPEST` levels: no call needs them, but a model may write them."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inner(outer)]
    return bool(level)


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _names(calls: Sequence[Mapping[str, Any]]) -> Counter[str]:
    return Counter(str(call["name"]) for call in calls)


def _whole(calls: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Each call as one text, of its name and the structure of its arguments."""
    return Counter(json.dumps([call["name"], _structure(call["arguments"])], sort_keys=True) for call in calls)


def _structure(value: Any) -> Any:
    """A JSON value with texts as `normalise` has them and 2.0 as 2."""
    if isinstance(value, dict):
        return {key: _structure(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_structure(element) for element in value]
    if isinstance(value, str):
        return normalise(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class ArgumentF1:
    """Micro F1 over (function, argument, value). A call without arguments counts by its name alone.

    Statistics per item as of `EntityF1`, which also says what an unreadable answer counts.
    """

    name = "argument_f1"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 3]: TP, FP, FN."""
        result = np.zeros((len(parsed), 3))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            wanted = _arguments(target)
            if answer is None:
                row[:] = (0, 0 if wanted else 1, wanted.total())
                continue
            given = _arguments(answer)
            hits = (given & wanted).total()
            row[:] = (hits, given.total() - hits, wanted.total() - hits)
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """F1 [...] from sums [..., 3]."""
        return EntityF1().finish(sums)

    def item(self, statistics: FloatArray) -> FloatArray:
        """F1 of each answer by itself [n]."""
        return self.finish(statistics)


def _arguments(calls: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str, str]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        values = items(call["arguments"]) or Counter({("", ""): 1})
        found.update({(str(call["name"]), key, value): count for (key, value), count in values.items()})
    return found
