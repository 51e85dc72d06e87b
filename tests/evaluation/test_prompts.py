from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.evaluation.engines import FakeEngine
from tests.tasks.rows import example
from tunesmith.data.types import Message
from tunesmith.evaluation.document_files import Document
from tunesmith.evaluation.passages import Passage, PassageFinder
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.shots import draw_shots, first_shots
from tunesmith.tasks import training_conversation
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.generation import Generation

TASK = Classification(("cat", "dog"))
TRAIN = [
    example("the purring cat sleeps", "cat"),
    example("a barking dog runs", "dog"),
    example("the cat drinks milk", "cat"),
    example("a dog digs holes", "dog"),
]


def last_shot(messages: Sequence[Message]) -> str:
    """Repeat the answer of the last example shown, `cat` without one."""
    answers = [message.content for message in messages if message.role == "assistant"]
    return answers[-1] if answers else "cat"


def test_zero_shot_shows_the_full_instruction_and_the_question() -> None:
    engine = FakeEngine(last_shot)
    candidate = PromptCandidate("zero_shot", engine, TASK, 5)
    answers = list(candidate.answer([example("who barks", "dog")]))
    assert [answer.text for answer in answers] == ["cat"]
    assert [m.role for m in engine.asked[0][0]] == ["system", "user"]
    assert engine.asked[0][0][0].content == TASK.full_instruction
    assert candidate.notes == {"k": 0, "unanswerable_rows": 0}


def test_tuned_is_asked_exactly_as_it_was_trained() -> None:
    engine = FakeEngine(last_shot)
    row = example("who barks", "dog", system="Be brief.")
    list(PromptCandidate("tuned", engine, TASK, 5, full=False).answer([row]))
    assert engine.asked[0][0] == training_conversation(TASK, row)[:-1]


def test_retrieval_puts_the_most_similar_row_last_and_never_the_row_itself() -> None:
    engine = FakeEngine(last_shot)
    candidate = PromptCandidate("retrieval", engine, TASK, 5, retriever=Retriever(TRAIN), k=2)
    answers = list(candidate.answer([example("barking dog", "dog"), TRAIN[0]]))
    shown = [[m.content for m in prompt if m.role == "user"] for prompt in engine.asked[0]]
    assert shown[0] == ["a dog digs holes", "a barking dog runs", "barking dog"]
    assert shown[1][-2:] == ["the cat drinks milk", "the purring cat sleeps"]
    assert shown[1].count("the purring cat sleeps") == 1
    assert [answer.text for answer in answers] == ["dog", "cat"]


def test_a_retriever_survives_rows_and_questions_without_words() -> None:
    wordless = [example("!!", "x"), example("?", "y")]
    assert Retriever(wordless).nearest(example("cat", "x"), 1) == (wordless[0],)
    assert Retriever([*wordless, TRAIN[0]]).nearest(example("…", "x"), 5) == (*wordless, TRAIN[0])
    assert Retriever([]).nearest(example("cat", "x"), 3) == ()


def test_examples_that_do_not_fit_are_dropped_whole_and_counted() -> None:
    short, long, huge = example("w " * 3, "cat"), example("w " * 12, "cat"), example("w " * 400, "cat")
    task = Generation()
    bare = FakeEngine(last_shot).count_tokens
    shots = tuple(example("one two three four", "cat", line=line) for line in (1, 2, 3))
    asked = PromptCandidate("few_shot", FakeEngine(last_shot), task, 7, shots=shots, k=3).prompt(short)
    # Room for the short question with all three shots, and for the long one with two.
    engine = FakeEngine(last_shot, context=asked.tokens + 7)
    candidate = PromptCandidate("few_shot", engine, task, 7, shots=shots, k=3)
    answers = list(candidate.answer([short, huge, long]))
    assert [answer.text for answer in answers] == ["cat", "", "cat"]
    assert answers[1].stopped is False and answers[1].prompt_tokens > engine.context
    assert [sum(m.role == "assistant" for m in prompt) for prompt in engine.asked[0]] == [3, 1]
    texts = {m.content for prompt in engine.asked[0] for m in prompt}
    assert texts <= {task.full_instruction, "cat", short.question, long.question, *(s.question for s in shots)}
    assert bare(engine.asked[0][1]) + 7 <= engine.context
    assert candidate.notes["k_used"] == {"mean": 2.0, "min": 1, "max": 3}
    assert candidate.notes["unanswerable_rows"] == 1


@pytest.mark.parametrize("skip", range(5))
def test_skip_gives_the_rest_and_the_engine_the_whole_list(skip: int) -> None:
    rows = [example(f"question {i} " + "w " * (50 if i == 1 else 0), "cat") for i in range(4)]
    engine = FakeEngine(lambda messages: messages[-1].content, context=40)
    candidate = PromptCandidate("few_shot", engine, Generation(), 5)
    whole = list(candidate.answer(rows))
    notes = candidate.notes
    assert list(candidate.answer(rows, skip=skip)) == whole[skip:]
    assert candidate.notes == notes
    assert all(len(asked) == 3 for asked in engine.asked)


def test_shots_cover_the_labels_in_turn_and_are_nested() -> None:
    many = [example(f"cat {i}", "cat") for i in range(20)] + [example(f"dog {i}", "dog") for i in range(3)]
    eight = draw_shots(many, TASK, 8, seed=1)
    assert [shot.expected for shot in eight[:6]].count("dog") == 3
    assert {shot.expected for shot in eight[:2]} == {"cat", "dog"}
    assert draw_shots(many, TASK, 3, seed=1) == eight[:3]
    assert draw_shots(many, TASK, 8, seed=2) != eight
    assert len(draw_shots(many, TASK, 99, seed=1)) == 23 == len({s.id for s in draw_shots(many, TASK, 99, seed=1)})


def test_shots_of_other_tasks_differ_from_each_other() -> None:
    same = [example(f"translate the word number {i}", "x") for i in range(40)]
    other = [example("sing a song", "x"), example("write some code", "y")]
    chosen = draw_shots([*same, *other], Generation(), 3, seed=0)
    assert set(other) <= set(chosen)
    assert draw_shots([], Generation(), 3, seed=0) == ()


def test_the_first_rows_of_the_file_are_taken_in_its_order() -> None:
    rows = [example(f"row {i}", "cat", line=i) for i in (5, 2, 9, 1)]
    assert [row.line for row in first_shots(rows, 3)] == [1, 2, 5]
    assert first_shots([], 2) == ()


def test_further_notes_are_asked_for_when_notes_are_read() -> None:
    told: dict[str, int] = {}
    candidate = PromptCandidate("remote_big", FakeEngine(last_shot), TASK, 5, told=lambda: told)
    told["unanswered_rows"] = 3
    assert candidate.notes == {"k": 0, "unanswered_rows": 3}


def test_an_engine_is_told_of_a_list_that_needs_no_answers_any_more() -> None:
    """So that it can say what is known of it."""
    engine = FakeEngine(last_shot)
    rows = [example(f"question {i}", "cat") for i in range(3)]
    assert list(PromptCandidate("few_shot", engine, TASK, 5).answer(rows, skip=3)) == []
    assert len(engine.asked) == 1 and len(engine.asked[0]) == 3


def whole(text: str, source: str, title: str = "") -> Passage:
    """A document that is one passage."""
    return Passage(text, Document(text, source, title), 0, len(text.split()))


PASSAGES = [
    whole("Dogs bark at night and dig holes.", "dogs.txt"),
    whole("Cats purr when they sleep.", "cats.md", "About cats"),
    whole("Birds sing in the morning.", "birds.txt"),
]


def test_passages_stand_before_the_question_the_nearest_last() -> None:
    engine = FakeEngine(last_shot)
    row = example("why do cats purr and sleep", "cat", system="Be brief.")
    candidate = PromptCandidate("documents", engine, TASK, 5, finder=PassageFinder(PASSAGES), k=2)
    list(candidate.answer([row]))
    system, asked = engine.asked[0][0]
    assert system.content == f"{TASK.full_instruction}\n\nBe brief."
    assert asked.content.index("[1] ") < asked.content.index("[2] About cats\nCats purr when they sleep.")
    assert asked.content.endswith("\n\nThe question:\nwhy do cats purr and sleep")
    assert "singing" not in asked.content and candidate.notes["k_used"] == {"mean": 2.0, "min": 2, "max": 2}
    assert candidate.notes["rows_found_in_documents"] == 0


def test_passages_that_do_not_fit_are_dropped_the_nearest_kept() -> None:
    row = example("why do cats purr", "cat")
    bare = PromptCandidate("documents", FakeEngine(last_shot), TASK, 5).prompt(row).tokens
    for room, shown in ((0, 0), (40, 3), (15, 1)):
        engine = FakeEngine(last_shot, context=bare + 5 + room)
        candidate = PromptCandidate("documents", engine, TASK, 5, finder=PassageFinder(PASSAGES), k=3)
        prompt = candidate.prompt(row)
        assert prompt.answerable and prompt.shown == shown
        assert ("Cats purr" in prompt.messages[-1].content) == (shown > 0)
        assert (prompt.messages[-1].content == row.question) == (shown == 0)


def test_a_passage_that_holds_the_row_itself_is_not_given_for_it() -> None:
    row = example("my cat drinks only warm milk", "cat")
    solution = whole("Q: My cat drinks only warm milk! A: cat", "rows.txt")
    finder = PassageFinder([solution, *PASSAGES])
    assert finder.nearest(row, 1)[0] is not solution
    assert finder.nearest(example("my cat drinks only warm milk", "dog"), 1) == (solution,)
    assert finder.nearest(example("warm milk", "cat"), 1) == (solution,)  # which is about more than these two words
    assert finder.held_out == {row.id}
    short = whole("warm milk: cat", "rows.txt")
    assert short not in PassageFinder([short, *PASSAGES]).nearest(example("warm milk", "cat"), 9)
    assert PassageFinder([short]).nearest(example("warm milk", "cat"), 1) == ()
    assert finder.nearest(row, 0) == ()
    candidate = PromptCandidate("documents", FakeEngine(last_shot), TASK, 5, finder=finder, k=1)
    list(candidate.answer([example("birds sing loud today", "dog"), row]))
    assert candidate.notes["rows_found_in_documents"] == 1
