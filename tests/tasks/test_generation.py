from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.rows import example
from tunesmith.tasks.generation import Generation, rouge_l
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.words import words


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The cat's 2 mats.", ["the", "cat", "s", "2", "mats"]),
        ("Ελλάδα και Straße", ["ελλάδα", "και", "strasse"]),
        ("我爱 Paris 2024年", ["我", "爱", "paris", "2024", "年"]),
        ("カタカナとひらがな", list("カタカナとひらがな")),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("!?… \U0001f600", []),
    ],
)
def test_words_of_many_scripts(text: str, tokens: list[str]) -> None:
    assert words(text) == tokens


@given(st.text())
def test_words_hold_no_space_and_never_fail(text: str) -> None:
    assert all(token and not token.isspace() for token in words(text))


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "the cat the mat" = 4 of 6 and of 5 words.
    assert rouge_l("the cat sat near the mat", "The cat, on the mat!") == pytest.approx(
        2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)
    )
    assert rouge_l("我爱北京", "我爱上海") == pytest.approx(0.5)
    assert rouge_l("Привет, мир", "привет мир") == 1.0
    assert rouge_l("", "something") == 0.0


def test_exact_match_ignores_white_space_only() -> None:
    task = Generation(short_answers=True)
    rows = [example("q", "Paris  is\nold"), example("q", "Paris"), example("q", "42")]
    scores = quick_score(task, [" Paris is old ", "paris", "42."], rows)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert list(task.metrics) == ["exact_match", "rouge_l", "normalised_match"]
    assert scores["normalised_match"] == 1
    assert list(Generation().metrics) == ["rouge_l", "exact_match", "normalised_match"]


def test_closing_text_is_taken_off_once() -> None:
    task = Generation(closing="”")
    assert task.parse("she said “no””") == "she said “no”"
    assert task.parse("") == ""


def test_instructions() -> None:
    assert Generation().instruction == ""
    assert Generation(given_instruction="Translate.").full_instruction.startswith("Translate.\n")
