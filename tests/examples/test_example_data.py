"""The example data that ships with the project is what its README says it is."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.data import check_examples, load_examples, make_splits
from tunesmith.recipe import load_recipe
from tunesmith.search.spaces import grid


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shingles(text: str) -> set[str]:
    folded = " ".join(text.casefold().split())
    return {folded[i : i + 5] for i in range(len(folded) - 4)}


def test_phrases_are_many_distinct_and_balanced(examples: Path) -> None:
    rows = table(examples / "phrases" / "phrases.csv")
    assert list(rows[0]) == ["phrase", "tone"]
    assert len({row["phrase"].casefold() for row in rows}) == len(rows) >= 480
    tones = Counter(row["tone"] for row in rows)
    assert len(tones) == 8
    assert min(tones.values()) >= 50


def test_no_phrase_is_a_rewording_of_another(examples: Path) -> None:
    cut = [shingles(row["phrase"]) for row in table(examples / "phrases" / "phrases.csv")]
    closest = max(len(a & b) / len(a | b) for i, a in enumerate(cut) for b in cut[:i])
    assert closest < 0.3


def test_phrases_are_not_filled_from_templates(examples: Path) -> None:
    openings = Counter(" ".join(r["phrase"].split()[:3]).casefold() for r in table(examples / "phrases/phrases.csv"))
    assert max(openings.values()) <= 3


def test_recipes_have_the_six_columns_and_foods_stand_in_their_lines(examples: Path) -> None:
    rows = table(examples / "recipes" / "recipes.csv")
    assert list(rows[0]) == ["title", "ingredients", "directions", "link", "source", "NER"]
    assert len(rows) >= 301
    assert len({row["title"] for row in rows}) == len(rows)
    for row in rows:
        lines = [line.lower() for line in json.loads(row["ingredients"])]
        foods = json.loads(row["NER"])
        assert len(set(foods)) == len(foods) >= 1
        assert all(any(food in line for line in lines) for food in foods), row["title"]
        assert json.loads(row["directions"])


def test_a_third_of_the_test_foods_never_occur_in_training(examples: Path) -> None:
    recipe = load_recipe(examples / "recipes" / "recipe.yaml")
    loaded = load_examples(recipe.data, Path(recipe.data.train), task_type="extraction")
    splits = make_splits(loaded.examples, None, None, recipe.data.split, task_type="extraction")
    known = {food for e in splits.train for food in json.loads(e.expected)}
    tested = [food for e in splits.test for food in json.loads(e.expected)]
    assert sum(food not in known for food in tested) / len(tested) >= 0.3
    assert sum(food not in known for food in set(tested)) / len(set(tested)) >= 0.3


@pytest.mark.parametrize("name", ["phrases", "recipes"])
def test_the_examples_pass_their_own_check(examples: Path, name: str) -> None:
    recipe = load_recipe(examples / name / "recipe.yaml")
    task = str(recipe.task.type)
    loaded = load_examples(recipe.data, Path(recipe.data.train), task_type=task)
    assert not [f for f in loaded.findings if f.severity != "info"]
    assert not [f for f in check_examples(loaded.examples, task_type=task) if f.severity != "info"]


def test_the_search_in_the_readme_is_one(examples: Path) -> None:
    """Its settings are those of a recipe, its values possible; reading refuses others."""
    line = next(line for line in (examples / "README.md").read_text().splitlines() if "tunesmith search" in line)
    _, _, recipe, *options = shlex.split(line)
    found = load_recipe(examples.parent / recipe, overrides=options[1::2])
    assert options[::2] == ["--set", "--set"]
    assert found.search is not None and list(grid(found.search.space["method.rank"])) == [8, 32]
