"""Workflows of real steps: cached by what decides them, chosen by validation rows, failing with what failed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import make_project
from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.types import StepError
from tunesmith.pipeline.workflow import cache, steps
from tunesmith.pipeline.workflow.flow import outcome_rows, require, run_workflow
from tunesmith.pipeline.workflow.types import Goal, SearchPlan, Step, Subject, Workflow, WorkflowResult
from tunesmith.recipe import InvalidRecipeError, Recipe, load_recipe
from tunesmith.recipe.searching import Space

RATES = {"train.learning_rate": Space(type="choice", values=[1e-3, 1e-2])}
KINDS = {"precision": Space(type="choice", values=["own", "fp16"])}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, base) -> Recipe:
    project = make_project(tmp_path_factory.mktemp("flows"), base)
    settings = ["train.max_steps=2", "train.evaluations=1", "evaluate.max_new_tokens=4"]
    return load_recipe(project / "recipe.yaml", settings)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A folder of several workflows, which have trainings in common."""
    return tmp_path_factory.mktemp("workflows") / "out"


def chain(recipe: Recipe, *more: Step, space: dict[str, Space] | None = None, **settings: Any) -> Workflow:
    """Train, then the further steps."""
    return Workflow("tones", Subject(recipe=recipe), (Step("tune", "train", settings, space or {}), *more))


MERGE, SCORE, SIZE = Step("merge", "merge"), Step("score", "evaluate"), Step("size", "measure")


def cached(result: WorkflowResult, outcome: int = 1) -> dict[str, bool]:
    return {record.name: record.cached for record in result.outcomes[outcome - 1].steps}


def states(folder: Path) -> dict[str, int]:
    """When each product was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_steps_are_done_once_and_again_only_where_something_changed(recipe, out, monkeypatch) -> None:
    workflow = chain(recipe, MERGE, SCORE, SIZE)
    first = require(run_workflow(workflow, out))
    assert cached(first) == {"tune": False, "merge": False, "score": False, "size": False}
    (only,) = first.outcomes
    assert {"accuracy", "macro_f1", "size_bytes", "seconds_per_token", "mean_kl"} <= set(only.measures)
    evaluated = next(record for record in only.steps if record.name == "score")
    kept = json.loads((Path(str(evaluated.folder)).parent / "step.json").read_text())
    assert kept["result"]["rows"] == 40, "nothing is chosen, so the test rows are answered"
    assert Path(str(only.artifact), "model.safetensors").is_file()

    before = states(out / "steps")
    again = run_workflow(workflow, out)
    assert cached(again) == dict.fromkeys(cached(again), True)
    assert states(out / "steps") == before
    assert again.outcomes[0].measures == only.measures

    weights = Path(str(only.artifact), "model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\1\2\3")
    mended = run_workflow(workflow, out)
    assert cached(mended) == {"tune": True, "merge": False, "score": True, "size": True}
    assert weights.read_bytes() == whole

    adapter = Path(str(mended.outcomes[0].steps[0].folder), "adapter", "adapter_model.safetensors")
    adapter.unlink()
    mended = run_workflow(workflow, out)
    assert cached(mended)["tune"] is False
    assert adapter.is_file()

    now = cache.versions()
    monkeypatch.setattr(cache, "versions", lambda: {**now, "torch": "0.1"})
    assert cached(run_workflow(workflow, out)) == dict.fromkeys(cached(first), False)


def test_another_setting_does_only_the_steps_that_depend_on_it(recipe, out) -> None:
    run_workflow(chain(recipe, MERGE), out)
    other = chain(recipe, Step("merge", "merge", {"precision": "bf16"}))
    assert cached(run_workflow(other, out)) == {"tune": True, "merge": False}


def test_a_search_whose_time_was_over_does_nothing_when_run_again(recipe, out) -> None:
    workflow = replace(chain(recipe, SIZE, space=RATES), search=SearchPlan("sequential", max_seconds=1e-6))
    first = run_workflow(workflow, out)
    assert len(first.outcomes) == 1, "the first trial's time is over the limit"
    again = run_workflow(workflow, out)
    assert [cached(again)[name] for name in ("tune", "size")] == [True, True]
    assert len(again.outcomes) == 1
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    kept = [Path(str(record.folder)).parent / "step.json" for record in again.outcomes[0].steps]
    assert trials[-1]["seconds"] == pytest.approx(sum(json.loads(path.read_text())["seconds"] for path in kept))


@pytest.mark.parametrize(
    "broken", ["{", "{}", '{"key": "KEY", "files": {}}', '{"key": "KEY", "files": {}, "result": 1}']
)
def test_a_record_that_cannot_be_read_is_made_anew(tmp_path, broken) -> None:
    done: list[Path] = []

    def work(product: Path) -> dict[str, Any]:
        done.append(product)
        product.mkdir(exist_ok=True)
        return {"measures": {}}

    cache.once(tmp_path, "step", "k" * 64, work)
    record = tmp_path / f"step-{'k' * 16}" / "step.json"
    record.write_text(broken.replace("KEY", "k" * 64))
    assert cache.once(tmp_path, "step", "k" * 64, work).cached is False
    assert cache.once(tmp_path, "step", "k" * 64, work).cached is True
    assert len(done) == 2


def test_a_search_is_decided_by_validation_rows_and_told_by_test_rows(recipe, out) -> None:
    workflow = replace(
        chain(recipe, MERGE, SCORE, SIZE, space=RATES),
        goals=(Goal("accuracy", "max-degradation", 0.0), Goal("size_bytes", "at-most", 1e9)),
        search=SearchPlan("sequential"),
    )
    found = require(run_workflow(workflow, out))
    assert [one.settings for one in found.outcomes] == [{"tune.train.learning_rate": rate} for rate in (1e-3, 1e-2)]
    for one in found.outcomes:
        score = next(record for record in one.steps if record.name == "score")
        kept = json.loads((Path(str(score.folder)).parent / "step.json").read_text())
        assert kept["result"]["rows"] == 10, "validation rows"
        assert one.reference["accuracy"] == one.measures["accuracy"], "merging changes no answer"
        checks = json.loads(Path(str(one.artifact), "verification.json").read_text())["verification"][0]["checks"]
        assert next(c for c in checks if c["name"] == "task")["status"] == "not possible"
    assert set(found.test) == {"accuracy", "macro_f1"}
    assert found.chosen is not None and found.outcomes[found.chosen - 1].pareto
    record = json.loads((out / "workflow.json").read_text())
    assert record["chosen"] == found.chosen
    assert record["pareto"] == [one.number for one in found.pareto]
    table = list(outcome_rows(found))
    assert len(table) == 3 and len({len(row) for row in table}) == 1
    assert any("chosen" in row[-1] for row in table)


def test_no_test_row_is_answered_where_something_is_chosen_by_them(recipe, tmp_path) -> None:
    workflow = replace(
        chain(recipe, Step("score", "evaluate", {"rows": "test"}), space=RATES), search=SearchPlan("sequential")
    )
    with pytest.raises(InvalidRecipeError, match="chosen by test rows"):
        run_workflow(workflow, tmp_path / "out")


def test_where_no_outcome_meets_the_goals_the_record_says_which(recipe, out) -> None:
    workflow = replace(chain(recipe, SCORE, SIZE), goals=(Goal("accuracy", "at-least", 2.0),))
    found = run_workflow(workflow, out)
    assert (found.chosen, found.exit_code) == (None, 5)
    assert "at least 2 was wanted" in str(found.problem)
    with pytest.raises(VerificationError, match="no outcome meets the goals"):
        require(found)
    record = json.loads((out / "workflow.json").read_text())
    assert record["outcomes"][0]["unmet"] and record["exit_code"] == 5


def _refuse_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """No export in half precision can be made, with or without test rows."""
    for name in ("export_run", "export_source"):
        real = getattr(steps, name)

        def export(source: Any, target: Any, *args: Any, real: Any = real, **more: Any) -> Any:
            if target.precision == "fp16":
                raise StepError("writing", "this model cannot have it", "export to own")
            return real(source, target, *args, **more)

        monkeypatch.setattr(steps, name, export)


def test_a_failed_step_ends_its_outcome_with_its_exit_code(recipe, out, monkeypatch) -> None:
    _refuse_half(monkeypatch)
    found = run_workflow(chain(recipe, Step("merge", "merge", {"precision": "fp16"}), SIZE), out)
    assert (found.chosen, found.exit_code) == (None, StepError.exit_code)
    assert [(r.name, r.state) for r in found.outcomes[0].steps] == [("tune", "done"), ("merge", "failed")]
    assert "merge: writing: this model cannot have it" in str(found.problem)


@pytest.mark.parametrize("order", ["joint", "step-by-step"])
def test_a_search_goes_on_after_a_failed_step(recipe, out, monkeypatch, order) -> None:
    _refuse_half(monkeypatch)
    workflow = replace(
        chain(recipe, Step("merge", "merge", space=KINDS), SIZE, space=RATES),
        search=SearchPlan("sequential", order=order),
    )
    found = require(run_workflow(workflow, out))
    tried = [(tuple(one.settings.values()), one.state, one.searched) for one in found.outcomes]
    if order == "joint":
        assert [state for _, state, _ in tried] == ["done", "failed"] * 2
        assert all(searched is None for _, _, searched in tried)
    else:
        rates, precisions = tried[:2], tried[2:]
        assert [(len(v), state, searched) for v, state, searched in rates] == [(1, "done", "tune")] * 2
        assert [(v[1], state) for v, state, _ in precisions] == [("own", "done"), ("fp16", "failed")]
        assert {v[0] for v, _, _ in precisions} <= {v[0] for v, _, _ in rates}
        assert not any(one.pareto for one in found.outcomes[:2])
    assert found.chosen is not None and found.outcomes[found.chosen - 1].state == "done"


def test_a_finished_run_is_exported_and_proved_on_its_test_rows(recipe, out) -> None:
    trained = run_workflow(chain(recipe), out).outcomes[0].artifact
    assert trained is not None
    found = require(run_workflow(Workflow("run", Subject(run=Path(trained)), (MERGE,)), out))
    (only,) = found.outcomes
    checks = json.loads(Path(str(only.artifact), "verification.json").read_text())["verification"][0]["checks"]
    assert {c["name"]: c["status"] for c in checks}["task"] == "passed"
    missing = Workflow("run", Subject(run=out / "nowhere"), (MERGE,))
    with pytest.raises(RecipeError, match="no run is here"):
        run_workflow(missing, out)


def test_a_missing_adapter_ends_with_what_is_missing(base, tmp_path) -> None:
    workflow = Workflow("plain", Subject(base=str(base), adapter=tmp_path / "none"), (MERGE,))
    found = run_workflow(workflow, tmp_path / "out")
    assert (found.chosen, found.exit_code) == (None, RecipeError.exit_code)
    assert "no adapter is here" in str(found.problem)


def test_a_model_without_a_run_is_exported_and_measured(base, tmp_path) -> None:
    workflow = Workflow("plain", Subject(base=str(base)), (MERGE, SIZE), goals=(Goal("size_bytes", "at-most", 1e9),))
    found = require(run_workflow(workflow, tmp_path))
    assert found.outcomes[0].measures["size_bytes"] > 0


def test_everything_wrong_with_a_workflow_is_said_at_once(recipe, tmp_path) -> None:
    workflow = Workflow(
        "wrong",
        Subject(recipe=recipe, base="x"),
        (
            Step("a", "merge", {"precision": "int3"}),
            Step("b", "train", {"train.learning_rte": 1}),
            Step("b", "gguf", {"precison": "q8_0"}),
            Step("c.d", "evaluate", {"rows": "some"}),
            Step("../x", "measure"),
            Step("e", "measure"),
            Step("f", "onnx", {}, {"bits": Space(type="choice", values=[])}),
        ),
        goals=(
            Goal("mean_kl", "max-degradation", 1),
            Goal("accuracy", "max-degradation", -1),
            Goal("size_bytes", "at-most", float("nan")),
        ),
    )
    with pytest.raises(InvalidRecipeError) as raised:
        run_workflow(workflow, tmp_path / "out")
    said = {problem.key: str(problem) for problem in raised.value.problems}
    assert {
        "subject", "steps", "steps.b", "steps.c.d", "steps.a", "steps.b.precison", "steps.c.d.rows",
        "steps.f.bits.values", "search", "goals.accuracy", "goals.mean_kl", "goals.size_bytes", "steps.../x",
    } <= set(said), said  # fmt: skip
    assert "did you mean precision?" in said["steps.b.precison"]
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(recipe, tmp_path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RecipeError, match="this is a file"):
        run_workflow(chain(recipe, SIZE), tmp_path / "out")
