"""The training stage: what waits until after the first step, what is saved, and what is diagnosed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import tone_rows, write_csv
from tests.tiny import save_base
from tunesmith.models.load import load_base
from tunesmith.models.methods import load_tuned
from tunesmith.pipeline import diagnosing
from tunesmith.pipeline.result import Result
from tunesmith.pipeline.run import run
from tunesmith.pipeline.training import _judged
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Method, Recipe
from tunesmith.training import calibration, utilisation

TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("training")
    save_base(folder / "base")
    write_csv(folder / "rows.csv", tone_rows(60))
    return folder


def recipe_of(
    folder: Path, data: dict[str, Any] | None = None, base: dict[str, Any] | None = None, **train: Any
) -> Recipe:
    return parse_recipe(
        {
            "data": {"train": str(folder / "rows.csv"), "split": {"test": 8, "validation": 6}, **(data or {})},
            "base": {"model": str(folder / "base"), **(base or {})},
            "method": {"rank": 4},
            "train": {"max_steps": 3, "batch_size": 4, "evaluations": 1, "eval_rows": 2, "tensorboard": False, **train},
            "baselines": [],
            "evaluate": {"max_new_tokens": 2},
        }
    )


@pytest.fixture
def timeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What happens in the order in which it does."""
    happened: list[str] = []
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))

    def noted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **more: Any) -> Any:
            happened.append(name)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, call)

    noted(diagnosing.Probe, "measure")
    noted(diagnosing, "gather_facts")
    noted(diagnosing, "read_data")
    noted(utilisation, "measured_gemm_rate")
    noted(calibration, "_time_products")
    return happened


def trained(recipe: Recipe, out: Path, happened: list[str]) -> tuple[Result, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []

    def listen(event: dict[str, Any]) -> None:
        heard.append(event)
        happened.append(event["kind"])

    return run(recipe, out=out, through="train", listener=listen), heard


def test_what_does_not_decide_waits_for_the_first_step(
    folder: Path, tmp_path: Path, timeline: list[str], monkeypatch
) -> None:
    monkeypatch.setattr("tunesmith.pipeline.planning.may_pay", lambda device: False)
    result, heard = trained(recipe_of(folder), tmp_path / "run", timeline)
    first = timeline.index("train_step")
    assert first < timeline.index("measured_gemm_rate") < timeline.index("_time_products")
    assert first < timeline.index("measure") < timeline.index("gather_facts") and timeline.count("gather_facts") == 1
    assert "read_data" not in timeline  # no row was left out
    steps = [event for event in heard if event["kind"] == "train_step"]
    assert "mfu" not in steps[0] and 0 < steps[-1]["mfu"] < 1
    assert result.training is not None and result.training["proof"]["reloaded"] == "compared"
    assert next(c for c in heard if c["kind"] == "engine")["fused_layers"] == 2


def test_rows_that_were_left_out_are_known_to_the_diagnosis(
    folder: Path, tmp_path: Path, timeline: list[str], monkeypatch
) -> None:
    seen: list[Any] = []
    real = diagnosing.gather_facts
    monkeypatch.setattr(
        diagnosing, "gather_facts", lambda *a, **k: (seen.append(k["rows_available"]), real(*a, **k))[1]
    )
    split = {"test": 4, "validation": 4}
    trained(recipe_of(folder, {"max_rows": 20, "split": split}), tmp_path / "run", timeline)
    assert seen == [52]


@pytest.mark.parametrize("template", ["auto", "raw"])
def test_the_adapter_brings_the_template_it_was_trained_with(
    folder: Path, tmp_path: Path, timeline: list[str], template: str
) -> None:
    """Where the base has none: another program that asks the adapter writes the turns as training did."""
    from transformers import AutoTokenizer

    result, _ = trained(recipe_of(folder, base={"chat_template": template}), tmp_path / "run", timeline)
    tokenizer = AutoTokenizer.from_pretrained(result.folder.adapter)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text == ("### User\nhi\n\n### Assistant\n" if template == "auto" else "hi")
    base = load_base(result.recipe.base)
    assert load_tuned(base, result.folder.adapter).added is None
    assert json.loads((result.folder.path / "manifest.json").read_text())["proof"]["reloaded"] == "compared"


def test_a_teachers_student_is_not_judged_by_the_rows(folder: Path) -> None:
    assert _judged(recipe_of(folder)) and _judged(recipe_of(folder, label_smoothing=0.1))
    assert not _judged(recipe_of(folder, distillation={"teacher": "x"}))
    plain = recipe_of(folder)
    for other in ({"objective": "contrastive"}, {"sharding": "fsdp"}):
        assert not _judged(plain.model_copy(update={"train": plain.train.model_copy(update=other)}))


def test_the_model_is_measured_as_it_was_before_its_first_step(
    folder: Path, tmp_path: Path, timeline: list[str], monkeypatch
) -> None:
    """Afterwards with adapters switched off, or before where the weights themselves are trained: the same numbers."""
    found = []
    heard: list[Any] = []
    real = diagnosing.Watcher.hear
    monkeypatch.setattr(diagnosing.Watcher, "hear", lambda self, event: (heard.append(event), real(self, event))[1])
    for name, method in (("lora", {"rank": 4}), ("pissa", {"rank": 4, "init": "pissa"}), ("full", {"type": "full"})):
        timeline.clear()
        heard.clear()
        recipe = recipe_of(folder, learning_rate=1e-2).model_copy(update={"method": Method.model_validate(method)})
        trained(recipe, tmp_path / name, timeline)
        assert (timeline.index("measure") < timeline.index("train_step")) == (name == "full")
        assert (heard[0]["kind"], heard[0]["step"]) == ("validation", 0)
        found.append(heard[0]["probe"]["train_loss"])
    assert found == pytest.approx([found[2]] * 3, rel=1e-5)
