"""The closed form of a task's answers: every expected answer has it, and what has it can be read."""

from __future__ import annotations

import json

import pytest

from tests.tasks.rows import example
from tests.tasks.test_all_tasks import ANSWERS, fitted, rows
from tests.tiny import byte_tokenizer
from tunesmith.inference.grammar import Grammars
from tunesmith.recipe.schema import CLOSED_FORMS, ONE_LABEL
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import fit_task
from tunesmith.tasks.token_classification import TokenClassification
from tunesmith.tasks.types import AnswerForm

TOKENIZER = byte_tokenizer()
GRAMMARS = Grammars(TOKENIZER, 258, [256])


def allows(form: AnswerForm | None, text: str) -> bool:
    """Whether the form lets a model write exactly this and stop."""
    assert form is not None
    held = GRAMMARS.hold([form])
    for token in [*TOKENIZER.encode(text), 256]:
        if not held.allowed([0])[0, token]:
            return False
        if token != 256:
            held.take([0], [token])
    return True


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "text_to_sql"])
def test_expected_answers_have_the_form(kind: str) -> None:
    task = fitted(kind, {})
    forms = [task.answer_form(row) for row in rows(kind)]
    assert all(forms) == any(forms) == (kind in CLOSED_FORMS)
    if kind in CLOSED_FORMS:
        assert all(allows(form, task.reply(row.expected)) for form, row in zip(forms, rows(kind), strict=True))
        assert not any(allows(form, "I think that it is this one.") for form in forms)
    assert all(form.separator is None and form.json_schema is None for form in forms if form and kind in ONE_LABEL)


@pytest.mark.parametrize("kind", ["classification", "multi_label", "extraction", "token_classification"])
def test_a_template_s_closing_text_is_part_of_it(kind: str) -> None:
    closed = [example(row.question, row.expected, closing=' "!', line=row.line) for row in rows(kind)]
    task = fit_task(TaskSpec(), kind, closed)
    for row in closed:
        assert allows(task.answer_form(row), row.messages[-1].content)
        assert allows(task.answer_form(row), row.expected)


def test_labels_in_lists_and_lines() -> None:
    listed = [example("q", '["a", "b"]'), example("r", "[]", line=2), example("s", '["c"]', line=3)]
    task = fit_task(TaskSpec(), "multi_label", listed)
    assert allows(task.answer_form(listed[0]), '["a", "c"]') and allows(task.answer_form(listed[0]), "[]")
    assert not allows(task.answer_form(listed[0]), '["d"]') and not allows(task.answer_form(listed[0]), "a, b")
    lines = [example("q", "a\nb"), example("r", "c", line=2), example("s", "none", line=3)]
    task = fit_task(TaskSpec(), "multi_label", lines)
    assert allows(task.answer_form(lines[0]), "c\na") and allows(task.answer_form(lines[0]), "none")
    assert not allows(task.answer_form(lines[0]), "a\n")


def test_tags_as_the_data_has_them() -> None:
    task = TokenClassification(("X",))
    listed, words = example("q", '["B-X", "O"]'), example("q", "B-X O")
    lines, columns = example("q", "B-X\nO"), example("q", "Rome B-X\nis O")
    assert allows(task.answer_form(listed), '["O", "I-X"]') and not allows(task.answer_form(listed), "O I-X")
    assert allows(task.answer_form(words), "O I-X O O") and not allows(task.answer_form(words), "O B-Y")
    assert allows(task.answer_form(lines), "O\nI-X")
    assert task.answer_form(columns) is None
    bilou = TokenClassification(("X",), scheme="IOBES")
    assert allows(bilou.answer_form(example("q", "U-X O")), "B-X L-X") and allows(bilou.answer_form(words), "S-X E-X")


def test_a_schema_of_the_user_s_is_kept(tmp_path) -> None:  # type: ignore[no-untyped-def]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    row = example("q", '{"n": 3}')
    task = fit_task(TaskSpec(json_schema=str(tmp_path / "schema.json")), "extraction", [row])
    assert allows(task.answer_form(row), '{"n": 3}') and allows(task.answer_form(row), '{\n  "n": 3\n}')
    assert not allows(task.answer_form(row), '{"n": "3"}') and not allows(task.answer_form(row), "{}")
