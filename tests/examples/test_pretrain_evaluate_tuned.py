"""The benchmark of the tuned base: recipes that are valid, settings chosen on validation rows, a page that is true."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.evaluation.comparison import Comparison
from tunesmith.evaluation.types import MetricValue, PairedDifference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CANDIDATES = {"trivial_dictionary": 0.7, "zero_shot": 0.0, "few_shot": 0.1, "tuned": 0.9}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, imported as the script sees it, writing elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import base_model

    monkeypatch.setattr(base_model, "HERE", tmp_path)
    monkeypatch.setattr(base_model, "RESULTS", tmp_path / "results" / "base_model.json")
    (tmp_path / "results").mkdir()
    return base_model


def options(bench: Any, tmp_path: Path, **changes: Any) -> Any:
    usual = {"base": "embedded:base", "key": "abc", "data": tmp_path, "out": tmp_path, "tries": 2, "smoke": False}
    return bench.Options(**{**usual, **changes})


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", ["tasteset", "recipes", "banking77"])
def test_every_setting_is_a_valid_recipe(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, smoke: bool
) -> None:
    monkeypatch.setattr(bench, "HERE", BENCHMARKS)
    for method in bench.METHODS:
        for settings in bench.SETTINGS[name][method]:
            recipe = bench.recipe_of(name, method, settings, options(bench, tmp_path, base="some/folder", smoke=smoke))
            assert recipe.base.model == "some/folder"
            assert recipe.method.type == method
            assert recipe.goal.metric == bench._deciding(name)
            assert recipe.train.max_steps == (6 if smoke else None)
            assert recipe.train.learning_rate == settings["train"]["learning_rate"]
            assert (recipe.data.test is not None) == (name == "banking77" and not smoke)


class Run:
    """Stands for `tunesmith.run`: what was asked of it, and answers by learning rate."""

    def __init__(self, values: dict[float, float]) -> None:
        self.values, self.asked = values, []  # type: ignore[var-annotated]

    def __call__(self, recipe: Any, *, out: Path, through: str = "verdict") -> Any:
        self.asked.append((recipe.train.learning_rate, through, out.name))
        manifest = {
            "data": {"rows": {"train": 490, "validation": 70, "test": 140}},
            "base": {"weights_sha256": "f" * 64, "parameters": 10_000_000},
        }
        training = {"best_value": self.values[recipe.train.learning_rate], "best_step": 5, "steps": 9, "seconds": 61.0}
        return SimpleNamespace(
            training=training,
            comparison=comparison() if through == "verdict" else None,
            folder=SimpleNamespace(manifest=lambda: manifest),
        )


def comparison() -> Comparison:
    values = tuple(MetricValue(name, "entity_f1", v, v - 0.05, v + 0.05, 140) for name, v in CANDIDATES.items())
    differences = tuple(
        PairedDifference(name, "tuned", "entity_f1", v - 0.9, v - 0.9 - 0.04, v - 0.9 + 0.04, None, 140)
        for name, v in CANDIDATES.items()
        if name != "tuned"
    )
    return Comparison("entity_f1", values, differences)


def measured(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[float, float]) -> Any:
    fake = Run(values)
    monkeypatch.setattr(bench, "run", fake)
    return bench.measure("tasteset", "lora", options(bench, tmp_path)), fake


def test_only_the_best_on_validation_sees_the_test_rows(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = [settings["train"]["learning_rate"] for settings in bench.EXTRACTION["lora"][:2]]
    result, fake = measured(bench, monkeypatch, tmp_path, {rates[0]: 0.6, rates[1]: 0.8})
    assert [(rate, through) for rate, through, _ in fake.asked] == [
        (rates[0], "train"),
        (rates[1], "train"),
        (rates[1], "verdict"),
    ]
    assert fake.asked[1][2] == fake.asked[2][2] != fake.asked[0][2]
    assert result["chosen"] == 1
    assert [one["validation"] for one in result["tried"]] == [0.6, 0.8]
    assert result["tuned_minus"]["trivial_dictionary"] == [0.2, 0.16, 0.24]
    result, _ = measured(bench, monkeypatch, tmp_path, {rates[0]: 0.8, rates[1]: 0.8})
    assert result["chosen"] == 0


def test_what_was_asked_is_reached_only_above_every_alternative(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = {settings["train"]["learning_rate"]: 0.5 for settings in bench.EXTRACTION["lora"]}
    result, _ = measured(bench, monkeypatch, tmp_path, rates)
    assert bench.reached(result)
    text = bench.page([result])
    assert "| tasteset | lora | **0.900 (0.850 to 0.950)** | trivial_dictionary 0.700 (0.650 to 0.750) | +20.0" in text
    assert "| reached |" in text
    assert "(chosen) | 0.5000 | 5 of 9 | 61 |" in text
    unsure = {**result, "tuned_minus": {**result["tuned_minus"], "trivial_dictionary": [0.02, -0.01, 0.05]}}
    assert not bench.reached(unsure)
    assert "**not reached**" in bench.page([unsure])
    intents = {"task": "banking77", "candidates": {"tuned": [0.79, 0.7, 0.9]}}
    assert not bench.reached(intents)
    assert bench.reached({**intents, "candidates": {"tuned": [0.80, 0.7, 0.9]}})


def test_results_of_the_same_base_are_kept_and_of_another_dropped(bench: Any) -> None:
    def one(task: str, method: str, base: str, mark: int) -> dict[str, Any]:
        return {"task": task, "method": method, "base_sha256": base, "mark": mark}

    earlier = [one("recipes", "lora", "a", 1), one("tasteset", "full", "a", 2), one("tasteset", "lora", "b", 3)]
    bench.RESULTS.write_text(json.dumps(earlier))
    kept = bench.keep([one("tasteset", "full", "a", 4), one("banking77", "lora", "a", 5)])
    assert [(r["task"], r["method"], r["mark"]) for r in kept] == [
        ("tasteset", "full", 4),
        ("recipes", "lora", 1),
        ("banking77", "lora", 5),
    ]
