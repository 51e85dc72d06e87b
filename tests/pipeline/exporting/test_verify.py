"""What decides whether an export lost too much, apart from any model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.evaluation.statistics import non_inferiority
from tunesmith.pipeline.exporting.types import Check, Verification
from tunesmith.pipeline.exporting.verify import decided, margin_of


def outcome(difference: float, error: float, margin: float = 0.01, *, identical: bool = False) -> tuple[str, bool]:
    return decided(difference, non_inferiority(difference, error, margin), margin, identical=identical, alpha=0.05)


def test_more_than_is_allowed_fails_however_few_rows_say_it():
    assert outcome(-0.02, 0.03) == ("failed", False)
    assert outcome(-0.02, 0.0001) == ("failed", False)


def test_less_passes_only_where_it_is_sure():
    assert outcome(-0.005, 0.002) == ("passed", True)
    assert outcome(-0.005, 0.02) == ("unsure", False)
    assert outcome(0.03, 0.05) == ("unsure", False)  # better here, and yet a loss of a point cannot be ruled out
    assert outcome(0.03, 0.01) == ("passed", True)


def test_the_very_same_answers_are_no_loss_and_no_margin_is_never_sure():
    assert outcome(0.0, 0.02, identical=True) == ("passed", True)
    assert decided(0.0, None, 0.0, identical=False, alpha=0.05) == ("unsure", False)
    assert decided(-0.001, None, 0.0, identical=False, alpha=0.05) == ("failed", False)


@pytest.mark.parametrize(
    ("asked", "margin", "min_gain", "expected"),
    [(0.05, 0.02, 0.01, 0.05), (None, 0.02, 0.01, 0.02), (None, None, 0.03, 0.03), (None, None, 0.0, 0.01)],
)
def test_whose_margin_it_is(asked, margin, min_gain, expected):
    verdict = SimpleNamespace(margin=margin, min_gain=min_gain)
    reference: Any = SimpleNamespace(recipe=SimpleNamespace(verdict=verdict))
    found, whose = margin_of(reference, asked)
    assert found == expected and whose


def test_a_verification_is_read_back_as_it_was_kept():
    checks = (Check("logits", "passed", "alike", 0.1, 0.2), Check("task", "unsure", "few rows"))
    found = Verification("onnx-int4", checks, "a", {"mean_kl": 0.1})
    assert found.passed and Verification.from_dict(found.to_dict()) == found
    assert not Verification("x", (Check("stops", "failed", "never"),)).passed
    with pytest.raises(KeyError):
        found.check("stops")
