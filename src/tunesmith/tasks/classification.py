"""Classification: one label per input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TaskBase
from tunesmith.tasks.metrics import MeanMetric, ratio
from tunesmith.tasks.types import AnswerForm, FloatArray, Metric

DEFAULT_INSTRUCTION = "Classify the input."
_QUOTES = "\"'`“”‘’„«»"
_PUNCTUATION = ".,;:!?。"


@dataclass(frozen=True)
class Classification(TaskBase):
    """One of `labels` per input. `closing` is the text a template puts after every answer."""

    labels: tuple[str, ...]
    given_instruction: str | None = None
    closing: str = ""
    name: ClassVar[str] = "classification"

    @property
    def instruction(self) -> str:
        """The recipe's instruction, else one sentence."""
        return DEFAULT_INSTRUCTION if self.given_instruction is None else self.given_instruction

    @property
    def full_instruction(self) -> str:
        """The instruction, the form of the answer, and every label on a line of its own."""
        listed = "\n".join(self.labels)
        lead = self.instruction or DEFAULT_INSTRUCTION
        return f"{lead}\nAnswer with exactly one of these labels and nothing else:\n{listed}"

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Accuracy decides; macro-F1 beside it."""
        accuracy = MeanMetric("accuracy", binary=True, score=lambda answer, target: float(answer == target))
        return (accuracy, MacroF1(self.labels))

    def parse(self, text: str) -> str | None:
        """The label in an answer, or None.

        The whole answer must be a label, or else its first line with text on it. Closing text, surrounding quotes and
        one final punctuation mark are taken off; case does not matter, and runs of spaces and underscores are equal.
        An answer that fits several labels after that is unreadable.
        """
        whole = text.strip()
        first_line = whole.split("\n", 1)[0]
        for candidate in (whole, first_line):
            for part in dict.fromkeys((candidate, without_closing(candidate, self.closing))):
                if part in self._label_set:
                    return part
                found = next((self._by_form[form] for form in _reductions(part) if form in self._by_form), ())
                if found:
                    return found[0] if len(found) == 1 else None
        return None

    def answer_form(self, example: Example) -> AnswerForm:
        """One of the labels."""
        return AnswerForm(self.labels, closing=self.closing)

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by their label."""
        return {"label": self.target(example)}

    def target(self, example: Example) -> str:
        """The label of an example; raises `DataError` for one that is not a label of this task."""
        label = example.expected.strip()
        if label in self._label_set:
            return label
        found = self.parse(example.expected)
        if found is None:
            raise bad_answer(
                example,
                "the answer is not one of the labels",
                expected=f"one of {len(self.labels)} labels: {', '.join(self.labels[:10])}",
                fix="correct the row, or add the label to task.labels",
            )
        return found

    @cached_property
    def _label_set(self) -> frozenset[str]:
        return frozenset(self.labels)

    @cached_property
    def _by_form(self) -> Mapping[str, tuple[str, ...]]:
        """Every form of every label; a label's more literal form is never shadowed by another's reduced one."""
        table: dict[str, tuple[int, tuple[str, ...]]] = {}
        for label in self.labels:
            for level, form in enumerate(_reductions(label)):
                known_level, known = table.get(form, (level, ()))
                if level < known_level:
                    table[form] = (level, (label,))
                elif level == known_level and label not in known:
                    table[form] = (level, (*known, label))
        return {form: found for form, (_, found) in table.items() if form}


def _reductions(text: str) -> tuple[str, str, str]:
    """`text` in canonical form, without quotes, and without a final mark: each level less literal than the one before.

    A mark may stand before or after the closing quote.
    """
    bare = text.strip().strip(_QUOTES).strip()
    unmarked = bare[:-1] if bare.endswith(tuple(_PUNCTUATION)) else bare
    return _canonical(text), _canonical(bare), _canonical(unmarked.strip().strip(_QUOTES))


def _canonical(text: str) -> str:
    return re.sub(r"[\s_]+", " ", text.strip()).casefold()


@dataclass(frozen=True)
class MacroF1:
    """Mean over classes of F1 = 2 TP / (predicted + expected).

    The classes are those of `labels` that occur among expected or predicted labels; others are left out of the mean,
    and an unreadable answer is no prediction of any class. That is scikit-learn's `f1_score(average="macro",
    labels=<classes that occur>, zero_division=0)`. Statistics per item [2 C]: hit per class, then predicted + expected
    per class.
    """

    labels: tuple[str, ...]
    name = "macro_f1"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 2 C] for C labels."""
        index = {label: i for i, label in enumerate(self.labels)}
        size = len(self.labels)
        result = np.zeros((len(parsed), 2 * size))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            row[size + index[target]] += 1
            if answer is not None:
                row[size + index[answer]] += 1
                row[index[target]] += answer == target
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """Macro-F1 [...] from sums [..., 2 C]."""
        size = len(self.labels)
        occurring = sums[..., size:]
        f1 = ratio(2 * sums[..., :size], occurring)
        return ratio(f1.sum(axis=-1), (occurring > 0).sum(axis=-1).astype(np.float64))

    def item(self, statistics: FloatArray) -> FloatArray:
        """1 for a right answer, else 0 [n]."""
        hits: FloatArray = statistics[:, : len(self.labels)].sum(axis=1)
        return hits
