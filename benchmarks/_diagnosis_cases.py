"""The twenty trainings of `diagnosis.py`: ten mistakes, and ten runs as they should be.

All are small seeded tasks on `embedded:base` (`_diagnosis_tasks.py`). What a case must show is in its fields; how it is
carried out and judged is in `_diagnosis_run.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

import _diagnosis_tasks as tasks
from _diagnosis_tasks import Row
from tunesmith.text.types import Sample

BASE = "embedded:base"
NO_END = "{%- for m in messages -%}{{ '### ' + m.role + '\\n' + m.content + '\\n\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '### assistant\\n' }}{%- endif -%}"  # noqa: E501
"""A chat template without an end-of-turn token, as people write them."""


@dataclass(frozen=True)
class Parts:
    """Rows of a run. Without `validation`, both parts are split off the training file as the recipe says."""

    train: Sequence[Row]
    test: Sequence[Row]
    validation: Sequence[Row] = ()


@dataclass(frozen=True)
class Case:
    """One run: its rows, what its recipe says beside them, and what is expected of it.

    expected: the code of the right diagnosis; None for a healthy run. spoil: changes samples, where no row can.
    mended: rows with the mistake taken out, where no setting can do that. metric: what the remedy must improve.
    """

    name: str
    parts: Parts
    settings: Mapping[str, Any] = field(default_factory=dict)
    expected: str | None = None
    spoil: Callable[[Sequence[Sample]], list[Sample]] | None = None
    mended: Parts | None = None
    metric: str = "accuracy"
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what a kept result must have been made from."""
        content = asdict(self) | {"spoil": self.spoil.__name__ if self.spoil is not None else None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parts_of(rows: Sequence[Row], validation: int = 40, test: int = 60) -> Parts:
    """The last rows are held out."""
    end = len(rows) - validation - test
    return Parts(train=rows[:end], validation=rows[end : end + validation], test=rows[end + validation :])


def prompts_only(samples: Sequence[Sample]) -> list[Sample]:
    """The loss on everything but the answers, as a wrong mask does."""
    return [replace(s, weights=np.r_[0, s.weights[1:] == 0].astype(np.float32)) for s in samples]


def one_not_a_number(samples: Sequence[Sample]) -> list[Sample]:
    """A weight of one row in the middle is not a number."""
    bad = len(samples) // 2
    return [replace(s, weights=s.weights * np.float32(math.nan)) if i == bad else s for i, s in enumerate(samples)]


def steps(count: int, **more: Any) -> dict[str, Any]:
    """Settings of a run of `count` steps."""
    return {"train": {"max_steps": count, **more}}


def all_cases(seed: int, few: bool = False) -> list[Case]:
    """All twenty, or a few in a few steps."""
    return quick(seed) if few else [*spoiled(seed), *healthy(seed)]


def spoiled(seed: int) -> list[Case]:
    """Ten mistakes."""
    tones, intents = tasks.tones(310, seed), tasks.intents(340, seed)
    few = parts_of(intents)
    shouted = [(prompt.upper().replace(" ", "-"), answer) for prompt, answer in tasks.intents(220, seed + 50)]
    by_order = Parts(train=[*tasks.intents(240, seed), *shouted[:80]], test=shouted[140:])
    mostly_warm = tasks.uneven(tasks.tones(1400, seed, labels=2), "warm", 0.9, 560, seed)
    muddled = Parts(tasks.shuffled_answers(few.train, seed), few.test, tasks.shuffled_answers(few.validation, seed + 1))
    return [
        Case(
            "learning rate 100 times too high", parts_of(tones), steps(160, learning_rate=0.2), "learning_rate_too_high"
        ),
        Case(
            "learning rate 100 times too low", parts_of(tones), steps(160, learning_rate=2e-5), "learning_rate_too_low"
        ),
        Case(
            "20 rows for 50 epochs",
            few,
            {"data": {"max_rows": 20}, "train": {"epochs": 50}},
            "too_little_data",
        ),
        Case(
            "end of turn masked",
            parts_of(tasks.dates(340, seed)),
            {"base": {"chat_template": "./no_end.jinja"}, **steps(160)},
            "end_not_learnt",
            metric="exact_match",
            files={"no_end.jinja": NO_END},
        ),
        Case("shuffled labels", muddled, steps(200), "labels_unrelated", mended=few),
        Case("prompt-only loss", parts_of(tones), steps(160), "answers_not_learnt", prompts_only),
        # Hard for rank 1 alone: the same steps with the usual rank read most of it out of the rows.
        Case(
            "rank 1 on a hard task",
            parts_of(tasks.codes(484, seed, names=96)),
            {"method": {"rank": 1}, **steps(300)},
            "rank_too_small",
        ),
        Case(
            "train/test mismatch",
            by_order,
            {"data": {"split": {"method": "order", "validation": 80}}, **steps(200)},
            "validation_differs",
        ),
        Case(
            "90 % one class",
            parts_of(mostly_warm, validation=60, test=200),
            {"train": {"epochs": 2}},
            "one_answer_for_all",
            metric="macro_f1",
        ),
        Case("a row that is not a number", few, steps(120), "row_not_finite", one_not_a_number),
    ]


def healthy(seed: int) -> list[Case]:
    """Ten runs as they should be."""
    return [
        Case("tones, LoRA", parts_of(tasks.tones(310, seed + 1)), {}),
        Case("intents, LoRA rank 4", parts_of(tasks.intents(340, seed + 1)), {"method": {"rank": 4}, **steps(240)}),
        Case("dates, LoRA", parts_of(tasks.dates(380, seed + 1)), steps(260)),
        Case("orders (extraction), LoRA", parts_of(tasks.orders(300, seed + 1)), steps(150)),
        Case("tones, all weights", parts_of(tasks.tones(310, seed + 2)), {"method": "full", **steps(200)}),
        Case("intents, 120 rows", parts_of(tasks.intents(220, seed + 3)), {}),
        Case("codes, rank 32", parts_of(tasks.codes(500, seed + 1, names=48)), {"method": {"rank": 32}, **steps(320)}),
        Case("two tones, 75 % one of them", _uneven_but_enough(seed), steps(240)),
        Case("free replies", parts_of(tasks.replies(340, seed + 1)), steps(200)),
        Case("intents, constant rate, dropout", parts_of(tasks.intents(600, seed + 4)), {
            "method": {"dropout": 0.05}, **steps(160, schedule="constant", learning_rate=1e-3, batch_size=16)}),
    ]  # fmt: skip


def quick(seed: int) -> list[Case]:
    """A few of them in a few steps."""
    tones = tasks.tones(200, seed, labels=2)
    return [
        Case(
            "learning rate 100 times too high", parts_of(tones), steps(60, learning_rate=0.2), "learning_rate_too_high"
        ),
        Case(
            "learning rate 100 times too low", parts_of(tones), steps(40, learning_rate=2e-5), "learning_rate_too_low"
        ),
        Case("prompt-only loss", parts_of(tones), steps(24), "answers_not_learnt", prompts_only),
        Case("a row that is not a number", parts_of(tones), steps(60), "row_not_finite", one_not_a_number),
        Case("orders, LoRA", parts_of(tasks.orders(200, seed), 20, 20), steps(50, evaluations=4), metric="entity_f1"),
    ]


def _uneven_but_enough(seed: int) -> Parts:
    pool = tasks.tones(1500, seed + 5, labels=2)
    return parts_of(tasks.uneven(pool, "warm", 0.75, 360, seed))
