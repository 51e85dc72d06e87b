"""Extraction: a JSON list or object out of a text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.data.types import Example
from tunesmith.errors import RecipeError
from tunesmith.tasks.answers import bad_answer
from tunesmith.tasks.base import TaskBase
from tunesmith.tasks.metrics import MeanMetric, ratio
from tunesmith.tasks.types import AnswerForm, FloatArray, Metric

DEFAULT_INSTRUCTION = "Extract the requested information from the input as JSON."
Form = Literal["list", "object"]
Item = tuple[str, str]
_SCALARS = ["string", "number", "boolean"]
MOST_FIELDS = 12
"""Fields of an object that get an F1 of their own."""


@dataclass(frozen=True)
class Extraction(TaskBase):
    """A JSON value of one form per input.

    `keys` are those of the objects in the data, in the order in which they first occur; they are what the full
    instruction names. `elements` says what a list holds: "text" (strings, numbers, booleans) or "object".
    `json_schema` is the text of the JSON schema that answers ought to meet.
    """

    form: Form
    keys: tuple[str, ...] = ()
    elements: Literal["text", "object"] = "text"
    given_instruction: str | None = None
    closing: str = ""
    json_schema: str | None = None
    name: ClassVar[str] = "extraction"

    @property
    def instruction(self) -> str:
        """The recipe's instruction, else one sentence."""
        return DEFAULT_INSTRUCTION if self.given_instruction is None else self.given_instruction

    @property
    def full_instruction(self) -> str:
        """The instruction and the JSON form of the answer."""
        keys = ", ".join(json.dumps(key, ensure_ascii=False) for key in self.keys)
        if self.form == "object":
            form = f"a JSON object with the keys {keys}"
        elif self.elements == "object":
            form = f"a JSON list of objects with the keys {keys}"
        else:
            form = 'a JSON list of strings, such as ["first", "second"]'
        asked = f"{self.instruction or DEFAULT_INSTRUCTION}\nAnswer with {form}, and nothing else."
        if self.json_schema is None:
            return asked
        schema = json.dumps(json.loads(self.json_schema), ensure_ascii=False, separators=(",", ":"))
        return f"{asked} It must meet this JSON schema: {schema}"

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Entity F1 decides; the share of readable answers and of entirely right ones beside it.

        With a schema also the share of answers that meet it, and for objects F1 of each field (of the first
        `MOST_FIELDS`), with precision and recall over all.
        """
        found: list[Metric] = [
            EntityF1(),
            MeanMetric("valid_json", binary=True, score=lambda answer, target: 1.0),
            MeanMetric("exact_match", binary=True, score=lambda answer, target: float(items(answer) == items(target))),
        ]
        if self.json_schema is not None:
            found.append(MeanMetric("schema_valid", binary=True, score=lambda answer, _: float(self._meets(answer))))
        if self.form == "object" or self.elements == "object":
            found += [EntityF1("entity_precision", part="precision"), EntityF1("entity_recall", part="recall")]
        if self.form == "object" and len(self.keys) > 1:
            found += [EntityF1(f"f1.{key}", key=key) for key in self.keys[:MOST_FIELDS]]
        return found

    def _meets(self, answer: Any) -> bool:
        return bool(self._validator.is_valid(answer))

    @cached_property
    def _validator(self) -> Any:
        assert self.json_schema is not None
        return schema_validator(self.json_schema)

    def answer_form(self, example: Example) -> AnswerForm:
        """JSON that keeps the task's schema; without one, JSON of the form and with the fields that the data has."""
        schema = self._form_seen if self.json_schema is None else json.loads(self.json_schema)
        return AnswerForm(json_schema=schema, closing=self.closing)

    @cached_property
    def _form_seen(self) -> dict[str, Any]:
        """A schema of the form: any of the known fields with any values, in the order in which they occur."""
        fields = {"type": "object", "properties": {key: {} for key in self.keys}, "additionalProperties": not self.keys}
        if self.form == "object":
            return fields
        return {"type": "array", "items": fields if self.elements == "object" else {"type": _SCALARS}}

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by how many items are expected."""
        count = items(self.target(example)).total()
        return {"items": str(count) if count < 2 else "2 to 4" if count < 5 else "5 and more"}

    def parse(self, text: str) -> Any | None:
        """The first JSON list or object in an answer if it is of the task's form, else None.

        Text around it (a sentence before, a code fence, a second value) is ignored.
        """
        value = first_json(text)
        return value if self._fits(value) else None

    def target(self, example: Example) -> Any:
        """The value of an example's answer; raises `DataError` where it is not JSON of the task's form."""
        value = _whole_json(example.expected)
        if not self._fits(value):
            raise bad_answer(
                example,
                "the answer is not of the form that the others have",
                expected=f"a JSON {self.form}" + (f" of {self.elements}s" if self.form == "list" else ""),
                fix="correct the row, or set task.answer_form",
            )
        return value

    def _fits(self, value: Any) -> bool:
        if self.form == "object":
            return isinstance(value, dict)
        if not isinstance(value, list):
            return False
        if self.elements == "object":
            return all(isinstance(element, dict) for element in value)
        return all(isinstance(element, str | int | float) for element in value)


def first_json(text: str) -> Any | None:
    """The first JSON list or object that begins anywhere in `text`, or None."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    failures = 0
    for position, char in enumerate(text):
        if char not in "[{":
            continue
        try:
            return decoder.raw_decode(text, position)[0]
        except (ValueError, RecursionError):
            failures += 1
            # A model that loops may open thousands of brackets; each attempt costs the rest of the text.
            if failures == 100:
                return None
    return None


def _whole_json(text: str) -> Any | None:
    """The JSON value that `text` is, or None."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def items(value: Any) -> Counter[Item]:
    """The multiset of (key, value) items in a JSON value, as entity F1 compares them.

    Texts are case-folded and their white space collapsed. Elements of a list have the key ""; a field of an object
    has its name, and fields of objects within have `outer.inner`. A list in a field gives one item per element.
    null and "" say that there is nothing, and give no item. An object in a list is one item as a whole.
    """
    return Counter(_items("", value))


def _items(key: str, value: Any) -> Iterator[Item]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _items(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, dict):
                yield key, json.dumps(sorted(items(element).elements()), ensure_ascii=False)
            else:
                yield from _items(key, element)
    else:
        text = normalise(value)
        if text:
            yield key, text


def normalise(value: Any) -> str:
    """A scalar as compared: text case-folded with single spaces; 2 and 2.0 are equal; null is ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


@dataclass(frozen=True)
class EntityF1:
    """Micro F1 over the items of all answers: 2 TP / (2 TP + FP + FN), items matched as multisets.

    Statistics per item: (TP, FP, FN). An unreadable answer misses every expected item; where nothing was expected it
    counts as one false positive, so that it is never right. Over no items at all F1 is 1: nothing was missed and
    nothing invented. `part` takes precision, TP / (TP + FP), or recall, TP / (TP + FN), instead; `key` counts only the
    items of that field and of fields within it.
    """

    name: str = "entity_f1"
    part: Literal["f1", "precision", "recall"] = "f1"
    key: str | None = None

    @property
    def binary(self) -> bool:
        """An answer may be right in part."""
        return False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 3]."""
        result = np.zeros((len(parsed), 3))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            wanted = self._items(target)
            if answer is None:
                row[:] = (0, 0 if wanted else 1, wanted.total())
                continue
            given = self._items(answer)
            hits = (given & wanted).total()
            row[:] = (hits, given.total() - hits, wanted.total() - hits)
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """F1, precision or recall [...] from sums [..., 3]."""
        hits, invented, missed = sums[..., 0], sums[..., 1], sums[..., 2]
        f1 = ratio(2 * hits, 2 * hits + invented + missed, empty=1.0)
        if self.part == "f1":
            return f1
        # Without answered (or expected) items it is 1 where none were due, as F1 is, and 0 where some were.
        whole = hits + (invented if self.part == "precision" else missed)
        return np.where(whole > 0, ratio(hits, whole), f1)

    def item(self, statistics: FloatArray) -> FloatArray:
        """The metric of each answer by itself [n]."""
        return self.finish(statistics)

    def _items(self, value: Any) -> Counter[Item]:
        if self.key is None:
            return items(value)
        mine = (self.key, f"{self.key}.")
        return Counter({i: n for i, n in items(value).items() if i[0] == mine[0] or i[0].startswith(mine[1])})


def schema_validator(text: str) -> Any:
    """A `jsonschema` validator for a schema's text; raises `RecipeError` where it is none.

    References to other documents are not fetched.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise ValueError("a schema is a JSON object")
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (ValueError, RecursionError, SchemaError) as error:
        raise RecipeError(
            f"not a JSON schema: {getattr(error, 'message', error)}", where="task.json_schema", expected="a JSON schema"
        ) from error
    return kind(schema, registry=Registry())
