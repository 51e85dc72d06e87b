from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tasks.rows import example
from tunesmith.data import infer_task
from tunesmith.data.types import Example, Message
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import asking_conversation, fit_task, quick_score, training_conversation
from tunesmith.tasks.classification import Classification
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.generation import Generation


def spec(**values: object) -> TaskSpec:
    return TaskSpec.model_validate(values)


def test_labels_come_from_the_data_in_sorted_order() -> None:
    rows = [example("1", "top_up"), example("2", "lost"), example("3", "top_up ")]
    task = fit_task(spec(), "classification", rows)
    assert isinstance(task, Classification) and task.labels == ("lost", "top_up")


def test_given_labels_refuse_rows_that_have_others() -> None:
    rows = [example("1", "A"), example("2", "c", line=5)]
    assert fit_task(spec(labels=["b", "a"]), "classification", rows[:1]).full_instruction.endswith("b\na")
    with pytest.raises(DataError, match=r"rows\.csv:5"):
        fit_task(spec(labels=["b", "a"]), "classification", rows)


def test_closing_text_is_found_only_where_all_rows_have_it() -> None:
    rows = [example("1", "calm", closing='" '), example("2", "angry", closing='"')]
    task = fit_task(spec(), "classification", rows)
    assert isinstance(task, Classification) and task.closing == '"'
    mixed = fit_task(spec(), "classification", [*rows, example("3", "sad")])
    assert isinstance(mixed, Classification) and mixed.closing == ""


def test_extraction_form_and_keys_come_from_the_data() -> None:
    objects = fit_task(spec(), "extraction", [example("1", '{"b": 1}'), example("2", '{"a": 2, "b": 3}')])
    assert isinstance(objects, Extraction) and (objects.form, objects.keys) == ("object", ("b", "a"))
    lists = fit_task(spec(), "extraction", [example("1", "[]"), example("2", '["x"]')])
    assert isinstance(lists, Extraction) and (lists.form, lists.elements) == ("list", "text")
    nested = fit_task(spec(), "extraction", [example("1", '[{"k": "v"}]'), example("2", "[]")])
    assert isinstance(nested, Extraction) and (nested.elements, nested.keys) == ("object", ("k",))


@pytest.mark.parametrize(
    ("answers", "values"),
    [
        (["[]", '{"a": 1}'], {}),
        (["[]", '{"a": 1}'], {"answer_form": "list"}),
        (["[]", "flour"], {}),
        (['["a"]', '["a", {"b": 1}]'], {}),
        (["[1]", "3"], {}),
    ],
)
def test_answers_of_another_form_are_refused_by_row(answers: list[str], values: dict[str, object]) -> None:
    rows = [example("q", answer, line=line) for line, answer in enumerate(answers, 1)]
    with pytest.raises(DataError, match=r"rows\.csv:[12]"):
        fit_task(spec(**values), "extraction", rows)


def test_short_answers_make_exact_match_decide() -> None:
    short = fit_task(spec(), "generation", [example("2+2", "4"), example("capital", "New York")])
    long = fit_task(spec(), "generation", [example("why", "because it rained all day long")])
    assert isinstance(short, Generation) and next(iter(short.metrics)) == "exact_match"
    assert next(iter(long.metrics)) == "rouge_l"


def test_no_examples_and_unknown_tasks_are_errors() -> None:
    with pytest.raises(DataError, match="no examples"):
        fit_task(spec(), "generation", [])
    with pytest.raises(RecipeError, match="no task 'auto'"):
        fit_task(spec(), "auto", [example("q", "a")])


def test_the_asking_conversation_is_the_training_conversation_without_its_answer() -> None:
    row = example("Where is it?", "card_arrival", system="You work for a bank.")
    task = fit_task(spec(instruction="Name the intent."), "classification", [row])
    learnt = training_conversation(task, row)
    assert learnt[:-1] == asking_conversation(task, row)
    assert [(m.role, m.content) for m in learnt] == [
        ("system", "Name the intent.\n\nYou work for a bank."),
        ("user", "Where is it?"),
        ("assistant", "card_arrival"),
    ]


def test_shots_stand_before_the_question_without_their_system_message() -> None:
    shot = example("Is it lost?", "lost", closing="!", system="Shot's own.")
    row = example("Where is it?", "arrival")
    task = fit_task(spec(), "classification", [shot, row])
    asked = asking_conversation(task, row, [shot], full=True)
    assert [m.role for m in asked] == ["system", "user", "assistant", "user"]
    assert asked[0].content == task.full_instruction
    assert [m.content for m in asked[1:]] == ["Is it lost?", "lost!", "Where is it?"]


def test_no_instruction_means_no_system_message_and_turn_weights_are_kept() -> None:
    turns = (Message("user", "hi"), Message("assistant", "hello", weight=0.0), Message("user", "bye"))
    row = Example(
        "x", (*turns, Message("assistant", "see you then my friend")), "see you then my friend", 1, "rows.jsonl"
    )
    task = fit_task(spec(), "generation", [row])
    assert training_conversation(task, row) == row.messages


ANSWERS = (
    "alpha", "Gamma ray", "δ", "low", "high", "O", "B-PER O", "none", "a, b", "a; b", "select a from b", "x\n#### 5",
    r"\boxed{3}", "1", "2", "3.5", "1e5", "nan", "inf", "1_000", "١٢", "-0", "[1]", "{}", '["a"]', '["a", "b"]', "[]",
    '{"name": "f", "arguments": {}}', '{"a": 1}', '{"code": "def f(): pass", "tests": "assert 1"}', "[broken",
    "It is so, with words that go on for long, and more.", "?", "🙂",
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3, unique=True).flatmap(
        lambda pool: st.lists(st.sampled_from(pool), min_size=1, max_size=30)
    ),
    st.sampled_from(["thing", "How many of 3 and 4?", "a text\n\nWho?"]),
)
def test_what_rows_are_taken_for_can_be_fitted_to_them(answers: list[str], asked: str) -> None:
    rows = [example(f"{asked} {i}", answer) for i, answer in enumerate(answers)]
    kind = infer_task(rows)
    try:
        task = fit_task(spec(), kind, rows)
    except DataError as error:  # a few broken rows among JSON are named, in place of a task that hides them
        assert kind == "extraction" and "JSON" in str(error)
        return
    scores = quick_score(task, [task.reply(row.expected) for row in rows], rows)
    assert set(scores) == set(task.metrics)
