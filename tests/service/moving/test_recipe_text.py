"""Short recipes that say the same, and names that stay names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.recipe import Recipe, load_recipe
from tunesmith.service.moving.recipe_text import recipe_name, recipe_text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "base": {"model": "embedded:tiny", "chat_template": "raw"},
            "train": {"epochs": 3, "batch_size": 2, "seed": 7},
        },
        {
            "goal": {"when_reached": "train", "metric": "x"},
            "task": {"metrics": {"x": {"formula": "1 if answer else 0"}}},
        },
        {"task": {"type": "generation", "instruction": ""}, "baselines": [], "evaluate": {"few_shot_k": [4]}},
        {
            "data": {
                "train": "a.jsonl",
                "split": {"validation": 0, "test": 0},
                "columns": {"prompt": "p", "answer": "c"},
            }
        },
    ],
)
def test_reading_the_text_gives_the_same_recipe(tmp_path: Path, settings: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"name": "n", "data": {"train": "rows.jsonl"}, **settings})
    text = recipe_text(recipe, "a\nb\0c")
    assert text.startswith("# a b?c\n") and len(text.splitlines()) < 25
    (tmp_path / "recipe.yaml").write_text(text)
    read = load_recipe(tmp_path / "recipe.yaml")
    beside = read.model_copy(update={"data": read.data.model_copy(update={"train": recipe.data.train})})
    assert beside == recipe


@pytest.mark.parametrize(
    ("name", "id", "made"),
    [
        ("Recipe NER!", "ftjob-abc123", "recipe-ner-abc123"),
        ("", "", "unnamed"),
        ("../..", "x", "unnamed-x"),
        ("a" * 100, "1", "a" * 48 + "-1"),
    ],
)
def test_names(name: str, id: str, made: str) -> None:
    assert recipe_name(name, id) == made
