"""Wrong answers in groups: planted themes are found, forms come first, every wrong row is in one group at most."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.verdict.cases import row
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.tasks.words import words
from tunesmith.verdict.error_clusters import FEWEST_TO_DIVIDE, error_clusters
from tunesmith.verdict.mistakes import poor_rows

THEMES = {
    "parcel": ("parcel", "courier", "doorstep", "delivered", "street"),
    "refund": ("refund", "invoice", "charged", "twice", "money"),
    "login": ("password", "login", "locked", "reset", "code"),
}
COMMON = ("please", "help", "me", "with", "this", "today", "the", "a")


def question(theme: str, rng: random.Random) -> str:
    said = [*rng.sample(THEMES[theme], 4), *rng.choices(COMMON, k=5)]
    rng.shuffle(said)
    return f"### Input\n{' '.join(said)}\n\n### Answer\n"


def rows_of(theme: str, count: int, score: float, seed: int, start: int = 0) -> list[ScoredAnswer]:
    rng = random.Random(seed)
    return [
        row(start + i, score, prompt=question(theme, rng), answer=f"{theme} {i}", parsed="x", expected=f"e{i}")
        for i in range(count)
    ]


def measured(rows: Sequence[ScoredAnswer]) -> Evaluation:
    return Evaluation("tuned", tuple(rows), (), 0.1, 0.2, 1.0)


def test_planted_themes_are_found_named_and_counted() -> None:
    rows = [
        *rows_of("parcel", 20, 0.0, 1),
        *rows_of("refund", 12, 0.0, 2, 100),
        *rows_of("parcel", 5, 1.0, 3, 200),
        *rows_of("login", 40, 1.0, 4, 300),
    ]
    found = error_clusters(measured(rows), "accuracy")
    assert [cluster.kind for cluster in found] == ["alike", "alike"]
    assert [cluster.size for cluster in found] == [20, 12]
    for cluster, theme in zip(found, ("parcel", "refund"), strict=True):
        assert set(cluster.words) <= set(THEMES[theme]) and cluster.name == f"about {', '.join(cluster.words)}"
        assert all(example.answer.startswith(theme) for example in cluster.examples)
        assert [example.id for example in cluster.examples] == list(cluster.ids[:3])
    assert 1 <= (found[0].right_alike or 0) <= 5  # of the parcels that were answered well
    assert found[1].right_alike == 0
    assert error_clusters(measured(rows), "accuracy") == found


def test_forms_come_before_themes_and_no_row_is_counted_twice() -> None:
    rows = rows_of("parcel", 30, 0.0, 1)
    rows += [row(100 + i, 0.0, parsed=None, answer=f"mumble {i}") for i in range(4)]
    rows += [row(110 + i, 0.0, stopped=False, parsed=None, answer="on and on") for i in range(5)]
    rows += [row(120 + i, 0.0, parsed=None, answer="  ") for i in range(3)]
    rows += rows_of("login", 60, 1.0, 2, 200)
    found = error_clusters(measured(rows), "accuracy")
    kinds = {cluster.kind: cluster.size for cluster in found if cluster.kind != "alike"}
    assert kinds == {"unreadable": 4, "cut": 5, "empty": 3}
    ids = [i for cluster in found for i in cluster.ids]
    assert len(ids) == len(set(ids)) and set(ids) <= {one.id for one in poor_rows(measured(rows), "accuracy")}


def test_an_answer_given_to_everything_is_a_group() -> None:
    rows = [row(i, 0.0, answer="I do not know.", parsed="?", expected=f"e{i}", prompt=f"p{i}") for i in range(15)]
    rows += [row(50 + i, 0.0, answer=f"a{i}", parsed="?", expected=f"e{i}", prompt=f"q{i}") for i in range(10)]
    found = error_clusters(measured(rows), "accuracy")
    assert [(c.kind, c.name, c.size) for c in found] == [("repeated", "says “I do not know.” too often", 15)]
    # Where it is what most rows expect, saying it is no habit.
    usual = [row(i, 0.0, answer="no", parsed="no", expected="yes", prompt=f"p{i}") for i in range(15)]
    usual += [row(50 + i, 1.0, answer="no", parsed="no", expected="no", prompt=f"q{i}") for i in range(60)]
    assert error_clusters(measured(usual), "accuracy") == ()


def test_graded_scores_give_the_lowest_quarter() -> None:
    rows = [row(i, 0.1 + 0.8 * (i >= 20), metric="rouge_l", prompt=question("refund" if i < 20 else "login",
            random.Random(i)), answer=f"a{i}", expected=f"e{i}") for i in range(80)]  # fmt: skip
    poor = poor_rows(measured(rows), "rouge_l")
    assert {one.id for one in poor} == {f"r{i}" for i in range(20)}
    assert poor_rows(measured([row(i, 0.5, metric="rouge_l") for i in range(9)]), "rouge_l") == ()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(0, 1.0)],
        rows_of("parcel", FEWEST_TO_DIVIDE - 1, 0.0, 1),
        [row(i, 0.0, prompt="the same", answer=f"a{i}", expected="e") for i in range(30)],
        [row(i, 0.0, prompt=f"word{i}", answer=f"a{i}", expected="e") for i in range(30)],
        [row(i, 0.0, prompt="", answer=f"a{i}", expected="e") for i in range(30)],
        [row(i, 0.0, prompt="?!…", answer=f"a{i}", expected="e") for i in range(30)],
    ],
)
def test_where_there_is_nothing_to_divide_nothing_is(rows: list[ScoredAnswer]) -> None:
    assert error_clusters(measured(rows), "accuracy") == ()


def test_at_most_so_many_groups_the_largest_first() -> None:
    rows = [*rows_of("parcel", 20, 0.0, 1), *rows_of("refund", 12, 0.0, 2, 100), *rows_of("login", 9, 0.0, 3, 200)]
    assert [cluster.size for cluster in error_clusters(measured(rows), "accuracy", limit=2)] == [20, 12]
    shown = error_clusters(measured(rows), "accuracy", examples=1)
    assert [len(cluster.examples) for cluster in shown] == [1, 1, 1]


def test_scripts_without_spaces_and_right_to_left_have_words_too() -> None:
    rng = random.Random(0)
    chinese, arabic = "快递包裹没收到什么时候", ["رمز", "المرور", "الدخول", "حساب", "مغلق", "جديد", "هاتف"]
    rows = [row(i, 0.0, prompt="".join(rng.sample(chinese, 5)), answer=f"a{i}", expected="e") for i in range(15)]
    rows += [row(50 + i, 0.0, prompt=" ".join(rng.sample(arabic, 3)), answer=f"b{i}", expected="e") for i in range(10)]
    found = error_clusters(measured(rows), "accuracy")
    assert len(found) >= 2
    for cluster in found:
        assert len({example.answer[0] for example in cluster.examples}) == 1
        assert set(cluster.words) <= (set(chinese) if cluster.examples[0].answer[0] == "a" else set(arabic))


def test_of_many_long_inputs_the_beginnings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        *rows_of("parcel", 20, 0.0, 1),
        *rows_of("refund", 12, 0.0, 2, 100),
        *rows_of("login", 40, 1.0, 4, 300),
    ]
    long = [replace(row, prompt=f"{row.prompt.rstrip()} {'tail ' * 2_000}{i}\n") for i, row in enumerate(rows)]
    read: list[int] = []

    def counting(text: str) -> list[str]:
        read.append(len(text))
        return words(text)

    monkeypatch.setattr("tunesmith.verdict.error_clusters.words", counting)
    monkeypatch.setattr("tunesmith.verdict.error_clusters._READ_IN_ALL", 20_000)
    found = error_clusters(measured(long), "accuracy")
    assert [cluster.size for cluster in found] == [20, 12]
    assert len(read) == len(rows) and sum(read) <= 20_000  # each input once
