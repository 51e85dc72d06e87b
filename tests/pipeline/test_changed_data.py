"""Files that change under a run, and problems of data and base at once."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.conftest import tone_rows, write_csv
from tunesmith import Recipe, check, run


def recipe_for(folder: Path, base: Path | str) -> Recipe:
    return Recipe.model_validate(
        {
            "task": "classification",
            "data": {"train": str(folder / "rows.csv"), "columns": {"prompt": "phrase", "answer": "tone"}},
            "base": str(base),
            "method": {"rank": 2},
            "train": {"max_steps": 1, "evaluations": 0, "tensorboard": False},
            "baselines": [],
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


def test_check_lists_data_errors_beside_a_base_that_cannot_be_loaded(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [*tone_rows(60), ("one", "two,three,four")])
    (tmp_path / "empty").mkdir()
    report = check(recipe_for(tmp_path, tmp_path / "empty"))
    codes = {f.code for f in report.findings if f.severity == "error"}
    assert "cannot_go_on" in codes and len(codes) >= 2
    assert report.exit_code == 3
