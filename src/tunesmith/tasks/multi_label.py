"""Multi-label classification: any number of labels per input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.metrics import MeanMetric, ratio
from tunesmith.tasks.types import AnswerForm, FloatArray, Metric

_NONE = frozenset({"", "none", "[]"})


@dataclass(frozen=True)
class MultiLabel(TextTask):
    """A set of `labels` per input, written as a JSON list or with `separator` between them.

    What an answer names beside the labels is kept as it is, and is wrong; nothing, `none` and `[]` are the empty set.
    """

    labels: tuple[str, ...]
    separator: str = ", "
    written: Literal["list", "text"] = "text"
    name: ClassVar[str] = "multi_label"
    default_instruction: ClassVar[str] = "Name all labels that fit the input."

    @property
    def full_instruction(self) -> str:
        """The instruction, the form of the answer, and every label on a line of its own."""
        mark = self.separator.strip() or "line breaks"
        form = "as a JSON list" if self.written == "list" else f"separated by {mark!r}"
        none = "[]" if self.written == "list" else "none"
        listed = "\n".join(self.labels)
        lead = self.instruction or self.default_instruction
        return f"{lead}\nAnswer with the labels only, {form}; if none fits, with {none}. The labels are:\n{listed}"

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Micro-F1 decides; macro-F1 and the share of exactly right sets (subset accuracy) beside it."""
        exact = MeanMetric("exact_match", binary=True, score=lambda answer, target: float(set(answer) == set(target)))
        return (LabelF1("micro_f1", self.labels), LabelF1("macro_f1", self.labels), exact)

    def parse(self, text: str) -> list[str] | None:
        """The labels in an answer, sorted, each once; None for JSON that is no list of texts."""
        bare = without_closing(text, self.closing)
        parts = split_labels(bare, self._one, self.separator)
        if parts is None:
            return None
        return sorted({self._one.parse(part) or part for part in parts})

    def target(self, example: Example) -> list[str]:
        """The labels of an example; raises `DataError` for one that is not a label of this task."""
        found = self.parse(example.expected)
        strangers = [label for label in found or () if label not in self.labels]
        if found is None or strangers:
            raise bad_answer(
                example,
                f"not among the labels: {', '.join(strangers)}" if strangers else "the answer is not a set of labels",
                expected=f"any of {len(self.labels)} labels: {', '.join(self.labels[:10])}",
                fix="correct the row, or add the label to task.labels",
            )
        return found

    def answer_form(self, example: Example) -> AnswerForm:
        """Any of the labels, written as in the data; one that is named twice counts once."""
        if self.written == "list":
            one = {"enum": list(self.labels)}
            return AnswerForm(
                json_schema={"type": "array", "items": one, "maxItems": len(self.labels)}, closing=self.closing
            )
        return AnswerForm(self.labels, closing=self.closing, separator=self.separator, none="none")

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by how many labels they have."""
        count = len(self.target(example))
        return {"labels": str(count) if count < 4 else "4 and more"}

    @cached_property
    def _one(self) -> Classification:
        """Reads one label, whatever its case and quotes."""
        return Classification(self.labels)


def split_labels(text: str, one: Classification | None = None, separator: str = ", ") -> list[str] | None:
    """The texts of a JSON list, or the parts of a text between separators; a label that holds one stays whole.

    None for a JSON value that is no list of texts.
    """
    bare = text.strip()
    if bare.casefold().rstrip(".") in _NONE:
        return []
    if bare.startswith(("[", "{")):
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, list) and all(isinstance(part, str) for part in value) else None
    if one is not None and "\n" not in bare and one.parse(bare) is not None:
        return [bare]
    mark = separator.strip() or "\n"
    parts = [part.strip() for part in re.split(rf"{re.escape(mark)}|\n", bare)]
    return [part for part in parts if part]


@dataclass(frozen=True)
class LabelF1:
    """F1 over labels: 2 TP / (2 TP + FP + FN), of all labels together (micro_f1) or the mean over labels (macro_f1).

    The macro mean is over labels that are expected or answered somewhere, scikit-learn's `f1_score(average="macro",
    labels=<those>)`. Names that are no labels are false positives in the micro mean only. 1 where nothing is expected
    and nothing answered. An unreadable answer misses every expected label, and where none was expected invents one.
    Statistics per item [2 C + 1]: TP per label, expected + answered per label, then answered names that are no labels.
    """

    name: Literal["micro_f1", "macro_f1"]
    labels: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """A set may be right in part."""
        return False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 2 C + 1] for C labels; the last column counts answered names that are no labels."""
        index = {label: i for i, label in enumerate(self.labels)}
        size = len(self.labels)
        result = np.zeros((len(parsed), 2 * size + 1))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            for label in target:
                row[size + index[label]] += 1
            if answer is None:
                row[-1] = 0 if target else 1
                continue
            for label in answer:
                if label in index:
                    row[size + index[label]] += 1
                    row[index[label]] += label in target
                else:
                    row[-1] += 1
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """F1 [...] from sums [..., 2 C + 1]."""
        size = len(self.labels)
        hits, counted = sums[..., :size], sums[..., size : 2 * size]
        if self.name == "micro_f1":
            return ratio(2 * hits.sum(axis=-1), counted.sum(axis=-1) + sums[..., -1], empty=1.0)
        occurring = (counted > 0).sum(axis=-1).astype(np.float64)
        return ratio(ratio(2 * hits, counted).sum(axis=-1), occurring, empty=1.0)

    def item(self, statistics: FloatArray) -> FloatArray:
        """F1 of each row's set [n]."""
        size = len(self.labels)
        hits, counted = statistics[:, :size].sum(axis=1), statistics[:, size:].sum(axis=1)
        return ratio(2 * hits, counted, empty=1.0)
