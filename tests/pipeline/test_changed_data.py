"""Files that change under a run, and problems of data and base at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import tone_rows, write_csv
from tunesmith import Recipe, check, run
from tunesmith.recipe import load_recipe


def recipe_for(folder: Path, base: Path | str, baselines: Sequence[str] = (), **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "task": "classification",
            "data": {"train": str(folder / "rows.csv"), "columns": {"prompt": "phrase", "answer": "tone"}} | data,
            "base": str(base),
            "method": {"rank": 2},
            "train": {"max_steps": 1, "evaluations": 0, "tensorboard": False},
            "baselines": list(baselines),
            "evaluate": {"bootstrap": 100, "latency_rows": 1, "max_new_tokens": 4},
            "output": str(folder / "runs"),
        }
    )


def test_a_finished_run_is_read_again_until_its_rows_change(tmp_path: Path, base: Path) -> None:
    write_csv(tmp_path / "rows.csv", tone_rows(60))
    recipe = recipe_for(tmp_path, base)
    first = run(recipe, out=tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_bytes()
    assert run(recipe, out=tmp_path / "run").to_dict()["training"] == first.to_dict()["training"]
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == events  # nothing was done again
    write_csv(tmp_path / "rows.csv", tone_rows(60, seed=1))
    changed = run(recipe, out=tmp_path / "run")
    assert changed.training is not None and first.training is not None
    assert changed.training["adapter_sha256"] != first.training["adapter_sha256"]


def test_rows_that_changed_make_no_earlier_stage_count_as_done(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between writing down the new rows and training on them: the old training is not taken for theirs."""
    write_csv(tmp_path / "rows.csv", tone_rows(60))
    recipe = recipe_for(tmp_path, base, baselines=["trivial"])
    first = run(recipe, out=tmp_path / "run", through="evaluate")
    write_csv(tmp_path / "rows.csv", tone_rows(60, seed=1))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_module("tunesmith.pipeline.run"), "run_baselines", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, out=tmp_path / "run", through="evaluate")
    trained = run(recipe, out=tmp_path / "run", through="train")
    assert trained.training is not None and first.training is not None
    assert trained.training["adapter_sha256"] != first.training["adapter_sha256"]
    assert trained.comparison is None and not (tmp_path / "run" / "comparison.json").exists()
    assert run(recipe, out=tmp_path / "run", through="evaluate").comparison is not None


def test_a_metric_that_was_edited_and_documents_that_grew_are_noticed(tmp_path: Path, base: Path) -> None:
    write_csv(tmp_path / "rows.csv", tone_rows(60))
    metric = tmp_path / "worth.py"
    metric.write_text("def worth(answer, expected):\n    return 0.25\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A friendly tone is warm.")
    asked = recipe_for(tmp_path, base, baselines=["trivial"], documents=str(tmp_path / "texts")).model_dump()
    asked["task"] |= {"metrics": {"worth": {"formula": f"{metric}:worth"}}}

    def worth() -> float:
        result = run(Recipe.model_validate(asked), out=tmp_path / "run")
        assert result.comparison is not None
        return next(v.value for v in result.comparison.values if v.metric == "worth")

    events = tmp_path / "run" / "events.jsonl"
    assert worth() == 0.25
    metric.write_text("def worth(answer, expected):\n    return 0.75\n")
    assert worth() == 0.75
    told = events.read_bytes()
    assert worth() == 0.75 and events.read_bytes() == told
    (tmp_path / "texts" / "b.txt").write_text("A rude tone is cold.")
    assert worth() == 0.75 and events.read_bytes() != told


def test_check_lists_data_errors_beside_a_base_that_cannot_be_loaded(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [*tone_rows(60), ("one", "two,three,four")])
    (tmp_path / "empty").mkdir()
    report = check(recipe_for(tmp_path, tmp_path / "empty"))
    codes = {f.code for f in report.findings if f.severity == "error"}
    assert "cannot_go_on" in codes and len(codes) >= 2
    assert report.exit_code == 3


def test_leaked_test_rows_are_listed_and_every_score_is_given_with_and_without_them(tmp_path: Path, base: Path) -> None:
    known = write_csv(tmp_path / "rows.csv", tone_rows(60))
    asked = write_csv(tmp_path / "test.csv", [*tone_rows(30, seed=7), *tone_rows(60)[:4]])
    before = (known.read_bytes(), asked.read_bytes())
    recipe = recipe_for(tmp_path, base, baselines=["trivial"], test=str(asked))
    leaked = {leak.id for leak in check(recipe).leaks}
    result = run(recipe, out=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert 4 <= len(leaked) < 34
    assert {value["n"] for value in kept["values"]} == {34}
    assert {value["n"] for value in kept["without_leaks"]["values"]} == {34 - len(leaked)}
    rows = [json.loads(line) for line in (tmp_path / "run/evaluation/tuned.jsonl").read_text().splitlines()]
    scores = [row["scores"]["accuracy"] for row in rows if row["id"] not in leaked]
    clean = {(v["candidate"], v["metric"]): v["value"] for v in kept["without_leaks"]["values"]}
    assert clean["tuned", "accuracy"] == sum(scores) / len(scores)
    assert result.verdict is not None
    said = [c for c in result.verdict.caveats if c.startswith(f"{len(leaked)} of 34 test rows")]
    assert len(said) == 1 and "trivial_majority" in said[0] and "tuned" in said[0]
    assert (known.read_bytes(), asked.read_bytes()) == before


def test_a_learning_curve_is_part_of_a_run_that_asks_for_it(tmp_path: Path, base: Path) -> None:
    write_csv(tmp_path / "rows.csv", tone_rows(100))
    recipe = recipe_for(tmp_path, base, learning_curve=True)
    result = run(recipe, out=tmp_path / "run")
    curve = json.loads((tmp_path / "run" / "learning_curve" / "learning_curve.json").read_text())
    assert [point["share"] for point in curve["points"]] == [0.25, 0.5, 1.0]
    assert result.verdict is not None and curve["conclusion"] in result.verdict.caveats
    assert (tmp_path / "run" / "learning_curve" / "learning_curve.html").is_file()


@pytest.mark.parametrize(
    "data", [{}, {"columns": {}}, {"columns": {}, "template": "{phrase}: {tone}"}], ids=["columns", "auto", "template"]
)
def test_the_resolved_recipe_of_a_run_can_be_run_again(tmp_path: Path, base: Path, data: dict[str, Any]) -> None:
    write_csv(tmp_path / "rows.csv", tone_rows(60), header="phrase,tone" if data.get("template") else "text,label")
    columns = {"columns": {"prompt": "text", "answer": "label"}}
    first = run(recipe_for(tmp_path, base, **{**columns, **data}), out=tmp_path / "run")
    again = run(load_recipe(tmp_path / "run" / "recipe.yaml"), out=tmp_path / "again")
    assert first.training is not None and again.training is not None
    assert first.training["adapter_sha256"] == again.training["adapter_sha256"]
