from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.rows import example
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import fit_task
from tunesmith.tasks.extraction import EntityF1, Extraction, first_json, items
from tunesmith.tasks.metrics import quick_score

LIST = Extraction("list")
OBJECT = Extraction("object", keys=("name", "unit"))
OBJECTS = Extraction("list", keys=("name",), elements="object")


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        (LIST, '["rum", "ice"]', ["rum", "ice"]),
        (LIST, 'Here you are:\n```json\n["rum"]\n```\nEnjoy [it]!', ["rum"]),
        (LIST, "[]", []),
        (LIST, "[1, 2.5]", [1, 2.5]),
        (LIST, 'see [note] then ["rum"]', ["rum"]),
        (LIST, '{"foods": ["rum"]}', None),
        (LIST, '["rum", null]', None),
        (LIST, '[{"name": "rum"}]', None),
        (LIST, '["rum", "ice"', None),
        (LIST, "rum, ice", None),
        (LIST, "", None),
        (LIST, "[NaN]", None),
        (OBJECT, '{"name": "flour", "unit": null}', {"name": "flour", "unit": None}),
        (OBJECT, '["flour"]', None),
        (OBJECT, '{"name": "flour"} {"name": "eggs"}', {"name": "flour"}),
        (OBJECTS, '[{"name": "rum"}]', [{"name": "rum"}]),
        (OBJECTS, '["rum"]', None),
    ],
)
def test_parse(task: Extraction, text: str, value: Any) -> None:
    assert task.parse(text) == value


def test_a_looping_answer_is_unreadable_and_quickly_so() -> None:
    assert first_json("[" * 200_000) is None
    assert first_json("{ [ " * 50_000) is None
    assert first_json("[" + "9" * 10_000 + "]") is None


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


@given(st.lists(json_values, max_size=3) | st.dictionaries(st.text(max_size=3), json_values, max_size=3))
def test_any_json_survives_text_around_it(value: Any) -> None:
    assert first_json("Answer: " + json.dumps(value) + " (done)") == value
    assert items(value) == items(json.loads(json.dumps(value)))


@given(st.text())
def test_any_text_parses_or_is_none(text: str) -> None:
    value = LIST.parse(text)
    assert value is None or isinstance(value, list)


def test_items_are_normalised_multisets() -> None:
    assert items(["Brown  Sugar", "brown sugar"]) == {("", "brown sugar"): 2}
    assert items({"name": "Rum ", "unit": None, "note": "", "n": 2.0}) == {("name", "rum"): 1, ("n", "2"): 1}
    assert items({"a": {"b": ["X", "y"]}}) == {("a.b", "x"): 1, ("a.b", "y"): 1}
    assert items([{"n": "A", "m": 1}]) == items([{"m": 1, "n": "a"}])


def test_entity_f1_by_hand() -> None:
    metric = LIST.metrics["entity_f1"]
    parsed = [["rum", "rum", "ice"], None, []]
    expected = [["Rum", "lime"], ["gin"], []]
    statistics = metric.statistics(parsed, expected)
    assert statistics.tolist() == [[1, 2, 1], [0, 0, 1], [0, 0, 0]]
    assert float(metric.finish(statistics.sum(axis=0))) == pytest.approx(2 / (2 + 2 + 2))
    assert metric.item(statistics) == pytest.approx([0.4, 0.0, 1.0])


def test_an_unreadable_answer_is_wrong_even_where_nothing_was_expected() -> None:
    metric = LIST.metrics["entity_f1"]
    statistics = metric.statistics([None], [[]])
    assert float(metric.finish(statistics.sum(axis=0))) == 0.0
    assert float(metric.finish(np.zeros(3))) == 1.0


def test_quick_score() -> None:
    rows = [example("q1", '["rum", "ice"]'), example("q2", '["gin"]')]
    scores = quick_score(LIST, ['["ICE", "rum"]', "gin"], rows)
    assert scores == pytest.approx({"entity_f1": 0.8, "valid_json": 0.5, "exact_match": 0.5})


def test_target_names_the_row() -> None:
    with pytest.raises(DataError, match=r"rows\.csv:3"):
        LIST.target(example("q", '{"a": 1}', line=3))
    with pytest.raises(DataError, match=r"rows\.csv:4"):
        LIST.target(example("q", '["a"] trailing', line=4))


def test_full_instruction_says_the_form() -> None:
    assert "JSON list of strings" in LIST.full_instruction
    assert '"name", "unit"' in OBJECT.full_instruction
    assert "list of objects" in OBJECTS.full_instruction


def test_fields_of_objects_have_scores_of_their_own() -> None:
    rows = [example("1", '{"name": "tea", "unit": "g"}'), example("2", '{"name": "oil", "unit": null}')]
    scores = quick_score(OBJECT, ['{"name": "tea", "unit": "kg"}', '{"name": "oil", "unit": "l"}'], rows)
    assert scores["f1.name"] == 1.0
    assert scores["f1.unit"] == 0.0
    assert scores["entity_precision"] == pytest.approx(2 / 4) and scores["entity_recall"] == pytest.approx(2 / 3)
    silent = quick_score(OBJECT, ["{}", "{}"], rows)
    assert (silent["entity_precision"], silent["entity_recall"]) == (0.0, 0.0)
    nothing = [example("3", '{"name": null, "unit": ""}')]
    assert quick_score(OBJECT, ["{}"], nothing)["entity_precision"] == 1.0
    assert quick_score(OBJECT, ['{"name": "x"}'], nothing)["entity_recall"] == 0.0


def test_a_field_holds_the_items_within_it_and_no_other() -> None:
    metric = EntityF1("f1.a", key="a")
    counts = metric.statistics([{"a": {"x": 1}, "ab": 2}], [{"a": {"x": 1, "y": 2}, "ab": 3}])
    assert counts.tolist() == [[1, 0, 1]]


def test_answers_are_held_against_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}')
    rows = [example("1", '{"name": "tea"}'), example("2", '{"name": "oil"}')]
    task = fit_task(TaskSpec(json_schema=str(schema)), "extraction", rows)
    assert '"required":["name"]' in task.full_instruction and '"required"' not in task.instruction
    scores = quick_score(task, ['{"name": 3}', '{"name": "oil", "more": 1}'], rows)
    assert scores["schema_valid"] == 0.5 and scores["valid_json"] == 1.0
    assert quick_score(task, ["no", "[]"], rows)["schema_valid"] == 0.0


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "nothing"}'])
def test_what_is_no_schema_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    spec = TaskSpec(json_schema=str(tmp_path / "schema.json"))
    with pytest.raises(RecipeError, match="not a JSON schema"):
        fit_task(spec, "extraction", [example("1", '{"name": "tea"}')])
    with pytest.raises(RecipeError, match="cannot be read"):
        fit_task(TaskSpec(json_schema=str(tmp_path / "none")), "extraction", [example("1", '{"name": "tea"}')])
