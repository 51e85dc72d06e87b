"""Every sign on curves made for it and on their healthy neighbours, the measurements behind them, and the way back
into a recipe. Real runs are judged in tests/benchmarks/test_diagnosis.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import build, byte_tokenizer, ragged_samples
from tunesmith.data.types import Example, Message, Splits
from tunesmith.models.forward import LanguageModel
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.overrides import apply_overrides
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.conversation import training_conversation
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample
from tunesmith.training.diagnosis import Diagnosis, NotFinite, TrainingFacts, Watcher, answer_measures, diagnose
from tunesmith.training.diagnosis.gather import gather_facts
from tunesmith.training.diagnosis.probe import Probe, RowMeasures, measure_rows
from tunesmith.training.diagnosis.registry import SIGNS
from tunesmith.training.diagnosis.types import Separation
from tunesmith.training.diagnosis.word_signal import predictability, separation
from tunesmith.training.step import mean_loss

PRIOR = 0.5
FACTS = TrainingFacts(
    rows=300, steps=160, epochs=4.0, learning_rate=2e-3, usual_learning_rate=2e-3, method="lora", rank=16,
    labels={"a": 150, "b": 150}, prior_loss=PRIOR, metric="accuracy", answer_supervised=1.0, answer_weight=1.0,
    end_learnt=1.0, split_method="stratified", trainable=100_000, parameters=7_000_000,
)  # fmt: skip
RELATED, UNRELATED = Separation(0.9, 0.02, 0.5), Separation(0.5, 0.04, 0.5)
GOOD = ([0.45, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.02], [0.46, 0.32, 0.23, 0.15, 0.12, 0.1, 0.1, 0.1])
"""Training and validation losses of a healthy run, at eight readings."""


def history(
    train: list[float],
    validation: list[float] | None = None,
    *,
    start: float = 5.0,
    accuracy: list[float] | None = None,
    metrics: list[float] | None = None,
    answers: dict[str, float] | None = None,
    steps: int = 160,
    losses: list[float] | None = None,
    norms: list[float] | None = None,
) -> list[dict[str, Any]]:
    """Events of a run with evenly spaced readings; step losses lie on the readings' lines unless given one by one."""
    validation = train if validation is None else validation
    events: list[dict[str, Any]] = [
        {"kind": "validation", "step": 0, "loss": None, "metrics": {}, "probe": {"train_loss": start, "loss": start}}
    ]
    places = [round(steps * (i + 1) / len(train)) for i in range(len(train))]
    line = np.interp(np.arange(1, steps + 1), [0, *places], [start, *train]) if losses is None else np.array(losses)
    at = 0
    best = math.inf
    for i, place in enumerate(places):
        while at < min(place, len(line)):
            rate = 2e-3 * 0.5 * (1 + math.cos(math.pi * at / steps))
            norm = 1.0 if norms is None else norms[at]
            at += 1
            events.append(
                {"kind": "train_step", "step": at, "loss": line[at - 1], "learning_rate": rate, "grad_norm": norm}
            )
        probe = {"train_loss": train[i], "loss": validation[i], "train_accuracy": accuracy[i] if accuracy else 0.8}
        events.append({
            "kind": "validation", "step": place, "loss": validation[i], "probe": probe, "answers": answers or {},
            "metrics": {"accuracy": metrics[i]} if metrics else {}, "best": validation[i] < best,
        })  # fmt: skip
        best = min(best, validation[i])
    return events


def codes(events: list[dict[str, Any]], facts: TrainingFacts = FACTS, finished: bool = True) -> list[str]:
    return [d.code for d in diagnose(events, facts, finished=finished)]


def changed(found: Diagnosis) -> Any:
    """The recipe that a diagnosis leads to, through the door that `--set` uses."""
    recipe = {"data": {"train": "rows.csv", "max_rows": 20}, "train": {"max_steps": 3, "learning_rate": 0.1}}
    return parse_recipe(apply_overrides(recipe, list(found.overrides)))


def test_a_healthy_run_gets_no_diagnosis_at_any_moment():
    events = history(
        *GOOD, accuracy=[0.8, 0.85, 0.9, 0.95, 1, 1, 1, 1], metrics=[0.3, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
    )
    for end in range(1, len(events) + 1):
        assert codes(events[:end], finished=False) == []
    assert codes(events) == []
    assert codes([]) == []


# Steps too large, numbers that are none.


def test_a_row_that_is_no_number_is_named():
    facts = replace(FACTS, not_finite=NotFinite(step=7, rows=("row 3",)))
    (found,) = diagnose(history([4.0]), facts)
    assert (found.code, found.severity, found.steps) == ("row_not_finite", "error", (7,))
    assert "row 3" in found.seen and not found.changes


def test_no_number_without_a_row_to_blame_is_divergence():
    facts = replace(FACTS, not_finite=NotFinite(step=7), learning_rate=0.2)
    (found,) = diagnose(history([4.0]), facts)
    assert found.code == "diverging"
    assert changed(found).train.learning_rate == 2e-3


def test_a_loss_that_ends_above_its_start_is_divergence():
    assert codes(history([5.6, 6.0, 7.0, 9.0])) == ["diverging"]
    assert "diverging" not in codes(history([5.2, 5.3, 5.4, 5.3]))  # within what rows vary by


def test_a_loss_that_comes_up_again_tells_a_high_rate():
    losses = [5 - 0.1 * i for i in range(40)] + [6.0] * 20 + [2.0] * 100
    (found,) = diagnose(history([2.5, 6.0, 2.1, 2.0], losses=losses, start=5.0), replace(FACTS, learning_rate=0.02))
    assert found.code == "learning_rate_too_high"
    assert "10 times the usual" in found.why and changed(found).train.learning_rate == 2e-3
    one_bad_batch = [5 - 0.03 * i for i in range(160)]
    one_bad_batch[80] = one_bad_batch[120] = 6.0
    assert codes(history(*GOOD, losses=one_bad_batch)) == []


def test_a_loss_thrown_far_above_the_start_tells_a_high_rate():
    losses = [5.0, 5.2, 12.0, 3.0, *[1.0] * 156]
    (found,) = diagnose(history(*GOOD, losses=losses), replace(FACTS, learning_rate=0.2))
    assert found.code == "learning_rate_too_high" and found.steps == (3,) and found.severity == "warning"
    losses[2] = 6.5
    assert codes(history(*GOOD, losses=losses), replace(FACTS, learning_rate=0.2)) == []


def test_a_vanished_gradient_at_a_high_loss_tells_a_high_rate():
    falling = [1.8, 1.6, 1.4, 1.3, 1.2, 1.1, 1.05, 1.0]
    norms = [4.0] * 10 + [0.1] * 150
    assert codes(history(falling, start=2.0, norms=norms)) == ["learning_rate_too_high"]
    assert codes(history(falling, start=2.0)) == ["too_few_steps"]


def test_a_high_start_does_not_hide_that_the_loss_still_falls():
    """Many labels of many tokens: most of the fall is in the first steps, and guessing takes long to learn."""
    assert codes(history([2.44, 1.5, 0.95, 0.76, 0.72], start=8.8)) == ["too_few_steps"]
    assert codes(history([2.44, 1.5, 0.95, 0.76, 0.72], start=8.8)[:-21], finished=False) == []
    assert codes(history([0.14, 0.13, 0.12, 0.13], start=4.4, accuracy=[0.9] * 4), MOSTLY)[:1] != [
        "learning_rate_too_high"
    ]


def test_settling_above_guessing_tells_a_high_rate_and_below_it_does_not():
    stuck = [2.6, 2.55, 2.5, 2.52, 2.5, 2.5, 2.5, 2.5]
    (found,) = diagnose(history(stuck), replace(FACTS, learning_rate=0.2))
    assert found.code == "learning_rate_too_high" and found.severity == "error"
    assert "0.50" in found.seen and "2.50" in found.seen  # what guessing gives, what is there
    assert "learning_rate_too_high" not in codes(history([0.55, 0.5, 0.5, 0.5]))
    assert codes(history(stuck[:2]), replace(FACTS, learning_rate=0.2), finished=False) == []  # too early to tell


def test_without_a_usual_rate_a_third_is_tried():
    facts = replace(FACTS, usual_learning_rate=None, learning_rate=0.3)
    (found,) = diagnose(history([2.5] * 8), facts)
    assert changed(found).train.learning_rate == pytest.approx(0.1)


def test_gradients_that_jump_again_and_again():
    norms = [1.0 + 0.5 * (i % 3) for i in range(160)]
    losses = [0.5] * 160
    for i in (60, 90, 120):
        norms[i], losses[i + 1] = 60.0, 3.0
    (found,) = diagnose(history([0.3] * 8, losses=losses, norms=norms), replace(FACTS, prior_loss=None))
    assert found.code == "gradients_unstable" and found.steps == (62, 92, 122)
    assert changed(found).train.max_grad_norm == 0.3
    norms[60] = norms[90] = 1.0
    assert codes(history([0.3] * 8, losses=losses, norms=norms), replace(FACTS, prior_loss=None)) == []


# Too little learnt.


def test_an_even_slow_fall_tells_a_low_rate():
    slow = [4.9, 4.7, 4.55, 4.45, 4.38, 4.33, 4.3, 4.3]
    (found,) = diagnose(history(slow), replace(FACTS, learning_rate=2e-5))
    assert found.code == "learning_rate_too_low"
    assert "100 times as high" in found.why and changed(found).train.learning_rate == 2e-3
    assert codes(history(slow), replace(FACTS, learning_rate=2e-5, prior_loss=None)) == ["learning_rate_too_low"]


def test_the_same_fall_at_the_usual_rate_wants_more_steps():
    slow = [4.4, 3.9, 3.4, 3.0, 2.6, 2.3, 2.0, 1.8]
    (found,) = diagnose(history(slow), FACTS)
    assert found.code == "too_few_steps"
    after = changed(found).train
    assert (after.epochs, after.max_steps, after.patience) == (12.0, None, 0)
    assert codes(history(slow)[:-21], finished=False) == []  # steps are still to come


def test_a_free_text_that_falls_slowly_is_left_alone():
    """Texts that nobody could predict: losses stay high in runs as good as they can be."""
    facts = replace(FACTS, prior_loss=None, labels={}, metric="rouge_l")
    assert codes(history([2.9, 2.75, 2.66, 2.6, 2.56, 2.53, 2.52, 2.51], start=3.2), facts) == []


def test_nothing_moves():
    assert codes(history([5.0] * 8)) == ["nothing_learnt"]
    assert codes(history([5.0] * 8), replace(FACTS, learning_rate=2e-9)) == ["learning_rate_too_low"]
    assert codes(history([0.01] * 8, start=0.01, metrics=[0.99] * 8)) == []  # the base knew it all
    (found,) = diagnose(history([5.0] * 8, norms=[0.0] * 160), replace(FACTS, prior_loss=None))
    assert found.code == "nothing_learnt" and "gradients are zero" in found.seen
    assert changed(found).train.learning_rate == "auto"


STILL = [1.0, 0.6, 0.52, 0.5, 0.49, 0.49, 0.48, 0.48]


def test_standing_still_with_a_small_rank_and_with_a_usual_one():
    facts = replace(FACTS, answers_from_words=RELATED)
    (found,) = diagnose(history(STILL), replace(facts, rank=1))
    assert found.code == "rank_too_small" and "rank 1, 1.43% of the weights" in found.why
    assert changed(found).method.rank == 16 and changed(found).method.alpha == "auto"
    (found,) = diagnose(history(STILL), facts)
    assert found.code == "plateau" and changed(found).method.rank == 32
    (found,) = diagnose(history(STILL), replace(facts, rank=None, method="full"))
    assert found.code == "plateau" and "method.rank" not in found.changes


def test_standing_still_at_guessing_far_above_the_usual_rate():
    usual = FACTS.usual_learning_rate
    assert usual is not None and FACTS.prior_loss is not None
    fast = replace(FACTS, answers_from_words=RELATED, learning_rate=50 * usual)
    guessing = [1.2, *[FACTS.prior_loss * f for f in (1.1, 1.0, 1.01, 1.0, 0.99, 1.0, 1.0)]]
    (found,) = diagnose(history(guessing), fast)
    assert found.code == "learning_rate_too_high" and "50 times the usual one" in found.why
    assert changed(found).train.learning_rate == usual
    assert codes(history(guessing), replace(fast, learning_rate=3 * usual)) == ["plateau"]
    late = [4.0, 3.5, 2.5, 1.8, 1.2, 0.8, 0.6, 0.58]  # whether it still falls says nothing at such a rate
    assert codes(history(late), fast) == ["learning_rate_too_high"]
    assert codes(history(late), replace(fast, learning_rate=3 * usual)) == ["too_few_steps"]
    better = [1.2, *[FACTS.prior_loss * f for f in (0.9, 0.8, 0.72, 0.7, 0.7, 0.7, 0.7)]]
    assert codes(history(better), fast) == ["plateau"]


STEADY = [1.0, 0.9, 0.75, 0.65, 0.55, 0.46, 0.4, 0.38]
"""Still coming down by learning rates spent, and flat over the last steps of a schedule that ends at zero."""


def test_what_still_falls_is_judged_by_learning_rates_and_not_by_steps():
    (found,) = diagnose(history(STEADY), replace(FACTS, epochs=8.0))
    assert found.code == "too_few_steps"  # the last quarter of the steps brought 14 % at a fortieth of the rates
    assert codes(history([1.0, 0.6, 0.43, 0.4, 0.39, 0.39, 0.385, 0.38]), FACTS) == ["plateau"]


def test_a_small_adapter_that_still_learns_after_many_passes_is_too_small():
    small = replace(FACTS, rank=1, epochs=8.0)
    (found,) = diagnose(history(STEADY), small)
    assert found.code == "rank_too_small" and "after 8 passes" in found.seen and "0.50" in found.seen
    assert changed(found).method.rank == 16
    assert codes(history(STEADY), replace(small, epochs=5.0)) == ["too_few_steps"]  # nobody knows rows seen so rarely
    assert codes(history(STEADY), replace(small, rank=8)) == ["too_few_steps"]
    assert codes(history(STEADY)[:-21], small, finished=False) == []
    assert "rank_too_small" not in codes(history(STEADY), replace(small, learning_rate=2e-4))
    apart = [2.5 * loss for loss in STEADY]
    assert "rank_too_small" not in codes(history(STEADY, apart), small)  # rows are known, other rows are not


def test_a_small_adapter_below_a_count_of_words_is_too_small():
    half = [1.0, 0.6, 0.4, 0.3, 0.25, 0.22, 0.2, 0.2]
    small = replace(FACTS, rank=1, epochs=8.0, answers_from_words=RELATED)
    (found,) = diagnose(history(half, answers={"rows": 40.0, "right": 0.5}), small)
    assert found.code == "rank_too_small"
    assert "answers 90 % of held-out rows rightly; the tuned model 50 % of validation rows" in found.seen
    assert codes(history(half, answers={"rows": 40.0, "right": 0.8}), small) == []  # within three errors of 40 rows
    assert codes(history(half, answers={"rows": 4000.0, "right": 0.8}), small) == ["rank_too_small"]
    assert codes(history(half, answers={"rows": 40.0, "right": 0.0}), replace(small, answers_from_words=None)) == []
    guess = Separation(0.55, 0.02, 0.5)  # words are hardly above chance: they show nothing
    assert codes(history(half, answers={"rows": 40.0, "right": 0.0}), replace(small, answers_from_words=guess)) == []
    assert codes(history(half), small) == []  # answers were not generated


def test_rows_that_are_known_are_no_standstill():
    facts = replace(FACTS, rank=1, answers_from_words=RELATED)
    free = replace(facts, prior_loss=None, labels={}, answers_from_words=None)
    assert codes(history(STILL, metrics=[0.2] * 8), free) == ["rank_too_small"]
    assert codes(history(STILL, metrics=[0.2] * 8, accuracy=[0.95] * 8), free) == []
    assert codes(history(STILL, metrics=[0.7] * 8), free) == []
    assert codes(history(STILL, metrics=[0.2] * 8), replace(free, rank=16)) == []
    assert codes(history([0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), facts) == []


# Learning by heart.

BY_HEART = ([0.45, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01], [0.46, 0.35, 0.33, 0.36, 0.4, 0.44, 0.48, 0.5])


def test_validation_up_while_training_falls_is_overfitting():
    (found,) = diagnose(history(*BY_HEART), FACTS)
    assert found.code == "overfitting" and found.steps == (60, 160)
    assert "0.33" in found.seen and "0.50" in found.seen
    assert changed(found).train.epochs == pytest.approx(1.8) and changed(found).method.dropout == 0.1
    (found,) = diagnose(history(*BY_HEART), replace(FACTS, method="full", rank=None))
    assert changed(found).train.weight_decay == 0.1


def test_a_rising_loss_with_better_answers_is_not():
    better = [0.2, 0.5, 0.6, 0.65, 0.7, 0.75, 0.78, 0.8]
    assert codes(history(*BY_HEART, metrics=better)) == []
    assert codes(history(*BY_HEART, metrics=[0.97] * 8)) == []  # nothing to complain of
    assert codes(history(*BY_HEART, metrics=[0.6] * 8)) == ["overfitting"]
    unsure = history(*BY_HEART)
    for event in unsure:
        if event["kind"] == "validation":
            event["probe"]["loss_error"] = 0.2
    assert codes(unsure) == []  # a few rows make all of the rise
    small = [0.33, 0.34, 0.33, 0.34, 0.35, 0.35, 0.36, 0.36]
    assert codes(history(BY_HEART[0], small)) == []
    both_up = ([0.3, 0.3, 0.32, 0.4], [0.3, 0.3, 0.38, 0.5])
    assert "overfitting" not in codes(history(*both_up, accuracy=[0.95] * 4))


def test_few_rows_are_too_few():
    few = replace(FACTS, rows=20, epochs=50.0, rows_available=240)
    (found,) = diagnose(history(*BY_HEART), few)
    assert found.code == "too_little_data" and "20 rows were seen 50 times" in found.seen
    assert changed(found).data.max_rows is None and changed(found).train.epochs == "auto"
    (found,) = diagnose(history(*BY_HEART), replace(few, rows_available=None))
    assert changed(found).train.epochs == pytest.approx(22.0) and "Collect more" in found.remedy
    assert codes(history(*BY_HEART, metrics=[0.97] * 8), few) == []  # few rows were enough
    assert codes(history(*GOOD, metrics=[0.96] * 8), few) == []


# What lies in the rows.


def test_labels_that_belong_to_nothing():
    learnt = [0.5, 0.5, 0.4, 0.37, 0.25, 0.2, 0.15, 0.13]
    guessed = [0.53, 0.55, 0.54, 0.6, 0.7, 0.77, 0.9, 0.93]
    (found,) = diagnose(history(learnt, guessed), replace(FACTS, answers_from_words=UNRELATED))
    assert found.code == "labels_unrelated" and found.severity == "error" and not found.changes
    assert "known by heart" in found.seen
    assert codes(history(learnt, guessed)) == ["labels_unrelated"]  # also where words were not asked
    assert codes(history(learnt, guessed), replace(FACTS, answers_from_words=RELATED)) == ["overfitting"]
    still = replace(FACTS, answers_from_words=UNRELATED)
    assert codes(history(STILL, [0.52] * 8), still) == ["labels_unrelated"]
    assert codes(history(STILL, [0.52] * 8), replace(still, answers_from_words=RELATED)) == ["plateau"]


def test_parts_that_differ():
    shifted = replace(FACTS, validation_shift=Separation(0.99, 0.02, 0.5))
    apart = (GOOD[0], [0.8, 0.6, 0.6, 0.7, 0.7, 0.75, 0.76, 0.76])
    (found,) = diagnose(history(*apart), shifted)
    assert found.code == "validation_differs" and not found.changes
    (found,) = diagnose(history(*apart), replace(shifted, split_method="order"))
    assert changed(found).data.split.method == "auto"
    assert codes(history(*GOOD), shifted) == []  # unlike, and answered as well
    assert "validation_differs" not in codes(
        history(*apart), replace(FACTS, validation_shift=Separation(0.7, 0.05, 0.5))
    )
    assert codes(history(*GOOD), replace(FACTS, test_shift=Separation(0.99, 0.02, 0.5))) == ["test_differs"]
    assert codes(history(*GOOD), replace(FACTS, test_shift=Separation(0.9, 0.05, 0.5))) == []
    assert codes(history(*GOOD), replace(shifted, test_shift=Separation(0.99, 0.02, 0.5))) == []  # neither does harm


MOSTLY = replace(FACTS, labels={"warm": 270, "cold": 30}, prior_loss=0.11)
COLLAPSED = {"rows": 60.0, "ended": 1.0, "expected_top_share": 0.9, "top_share": 1.0, "rare_recall": 0.0}


def test_one_answer_for_all():
    curve = [0.12, 0.12, 0.11, 0.11, 0.08, 0.06, 0.05, 0.05]
    (found,) = diagnose(history(curve, answers=COLLAPSED), MOSTLY)
    assert found.code == "one_answer_for_all" and "'warm'" in found.title
    assert "6 rows with another answer 0 %" in found.seen
    assert changed(found).goal.metric == "macro_f1" and changed(found).train.epochs == 36.0  # 4, nine times
    less = replace(MOSTLY, labels={"warm": 225, "cold": 75})
    (found,) = diagnose(history(curve, answers=COLLAPSED), less)
    assert changed(found).train.epochs == 12.0
    learnt = COLLAPSED | {"top_share": 0.9, "rare_recall": 0.9}
    assert codes(history(curve, answers=learnt, accuracy=[0.99] * 8), MOSTLY) == []
    two_rows = COLLAPSED | {"rows": 20.0}
    assert codes(history(curve, answers=two_rows, accuracy=[0.99] * 8), MOSTLY) == []
    early = history(curve, answers=COLLAPSED)[:70]
    assert codes(early, MOSTLY, finished=False) == []  # every run begins so


# What the loss looks at.


def test_answers_without_loss():
    (found,) = diagnose(history([2.0, 1.5, 1.2, 1.1]), replace(FACTS, answer_supervised=0.0, answer_weight=0.0))
    assert found.code == "answers_not_learnt" and changed(found).train.loss == "assistant"
    drowned = replace(FACTS, answer_weight=0.03, prior_loss=None)
    assert codes(history(*GOOD, metrics=[0.1] * 8), drowned) == ["answers_not_learnt"]
    assert codes(history(*GOOD, metrics=[0.8] * 8), drowned) == []


def test_an_end_that_is_not_learnt():
    endless = replace(FACTS, end_learnt=0.0, chat_template="own.jinja")
    (found,) = diagnose(history(*GOOD, answers={"rows": 60.0, "ended": 0.1}), endless)
    assert found.code == "end_not_learnt" and "90 %" in found.seen and "own.jinja" in found.why
    assert changed(found).base.chat_template == "auto"
    assert codes(history(*GOOD), endless) == ["end_not_learnt"]
    assert codes(history(*GOOD, answers={"rows": 60.0, "ended": 1.0}), endless) == []


# All together.


def test_every_change_is_a_setting_and_every_explanation_a_code():
    known = {
        "row_not_finite", "answers_not_learnt", "end_not_learnt", "diverging", "learning_rate_too_high",
        "learning_rate_too_low", "validation_differs", "labels_unrelated", "test_differs", "one_answer_for_all",
        "too_little_data", "overfitting", "nothing_learnt", "rank_too_small", "too_few_steps", "plateau",
        "gradients_unstable",
    }  # fmt: skip
    assert len(SIGNS) == len(known) + 1  # a learning rate that is too high has two
    assert set().union(*(entry.explains for entry in SIGNS)) <= known


number = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 8), st.none())


@given(
    st.lists(st.tuples(st.floats(0, 9), number, number, number), max_size=12),
    st.sampled_from([0.5, None]),
    st.sampled_from([20, 300]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_history_breaks_it(points, prior, rows, finished):
    events: list[dict[str, Any]] = []
    for i, (loss, validation, train, metric) in enumerate(points):
        events.append({"kind": "train_step", "step": i + 1, "loss": loss, "learning_rate": 1e-3, "grad_norm": 1.0})
        probe = {} if train is None else {"train_loss": train, "train_accuracy": 0.5}
        metrics = {} if metric is None else {"accuracy": metric}
        events.append({"kind": "validation", "step": i + 1, "loss": validation, "metrics": metrics, "probe": probe})
    facts = replace(FACTS, prior_loss=prior, rows=rows, steps=12)
    for found in diagnose(events, facts, finished=finished):
        assert found.title and found.seen and found.why and found.remedy
        changed(found)


def test_a_watcher_tells_each_finding_once_and_the_rest_at_the_end():
    told: list[dict[str, Any]] = []
    watcher = Watcher(replace(FACTS, trainable=None), told.append)
    watcher.hear({"kind": "train_started", "steps": 160, "trainable": 70, "parameters": 7000})
    for event in history(*BY_HEART):
        watcher.hear(event)
    assert watcher.facts.trainable == 70
    assert [(e["kind"], e["code"], e["seen_at"]) for e in told] == [("diagnosis", "overfitting", 140)]
    assert told[0]["overrides"] == ["train.epochs=1.8", "train.max_steps=null", "method.dropout=0.1"]
    assert json.loads(json.dumps(told[0])) == told[0]
    (found,) = watcher.finish()
    assert found.code == "overfitting" and found.steps == (60, 160) and len(told) == 1
    (found,) = watcher.finish(NotFinite(step=161, rows=("row 9",)))
    assert found.code == "row_not_finite" and told[-1]["code"] == "row_not_finite"


def test_it_is_cheap():
    import time

    events = history(GOOD[0] * 10, GOOD[1] * 10, steps=20_000)
    began = time.process_time()  # of this process: others may keep the machine busy
    diagnose(events, FACTS)
    assert time.process_time() - began < 2  # 20,000 logged steps, 80 readings


# What is measured.


def test_a_probe_measures_what_the_model_gives():
    model = LanguageModel(build("llama"))
    rows = ragged_samples((9, 3, 7, 12, 12, 20, 5, 9, 14, 6, 2), seed=1)
    measured = measure_rows(model, rows, tokens_at_once=25)
    assert measured.mean_loss == pytest.approx(mean_loss(model, rows), rel=1e-5)
    for row, loss, weight, tokens, hits in zip(
        rows, measured.loss, measured.weight, measured.tokens, measured.hits, strict=True
    ):
        with torch.no_grad():
            logits = model.model(input_ids=torch.from_numpy(row.ids)[None]).logits[0]
        learnt = np.flatnonzero(row.weights)
        chances = torch.log_softmax(logits.double(), -1)[learnt - 1, row.ids[learnt]]
        assert loss == pytest.approx(-float((chances * torch.from_numpy(row.weights[learnt])).sum()), abs=1e-4)
        assert (weight, tokens) == (row.weights.sum(), row.supervised)
        assert hits == int((logits.argmax(-1)[learnt - 1].numpy() == row.ids[learnt]).sum())


def test_a_row_that_is_no_number_spoils_only_itself():
    model = LanguageModel(build("qwen3"))
    rows = ragged_samples((9, 7, 12, 20), seed=3)
    rows = [r for r in rows if r.supervised]
    clean = measure_rows(model, rows)
    broken = [rows[0], replace(rows[1], weights=rows[1].weights * np.float32(math.nan)), *rows[2:]]
    measured = measure_rows(model, broken)
    assert np.isnan(measured.loss).tolist() == [i == 1 for i in range(len(rows))]
    assert np.allclose(np.delete(measured.loss, 1), np.delete(clean.loss, 1))


def test_a_probe_takes_the_same_rows_each_time_and_leaves_the_model_as_it_is():
    model = LanguageModel(build("llama"))
    model.model.train()
    train = ragged_samples((9,) * 200, seed=1)
    probe = Probe(train, train[:3])
    first = probe.measure(model)
    assert probe.measure(model) == first and len(probe.train) == 64
    assert set(first) == {"train_loss", "train_accuracy", "loss", "accuracy", "loss_error"}
    assert model.model.training
    assert Probe(train, ()).measure(model).keys() == {"train_loss", "train_accuracy"}


def test_the_error_of_a_loss_is_what_drawing_rows_again_gives():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, 400)
    losses = rng.exponential(1.0, 400) * tokens * (rng.random(400) < 0.1)
    measured = RowMeasures(losses, tokens.astype(float), tokens, tokens)
    drawn = [rng.integers(0, 400, 400) for _ in range(2000)]
    spread = np.std([losses[rows].sum() / tokens[rows].sum() for rows in drawn])
    assert measured.error == pytest.approx(spread, rel=0.1)


def test_answers_tell_more_than_their_score():
    expected = ["a"] * 8 + ["b", "c"]
    told = answer_measures(["a"] * 9 + [None], expected, [True] * 5 + [False] * 5)
    assert told == {
        "rows": 10, "ended": 0.5, "unreadable": 0.1, "right": 0.8,
        "expected_top_share": 0.8, "top_share": 0.9, "rare_recall": 0.0,
    }  # fmt: skip
    assert "top_share" not in answer_measures(["x", "y"], ["x", "y"], [True, True])  # answers that do not repeat
    assert "top_share" not in answer_measures(["a"] * 4, ["a"] * 4, [True] * 4)  # only one kind
    assert answer_measures([["x"]] * 3, [["x"]] * 3, [True] * 3)["unreadable"] == 0  # lists are answers too
    assert answer_measures([], [], []) == {}


def words_of(rng: np.random.Generator, count: int, low: int = 0) -> list[list[int]]:
    return [(low + rng.integers(0, 200, 12)).tolist() for _ in range(count)]


def test_words_of_one_source_are_not_told_apart_and_of_two_are():
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        same = separation(words_of(rng, 150), words_of(rng, 30))
        assert same is not None
        alarms += same.above(0.7)
    assert alarms == 0
    rng = np.random.default_rng(0)
    other = separation(words_of(rng, 150), words_of(rng, 30, low=100))
    assert other is not None and other.above(0.8)
    assert separation(words_of(rng, 150), words_of(rng, 5)) is None


def test_words_that_give_answers_away_and_words_that_do_not():
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        answers = rng.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]).tolist()
        nothing = predictability(words_of(rng, 200), answers)
        assert nothing is not None and nothing.chance == pytest.approx(1 / 3)
        alarms += nothing.above(nothing.chance)
    assert alarms <= 1
    rng = np.random.default_rng(0)
    texts = words_of(rng, 200)
    answers = ["even" if text[0] % 2 else "odd" for text in texts]
    told = predictability(
        [[*text, 1000 + (answer == "odd")] for text, answer in zip(texts, answers, strict=True)], answers
    )
    assert told is not None and told.score > 0.9 and told.above(told.chance)
    assert predictability(texts[:20], answers[:20]) is None
    assert predictability(texts, [str(i) for i in range(200)]) is None


# What is known before training.


def rows_of(count: int, start: int = 0) -> list[Example]:
    """Every other row warm, every other cold."""
    words = {"warm": ("dear", "love", "hug"), "cold": ("stop", "never", "go")}
    rows = []
    for i in range(start, start + count):
        tone = ("warm", "cold")[i % 2]
        turns = (Message("user", f"{words[tone][i % 3]} {i}"), Message("assistant", tone))
        rows.append(Example(f"row {i}", turns, tone, i, "rows.csv"))
    return rows


@pytest.fixture(scope="module")
def gathered():
    renderer = Renderer(byte_tokenizer(), "plain")
    task = Classification(("warm", "cold"))
    splits = Splits(tuple(rows_of(60)), tuple(rows_of(20, 60)), tuple(rows_of(20, 80)), {}, "")
    recipe = parse_recipe({
        "data": {"train": "rows.csv"}, "goal": {"metric": "accuracy"},
        "train": {"learning_rate": 1e-3, "batch_size": 6, "epochs": 4},
    })  # fmt: skip

    def samples(loss: str = "assistant", template: Renderer = renderer) -> list[Sample]:
        turns = [training_conversation(task, row) for row in splits.train]
        return list(template.samples(turns, loss, [row.id for row in splits.train]))  # type: ignore[arg-type]

    def facts(rows: list[Sample], template: Renderer = renderer) -> TrainingFacts:
        return gather_facts(recipe, task, splits, rows, template, steps=40)

    return samples, facts


def test_facts_of_a_healthy_recipe(gathered):
    samples, facts = gathered
    known = facts(samples())
    assert (known.rows, known.epochs, known.steps) == (60, 4.0, 40)
    assert known.labels == {"warm": 30, "cold": 30}
    assert known.prior_loss == pytest.approx(math.log(2) / 5)  # "warm" and its end are five bytes-and-a-token
    assert (known.answer_supervised, known.answer_weight, known.end_learnt) == (1.0, 1.0, 1.0)
    assert known.answers_from_words is not None and known.answers_from_words.above(0.5)
    assert known.rank == 16 and known.method == "lora" and known.metric == "accuracy"


def test_facts_of_a_wrong_mask(gathered):
    samples, facts = gathered
    inverted = [replace(s, weights=np.r_[0, s.weights[1:] == 0].astype(np.float32)) for s in samples()]
    known = facts(inverted)
    assert known.answer_supervised is not None and known.answer_supervised < 0.5
    assert known.answer_weight is not None and known.answer_weight < 0.1
    assert known.prior_loss is None and known.end_learnt == 0.0
    everything = facts(samples("all"))
    assert (
        everything.answer_supervised == 1.0 and everything.answer_weight is not None and everything.answer_weight < 0.5
    )
    assert everything.prior_loss is None


def test_facts_of_a_template_without_an_end(gathered, tmp_path):
    samples, facts = gathered
    template = tmp_path / "no_end.jinja"
    template.write_text(
        "{%- for m in messages -%}{{ '# ' + m.role + '\\n' + m.content + '\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '# assistant\\n' }}{%- endif -%}"
    )
    renderer = Renderer(byte_tokenizer(), str(template))
    assert facts(samples(template=renderer), renderer).end_learnt == 0.0
