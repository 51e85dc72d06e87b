"""`--set key.path=value`."""

from __future__ import annotations

import pytest

from tunesmith.recipe import InvalidRecipeError, apply_overrides, parse_recipe


def test_values_are_yaml():
    data = apply_overrides(
        {"data": "rows.csv"},
        [
            "train.max_steps=10",
            "train.learning_rate=2e-4",
            "baselines=[]",
            "train.tensorboard=false",
            "goal.target=null",
        ],
    )
    recipe = parse_recipe(data)
    assert recipe.train.max_steps == 10
    assert recipe.train.learning_rate == 2e-4
    assert recipe.baselines == []
    assert recipe.train.tensorboard is False
    assert recipe.goal.target is None


def test_short_forms_keep_their_setting_beside_the_new_one():
    data = apply_overrides(
        {"data": "rows.csv", "method": "lora", "base": "org/m"}, ["method.rank=8", "base.revision=v1"]
    )
    assert data["method"] == {"type": "lora", "rank": 8}
    assert data["base"] == {"model": "org/m", "revision": "v1"}


def test_a_section_in_short_form_or_as_a_mapping_is_merged():
    data = apply_overrides({"data": "rows.csv", "method": {"type": "lora", "rank": 8}}, ["method=full"])
    assert data["method"] == {"type": "full", "rank": 8}
    data = apply_overrides(data, ["train={max_steps: 3, seed: 1}", "train.seed=2"])
    assert data["train"] == {"max_steps": 3, "seed": 2}


def test_an_empty_mapping_removes_names_of_one_s_own_and_leaves_sections():
    recipe = {"data": {"train": "x", "defaults": {"a": "b"}}, "remotes": {"big": {"url": "http://h/v1", "model": "m"}}}
    data = apply_overrides(recipe, ["remotes={}", "data.defaults={}", "train={}", "data={}"])
    assert data == {"data": {"train": "x", "defaults": {}}, "remotes": {}}
    assert apply_overrides(recipe, ["remotes={two: {url: u, model: n}}"])["remotes"].keys() == {"big", "two"}


@pytest.mark.parametrize(
    "template", ['"{phrase}" → "{tone}"', "{phrase} → {tone}", "{q}", "a: b", "12", "yes", "# not a comment", "[x]"]
)
def test_text_settings_take_the_value_as_it_is(template):
    data = apply_overrides({"data": "rows.csv"}, [f"data.template={template}"])
    assert parse_recipe(data).data.template == template


def test_text_settings_can_be_quoted_or_emptied():
    data = apply_overrides({"data": {"train": "x", "system": "s"}}, ['goal.use_case="a b"', "data.system=null"])
    assert data["goal"]["use_case"] == "a b"
    assert data["data"]["system"] is None


def test_values_may_hold_equal_signs():
    assert apply_overrides({"data": "x"}, ["data.system=a=b"])["data"]["system"] == "a=b"


def test_all_wrong_overrides_at_once():
    with pytest.raises(InvalidRecipeError) as caught:
        apply_overrides(
            {"data": "x"},
            ["train.max_step=1", "nonsense", "=3", "train.labels=[1", "task.labels=[1", "train=5", "name.x=1"],
        )
    found = {problem.key: str(problem) for problem in caught.value.problems}
    assert "did you mean train.max_steps?" in found["train.max_step"]
    assert "key.path=value" in found["nonsense"]
    assert "key.path=value" in found["=3"]
    assert "did you mean task.labels?" in found["train.labels"]
    assert "cannot read" in found["task.labels"]
    assert "train.NAME=value" in found["train"]
    assert "has no settings inside it" in found["name.x"]


def test_the_given_mapping_is_not_changed():
    data = {"data": {"train": "x"}}
    apply_overrides(data, ["data.train=y"])
    assert data == {"data": {"train": "x"}}


def test_wrong_overrides_and_wrong_settings_of_the_file_are_told_together():
    data = {"data": {"train": "x", "tran": "y"}, "trian": {"seed": 1}}
    with pytest.raises(InvalidRecipeError) as told:
        apply_overrides(data, ["train.lr=1", "trian.epochs=2", "train={max_steps: many, stpes: 3}", "zz.b=1"])
    keys = [problem.key for problem in told.value.problems]
    assert sorted(keys) == ["data.tran", "train.lr", "train.max_steps", "train.stpes", "trian", "zz"]
    assert "did you mean train?" in str(told.value) and "--set and the recipe" in str(told.value)


def test_what_is_missing_is_not_told_beside_a_wrong_override():
    """Overrides alone may be all there is, as for `doctor`."""
    with pytest.raises(InvalidRecipeError) as told:
        apply_overrides({}, ["train.lr=1"])
    assert [problem.key for problem in told.value.problems] == ["train.lr"]
