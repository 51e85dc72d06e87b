"""`check`: everything that can be known before compute is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import tone_rows, write_csv


def test_the_object_of_a_recipe(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code == 0
    report = said.json
    for finding in report["findings"]:
        assert {"code", "severity", "count", "lines", "field", "message", "fix"} <= finding.keys()
        assert finding["severity"] in {"error", "warning", "info"}
    assert report["splits"]["sizes"] == {"train": 50, "validation": 10, "test": 40}
    assert len(report["lengths"]) == 50 and len(report["preview"]) == 3
    for shown in report["preview"]:
        learnt = "".join(t["text"] for t in shown if t["weight"])
        assert learnt in {f"{tone}</s>" for tone in ("warm", "cold", "neutral")}
    assert not (project / "runs").exists()  # a check makes no run
    estimate = report["estimate"]
    assert estimate["optimiser_steps"] == 60 and estimate["training_seconds"] > 0
    assert estimate["peak_memory_bytes"] > 50e6 and estimate["parameters_trained"] > 1000
    decided = {c["key"]: c["value"] for c in report["choices"]}
    assert decided["task.type"] == "classification" and decided["task.labels"] == ["cold", "neutral", "warm"]
    assert decided["method.alpha"] == 8.0


def test_lines_are_those_of_the_file_and_never_shortened(project, tunesmith):
    rows = tone_rows(30) + [("gladly again", "warm")] * 60
    write_csv(project / "rows.csv", rows)
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.split.test=5")
    found = {f["code"]: f for f in said.json["findings"]}
    copies = found["duplicate_row"]
    assert copies["count"] == 59 and len(copies["lines"]) in (59, 60) and max(copies["lines"]) == 91


def test_a_bare_file(project, tunesmith):
    said = tunesmith("check", "rows.csv", "--json")
    assert said.code == 0 and {"findings"} <= said.json.keys()
    (project / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\nbroken\n')
    said = tunesmith("check", "bad.jsonl", "--json")
    assert said.code == 3
    assert [f["lines"] for f in said.json["findings"] if f["severity"] == "error"] == [[2]]
    said = tunesmith("check", "rows.csv", "--json", "--set", "train.seed=1")
    assert said.code == 2


def test_for_people(project, tunesmith):
    said = tunesmith("check", "recipe.yaml")
    assert said.code == 0
    for words in ("what will be learnt", "tokens per row", "few rows", "method.alpha"):
        assert words in said.out, words


def test_with_out_the_report_is_written_and_a_run_may_follow(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json", "--out", "run")
    assert said.code == 0
    kept = json.loads((project / "run" / "check.json").read_text())
    assert kept["splits"] == said.json["splits"] and kept["lengths"] == said.json["lengths"]
    quick = ("--set", "train.max_steps=1", "--set", "baselines=[]")
    assert tunesmith("train", "recipe.yaml", "--json", "--out", "run", *quick).code == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_counts_what_training_counts(project, tunesmith, method):
    arguments = ("recipe.yaml", "--json", "--set", f"method.type={method}", "--set", "train.evaluations=0")
    estimate = tunesmith("check", *arguments).json["estimate"]
    training = tunesmith("train", *arguments).json["training"]
    assert estimate["training_tokens"] == pytest.approx(training["tokens"], rel=0.05)
    assert estimate["training_seconds"] == pytest.approx(estimate["training_tokens"] / estimate["tokens_per_second"])
    assert estimate["optimiser_steps"] == training["steps"]


def test_checking_twice_says_the_same(project, tunesmith):
    one, two = (tunesmith("check", "recipe.yaml", "--json").json for _ in range(2))
    for report in (one, two):
        del report["estimate"]
    assert one == two


def test_paths_count_from_the_recipe(project, tunesmith, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tunesmith("check", Path("project") / "recipe.yaml", "--json").code == 0
