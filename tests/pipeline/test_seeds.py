"""Several trainings of one recipe: their spread decides, no row counts twice, and what was trained stays trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.conftest import answers, make_project, tone_rows
from tests.pipeline.test_redeciding import SMALL
from tunesmith import Recipe, Result, run
from tunesmith.errors import DataError
from tunesmith.evaluation.statistics import across_seeds
from tunesmith.pipeline import load_run
from tunesmith.pipeline.reporting import _history
from tunesmith.pipeline.seeds import Seeds, over_seeds
from tunesmith.runs import RunFolder, read_events


@pytest.fixture(scope="module")
def asked(base) -> Recipe:
    evaluate = {**SMALL["evaluate"], "seeds": 2}
    return Recipe(**{**SMALL, "evaluate": evaluate}, base=str(base), verdict={"perplexity_rise": 0.0})


@pytest.fixture(scope="module")
def result(tmp_path_factory, base, asked) -> Result:
    folder = make_project(tmp_path_factory.mktemp("seeds"), base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(asked, out="run")


def scores(result: Result, *seeds: str, candidate: str = "tuned") -> np.ndarray:
    folders = [result.folder.path / "seeds" / seed if seed else result.folder.path for seed in seeds]
    return np.array([[row["scores"]["accuracy"] for row in answers(folder, candidate)] for folder in folders])


def test_the_interval_over_rows_and_trainings_decides(result):
    tuned, other = scores(result, "", "1"), scores(result, "", candidate="zero_shot")
    assert tuned.shape == (2, 30) and (tuned[0] != tuned[1]).any(), "other seeds make other models"
    expected = across_seeds(tuned - other)
    found = result.comparison.difference("tuned", "zero_shot")
    assert found.difference == pytest.approx((tuned - other).mean())
    assert (found.low, found.high) == pytest.approx((max(-1, expected.interval[0]), min(1, expected.interval[1])))
    assert found.n == 30 and found.test == "t test over rows and 2 trainings"
    assert result.verdict.difference["test"] == found.test and found.test in result.verdict.reason
    assert result.comparison.value("tuned").value == pytest.approx(tuned.mean())
    assert result.verdict.assumptions["trainings"] == 2
    assert any(caveat.startswith("Trained 2 times: ") for caveat in result.verdict.caveats)


def test_it_stands_in_the_result_and_is_read_back(result):
    told = result.to_dict()["seeds"]
    assert told["seeds"] == (0, 1) and told["metric"] == "accuracy"
    assert told["values"] == pytest.approx(tuple(scores(result, "", "1").mean(axis=1)))
    assert told["differences"]["zero_shot"]["rows"] == 30
    again = load_run(result.folder)
    assert again.seeds == result.seeds and again.comparison == result.comparison and again.verdict == result.verdict


def test_trainings_that_are_done_are_not_done_again(result, asked, monkeypatch):
    monkeypatch.chdir(result.folder.path.parent)
    (result.folder.path / "verdict.json").unlink()
    result.folder.update_manifest(reached={"verdict": False})
    heard: list[dict[str, Any]] = []
    again = run(asked, out="run", listener=heard.append)
    assert "train_started" not in {event["kind"] for event in heard}
    assert again.verdict == result.verdict and again.seeds == result.seeds


def test_what_was_forgotten_can_forbid_shipping_and_is_kept(result):
    found = result.forgetting
    assert found is not None and found.instructions == 40 and found.perplexity_before != found.perplexity_after
    kept = json.loads((result.folder.path / "forgetting.json").read_text())
    assert kept["perplexity"] == {"before": found.perplexity_before, "after": found.perplexity_after}
    assert len(kept["instructions"]) == 40 and {"prompt", "before", "after"} <= kept["instructions"][0].keys()
    assert any("perplexity of general text went from" in caveat for caveat in result.verdict.caveats)


def test_trainings_that_agree_on_every_row_leave_what_the_first_one_shows(result):
    flat = across_seeds(np.ones((2, 30)))
    seeds = Seeds("accuracy", (0, 1), (1.0, 1.0), flat, {"zero_shot": flat})
    assert over_seeds(result.comparison, seeds) == result.comparison


def test_stopped_within_a_further_training_it_goes_on_to_the_same_numbers(result, asked, base, tmp_path, monkeypatch):
    """Stopped at step 30 of the second training, whose checkpoint is of step 27 or none: nothing of it shows later."""
    monkeypatch.chdir(make_project(tmp_path / "again", base))
    again: list[str] = []

    def stop(event: dict[str, Any]) -> None:
        again.extend(event["text"] for _ in (0,) if event["kind"] == "note" and "training again" in event["text"])
        if again and event["kind"] == "train_step" and event["step"] >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, out="run", listener=stop)
    assert RunFolder.open(Path("run")).summary().state == "unfinished"
    heard: list[dict[str, Any]] = []
    continued = run(asked, out="run", listener=heard.append)
    assert len([event for event in heard if event["kind"] == "train_started"]) == 1, "the first training is read"
    assert continued.seeds == result.seeds
    assert continued.comparison == result.comparison
    assert continued.verdict.reason == result.verdict.reason


def test_test_rows_of_a_single_group_are_refused_before_anything_is_trained(asked, base, tmp_path, monkeypatch):
    folder = make_project(tmp_path / "grouped", base)
    monkeypatch.chdir(folder)
    for name, customers in (("rows", 20), ("test", 1)):
        rows = tone_rows(60, seed=customers)
        lines = [f"{phrase} of {name},{tone},c{i % customers}{name}" for i, (phrase, tone) in enumerate(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["phrase,tone,customer", *lines]) + "\n")
    data = {"train": "rows.csv", "test": "test.csv", "split": {"group_by": "customer"}}
    data["columns"] = {"prompt": "phrase", "answer": "tone"}
    with pytest.raises(DataError, match="60 test rows are of one customer") as refused:
        run(Recipe(**{**asked.model_dump(exclude={"data"}), "data": data}), out="run")
    assert "evaluate.seeds: 1" in str(refused.value) and not (folder / "run" / "adapter").exists()


def test_the_report_tells_of_the_machine_in_the_first_training_only(result):
    """Processor and memory stand in the log only, where the steps of the further training are too."""
    history = _history(result.folder)
    steps = [event for event in history if event["kind"] == "train_step"]
    log = list(read_events(result.folder.events_file))
    assert len([e for e in log if e["kind"] == "train_step"]) > len(steps) > 0
    first = next(e for e in log if e["kind"] == "train_step")
    assert "rss_bytes" in first and {**first, **steps[0]} == steps[0]
    assert all("rss_bytes" in step for step in steps)
    second = [e for e in log if e["kind"] == "train_step" and e["step"] == first["step"]][1]
    assert steps[0]["loss"] == first["loss"] != second["loss"]
    assert "memory of the process" in result.report.read_text()
