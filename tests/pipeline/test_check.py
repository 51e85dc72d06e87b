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
    trained = tunesmith("train", *arguments).json
    training = trained["training"]
    told = json.loads((Path(trained["run"]) / "manifest.json").read_text())["estimate"]
    assert told["measured_seconds"] == pytest.approx(training["seconds"])
    assert told["predicted_seconds"] == pytest.approx(estimate["training_seconds"], rel=0.2)
    assert told["error"] == pytest.approx(told["predicted_seconds"] / told["measured_seconds"] - 1)
    assert estimate["training_tokens"] == pytest.approx(training["tokens"], rel=0.05)
    assert estimate["training_seconds"] == pytest.approx(estimate["training_tokens"] / estimate["tokens_per_second"])
    assert estimate["optimiser_steps"] == training["steps"]


def test_checking_twice_says_the_same(project, tunesmith):
    one, two = (tunesmith("check", "recipe.yaml", "--json").json for _ in range(2))
    for report in (one, two):
        del report["estimate"], report["numbers"], report["tuning_costs"]["compute"]  # times
        for choice in report["choices"]:
            if choice["key"] in ("train.micro_batch_tokens", "train.recompute"):
                del choice["reason"]  # it names the memory that was free at that moment
    assert one == two


def test_paths_count_from_the_recipe(project, tunesmith, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tunesmith("check", Path("project") / "recipe.yaml", "--json").code == 0


def test_leaks_are_listed_row_by_row_and_the_test_stays_as_it_is(project, tunesmith):
    rows = tone_rows()
    own = [*tone_rows(60, seed=5)[:50], rows[3], (f"{rows[4][0]} indeed my very dear friend of old", "warm")]
    write_csv(project / "test.csv", own)
    before = (project / "test.csv").read_bytes()
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.test=test.csv")
    assert said.code == 0
    (leak,) = [leak for leak in said.json["leaks"] if leak["line"] == 52]
    assert (leak["kind"], leak["similarity"], leak["seen_line"]) == ("row", 1.0, 5)
    assert leak["seen_source"].endswith("rows.csv") and leak["source"].endswith("test.csv")
    listed = {f["code"]: f["lines"] for f in said.json["findings"] if f["code"].startswith("test_leak")}
    assert sum(map(len, listed.values())) == len(said.json["leaks"]) and 52 in listed["test_leak_row"]
    assert said.json["splits"]["sizes"]["test"] == 52
    assert (project / "test.csv").read_bytes() == before


def test_a_run_refuses_a_test_set_that_it_trains_on(project, tunesmith):
    write_csv(project / "test.csv", tone_rows()[:40])
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.test=test.csv")
    assert said.code == 3
    assert "test_is_train" in {f["code"] for f in said.json["findings"] if f["severity"] == "error"}
    said = tunesmith("run", "recipe.yaml", "--json", "--set", "data.test=test.csv")
    assert said.code == 3 and "the test rows are training rows: 40 of 40" in said.error["what"]


def test_what_the_test_set_can_show(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.json["splits"]["detectable_difference"] == pytest.approx(0.153, abs=0.001)
    assert said.json["splits"]["test_rows_for_min_gain"] == 9419
    said = tunesmith("check", "recipe.yaml")
    assert "40 test rows show a difference of about 15.3 points" in " ".join(said.out.split())


def test_quick_doubts_no_label_and_divides_alike(project, tunesmith, monkeypatch):
    asked = []
    monkeypatch.setattr("tunesmith.data.checks.noise_findings", lambda rows, tell: asked.append(len(rows)) or [])
    full, quick = (tunesmith("check", "recipe.yaml", "--json", *more).json for more in ((), ("--quick",)))
    assert asked == [100] and full["splits"] == quick["splits"]


def test_fix_writes_copies_and_leaves_the_files_alone(project, tunesmith):
    write_csv(project / "rows.csv", [*tone_rows(), tone_rows()[0], ("caf\u00c3\u00a9 gladly", "warm")])
    write_csv(project / "test.csv", [*tone_rows(60, seed=5)[:50]] * 2)
    before = {name: (project / name).read_bytes() for name in ("rows.csv", "test.csv")}
    said = tunesmith("check", "recipe.yaml", "--json", "--fix", "--set", "data.test=test.csv")
    (fixed,) = said.json["fixed"]
    assert (fixed["rows"], fixed["dropped"], fixed["changed"]) == (101, 1, 1)
    assert {name: (project / name).read_bytes() for name in before} == before
    assert "café gladly,warm" in (project / "rows.cleaned.csv").read_text(encoding="utf-8")
    log = [json.loads(line) for line in (project / "rows.fixes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(c["row"], c["code"]) for c in log] == [(102, "duplicate_row"), (103, "mojibake")]
    again = tunesmith("check", "rows.csv", "--fix")
    assert again.code == 3 and "exists already" in again.err
    (project / "rows.cleaned.csv").unlink()
    (project / "rows.fixes.jsonl").unlink()
    said = tunesmith("check", "rows.csv", "--fix")
    assert said.code == 0 and "1 dropped, 1 texts changed" in said.out


def test_without_fix_nothing_is_written(project, tunesmith):
    names = {path.name for path in project.iterdir()}
    assert tunesmith("check", "rows.csv").code == 0
    assert {path.name for path in project.iterdir()} == names


def test_findings_say_why_and_show_an_example(project, tunesmith):
    write_csv(project / "rows.csv", [*tone_rows(), ("gladly write to ana.lopez@gmail.com", "warm")])
    said = tunesmith("check", "rows.csv")
    text = " ".join(said.out.split())
    assert "[e-mail]" in text and "ana.lopez" not in text
    assert "word for word" in text


REMOTES = """
remotes:
  large: {url: "https://models.example/v1", model: m, api_key_env: TUNESMITH_TEST_NO_SUCH_KEY}
  small: {url: "https://models.example/v1", model: m, max_cost: 3}
"""


def test_settings_of_remotes_are_findings(project, tunesmith):
    with (project / "recipe.yaml").open("a") as recipe:
        recipe.write(REMOTES)
    said = tunesmith("check", "recipe.yaml", "--json", "--quick")
    wrong = {f["field"]: f for f in said.json["findings"] if f["severity"] == "error"}
    assert set(wrong) == {"remotes.large.api_key_env", "remotes.small.max_cost"}
    assert "TUNESMITH_TEST_NO_SUCH_KEY" in wrong["remotes.large.api_key_env"]["fix"]
    assert "prompt_price" in wrong["remotes.small.max_cost"]["message"]
    assert said.code == 2 and said.json["estimate"]  # the rest was looked at all the same


def test_everything_that_is_wrong_is_told_at_once(project, tunesmith):
    with (project / "recipe.yaml").open("a") as recipe:
        recipe.write(REMOTES)
    (project / "texts").mkdir()
    (project / "texts" / "one.jsonl").write_text("no json\n")
    more = ("--quick", "--json", "--set", "data.documents=texts")
    said = tunesmith("check", "recipe.yaml", *more)
    codes = [f["code"] for f in said.json["findings"] if f["severity"] == "error"]
    assert said.code == 3 and sorted(codes) == ["documents", "remote_setting", "remote_setting"]
    told = next(f for f in said.json["findings"] if f["code"] == "documents")
    assert "one.jsonl, line 1" in told["message"] and told["field"] == "data.documents"
    said = tunesmith("check", "recipe.yaml", *more, "--set", "base.model=/no/such/folder")
    assert said.code == 2 and said.error["where"] == "base.model"
    codes = [f["code"] for f in said.json["findings"] if f["severity"] == "error"]
    assert sorted(codes) == ["cannot_go_on", "documents", "remote_setting", "remote_setting"]
    (project / "rows.csv").write_text("phrase,tone\nhello,\n")
    said = tunesmith("check", "recipe.yaml", *more)
    codes = {f["code"] for f in said.json["findings"] if f["severity"] == "error"}
    assert said.code == 3 and codes > {"documents", "remote_setting"}
