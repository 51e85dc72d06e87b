"""Rubrics as people write them, and everything they may write wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.evaluation.judges import load_rubric

GOOD = """\
name: support answers
about: Replies to customers of a bank.
tie_within: 0.05
criteria:
  - name: correct
    question: Does the answer say what the reference says?
    scale: {1: wrong, 3: partly right, 5: right and complete}
    weight: 2
  - name: tone
    question: Is it polite and plain?
    scale: {0: rude, 1: pleasant}
"""


def rubric_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text(text)
    return path


def test_a_rubric_is_read_and_scores_on_its_own_scales(tmp_path):
    rubric = load_rubric(rubric_file(tmp_path, GOOD))
    assert [(c.name, c.lowest, c.highest, c.weight) for c in rubric.criteria] == [
        ("correct", 1, 5, 2),
        ("tone", 0, 1, 1),
    ]
    assert rubric.about and rubric.tie_within == 0.05
    assert rubric.score({"correct": 5, "tone": 1}) == 1.0
    assert rubric.score({"correct": 1, "tone": 0}) == 0.0
    assert rubric.score({"correct": 3, "tone": 1}) == pytest.approx((2 * 0.5 + 1) / 3)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("criteria:", "criterion:", "unknown criterion"),
        ("{0: rude, 1: pleasant}", "{1: pleasant}", r"criteria\[1\].scale"),
        ("{0: rude, 1: pleasant}", "{a: rude, b: pleasant}", r"criteria\[1\].scale"),
        ("{0: rude, 1: pleasant}", "{0: rude, true: pleasant}", r"criteria\[1\].scale"),
        ("{0: rude, 1: pleasant}", "{0: rude, 1: ''}", r"scale.1"),
        ("name: tone", "name: correct", "two criteria are named"),
        ("name: tone", "name: My Tone", "cannot name a criterion"),
        ("name: tone", "weights: 1", "unknown weights"),
        ("weight: 2", "weight: -1", "weight"),
        ("weight: 2", "weight: 0", "leaves the criterion out"),
        ("tie_within: 0.05", "tie_within: 1", "under 1"),
        ("    question: Is it polite and plain?\n", "", r"criteria\[1\].question"),
        (GOOD, "- a\n- b\n", "no mapping"),
        (GOOD, "criteria: []\n", "needs criteria"),
        (GOOD, "criteria: [1]\n", "no mapping"),
        (GOOD, "a: [", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(RecipeError, match=told):
        load_rubric(rubric_file(tmp_path, GOOD.replace(old, new)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_rubric(tmp_path / "no.yaml")
