"""What holds for every task: it fits rows, asks, reads, scores, survives odd answers, and is restored from JSON."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.engines import FakeEngine
from tests.tasks.rows import example
from tunesmith.data.types import Example, Message
from tunesmith.evaluation import (
    PromptCandidate,
    compare,
    evaluate_candidate,
    load_evaluation,
    trivial_baselines,
)
from tunesmith.recipe.schema import METRICS
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import (
    Task,
    asking_conversation,
    fit_task,
    quick_score,
    restore_task,
    slices_of,
    task_record,
    training_conversation,
)

CODE = {"code": "def f():\n    return 1", "tests": "assert f() == 1"}
CALL = {"name": "book", "arguments": {"city": "Rome", "nights": 2}}
ANSWERS: dict[str, list[str]] = {
    "classification": ["cat", "dog", "cat", "dog", "cat", "bird"],
    "multi_label": ["cat, dog", "dog", "none", "bird", "cat", "cat, bird"],
    "ordinal": ["1", "2", "3", "3", "2", "1"],
    "regression": ["1.5", "2", "30", "4,000", "-5", "0"],
    "extraction": [json.dumps({"name": n, "count": i}) for i, n in enumerate("abcabc")],
    "token_classification": ["B-X I-X O", "O O B-Y", "O B-X O", "B-X O O", "O O O", "B-Y O O"],
    "summarisation": ['["A cat sat.", "One sat."]', "A dog ran off.", "It rained.", "No one", "It is", "Oh yes."],
    "translation": ["Die Katze sitzt hier.", "Der Hund.", "Es regnet stark heute.", "Nein", "Ja", '["Gut", "Schön"]'],
    "question_answering": ["Ada", '["in Rome", "Rome"]', "[]", "the cat", "1815", "her father"],
    "maths": ["#### 5", "7", "1,000", "so 3/4", "-2", "2.50"],
    "text_to_sql": ["SELECT a FROM t", "SELECT b FROM t WHERE a = 1", "SELECT 1", "SELECT a FROM t ORDER BY a",
                    "SELECT count(*) FROM t", "SELECT b FROM t"],
    "tool_calls": [json.dumps(CALL), "None fits.", json.dumps([CALL, CALL]), "Hello!", json.dumps(CALL), "Bye"],
    "code": [json.dumps({**CODE, "code": f"def f():\n    return {i}"}) for i in range(6)],
    "generation": ["It is late.", "So it was that day.", "a b c d e", "f g h i j k", "No more of it, pray", "x y z u"],
}  # fmt: skip
QUESTIONS = ["3 cats sat. 2 sat on mats. Who sat?", "the dog ran", "2 plus 5", "it rained", "how so", "what of it"]


def rows(kind: str) -> list[Example]:
    return [example(q, a, line=i) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS[kind], strict=True), 1)]


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, TaskSpec]:
    with sqlite3.connect(tmp_path / "t.sqlite") as connection:
        connection.executescript("CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y');")
    connection.close()
    return {"text_to_sql": TaskSpec(database=str(tmp_path / "t.sqlite"))}


def fitted(kind: str, spec: dict[str, TaskSpec]) -> Task:
    return fit_task(spec.get(kind, TaskSpec()), kind, rows(kind))


every = pytest.mark.parametrize("kind", ANSWERS)


def test_every_task_is_looked_at() -> None:
    assert set(ANSWERS) == set(METRICS) == set(TaskSpec.model_fields["type"].annotation.__args__[0].__args__)  # type: ignore[union-attr]


@every
def test_expected_answers_are_entirely_right(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    given = [task.reply(row.expected) for row in rows(kind)]
    scores = quick_score(task, given, rows(kind))
    measured = {name: value for name, value in scores.items() if name != "copied_share"}
    expected = 1.0 if kind != "translation" else pytest.approx(1.0)  # BLEU goes through logarithms
    assert all(value == expected for value in measured.values()), scores


@every
def test_metrics_are_those_that_recipes_may_name(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    own = {name for name in task.metrics if not name.startswith("f1.") and name != "copied_share"}
    assert own <= set(METRICS[kind])  # type: ignore[index]
    assert next(iter(task.metrics)) in METRICS[kind]  # type: ignore[index]
    assert all(name == metric.name for name, metric in task.metrics.items())


@every
def test_it_asks_in_words_and_is_restored(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    asked = asking_conversation(task, rows(kind)[0], rows(kind)[1:3], full=True)
    assert asked[0].role == "system" and len(asked[0].content) > len(task.instruction)
    assert [m.role for m in asked[1:]] == ["user", "assistant"] * 2 + ["user"]
    assert asked[2].content == task.reply(rows(kind)[1].expected)
    assert restore_task(json.loads(json.dumps(task_record(task)))) == task


def test_developer_is_another_word_for_system() -> None:
    task = fit_task(TaskSpec(instruction="Be kind."), "generation", rows("generation"))
    for role in ("system", "developer"):
        turns = (Message(role, "Be brief."), Message("user", "q"), Message("assistant", "a"))
        row, shot = (Example(name, turns, "a", 1, "rows") for name in ("row", "shot"))
        asked = asking_conversation(task, row, [shot])
        assert [turn.role for turn in asked] == ["system", "user", "assistant", "user"]
        assert asked[0].content == "Be kind.\n\nBe brief."
        assert training_conversation(task, row) == (*asking_conversation(task, row), Message("assistant", "a"))


@every
def test_what_was_read_and_scored_survives_a_file(kind: str, spec: dict[str, TaskSpec]) -> None:
    """Parsed answers are kept as JSON; statistics from there are the same, and so are those of one row and of many."""
    task = fitted(kind, spec)
    texts = [task.reply(row.expected) for row in rows(kind)[1:]] + ["{"]
    parsed = [task.read(text, row) for text, row in zip(texts, rows(kind), strict=True)]
    kept = json.loads(json.dumps(parsed))
    targets = [task.target(Example(row.id, (), row.expected, 0, "evaluation")) for row in rows(kind)]
    for metric in task.metrics.values():
        statistics = metric.statistics(parsed, targets)
        assert np.array_equal(statistics, metric.statistics(kept, targets)), metric.name
        each = np.concatenate([metric.statistics([p], [t]) for p, t in zip(parsed, targets, strict=True)])
        assert np.array_equal(statistics, each), metric.name
        items = metric.item(statistics)
        assert items.shape == (6,) and np.isfinite(items).all() and (items <= 1 + 1e-9).all(), metric.name
        draws = metric.finish(np.ones((3, 6)) @ statistics)
        assert draws.shape == (3,) and np.allclose(draws, metric.finish(statistics.sum(axis=0))), metric.name
        assert not metric.binary or set(items) <= {0.0, 1.0}


@every
def test_unreadable_answers_score_no_better_than_right_ones(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    targets = [task.target(row) for row in rows(kind)]
    for metric in task.metrics.values():
        value = float(metric.finish(metric.statistics([None] * 6, targets).sum(axis=0)))
        assert np.isfinite(value) and value < 1, metric.name


ODD: list[str] = [
    "",
    " ",
    "{",
    "[",
    "\\boxed{",
    "```",
    "```sql\n",
    "SELECT",
    "null",
    "\ud800",
    "O" * 5000,
    "-",
    "9" * 5000,
]


@every
def test_odd_answers_are_read_or_not_but_never_break(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    for text in ODD:
        scores = quick_score(task, [text], rows(kind)[:1])
        assert all(np.isfinite(value) and value <= 1 + 1e-9 for value in scores.values()), (text[:20], scores)


def _never_breaks(kind: str) -> Any:
    task = fit_task(TaskSpec(), kind, rows(kind))

    @settings(max_examples=25, deadline=None)
    @given(st.text(max_size=40))
    def check(text: str) -> None:
        value = task.read(text, rows(kind)[0])
        json.dumps(value)

    return check


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "text_to_sql"])
def test_any_text_is_read_or_not(kind: str) -> None:
    _never_breaks(kind)()


@every
def test_slices_hold_every_row_once(kind: str, spec: dict[str, TaskSpec]) -> None:
    task = fitted(kind, spec)
    found = slices_of(task, rows(kind))
    assert found, "no division at all"
    for division in {one.division for one in found}:
        ids = [row for one in found if one.division == division for row in one.ids]
        assert sorted(ids) == sorted(row.id for row in rows(kind)), division
    assert all(len(one.ids) >= 2 for one in slices_of(task, rows(kind), at_least=2))


@every
def test_trivial_baselines_learn_and_answer_in_the_tasks_form(kind: str, spec: dict[str, TaskSpec]) -> None:
    task, data = fitted(kind, spec), rows(kind)
    baselines = trivial_baselines(task)
    assert baselines and len({baseline.name for baseline in baselines}) == len(baselines)
    for validation in (data[:3], []):
        for baseline in baselines:
            candidate = baseline.fit(data, validation)
            texts = [answer.text for answer in candidate.answer(data)]
            assert len(texts) == 6
            assert texts[4:] == [answer.text for answer in candidate.answer(data, skip=4)], baseline.name
            assert any(task.read(text, row) is not None for text, row in zip(texts, data, strict=True)), baseline.name
            json.dumps(dict(candidate.notes))


@every
def test_candidates_are_evaluated_and_compared(kind: str, spec: dict[str, TaskSpec], tmp_path: Path) -> None:
    """As a run does it: asked through an engine, kept in files, read back, compared by the deciding metric."""
    task, data = fitted(kind, spec), rows(kind)
    right = {row.question: task.reply(row.expected) for row in data}
    how = {"latency_rows": 1, "resamples": 200, "confidence": 0.95, "seed": 0}
    good = PromptCandidate("good", FakeEngine(lambda asked: right[asked[-1].content]), task, 8)
    bad = PromptCandidate("bad", FakeEngine(lambda asked: "{"), task, 8)
    found = [evaluate_candidate(one, task, data, tmp_path, **how) for one in (good, bad)]  # type: ignore[arg-type]
    again = [load_evaluation(tmp_path, one.name, task, data, **_without(how)) for one in (good, bad)]
    assert again == found
    metric = next(iter(task.metrics))
    compared = compare(found, task, metric, **_without(how))
    assert compared.value("good").value == pytest.approx(1.0)
    difference = compared.difference("good", "bad")
    assert difference.difference > 0 and difference.low <= difference.difference <= difference.high


def _without(how: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in how.items() if key != "latency_rows"}
