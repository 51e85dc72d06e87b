"""A run whose target is reached before anything is trained: it ends, and goes on where it is told to."""

from __future__ import annotations

import json

from tests.pipeline.conftest import QUICK, events
from tunesmith.pipeline import load_run
from tunesmith.runs import RunFolder

ASKED = ("--set", "baselines=[trivial]", "--set", "goal.target=0.6", *QUICK, "--json")


def stages(run) -> list[str]:
    return [e["stage"] for e in events(run) if e["kind"] == "stage_started"]


def test_it_stops_before_training_and_goes_on_where_told_to(project, tunesmith):
    said = tunesmith("run", "recipe.yaml", "--out", "run", *ASKED)
    run = project / "run"
    assert said.code == 0 and said.json["training"] is None
    verdict = said.json["verdict"]
    assert (verdict["rule"], verdict["decision"]) == ("alternative_reaches_target", "use_trivial")
    assert verdict["candidate"] == "trivial_knn" and "so nothing was trained" in verdict["reason"]
    assert not (run / "adapter").exists() and not (run / "training.json").exists()
    assert (run / "report.html").is_file() and "alternative_reaches_target" in (run / "report.html").read_text()
    assert stages(run) == ["check", "baselines", "verdict"]
    told = [e["text"] for e in events(run) if e["kind"] == "note"]
    assert any("surely at least the target" in text and "--train-anyway" in text for text in told)

    assert tunesmith("run", "recipe.yaml", "--out", "run", *ASKED).json == said.json
    assert tunesmith("baselines", "recipe.yaml", "--out", "run", *ASKED).json == said.json
    assert stages(run) == ["check", "baselines", "verdict"], "a repeated command does nothing"
    assert tunesmith("verdict", "run", "--json").json == said.json
    assert json.loads(json.dumps(load_run(RunFolder.open(run)).to_dict())) == said.json
    assert "nothing was trained" in tunesmith("verdict", "run").out.replace("\n", " ")
    (listed,) = tunesmith("runs", "--set", f"output.dir={project}", "--json").json["runs"]
    assert listed["state"] == "finished" and "surely reaches the target of 60.0 %" in listed["verdict"]
    asked = tunesmith("chat", "run", "--message", "gladly", "--json")
    assert asked.code == 2 and "--train-anyway" in asked.error["fix"]

    trained = tunesmith("run", "recipe.yaml", "--out", "run", "--train-anyway", *ASKED)
    assert trained.code == 0 and trained.json["training"]["steps"] == 2
    assert trained.json["verdict"]["rule"] != "alternative_reaches_target"
    assert {row["candidate"] for row in trained.json["comparison"]} >= {"tuned", "trivial_tfidf_lr"}
    assert trained.json["forgetting"]["instructions"] == 40
    # What is trained is there to be used: the plain command shows it, and trains nothing again.
    assert tunesmith("run", "recipe.yaml", "--out", "run", *ASKED).json == trained.json
    assert len([e for e in events(run) if e["kind"] == "train_started"]) == 1


def test_training_first_leaves_nothing_to_save_by_stopping(project, tunesmith):
    trained = tunesmith("train", "recipe.yaml", "--out", "run", *ASKED)
    assert trained.code == 0 and trained.json["training"]["steps"] == 2
    said = tunesmith("run", "recipe.yaml", "--out", "run", *ASKED)
    assert said.json["training"]["adapter_sha256"] == trained.json["training"]["adapter_sha256"]
    assert said.json["verdict"]["rule"] != "alternative_reaches_target"


def test_a_recipe_may_say_beforehand_that_it_trains(project, tunesmith):
    said = tunesmith(
        "run", "recipe.yaml", "--set", "goal.when_reached=train", "--set", "evaluate.forgetting=false", *ASKED
    )
    assert said.code == 0 and said.json["training"] is not None and said.json["forgetting"] is None


def test_a_stopped_run_that_is_told_to_train_only_has_no_verdict_left(project, tunesmith):
    assert tunesmith("run", "recipe.yaml", "--out", "run", *ASKED).json["training"] is None
    assert tunesmith("train", "recipe.yaml", "--out", "run", *ASKED).json["training"]["steps"] == 2
    assert not (project / "run" / "verdict.json").exists() and not (project / "run" / "report.html").exists()
    manifest = json.loads((project / "run" / "manifest.json").read_text())
    assert manifest["reached"] == {"verdict": False, "train": True}


def test_without_test_rows_nothing_is_measured_and_it_is_said_first(project, tunesmith):
    none = ("--set", "data.split.test=0")
    for command in ("run", "baselines", "evaluate"):
        said = tunesmith(command, "recipe.yaml", *none, *ASKED)
        assert said.code == 3 and "there are no test rows" in said.error["what"]
        assert "tunesmith train" in said.error["fix"]
    assert tunesmith("train", "recipe.yaml", *none, *ASKED).code == 0
