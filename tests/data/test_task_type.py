"""The rule by which a task is recognised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import examples
from tunesmith.data import explain_task, infer_task, load_examples
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import formats
from tunesmith.data.making import ExampleMaker
from tunesmith.data.template import cell_text
from tunesmith.data.types import Example, Message, Row
from tunesmith.recipe.schema import Data
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import fit_task, quick_score


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes", "no"] * 3, "classification"),
        (["positive", "negative", "mixed feelings about it"] * 2, "classification"),
        (["1", "2", "3", "4", "5"] * 4, "classification"),
        ([str(number) for number in range(30)] * 4, "regression"),
        ([f"{number / 7:.3f}" for number in range(30)], "regression"),
        ([f"it is {number}\n#### {number}" for number in range(30)], "maths"),
        (["B-PER O", "O B-LOC I-LOC"] * 3, "token_classification"),
        (["O", "O O", "B-LOC"], "generation"),
        (
            ['["We show that this is so for all who came."]', '["It is shown here that they all came.", "All came."]']
            * 3,
            "summarisation",
        ),
        (['{"name": "now", "arguments": {}}', "Good morning!"] * 5, "tool_calls"),
        (['{"name": "now", "arguments": {}}', '{"name": "Ada"}'] * 5, "extraction"),
        ([f"{a}, {b}" for a in "abcdef" for b in "ghijkl"], "multi_label"),
        ([f"{a} met {b}, gladly" for a in "abcdef" for b in "ghijkl"], "generation"),
        (["a", "b", "c"], "generation"),
        (["same"] * 10, "generation"),
        (["a long answer that has many more words than a label has"] * 5 + ["short"] * 5, "generation"),
        (["two\nlines", "one"] * 5, "generation"),
        (['["a"]', "[]", '{"b": 1}'] * 5, "extraction"),
        (['["a"]'] * 96 + ["broken"] * 4, "extraction"),
        (["[not json]", "{neither}"] * 5, "classification"),
    ],
)
def test_tasks(answers: list[str], task: str) -> None:
    assert infer_task(examples([(f"text {number}", answer) for number, answer in enumerate(answers)])) == task


def test_numbers_after_questions_with_numbers_are_maths() -> None:
    rows = [(f"Tom has {a} apples and eats {b}. How many are left?", str(a - b)) for a in range(30, 60) for b in (1, 2)]
    assert infer_task(examples(rows)) == "maths"


def test_sentences_out_of_the_input_are_extracted() -> None:
    text = "The tenant pays all of the rent on the first day. The owner mends what is broken within a week."
    rows = [(f"{text} {i}", '["The tenant pays all of the rent on the first day."]') for i in range(9)]
    assert infer_task(examples(rows)) == "extraction"


def test_reasons_carry_numbers() -> None:
    assert explain_task(examples([("a", "x"), ("b", "y")] * 4)) == (
        "classification",
        "2 distinct short answers in 8 rows",
    )
    assert infer_task([]) == "generation"


NOUNS = ("bridge", "river", "castle", "market", "harbour", "museum", "theatre", "garden", "station", "library")
FOLK = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas")


def rows_of(columns: Sequence[str], rows: Iterable[Sequence[Any]], prompt: str, answer: str) -> list[Example]:
    """Examples whose `values` are the columns of a table, one of which is the input and one the answer."""
    made = []
    for line, cells in enumerate(rows, 2):
        values = dict(zip(columns, cells, strict=True))
        asked, said = cell_text(values[prompt]), cell_text(values[answer])
        turns = (Message("user", asked), Message("assistant", said))
        made.append(Example(f"id{line}", turns, said, line, "rows.csv", values))
    return made


def passages() -> list[tuple[str, str]]:
    """A passage with a question, and who it is."""
    return [
        (
            f"The old {noun} of the town was built by {FOLK[i]} in the year {1400 + 7 * i}. For a long time nobody "
            f"went there, until it was opened again for all who live in the town and those who come to see it. Today "
            f"the {noun} is loved by everybody.\n\nWho built the {noun}?",
            FOLK[i],
        )
        for i, noun in enumerate(NOUNS)
    ]


def articles() -> list[tuple[str, str]]:
    """A long text, and a sentence in its words."""
    made = []
    for i, noun in enumerate(NOUNS):
        told = (
            f"On Monday the council of the town said that the {noun} will be closed from May on, as its roof lets in "
            f"the rain. {FOLK[i]} has been asked to mend it before winter, and the work will cost {300 + i} thousand. "
            f"Those who live near the {noun} are not happy about the noise, but most say that it must be done now. The "
            "newspaper has asked many of them, and few would rather wait for another year. Shops nearby stay open."
        )
        made.append((told, f"The {noun} will be closed from May on, as {FOLK[i]} has been asked to mend its roof."))
    return made


def test_texts_are_recognised_by_shape() -> None:
    assert explain_task(examples(passages())) == (
        "question_answering",
        "inputs are a text with a question, and 100% of the short answers stand in the text",
    )
    task, reason = explain_task(examples(articles()))
    assert task == "summarisation" and "ask no question" in reason


def test_the_names_of_columns_are_a_sign() -> None:
    long = [
        (told, f"{noun} closed for {i} months")
        for i, (noun, (told, _)) in enumerate(zip(NOUNS, articles(), strict=True))
    ]
    assert infer_task(rows_of(("article", "highlights"), long, "article", "highlights")) == "summarisation"
    assert infer_task(rows_of(("article", "comment"), long, "article", "comment")) == "generation"
    words = [(f"the {noun} number {i}", f"Nummer {i}: {noun[::-1]}") for i, noun in enumerate(NOUNS)]
    assert infer_task(rows_of(("en", "de"), words, "en", "de")) == "translation"
    assert infer_task(rows_of(("id", "de"), words, "id", "de")) == "generation"  # `id` seldom is Indonesian
    stars = [(f"review {i} of the {NOUNS[i % 10]}", 1 + i % 5) for i in range(60)]
    assert explain_task(rows_of(("text", "stars"), stars, "text", "stars")) == (
        "ordinal",
        "the labels are the numbers 1 to 5 of the column stars, in their order",
    )
    assert infer_task(rows_of(("text", "topic"), stars, "text", "topic")) == "classification"  # numbers of topics
    broken = [(text, 3 * number) for text, number in stars]
    assert infer_task(rows_of(("text", "stars"), broken, "text", "stars")) == "classification"


def test_rows_of_squad_are_questions_with_unanswerable_ones() -> None:
    answers = [{"text": [name, f"by {name}"], "answer_start": [0, 0]} for name in FOLK]
    answers[3] = {"text": [], "answer_start": []}
    rows = []
    for line, ((asked, _), told) in enumerate(zip(passages(), answers, strict=True), 2):
        row = Row({"context": asked.split("\n")[0], "question": asked.split("\n")[-1], "answers": told}, line, "x")
        content = formats()["squad"].read(row, FindingLog("x"))
        assert content is not None
        rows.append(ExampleMaker(None).make(content, row))
    assert infer_task(rows) == "question_answering"
    task = fit_task(TaskSpec(), "question_answering", rows)  # type: ignore[call-arg]
    assert "unanswerable" in task.full_instruction
    scores = quick_score(task, [*(["by Anna"]), *FOLK[1:3], "Unanswerable.", *FOLK[4:]], rows)
    assert scores == {"token_f1": 1.0, "exact_match": 1.0}
    assert quick_score(task, ["Greta"] * 10, rows)["exact_match"] == 0.1


def test_two_scripts_or_languages_are_a_translation_where_lengths_agree() -> None:
    cyrillic = [(f"We saw the {noun} in the morning; {name} stayed.", f"Утром мы видели {i} мест и остались там все.")
                for i, (noun, name) in enumerate(zip(NOUNS, FOLK, strict=True))]  # fmt: skip
    assert explain_task(examples(cyrillic)) == ("translation", "inputs are in the script Latin, answers in Cyrillic")
    german = [
        (f"It is said that the {noun} was not there when they came to the town.",
         f"Man sagt, dass es das Haus {i} nicht gab, als sie in die Stadt kamen und wir auch.")
        for i, noun in enumerate(NOUNS)
    ]  # fmt: skip
    assert explain_task(examples(german)) == ("translation", "inputs are in the language English, answers in German")
    # Replies in another language than their questions are as long as they please.
    chat = [(question, answer * (1 + 7 * (i % 3))) for i, (question, answer) in enumerate(german)]
    assert infer_task(examples(chat)) == "generation"


@pytest.mark.parametrize(
    ("request_for", "task"),
    [("Translate into Klingon: ", "translation"), ("Summarise: ", "summarisation"), ("Continue: ", "generation")],
)
def test_what_inputs_ask_for_is_a_sign(request_for: str, task: str) -> None:
    rows = [(f"{request_for}{told}", f"{i} {' '.join(reversed(said.split()[: 8 + i]))} {i}")
            for i, (told, said) in enumerate(articles())]  # fmt: skip
    rows = [(asked, f"{said} vaq jih {i}") for i, (asked, said) in enumerate(rows)]
    if task == "generation":
        rows = [(asked[:80], said) for asked, said in rows]
    assert infer_task(examples(rows)) == task


def test_queries_are_run_where_there_is_a_database() -> None:
    rows = [(f"How many {noun}s are there?", f"SELECT COUNT(*) FROM places WHERE kind = '{noun}'") for noun in NOUNS]
    assert infer_task(examples(rows), database=True) == "text_to_sql"
    task, reason = explain_task(examples(rows))
    assert task == "generation" and "task.database" in reason
    prose = [(f"Where do I start with {noun}s?", f"Select a {noun} that you like and go there. {i}")
             for i, noun in enumerate(NOUNS)]  # fmt: skip
    assert infer_task(examples(prose), database=True) == "generation"


def test_code_needs_tests() -> None:
    def solution(i: int) -> str:
        return f"def add(n):\r\n    return n + {i}  # '\\d'"

    tested = [
        (f"Add {i}.", json.dumps({"code": solution(i), "test_list": [f"assert add(1) == {1 + i}"]})) for i in range(9)
    ]
    task, reason = explain_task(examples(tested))
    assert (task, reason) == ("code", "the answers are Python (code) with tests (test_list)")
    fit_task(TaskSpec(), "code", examples(tested))  # type: ignore[call-arg]
    alone = [(f"Add {i}.", solution(i)) for i in range(9)]
    task, reason = explain_task(examples(alone))
    assert task == "generation" and "data.columns.answer" in reason
    fields = [(f"Add {i}.", json.dumps({"name": f"add {i}", "test_list": "x"})) for i in range(9)]
    assert infer_task(examples(fields)) == "extraction"


def test_lists_of_labels_are_not_extracted() -> None:
    topics = ["politics", "sports", "culture", "money"]
    rows = [(f"news number {i}", json.dumps(sorted({topics[i % 4], topics[i % 3]}))) for i in range(40)]
    assert explain_task(examples(rows)) == ("multi_label", "answers are JSON lists of 4 distinct labels in 40 rows")
    fit_task(TaskSpec(), "multi_label", examples(rows))  # type: ignore[call-arg]
    inside = [(f"news of {answer}", answer) for _, answer in rows]
    assert infer_task(examples(inside)) == "extraction"
    assert infer_task(examples([(f"{i}", json.dumps([f"a{i}", f"b{i}"])) for i in range(40)])) == "extraction"


def test_numbers_in_a_description_are_no_sum() -> None:
    rows = [
        (f"House with {3 + i % 4} rooms, {80 + i} m², built {1950 + i}", str(200_000 + 1_317 * i)) for i in range(40)
    ]
    assert infer_task(examples(rows)) == "regression"
    boxed = [(f"What is {i} + {i}?", rf"Twice {i} is $\boxed{{{2 * i}}}$.") for i in range(30)]
    assert explain_task(examples(boxed)) == ("maths", r"all answers hold a result in \boxed{}")


def test_labels_with_an_order_say_how_to_use_it() -> None:
    task, reason = explain_task(examples([(f"ticket {i}", ("high", "low", "medium")[i % 3]) for i in range(12)]))
    assert task == "classification" and "task.labels in their order (low, medium, high)" in reason
    assert "order" not in explain_task(examples([(f"t {i}", ("low", "other", "high")[i % 3]) for i in range(12)]))[1]


def test_plain_instructions_stay_a_generation() -> None:
    rows = [(f"Write a line about the {noun}", f"The {noun} of {name} stands alone in the rain.")
            for noun, name in zip(NOUNS, FOLK, strict=True)]  # fmt: skip
    quizzes = [(told, f"{said.rstrip('.')}, is it not?") for told, said in articles()]
    replies = [(told, f"Thank you for the letter about {noun}s, we shall gladly discuss your proposal tomorrow.")
               for noun, (told, _) in zip(NOUNS, articles(), strict=True)]  # fmt: skip
    assert infer_task(examples(quizzes)) == infer_task(examples(replies)) == "generation"
    about = [(f"Explain the mistake in this translation: {told[:60]}", said) for told, said in articles()]
    assert infer_task(examples(about)) == "generation"
    questions = [(f"{told}\n\nWhat do you think about it?", said) for told, said in articles()]
    assert infer_task(examples(rows)) == "generation"
    assert infer_task(examples(questions)) == "generation"


@pytest.mark.parametrize(
    ("folder", "columns", "task"),
    [
        ("banking77/train.csv", {"prompt": "text", "answer": "category"}, "classification"),
        ("scitldr/train.jsonl", {"prompt": "source", "answer": "target"}, "summarisation"),
        ("scitldr/train.jsonl", {"prompt": "source", "answer": "target[0]"}, "summarisation"),
        ("dolly15k/dolly15k.jsonl", {"prompt": "instruction", "answer": "response"}, "generation"),
        ("medquad/medquad.jsonl", {"prompt": "question", "answer": "answer"}, "generation"),
        ("mbpp/mbpp.jsonl", {"prompt": "text", "answer": ["code", "test_list"]}, "code"),
        ("mbpp/mbpp.jsonl", {"prompt": "text", "answer": "code"}, "generation"),
        ("gsm8k/test.jsonl", {"prompt": "question", "answer": "answer"}, "maths"),
        ("tldr/nl2cmd.jsonl", {"prompt": "instruction", "answer": "output"}, "generation"),
    ],
)
def test_real_rows(shared_data: Path, folder: str, columns: dict[str, Any], task: str) -> None:
    path = shared_data / folder
    if not path.is_file():
        pytest.skip(f"{folder} is not there")
    spec = Data.model_validate({"train": str(path), "format": "columns", "columns": columns})
    assert infer_task(load_examples(spec, path).examples) == task


def test_options_are_not_the_answers_of_a_question() -> None:
    options = [{"text": ["red", "green", "blue"]}] * 12
    rows = [(f"Which colour has thing {i}?", cell, ("red", "green", "blue")[i % 3]) for i, cell in enumerate(options)]
    assert infer_task(rows_of(("question", "answers", "label"), rows, "question", "label")) == "classification"


def test_lists_of_right_answers_are_answered_with_one_of_them() -> None:
    rows = []
    for line, name in enumerate(FOLK):
        expected = json.dumps([name, name.upper()]) if line % 3 else name
        turns = (Message("user", f"Who was number {line}?"), Message("assistant", name))
        rows.append(Example(f"id{line}", turns, expected, line, "x"))
    assert explain_task(rows) == ("question_answering", "6 of 10 rows have several right answers")
    # Where the list itself is learnt it is the answer.
    learnt = [replace(row, messages=(row.messages[0], Message("assistant", row.expected))) for row in rows]
    assert infer_task([row for row in learnt if row.expected.startswith("[")]) == "extraction"


def _in_column(column: str, answers: Iterable[str]) -> list[Example]:
    pairs = [(f"some text about thing {i} that says little", answer) for i, answer in enumerate(answers)]
    made = examples(pairs)
    return [replace(e, values={"text": q, column: a}) for e, (q, a) in zip(made, pairs, strict=True)]


def _numbered(count: int, rows: int) -> list[str]:
    return [str(i * 5 % count) for i in range(rows)]


@pytest.mark.parametrize(
    ("column", "answers", "task"),
    [
        ("label", _numbered(77, 400), "classification"),  # class labels as data sets hold them
        ("intent_id", [str(1 + i % 40) for i in range(200)], "classification"),
        ("label", [str(i * i) for i in range(30)] * 3, "regression"),  # amounts: most numbers between are not there
        ("label", [f"{i / 10:.1f}" for i in range(50)] * 3, "regression"),  # graded likeness
        ("price", _numbered(77, 400), "regression"),
        ("zip", [f"{(i % 40) * 251:05d}" for i in range(200)], "classification"),
        ("price", [f"${i},{i:03d}.50" for i in range(100, 160)], "regression"),
        ("share", [f"{i % 50}%" for i in range(100)], "regression"),
        ("share", [*(str(i) for i in range(40)), "nan"], "regression"),  # the task then names the row
        ("price", [f"{i},{i % 10}" for i in range(60)], "generation"),  # decimals, or lists of two labels
        ("rating", [f"{1 + i % 5}.0" for i in range(50)], "ordinal"),
        ("rating", ["1", "2", "3", "03"] * 10, "classification"),
        ("emotions", [f"e{i % 7}, f{i % 5}" if i % 2 else f"e{i % 7}" for i in range(300)], "multi_label"),
        ("place", ["Paris, France", "Rome, Italy", "Lyon, France"] * 20, "classification"),
        ("tags", [f"{i % 3},{3 + i % 5},{8 + i % 7}" for i in range(400)], "multi_label"),
    ],
)
def test_numbers_may_be_names_and_names_be_combined(column: str, answers: list[str], task: str) -> None:
    rows = _in_column(column, answers)
    assert infer_task(rows) == task
    if "nan" not in answers:
        fit_task(TaskSpec(), task, rows)  # what is recognised can be fitted
