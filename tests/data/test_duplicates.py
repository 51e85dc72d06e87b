"""Copies, near-duplicates and conflicts within a file."""

from __future__ import annotations

import random
import string
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.makers import by_code, examples, plain_text
from tunesmith.data import Example, Message, check_examples
from tunesmith.data.duplicates import THRESHOLD, find_near_duplicates, normalised
from tunesmith.data.duplicates.conflicts import conflicts_of
from tunesmith.data.duplicates.exact import copies_of, lookalikes_of
from tunesmith.data.duplicates.near import Groups
from tunesmith.data.duplicates.shingles import jaccard, shingle_hashes, shingle_set, signatures, silent
from tunesmith.data.duplicates.texts import RowTexts, common_frame


def likeness(one: str, other: str) -> float:
    """By sets of strings, as the definition says."""
    left, right = ({text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (one, other))
    return len(left & right) / len(left | right)


def row_text(row: Example) -> str:
    return normalised(f"{row.question}\n{row.expected}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße  nach Köln", "STRASSE NACH KÖLN"),
        ("ﬁle", "file"),
        ("soft\u00adhyphen", "softhyphen"),
        ("a\u00a0b\r\n\tc ", "a b c"),
        ("ko\u0308ln", "köln"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
    ],
)
def test_texts_that_count_as_the_same(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_normalising_is_done_once_and_for_all() -> None:
    for text in ("Ünïcode ﬃ ½", "  A  b ", "İstanbul", ""):
        assert normalised(normalised(text)) == normalised(text)
    assert normalised("don't") != normalised("dont")


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_shingles_of_a_batch_are_those_of_each_text(texts: list[str]) -> None:
    hashes, offsets = shingle_hashes(texts)
    assert offsets[-1] == len(hashes)
    for number, text in enumerate(texts):
        own = hashes[int(offsets[number]) : int(offsets[number + 1])]
        assert len(own) == max(1, len(text) - 4)
        assert np.array_equal(np.unique(own), shingle_set(text))


@given(st.text(string.ascii_lowercase[:4] + " é漢", min_size=5, max_size=80), st.integers(0, 60), st.text(max_size=10))
@settings(max_examples=100, deadline=None)
def test_likeness_is_exact(text: str, place: int, insert: str) -> None:
    other = text[:place] + insert + text[place:]
    assert jaccard(shingle_set(text), shingle_set(other)) == pytest.approx(likeness(text, other), abs=1e-12)


def test_signatures_estimate_likeness() -> None:
    draw = random.Random(0)
    base = [" ".join(plain_text(5 * n + k) for k in range(5)) for n in range(60)]
    other = ["".join(c if draw.random() > 0.02 else "#" for c in text) for text in base]
    signed = signatures([*base, *other], silent)
    estimate = (signed[:60] == signed[60:]).mean(axis=1)
    exact = np.array([likeness(a, b) for a, b in zip(base, other, strict=True)])
    assert 0.3 < exact.min() < exact.max() < 1
    assert abs(float((estimate - exact).mean())) < 0.02
    assert float(np.abs(estimate - exact).max()) < 0.2


def spoilt(text: str, draw: random.Random, letters: int) -> str:
    for _ in range(letters):
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(string.ascii_lowercase) + text[place + 1 :]
    return text


def planted(rows: int, copies: int, letters: int) -> list[Example]:
    draw = random.Random(letters)
    texts = [" ".join(plain_text(5 * n + k) for k in range(5)) for n in range(rows)]
    return examples([(t, "yes") for t in [*texts, *(spoilt(texts[n], draw, letters) for n in range(copies))]])


@pytest.mark.parametrize("letters", [1, 2, 3, 4])
def test_planted_near_duplicates_are_found_and_nothing_below_the_threshold(letters: int) -> None:
    rows = planted(1000, 200, letters)
    found = find_near_duplicates(rows)
    for pair in found.pairs:
        exact = likeness(row_text(rows[pair.first]), row_text(rows[pair.second]))
        assert pair.similarity == pytest.approx(exact) and exact >= THRESHOLD
    above = {(n, 1000 + n) for n in range(200) if likeness(row_text(rows[n]), row_text(rows[1000 + n])) >= THRESHOLD}
    pairs = {(pair.first, pair.second) for pair in found.pairs}
    assert above and len(above & pairs) >= 0.95 * len(above)
    assert all(found.cluster[one] == found.cluster[other] for one, other in pairs)
    assert len(set(found.cluster)) <= len(rows) - len(pairs)  # inputs alone may be alike too


def test_crowded_buckets_are_joined_by_neighbours() -> None:
    """Three hundred rows, each nearly the next: one group, without comparing all pairs."""
    text = " ".join(plain_text(n) for n in range(6))
    rows = examples([(f"{plain_text(n)[:5]} {text} {plain_text(n)[6:11]}", "yes") for n in range(300)])
    found = find_near_duplicates(rows)
    assert len(set(found.cluster)) == 1
    assert len(found.pairs) == 299


def test_the_order_of_the_file_changes_no_group() -> None:
    rows = planted(300, 100, 3)
    mixed = random.Random(1).sample(rows, len(rows))
    groups = []
    for order in (rows, mixed):
        members: dict[int, set[str]] = {}
        for row, number in zip(order, find_near_duplicates(order).cluster, strict=True):
            members.setdefault(number, set()).add(row.question)
        groups.append({frozenset(group) for group in members.values()})
    assert groups[0] == groups[1]


def test_what_all_inputs_share_does_not_make_them_alike() -> None:
    head = "Classify the sentiment of the following customer message, which came in by mail or by telephone and was "
    head = f"{head}written down by one of our people as well as could be done in the few minutes there are for it: "
    tail = " Answer with one word out of these: good, bad, neutral, unclear, mixed, offensive."
    rows = examples([(f"{head}{plain_text(n)[:17]}{tail}", "good") for n in range(80)])
    texts = RowTexts(rows, "input", common_frame(rows))
    assert texts[7] == plain_text(7)[:17]
    assert find_near_duplicates(rows).pairs == ()
    assert find_near_duplicates(rows[:20]).pairs != ()  # too few rows to call it a frame


def test_system_messages_do_not_count() -> None:
    long = Message("system", " ".join(plain_text(n) for n in range(20)))
    rows = [replace(row, messages=(long, *row.messages)) for row in examples([("one", "a"), ("two", "b")])]
    assert find_near_duplicates(rows).pairs == ()


def test_texts_shorter_than_a_shingle() -> None:
    rows = examples([("a", ""), ("b", ""), ("", "a "), ("A", "")])
    found = find_near_duplicates(rows)
    assert found.pairs == ()
    assert found.cluster == (0, 1, 0, 0)


def test_no_and_one_row() -> None:
    assert find_near_duplicates([]).pairs == ()
    assert find_near_duplicates(examples([("a", "b")])).cluster == (0,)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_groups_are_those_of_connected_places(pairs: list[tuple[int, int]]) -> None:
    groups = Groups(20)
    sets = [{n} for n in range(20)]
    for one, other in pairs:
        merged = sets[one] | sets[other]
        assert groups.join(one, other) == (sets[one] is not sets[other])
        for place in merged:
            sets[place] = merged
    assert groups.numbers() == [min(own) for own in sets]


def test_exact_copies_and_those_nobody_sees() -> None:
    rows = examples([("a b", "x"), ("c", "y"), ("a b", "x"), ("A  b", "x"), ("a b", "X"), ("c", "z")])
    assert copies_of(rows) == [[0, 2]]
    assert lookalikes_of(rows) == [[0, 3, 4]]
    found = by_code(check_examples([*rows, *examples([(plain_text(n), "x") for n in range(100)])], task_type="auto"))
    assert found["duplicate_row"].lines == (2, 4) and found["duplicate_row"].count == 1
    assert found["duplicate_normalised"].lines == (2, 5, 6) and found["duplicate_normalised"].count == 2


def test_weights_make_rows_different() -> None:
    row = examples([("a", "b")])[0]
    other = replace(row, id="other", messages=(row.messages[0], replace(row.messages[1], weight=0.0)))
    assert lookalikes_of([row, other]) == []


def test_conflicts_are_found_whatever_case_and_spaces() -> None:
    rows = examples([("Is it open?", "yes"), ("is it  OPEN?", "No"), ("other", "a"), ("Other", "A "), ("third", "b")])
    assert conflicts_of(rows) == [[0, 1]]
    rows += examples([(plain_text(n), "x") for n in range(100)])
    found = by_code(check_examples(rows, task_type="generation"))
    assert found["conflicting_answers"].lines == (2, 3)
    assert found["conflicting_answers"].example == "Is it open? → yes / No"


def test_a_conversation_before_the_question_tells_inputs_apart() -> None:
    rows = examples([("And now?", "yes"), ("And now?", "no")])
    told = [
        replace(row, messages=(Message("user", f"story {n}"), Message("assistant", "ok"), *row.messages))
        for n, row in enumerate(rows)
    ]
    assert conflicts_of(rows) and not conflicts_of(told)


def test_the_finding_names_the_likest_pair() -> None:
    text = " ".join(plain_text(n) for n in range(4))
    rows = [(text, "x"), (f"{text} indeed", "x"), *[(plain_text(n), "x") for n in range(100, 220)]]
    found = by_code(check_examples(examples(rows), task_type="generation"))["near_duplicate"]
    assert found.lines == (2, 3) and found.count == 1
    assert "lines 2 and 3 are 9" in found.message and "80%" in found.message
    assert "indeed" in str(found.example)
