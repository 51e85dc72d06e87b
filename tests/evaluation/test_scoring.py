from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.evaluation.engines import FakeEngine
from tests.tasks.rows import example
from tunesmith.data.types import Example
from tunesmith.errors import DataError, EngineError, ResourceError
from tunesmith.evaluation import PromptCandidate, compare, evaluate_candidate
from tunesmith.evaluation.scoring import answer_and_score, measure_latency
from tunesmith.evaluation.types import Answer
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.extraction import Extraction

TASK = Classification(("cat", "dog"))
ROWS = [example(f"question {i}: {'dog' if i % 3 else 'cat'} 🐕", "dog" if i % 3 else "cat") for i in range(12)]


def candidate(name: str = "zero_shot") -> PromptCandidate:
    """Right but for one row, and unreadable on another."""
    replies = {4: "cat", 5: "I cannot say\ud800"}

    def reply(messages: Sequence[object]) -> str:
        question = messages[-1].content  # type: ignore[attr-defined]
        number = int(question.split()[1].rstrip(":"))
        return replies.get(number, question.split()[2])

    return PromptCandidate(name, FakeEngine(reply), TASK, 5)


class Dies:
    """A candidate whose process ends after some answers."""

    def __init__(self, after: int) -> None:
        self.after, self.inner = after, candidate()
        self.name, self.notes = self.inner.name, self.inner.notes

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        for count, answer in enumerate(self.inner.answer(examples, skip)):
            if count == self.after:
                raise KeyboardInterrupt
            yield answer


class Counts:
    """Counts the answers that are really asked for."""

    def __init__(self) -> None:
        self.inner, self.count, self.name = candidate(), 0, "zero_shot"
        self.notes = self.inner.notes

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        for answer in self.inner.answer(examples, skip):
            self.count += 1
            yield answer


def test_rows_hold_what_was_asked_said_expected_and_scored(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "zero_shot.jsonl"
    seen: list[tuple[int, int]] = []
    rows = answer_and_score(candidate(), TASK, ROWS, path, on_progress=lambda done, total: seen.append((done, total)))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in ROWS]
    assert {"id", "prompt", "answer", "expected", "scores", "parsed"} <= set(lines[0])
    assert lines[4]["scores"] == {"accuracy": 0.0, "macro_f1": 0.0} and lines[4]["parsed"] == "cat"
    assert lines[5]["parsed"] is None and lines[5]["answer"] == "I cannot say\ud800"
    assert lines[0]["scores"]["accuracy"] == 1.0 and "🐕" in lines[0]["prompt"]
    assert seen == [(done, 12) for done in range(1, 13)]
    assert [row.answer for row in rows] == [line["answer"] for line in lines]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("after", [0, 1, 7, 11])
@pytest.mark.parametrize("torn", [b"", b'{"id": "half'])
def test_an_interrupted_evaluation_continues_to_the_identical_file(tmp_path: Path, after: int, torn: bytes) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "zero_shot.jsonl"
    expected = answer_and_score(candidate(), TASK, ROWS, whole)
    with pytest.raises(KeyboardInterrupt):
        answer_and_score(Dies(after), TASK, ROWS, path)
    partial = path.with_name("zero_shot.jsonl.partial")
    assert not path.exists() and len(partial.read_bytes().splitlines()) == after
    with partial.open("ab") as file:
        file.write(torn)
    rest = Counts()
    assert answer_and_score(rest, TASK, ROWS, path) == expected
    assert rest.count == 12 - after
    assert path.read_bytes() == whole.read_bytes()


def test_rows_of_other_examples_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "zero_shot.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_and_score(Dies(5), TASK, ROWS, path)
    again = Counts()
    rows = answer_and_score(again, TASK, ROWS[::-1], path)
    assert again.count == 12 and [row.id for row in rows] == [row.id for row in ROWS[::-1]]


def test_a_complete_file_is_read_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "zero_shot.jsonl"
    first = answer_and_score(candidate(), TASK, ROWS, path)
    counter = Counts()
    assert answer_and_score(counter, TASK, ROWS, path) == first and counter.count == 0
    assert len(answer_and_score(counter, TASK, ROWS[:4], path)) == 4 and counter.count == 4


def test_parsed_json_comes_back_as_it_was(tmp_path: Path) -> None:
    task = Extraction("list")
    rows = [example("a, b", '["a", "b"]')]
    asked = PromptCandidate("zero_shot", FakeEngine(lambda messages: 'Sure: ["A", "ü"]'), task, 5)
    path = tmp_path / "zero_shot.jsonl"
    assert answer_and_score(asked, task, rows, path) == answer_and_score(asked, task, rows, path)


def test_too_few_answers_and_no_rows_are_errors(tmp_path: Path) -> None:
    class Silent:
        name, notes = "silent", {}

        def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
            yield Answer("cat", "")

    with pytest.raises(EngineError, match="1 answers to 12 rows"):
        answer_and_score(Silent(), TASK, ROWS, tmp_path / "silent.jsonl")
    with pytest.raises(DataError, match="no rows"):
        answer_and_score(candidate(), TASK, [], tmp_path / "none.jsonl")


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        answer_and_score(candidate(), TASK, ROWS, tmp_path / "file" / "zero_shot.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "zero_shot.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left"):
        answer_and_score(candidate(), TASK, ROWS, tmp_path / "zero_shot.jsonl")


def test_latency_asks_one_row_at_a_time() -> None:
    asked = candidate()
    p50, p95 = measure_latency(asked, ROWS, 5)
    assert 0 < p50 <= p95 < 5
    engine = asked.engine
    assert isinstance(engine, FakeEngine)
    assert [len(prompts) for prompts in engine.asked] == [1] * 6
    assert measure_latency(asked, ROWS[:1], 5)[0] > 0


def test_evaluate_candidate_repeats_to_the_same_evaluation(tmp_path: Path) -> None:
    def evaluate(asked: PromptCandidate) -> object:
        return evaluate_candidate(asked, TASK, ROWS, tmp_path, latency_rows=2, resamples=200, confidence=0.95, seed=0)

    first = evaluate(candidate())
    untouched = candidate()
    assert evaluate(untouched) == first
    assert isinstance(untouched.engine, FakeEngine) and untouched.engine.asked == []
    # Killed between the last answer and the timing: answers are kept, the notes come back.
    (tmp_path / "zero_shot.timing.json").unlink()
    again = evaluate(candidate())
    assert again.rows == first.rows and again.notes == first.notes == {"k": 0, "unanswerable_rows": 0}  # type: ignore[attr-defined]


def test_compare_pairs_candidates_by_row(tmp_path: Path) -> None:
    settings = {"resamples": 500, "confidence": 0.95, "seed": 0}
    worse = PromptCandidate("few_shot", FakeEngine(lambda messages: "cat"), TASK, 5)
    evaluations = [
        evaluate_candidate(one, TASK, ROWS, tmp_path, latency_rows=1, **settings)  # type: ignore[arg-type]
        for one in (worse, candidate("tuned"))
    ]
    comparison = compare(evaluations, TASK, "accuracy", **settings)  # type: ignore[arg-type]
    found = comparison.difference("tuned", "few_shot")
    assert found.difference == pytest.approx(6 / 12) and found.p_value == pytest.approx(2 / 2**6)
    mirrored = comparison.difference("few_shot", "tuned")
    assert (mirrored.difference, mirrored.low, mirrored.high) == (-found.difference, -found.high, -found.low)
    assert comparison.value("tuned").value == pytest.approx(10 / 12)
    assert list(comparison.rows()[0]) == ["candidate", "metric", "value", "low", "high", "n"]
    assert len(comparison.rows()) == 4
    for row in comparison.rows():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n"] == 12
    with pytest.raises(KeyError):
        comparison.difference("tuned", "retrieval")
    macro = compare(evaluations, TASK, "macro_f1", **settings)  # type: ignore[arg-type]
    found = macro.difference("tuned", "few_shot")
    assert found.test == "permutation" and found.p_value is not None and found.p_value < 0.1


def test_compare_refuses_other_rows_and_other_metrics(tmp_path: Path) -> None:
    settings = {"latency_rows": 1, "resamples": 200, "confidence": 0.95, "seed": 0}
    a = evaluate_candidate(candidate("a"), TASK, ROWS, tmp_path, **settings)  # type: ignore[arg-type]
    b = evaluate_candidate(candidate("b"), TASK, ROWS[1:], tmp_path, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="different rows"):
        compare([a, b], TASK, "accuracy", resamples=200, confidence=0.95, seed=0)
    with pytest.raises(Exception, match="no metric 'rouge_l'"):
        compare([a], TASK, "rouge_l", resamples=200, confidence=0.95, seed=0)


def test_to_pandas_or_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluate_candidate(
        candidate(), TASK, ROWS, tmp_path, latency_rows=1, resamples=200, confidence=0.95, seed=0
    )
    comparison = compare([evaluation], TASK, "accuracy", resamples=200, confidence=0.95, seed=0)
    pandas = pytest.importorskip("pandas")
    frame = comparison.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (2, 6)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(Exception, match="not installed"):
        comparison.to_pandas()
