"""The ways of answering, around a model that is a function of its prompt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.evaluation.engines import FakeEngine
from tunesmith.data.types import Example, Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.decoding import Draws, answers, normalised
from tunesmith.evaluation.looping import looped, loops
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.scoring import answer_and_score, finished_rows, measure_latency
from tunesmith.evaluation.types import ScoredAnswer
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.code import Code
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.generation import Generation
from tunesmith.tasks.multi_label import MultiLabel

LABELS = Classification(("bird", "cat", "dog"))


def example(question: str, expected: str) -> Example:
    turns = (Message("user", question), Message("assistant", expected))
    return Example(question, turns, expected, source="rows.csv", line=2)


ROWS = [example("it barks", "dog"), example("it mews", "cat"), example("it sings", "bird")]


def sound(messages: tuple[Message, ...]) -> str:
    return {"it barks": "dog", "it mews": "cat"}.get(messages[-1].content, "what?")


def test_scored_answers_are_the_most_probable_label_with_all_probabilities() -> None:
    asked = PromptCandidate("scored", FakeEngine(sound), LABELS, 5, decoding="scored")
    found = list(asked.answer(ROWS))
    assert [one.text for one in found] == ["dog", "cat", "bird"]  # all alike: the first
    total = 2 + math.e
    assert found[0].probabilities == pytest.approx({"bird": 1 / total, "cat": 1 / total, "dog": math.e / total})
    assert all(one.stopped and one.answer_tokens == 0 and one.prompt_tokens > 0 for one in found)
    assert [one.text for one in asked.answer(ROWS, skip=2)] == ["bird"]
    assert asked.notes["unanswerable_rows"] == 0


def test_scored_answers_say_what_a_template_closes_them_with() -> None:
    asked: list[list[str]] = []

    class Listens(FakeEngine):
        def score(self, prompts, answers, skip=0):  # type: ignore[no-untyped-def]
            asked.extend(map(list, answers))
            return super().score(prompts, answers, skip)

    list(answers("scored", Listens(sound), Classification(("a", "b"), closing='"'), ROWS[:1], [ROWS[0].prompt], 5))
    assert asked == [['a"', 'b"']]


def test_a_model_that_has_come_apart_is_wrong_and_breaks_nothing() -> None:
    class Broken(FakeEngine):
        def score(self, prompts, answers, skip=0):  # type: ignore[no-untyped-def]
            yield from ((float("nan"),) * 3, (-math.inf,) * 3, (0.0, -math.inf, -1.0))

    found = list(answers("scored", Broken(sound), LABELS, ROWS, [row.prompt for row in ROWS], 5))
    assert [(one.text, one.probabilities is None) for one in found] == [("", True), ("", True), ("bird", False)]
    assert found[2].probabilities and found[2].probabilities["cat"] == 0.0


def test_normalised() -> None:
    assert normalised([-1000.0, -1000.0]) == [0.5, 0.5]
    assert sum(normalised([-3.0, -700.0, -2.5]) or []) == pytest.approx(1.0)


def test_grammar_hands_the_task_s_form_to_the_engine() -> None:
    asked = PromptCandidate("held", FakeEngine(lambda messages: "Well, a dog."), LABELS, 5, decoding="grammar")
    assert [one.text for one in asked.answer(ROWS)] == ["bird"] * 3  # the fake takes the first choice
    lists = PromptCandidate("held", FakeEngine(sound), Extraction("list"), 5, decoding="grammar")
    assert [one.text for one in lists.answer(ROWS)] == ["[]"] * 3


@pytest.mark.parametrize(
    ("way", "task"), [("grammar", Generation(True)), ("scored", Generation(True)), ("scored", MultiLabel(("a", "b")))]
)
def test_a_way_the_task_does_not_have_is_refused(way: str, task: object) -> None:
    with pytest.raises(RecipeError, match="no such form"):
        list(PromptCandidate("x", FakeEngine(sound), task, 5, decoding=way).answer(ROWS))  # type: ignore[arg-type]


def test_drawn_answers_stand_beside_the_greedy_one_at_their_places() -> None:
    asked = PromptCandidate("drawn", FakeEngine(sound), LABELS, 5, draws=Draws(2, 0.8, 0))
    whole = list(asked.answer(ROWS))
    assert [(one.text, one.samples) for one in whole] == [
        ("dog", ("dog 0", "dog 1")), ("cat", ("cat 2", "cat 3")), ("what?", ("what? 4", "what? 5")),
    ]  # fmt: skip
    assert list(asked.answer(ROWS, skip=2)) == whole[2:]


def test_samples_and_probabilities_come_back_from_the_file(tmp_path: Path) -> None:
    for way, draws in (("scored", None), ("free", Draws(3, 0.8, 0))):
        asked = PromptCandidate(way, FakeEngine(sound), LABELS, 5, decoding=way, draws=draws)  # type: ignore[arg-type]
        path = tmp_path / f"{way}.jsonl"
        rows = answer_and_score(asked, LABELS, ROWS, path)
        assert finished_rows(path, ROWS) == rows
        assert (rows[0].probabilities is not None) == (way == "scored") and len(rows[0].samples) == (3 if draws else 0)


def test_rows_written_before_there_were_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    rows = answer_and_score(PromptCandidate("old", FakeEngine(sound), LABELS, 5), LABELS, ROWS, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["samples"], line["probabilities"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert finished_rows(path, ROWS) == rows


def test_latency_is_that_of_one_answer() -> None:
    engine = FakeEngine(sound)
    measure_latency(PromptCandidate("drawn", engine, LABELS, 5, draws=Draws(4, 0.8, 0)), ROWS, 2)
    assert [len(prompts) for prompts in engine.asked] == [1, 1, 1]


def test_pass_at_k_reads_the_drawn_answers(tmp_path: Path) -> None:
    task = Code(run_code=False, samples=3)
    rows = [example("double", json.dumps({"code": "def f(x): return 2 * x", "tests": "assert f(2) == 4"}))]
    asked = PromptCandidate("code", FakeEngine(lambda messages: "def f(x):"), task, 5, draws=Draws(3, 0.8, 0))
    scored = answer_and_score(asked, task, rows, tmp_path / "code.jsonl")[0]
    assert scored.parsed == ["def f(x):", "def f(x): 0", "def f(x): 1", "def f(x): 2"]
    assert scored.scores == {"exact_match": 0.0, "valid_python": 0.0}  # of the greedy one


@pytest.mark.parametrize(
    ("text", "goes_round"),
    [
        ("I see. " + "the card " * 20, True),
        ("ab" * 40, True),
        ("a" * 60, True),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", False),
        ("no no no", False),
        ("", False),
        ("word " * 3 + "and then it goes on in quite another way until the very end of it all", False),
        ('["egg", "egg", "egg", "egg", "egg", "egg", "egg", "egg", "egg", "eg', True),
        ("日本語" * 20, True),
    ],
)
def test_answers_that_go_round_in_circles(text: str, goes_round: bool) -> None:
    assert loops(text) is goes_round


def test_only_answers_that_were_cut_count_as_looped() -> None:
    def row(text: str, stopped: bool) -> ScoredAnswer:
        return ScoredAnswer("1", "", text, "", None, {}, 1, 1, stopped)

    circle = "ha! " * 30
    assert looped([row(circle, False), row(circle, True), row("cut in mid", False), row("done", True)]) == 0.25
    assert looped([]) == 0.0


def test_long_answers_are_looked_at_quickly() -> None:
    assert loops("ab" * 200_000) and not loops("".join(map(str, range(100_000))))
