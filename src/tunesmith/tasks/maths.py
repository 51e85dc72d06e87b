"""Maths: whatever leads to it, the final answer is right or wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import Metric

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"(?<![\w.])-?\$?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}}(?!\d))?(?:\s*/\s*\d+)?")
"""A number in a text, with separators of thousands, as a decimal or a fraction."""
_MARKED = (re.compile(r"####(.*)"), re.compile(r"(?:answer|result)\s*(?:is|:|=)\s*:?(.*)", re.IGNORECASE))
_REASON = re.compile(r"[,;.](?:\s|$)|\b(?:because|since)\b", re.IGNORECASE)
"""Where the answer ends in a sentence that goes on."""
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?(?:/\d+)?")
_LONGEST = 500
"""Characters of a number. With three digits of an exponent its digits stay few enough to be written out."""
_BOXED = "\\boxed{"
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")


@dataclass(frozen=True)
class Maths(TextTask):
    """The final answer of each problem, as a number where it is one; the steps before it are free.

    It stands after `####` (GSM8K), in `\\boxed{}` (MATH), after "the answer is", or is the last number. Numbers are
    equal up to `tolerance` (absolute; None asks for equality up to rounding in the last of 9 digits).
    """

    tolerance: float | None = None
    name: ClassVar[str] = "maths"
    default_instruction: ClassVar[str] = "Solve the problem."
    answer_wording: ClassVar[str] = "End with #### and the final answer."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Accuracy of the final answer."""
        return (MeanMetric("accuracy", binary=True, score=lambda a, target: float(self._equal(a, target))),)

    def parse(self, text: str) -> str | None:
        """The final answer, numbers in one spelling; None where there is none."""
        return final_answer(without_closing(text, self.closing))

    def target(self, example: Example) -> str:
        """The final answer of the expected text; raises `DataError` where it has none."""
        found = final_answer(example.expected)
        if found is None:
            raise bad_answer(
                example,
                "the answer holds no final answer",
                expected="a number, or a text with the answer after ####, in \\boxed{} or at its end",
                fix="correct the row, or set task.type",
            )
        return found

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by how many numbers the problem has."""
        count = len(NUMBER.findall(example.question))
        return {"numbers": str(count) if count < 4 else "4 and more"}

    def _equal(self, answer: str, target: str) -> bool:
        a, b = as_number(answer), as_number(target)
        if a is None or b is None:
            return answer == target
        return abs(a - b) <= (abs(b) / 10**9 if self.tolerance is None else exactly(self.tolerance))


def final_answer(text: str) -> str | None:
    """The final answer in a text: what is marked as such, else its last number; canonical, or None."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return _canonical(boxed)
    text = _plain_fractions(text)
    for mark in _MARKED:
        marked = [found.strip() for found in mark.findall(text) if found.strip()]
        if marked:
            return _canonical(_marked_number(marked[-1]) or marked[-1])
    numbers = NUMBER.findall(text)
    if numbers:
        return _canonical(numbers[-1])
    return None


def _marked_number(text: str) -> str | None:
    """The number that is given as the answer: 60 in "5 * 12 = 60, which is 5 dozen", 8 in "8, since 5 + 3 = 8"."""
    answer = _REASON.split(text, maxsplit=1)[0]
    found = NUMBER.search(answer.rpartition("=")[2]) or NUMBER.search(answer) or NUMBER.search(text)
    return found.group() if found else None


def exactly(number: float) -> Fraction:
    """A number as it is written: 0.1 is a tenth, not the double nearest to it."""
    return Fraction(str(number))


def as_number(text: str) -> Fraction | None:
    """A number exactly, whatever separators, currency or per cent sign it is written with; None for other text.

    None too for numbers beyond all use, whose digits alone would take long: 1e1000, or 500 characters.
    """
    bare = _plain_fractions(text).replace(",", "").replace("$", "").replace(" ", "").strip().rstrip("%.")
    if len(bare) > _LONGEST or not _PLAIN.fullmatch(bare):
        return None
    try:
        return Fraction(bare)
    except (ValueError, ZeroDivisionError):
        return None


def _canonical(text: str) -> str | None:
    """One spelling of each number (`1,200.0` → `1200`); other text without spaces, `$` and a final point."""
    number = as_number(text)
    if number is None:
        return re.sub(r"\s+", "", text).strip("$").rstrip(".") or None
    return str(number.numerator) if number.denominator == 1 else f"{number.numerator}/{number.denominator}"


def _plain_fractions(text: str) -> str:
    return _LATEX_FRACTION.sub(r"\1/\2", text)


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}`, braces inside it matched."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOXED)
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None
