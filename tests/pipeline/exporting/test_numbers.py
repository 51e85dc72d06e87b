"""The numbers by which an export is held against the tuned model, on logits that are known."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.inference.types import FloatArray
from tunesmith.pipeline.exporting.numbers import Parity, parity

DRAW = np.random.default_rng(0)
TUNED = [DRAW.normal(size=(5, 40)).astype(np.float32) * 3 for _ in range(3)]
BASE = [one + DRAW.normal(size=one.shape).astype(np.float32) * 0.5 for one in TUNED]


def against(exported: list[FloatArray], base: list[FloatArray] | None = BASE, real: int = 2) -> Parity:
    return parity(TUNED, exported.__getitem__, None if base is None else base.__getitem__, real)


def test_the_same_is_the_same():
    found = against(TUNED)
    width = TUNED[0].shape[1]
    assert found == Parity(0.0, 0.0, 0.0, 1.0, pytest.approx(1.0), True, width=width, narrower=False)


def test_only_differences_between_probabilities_count_for_kl_and_for_what_was_kept():
    moved = against([one + 7 for one in TUNED])
    assert moved.error == pytest.approx(7) and moved.kl < 1e-9 and moved.kept == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.5])
def test_the_share_of_the_tuning_that_arrived(share):
    mixed = [base + share * (tuned - base) for tuned, base in zip(TUNED, BASE, strict=True)]
    assert against(mixed).kept == pytest.approx(share, abs=0.02)


def test_rounding_leaves_the_share_near_one_though_it_is_larger_than_the_tuning():
    noise = np.random.default_rng(3)
    tuned = [noise.normal(size=(60, 4000)).astype(np.float32) for _ in range(3)]
    base = [one + noise.normal(size=one.shape).astype(np.float32) * 0.05 for one in tuned]
    rough = [one + noise.normal(size=one.shape).astype(np.float32) * 0.2 for one in tuned]
    found = parity(tuned, rough.__getitem__, base.__getitem__, 3)
    assert found.kept == pytest.approx(1, abs=0.05) and found.kl > 0.01


def test_kl_is_that_of_the_textbook_over_real_rows_only():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    tuned, other = [np.log([p]).astype(np.float32)] * 2, [np.log([q]).astype(np.float32), np.zeros((1, 3), np.float32)]
    found = parity(tuned, other.__getitem__, None, 1)
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert found.top1 == 1.0 and found.kept is None


def test_wider_logits_are_cut_to_the_tokens_that_both_have():
    padded = [np.pad(one, ((0, 0), (0, 24))) for one in TUNED]
    assert against(padded).error == 0 and not against(padded).narrower


def test_tokens_without_logits_are_told():
    found = against([one[:, :-3] for one in TUNED])
    assert found.narrower and found.width == TUNED[0].shape[1] - 3


def test_what_is_no_number_is_told_and_nothing_tuned_is_no_share():
    broken = [one.copy() for one in TUNED]
    broken[1][0, 0] = np.nan
    assert not against(broken).finite
    assert against(TUNED, TUNED).kept is None
