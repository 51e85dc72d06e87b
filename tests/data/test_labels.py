"""Labels that look wrong, and how small a difference a test set shows."""

from __future__ import annotations

import random

import pytest

from tests.data.makers import examples
from tunesmith.data import Example
from tunesmith.data.quality import detectable_difference, noise_findings, rows_to_detect, suspected_labels
from tunesmith.data.quality.labels import label_spellings

WORDS = {
    "card": "card chip plastic pin magnetic wallet swipe contactless",
    "transfer": "transfer send payee iban money pending recipient wire",
    "loan": "loan credit rate mortgage interest repay instalment borrow",
    "app": "app login password screen update crash phone button",
}


def labelled(count: int, flipped: int, seed: int = 0) -> tuple[list[Example], set[int]]:
    """Rows of words of their label, and the lines of those that were given another one."""
    draw = random.Random(seed)
    names = sorted(WORDS)
    wrong = set(draw.sample(range(count), flipped))
    pairs = []
    for number in range(count):
        label = names[number % 4]
        words = draw.choices(WORDS[label].split(), k=4) + draw.choices(["please", "the", "my", "is", "with"], k=3)
        draw.shuffle(words)
        given = draw.choice([name for name in names if name != label]) if number in wrong else label
        pairs.append((f"{' '.join(words)} {number}", given))
    return examples(pairs), {number + 2 for number in wrong}


def test_flipped_labels_are_suspected() -> None:
    rows, wrong = labelled(600, 30)
    suspects = suspected_labels(rows)
    right = [s for s in suspects if s.line in wrong]
    assert len(right) >= 0.9 * len(wrong)
    assert len(right) >= 0.9 * len(suspects)
    assert all(s.lead > 0 and s.given != s.likely for s in suspects)
    assert [s.lead for s in suspects] == sorted((s.lead for s in suspects), reverse=True)


def test_right_labels_are_not() -> None:
    assert suspected_labels(labelled(400, 0)[0]) == []


def test_labels_that_words_do_not_tell_are_not_judged() -> None:
    draw = random.Random(0)
    rows, _ = labelled(400, 0)
    assert suspected_labels(examples([(row.question, draw.choice("ab")) for row in rows])) == []


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows, _ = labelled(300, 20)
    mixed = random.Random(1).sample(rows, len(rows))
    assert {s.id for s in suspected_labels(rows)} == {s.id for s in suspected_labels(mixed)}


def test_too_few_rows_or_labels_doubt_nobody() -> None:
    rows, _ = labelled(90, 10)
    assert suspected_labels(rows) == []
    assert suspected_labels(examples([(f"text {n}", "one") for n in range(200)])) == []
    assert suspected_labels(examples([(f"text{n}", f"label {n}") for n in range(200)])) == []
    assert suspected_labels(examples([("…", "ab"[n % 2]) for n in range(200)])) == []  # nothing to learn from


def test_the_finding_lists_all_lines_and_shows_the_surest() -> None:
    rows, _ = labelled(600, 30)
    suspects = suspected_labels(rows)
    (found,) = noise_findings(rows)
    assert found.code == "label_noise" and found.lines == tuple(sorted(s.line for s in suspects))
    assert f"line {suspects[0].line}, {suspects[0].given!r} and perhaps {suspects[0].likely!r}" in found.message


def test_spellings_take_the_commonest() -> None:
    assert label_spellings({"Card": 2, "card": 5, "card ": 1, "loan": 3}) == {"Card": "card", "card ": "card"}


@pytest.mark.parametrize(("rows", "points"), [(100, 9.7), (374, 5.0), (2352, 2.0), (1, 97.0), (0, 100.0)])
def test_smallest_difference(rows: int, points: float) -> None:
    """The figures for twelve per cent of disagreement that the formula's source is quoted with."""
    assert 100 * detectable_difference(rows) == pytest.approx(points, abs=0.06)


@pytest.mark.parametrize("difference", [0.01, 0.05, 0.1, 0.3])
def test_rows_to_detect_is_the_inverse(difference: float) -> None:
    rows = rows_to_detect(difference)
    assert detectable_difference(rows) <= difference < detectable_difference(rows - 1)
