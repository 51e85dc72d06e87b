"""Which prompt a model is asked with: instruction, kind of examples and their number, chosen together on validation.

All are tried on the same validation rows. Where there are many, those that do worse on a part of the rows are left
behind (successive halving: the better half goes on to twice as many rows), so trying twice as many prompts costs much
less than twice as much. The last few are tried on all rows. Equal scores go to the prompt that costs less.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.types import Answer
from tunesmith.tasks.metrics import quick_score

_FINALISTS = 4
"""So many are always tried on all rows."""
_FEWEST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to ask.

    k: examples or passages. choice: how examples are picked, empty where there is one way. instruction: 0 is the
    task's own, n the nth of `evaluate.instructions`.
    """

    k: int = 0
    choice: str = ""
    instruction: int = 0

    def __str__(self) -> str:
        parts = [f"k {self.k}" if self.k else "", self.choice, f"instruction {self.instruction}"]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Tried:
    """How a variant did on so many validation rows, and the mean length of its prompts in tokens."""

    variant: Variant
    score: float
    prompt_tokens: float
    rows: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant chosen, and all that were tried, the best first (none where there was nothing to choose)."""

    variant: Variant
    tried: tuple[Tried, ...]
    metric: str
    rows: int

    def facts(self, instructions: Sequence[str]) -> Mapping[str, Any]:
        """For `PromptCandidate.facts`: what was chosen, and every score. `instructions`: those beside the task's."""
        chosen: dict[str, Any] = {}
        if self.variant.choice:
            chosen["examples"] = self.variant.choice
        if instructions:
            own = self.variant.instruction == 0
            chosen["instruction"] = "the task's own" if own else instructions[self.variant.instruction - 1]
        if not self.tried:
            return chosen
        scores = {str(one.variant): _plainly(one) for one in self.tried}
        return {**chosen, "chosen_on": {"metric": self.metric, "validation_rows": self.rows, "tried": scores}}


def choose_prompt(
    make: Callable[[Variant], PromptCandidate],
    variants: Sequence[Variant],
    validation: Sequence[Example],
    *,
    metric: str,
    rows: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """The variant that answers `rows` validation rows (drawn by seed) best by `metric`; ties go to the shorter prompts.

    With one variant there is nothing to choose and nothing is asked. `on_progress(answers so far, answers in all)`.
    Raises `DataError` where there is no variant, or no validation row to choose on.
    """
    tried = list(dict.fromkeys(variants))
    if not tried or (len(tried) > 1 and not validation):
        raise DataError(
            "how a model is best asked cannot be chosen",
            where="evaluate.few_shot_k, retrieval_k, documents_k, few_shot_choice, instructions",
            expected="at least one number of examples, and validation rows to choose on",
            fix="give data.validation or data.split.validation, or a single value of each",
        )
    if len(tried) == 1:
        return Choice(tried[0], (), metric, 0)
    sample = random.Random(seed).sample(list(validation), min(rows, len(validation)))
    plan = _rounds(len(tried), len(sample))
    total = sum(count * size for count, size in plan)
    done = 0
    left = tried
    results: dict[Variant, Tried] = {}
    for count, size in plan:
        left = left[:count]
        for variant in left:
            candidate, answers = make(variant), []
            for answer in candidate.answer(sample[:size]):
                answers.append(answer)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            results[variant] = _tried(variant, candidate, answers, sample[:size], metric)
        left = sorted(left, key=lambda variant: _order(results[variant]))
    ordered = sorted(results.values(), key=lambda one: (-one.rows, *_order(one)))
    return Choice(left[0], tuple(ordered), metric, len(sample))


def _rounds(variants: int, rows: int) -> list[tuple[int, int]]:
    """How many variants are tried on how many rows, round by round; the last one on all rows."""
    plan = [(min(variants, _FINALISTS), rows)]
    while plan[0][0] < variants and plan[0][1] // 2 >= _FEWEST_ROWS:
        count, size = plan[0]
        plan.insert(0, (min(variants, 2 * count), size // 2))
    if plan[0][0] < variants:  # too few rows to halve so often
        plan[0] = (variants, plan[0][1])
    return plan


def _tried(
    variant: Variant, candidate: PromptCandidate, answers: Sequence[Answer], rows: Sequence[Example], metric: str
) -> Tried:
    score = quick_score(candidate.task, [answer.text for answer in answers], rows)[metric]
    return Tried(variant, score, fmean(answer.prompt_tokens for answer in answers), len(rows))


def _order(one: Tried) -> tuple[float, float, int, int]:
    """Best first: the score, then what costs less, then the order in which they were given."""
    return (-one.score, one.prompt_tokens, one.variant.k, one.variant.instruction)


def _plainly(one: Tried) -> dict[str, float]:
    return {"score": one.score, "rows": one.rows, "prompt_tokens": round(one.prompt_tokens, 1)}
