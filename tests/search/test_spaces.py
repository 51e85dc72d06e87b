"""What may be searched: spaces as they are written, everything wrong with them at once, and their grids."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.recipe import InvalidRecipeError, parse_recipe
from tunesmith.recipe.searching import Space
from tunesmith.recipe.spaces import read_spaces, with_settings
from tunesmith.search.spaces import combinations, grid, size


def problems(space: dict[str, Any], **search: Any) -> dict[str, str]:
    """Every problem of a recipe that searches this space, by its key."""
    with pytest.raises(InvalidRecipeError) as raised:
        parse_recipe({"data": "rows.csv", "search": {"space": space, **search}})
    return {problem.key.removeprefix("search.space."): str(problem) for problem in raised.value.problems}


def test_everything_wrong_with_plain_spaces_is_said_at_once() -> None:
    with pytest.raises(InvalidRecipeError) as raised:
        read_spaces(
            {
                "rate": {"type": "flaot", "low": 1, "high": 2},
                "rank": {"type": "int", "low": 8, "high": 4},
                "ratio": {"type": "float", "low": 0, "high": 1, "log": True},
                "size": {"type": "choice", "values": []},
                "kind": {"low": 1},
                "seed": 3,
                "half": {"type": "int", "low": 1.5, "high": 4, "step": 0.5},
                "both": {"type": "choice", "values": [1], "low": 1},
                "twice": {"type": "choice", "values": [1, 2, 1]},
                "typo": {"type": "float", "low": 1, "hihg": 2},
                "open": {"type": "float", "low": 1},
            },
            "search_space",
        )
    said = {problem.key: str(problem) for problem in raised.value.problems}
    assert set(said) == {
        "rate.type", "rank.low", "ratio.low", "size.values", "kind.type", "seed", "half.low", "half.step", "both.low",
        "twice.values", "typo.hihg", "open.high",
    }  # fmt: skip
    assert "did you mean float?" in said["rate.type"]
    assert "8 is above high, 4" in said["rank.low"]
    assert "no logarithm" in said["ratio.low"]
    assert "did you mean high?" in said["typo.hihg"]


def test_one_and_true_are_two_values() -> None:
    assert read_spaces({"a": {"type": "choice", "values": [1, True]}}, "x")["a"].values == [1, True]


@pytest.mark.parametrize(
    ("key", "space", "said"),
    [
        ("train.learning_rte", {"type": "float", "low": 1e-5, "high": 1e-3}, "did you mean train.learning_rate?"),
        ("learning_rate", {"type": "float", "low": 1e-5, "high": 1e-3}, "did you mean train.learning_rate?"),
        ("method", {"type": "choice", "values": ["lora"]}, "a whole section"),
        ("data.max_rows", {"type": "int", "low": 1, "high": 9}, "would not compare"),
        ("train.eval_rows", {"type": "int", "low": 1, "high": 9}, "would not compare"),
        ("search.seed", {"type": "int", "low": 1, "high": 9}, "would not compare"),
        ("method.rank", {"type": "int", "low": 0, "high": 9}, "at least 1"),
        ("method.rank", {"type": "choice", "values": [4, "many"]}, "'many' is not allowed"),
        ("train.schedule", {"type": "choice", "values": ["cosine", "lniear"]}, "did you mean linear?"),
        ("train.learning_rate", {"type": "float", "low": -1, "high": 1}, "above 0"),
    ],
)
def test_a_setting_that_cannot_be_searched_says_why(key: str, space: dict[str, Any], said: str) -> None:
    found = problems({key: space})
    assert list(found) == [key]
    assert said in found[key]


def test_what_changes_the_loss_is_searched_by_a_metric_only() -> None:
    space = {"train.label_smoothing": {"type": "float", "low": 0, "high": 0.1}}
    recipe: dict[str, Any] = {"data": "rows.csv", "search": {"space": space}}
    assert parse_recipe(recipe).search is not None
    with pytest.raises(InvalidRecipeError, match="changes what the validation loss means"):
        parse_recipe({**recipe, "train": {"select_by": "loss"}})
    with pytest.raises(InvalidRecipeError, match="changes what the validation loss means"):
        parse_recipe({**recipe, "train": {"eval_rows": 0}})


def test_a_sequential_search_needs_steps() -> None:
    space = {"train.learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3}}
    assert list(problems(space, sampler="sequential")) == ["train.learning_rate.step"]


def test_no_trials_and_an_empty_space_are_refused() -> None:
    assert list(problems({})) == ["search.space"]
    assert list(problems({"method.rank": {"type": "int", "low": 1, "high": 2}}, trials=0)) == ["search.trials"]


def test_a_trial_is_the_recipe_with_its_settings_and_no_search() -> None:
    space = {"method.type": {"type": "choice", "values": ["lora", "qlora"]}}
    recipe = parse_recipe({"data": "rows.csv", "method": {"rank": 4}, "search": {"space": space}})
    made = with_settings(recipe, {"method.type": "qlora", "train.learning_rate": 1e-4})
    assert (made.method.quantize, made.method.rank, made.train.learning_rate) == ("nf4", 4, 1e-4)
    assert made.search is None
    assert recipe.method.quantize == "none"


def test_a_grid_has_the_values_that_are_meant() -> None:
    assert list(grid(Space(type="float", low=0.1, high=0.35, step=0.1))) == [0.1, 0.2, 0.3]
    assert grid(Space(type="float", low=0, high=1, step=0.1))[-1] == 1.0
    assert list(grid(Space(type="int", low=8, high=20, step=4))) == [8, 12, 16, 20]
    assert grid(Space(type="choice", values=["b", "a"])) == ["b", "a"]
    with pytest.raises(ValueError, match="no grid"):
        grid(Space(type="int", low=1, high=2))


def test_combinations_come_in_their_order() -> None:
    spaces = {"a": Space(type="choice", values=[1, 2]), "b": Space(type="int", low=0, high=1, step=1)}
    assert list(combinations(spaces)) == [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}, {"a": 2, "b": 1}]
    assert size(spaces) == 4


def test_a_grid_too_large_to_be_held_is_counted_and_begun() -> None:
    spaces = {
        "a": Space(type="int", low=1, high=10**12, step=1),
        "b": Space(type="float", low=0, high=1, step=1e-9),
        "c": Space(type="choice", values=["x", "y"]),
    }
    assert size(spaces) == 10**12 * (10**9 + 1) * 2
    first = [tuple(one.values()) for _, one in zip(range(3), combinations(spaces), strict=False)]
    assert first == [(1, 0.0, "x"), (1, 0.0, "y"), (1, 1e-9, "x")]
