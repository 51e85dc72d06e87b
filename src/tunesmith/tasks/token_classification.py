"""Token classification: a tag per token, scored by whole entities as CoNLL does, in seqeval's strict mode."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.extraction import EntityF1
from tunesmith.tasks.metrics import ratio
from tunesmith.tasks.types import AnswerForm, FloatArray, Metric

Scheme = Literal["IOB2", "IOBES"]
Entity = tuple[str, int, int]
TAG = re.compile(r"(?:O|[BIESLU]-\S+)")


@dataclass(frozen=True)
class TokenClassification(TextTask):
    """The tags of an input's tokens in order: a JSON list, tags between spaces, or CoNLL lines `token … tag`.

    `types` are the entity types, `scheme` says how tags mark them: IOB2, or IOBES (also written BILOU).
    """

    types: tuple[str, ...]
    scheme: Scheme = "IOB2"
    name: ClassVar[str] = "token_classification"
    default_instruction: ClassVar[str] = "Tag each token of the input."

    @property
    def full_instruction(self) -> str:
        """The instruction, the form of the answer, and the tags."""
        lead = self.instruction or self.default_instruction
        tags = " ".join(self._tags())
        return f"{lead}\nAnswer with one tag per token, in order, separated by spaces. The tags are: {tags}"

    def answer_form(self, example: Example) -> AnswerForm | None:
        """Tags between spaces, or in a JSON list, as the data has them; None where lines hold tokens beside tags."""
        bare = example.expected.strip()
        tags = self._tags(bilou=any(tag[0] in "LU" for tag in self.target(example)))
        if bare.startswith("["):
            one = {"enum": list(tags)}
            return AnswerForm(json_schema={"type": "array", "items": one, "minItems": 1}, closing=self.closing)
        if not all(TAG.fullmatch(word) for word in bare.split()):
            return None
        return AnswerForm(tags, closing=self.closing, separator=" " if "\n" not in bare else "\n")

    def _tags(self, bilou: bool = False) -> tuple[str, ...]:
        marks = "BI" if self.scheme == "IOB2" else "BILU" if bilou else "BIES"
        return ("O", *(f"{mark}-{kind}" for kind in self.types for mark in marks))

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Entity F1 decides (exact type and extent); precision, recall and the accuracy of single tags beside it."""
        return (
            StrictEntityF1(self.scheme),
            StrictEntityF1(self.scheme, "entity_precision", part="precision"),
            StrictEntityF1(self.scheme, "entity_recall", part="recall"),
            TagAccuracy(),
        )

    def parse(self, text: str) -> list[str] | None:
        """The tags in an answer; None where a part of it is no tag."""
        return read_tags(without_closing(text, self.closing))

    def target(self, example: Example) -> list[str]:
        """The tags of an example; raises `DataError` where they are none."""
        tags = read_tags(example.expected)
        if not tags:
            raise bad_answer(
                example,
                "the answer is not a sequence of tags",
                expected="such as B-PER I-PER O, a JSON list of tags, or lines of token and tag",
                fix="correct the row, or set task.type",
            )
        return tags

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by how many entities they hold."""
        count = sum(1 for _ in entities(self.target(example), self.scheme))
        return {"entities": str(count) if count < 3 else "3 and more"}


def read_tags(text: str) -> list[str] | None:
    """Tags from a JSON list, from lines whose last word is a tag, or from words that all are tags."""
    bare = text.strip()
    if bare.startswith("["):
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            return None
        tags = value if isinstance(value, list) else []
    else:
        tags = bare.split()
        lines = [line.split() for line in bare.splitlines() if line.strip()]
        columns = all(len(line) > 1 for line in lines)
        if columns and not all(TAG.fullmatch(tag) for tag in tags) and (len(lines) > 1 or not TAG.fullmatch(tags[0])):
            tags = [line[-1] for line in lines]
    return tags if tags and all(isinstance(tag, str) and TAG.fullmatch(tag) for tag in tags) else None


def scheme_of(sequences: Sequence[Sequence[str]]) -> Scheme:
    """IOBES where any tag marks an end or a single token, else IOB2."""
    ends = any(tag[0] in "ESLU" for tags in sequences for tag in tags)
    return "IOBES" if ends else "IOB2"


def entities(tags: Sequence[str], scheme: Scheme) -> Iterator[Entity]:
    """(type, first token, end) of every entity marked exactly as the scheme says; anything else is no entity.

    IOB2: `B-X`, then any number of `I-X`. IOBES: `S-X`, or `B-X`, any number of `I-X`, `E-X`. A mark without its
    beginning (or, in IOBES, without its end) marks nothing, as in seqeval's strict mode.
    """
    start, kind = -1, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        mark = {"L": "E", "U": "S"}.get(mark, mark)
        goes_on = start >= 0 and name == kind and mark in ("I", "E")
        if start >= 0 and not goes_on:
            if scheme == "IOB2":
                yield kind, start, i
            start = -1
        if goes_on and mark == "E":
            if scheme == "IOBES":
                yield kind, start, i + 1
            start = -1
        elif mark == "S" and scheme == "IOBES":
            yield name, i, i + 1
        elif mark == "B":
            start, kind = i, name


@dataclass(frozen=True)
class StrictEntityF1:
    """Micro F1 (or a part of it) over entities that agree in type, first and last token.

    Statistics per item as of `EntityF1`, which also says what an unreadable answer counts.
    """

    scheme: Scheme
    name: str = "entity_f1"
    part: Literal["f1", "precision", "recall"] = "f1"

    @property
    def binary(self) -> bool:
        """An answer may be right in part."""
        return False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 3]: TP, FP, FN."""
        result = np.zeros((len(parsed), 3))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            wanted = Counter(entities(target, self.scheme))
            if answer is None:
                row[:] = (0, 0 if wanted else 1, wanted.total())
                continue
            given = Counter(entities(answer, self.scheme))
            hits = (given & wanted).total()
            row[:] = (hits, given.total() - hits, wanted.total() - hits)
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """As `EntityF1.finish`."""
        return EntityF1(part=self.part).finish(sums)

    def item(self, statistics: FloatArray) -> FloatArray:
        """The metric of each answer by itself [n]."""
        return self.finish(statistics)


@dataclass(frozen=True)
class TagAccuracy:
    """The share of tokens with the right tag; tags missing or too many are wrong. Statistics: (hits, tokens)."""

    name = "token_accuracy"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 2]."""
        result = np.zeros((len(parsed), 2))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            given = answer or ()
            row[:] = sum(a == b for a, b in zip(given, target, strict=False)), max(len(given), len(target))
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """Accuracy [...] from sums [..., 2]."""
        return ratio(sums[..., 0], sums[..., 1])

    def item(self, statistics: FloatArray) -> FloatArray:
        """The accuracy of each row [n]."""
        return self.finish(statistics)
