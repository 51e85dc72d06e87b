"""Several trainings of one recipe: their spread decides, no row counts twice, and what was trained stays trained."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.pipeline.conftest import answers, make_project
from tests.pipeline.test_redeciding import SMALL
from tunesmith import Recipe, Result, run
from tunesmith.evaluation.statistics import across_seeds
from tunesmith.pipeline import load_run
from tunesmith.pipeline.seeds import Seeds, over_seeds


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
