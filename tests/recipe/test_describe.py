"""Settings as they are described to people."""

from __future__ import annotations

from pydantic import BaseModel

from tunesmith.recipe import Recipe, markdown, settings
from tunesmith.recipe.describe import section_of


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = section_of(field)
        keys += leaves(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def test_every_setting_is_described_with_help():
    described = list(settings())
    assert [s.key for s in described] == leaves(Recipe)
    assert len(described) > 60
    assert all(s.help and s.type and s.default for s in described)


def test_types_defaults_and_limits_in_words():
    by_key = {s.key: s for s in settings()}
    assert by_key["train.max_steps"].type == "integer, at least 1"
    assert by_key["train.max_steps"].default == "none"
    assert by_key["train.learning_rate"].type == "number | auto"
    assert by_key["data.split.validation"].type == "number"
    assert by_key["method.dropout"].type == "number, at least 0, below 1"
    assert by_key["method.target_modules"].type == "all-linear | list of text"
    assert by_key["baselines"].default == '["zero_shot", "few_shot", "retrieval", "documents", "trivial"]'
    assert by_key["data.train"].default == "required"
    assert by_key["train.tensorboard"].type == "true | false"
    assert by_key["data.template"].text and not by_key["task.labels"].text


def test_sections_can_be_chosen():
    keys = [s.key for s in settings(["method", "name"])]
    assert keys[0] == "name"
    assert all(key == "name" or key.startswith("method.") for key in keys)


def test_the_page_names_every_setting_and_keeps_its_tables():
    page = markdown()
    for setting in settings():
        assert f"| `{setting.key}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(settings()))
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
