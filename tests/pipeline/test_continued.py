"""A run that is killed again and again ends as one that was not; here it is also looked at from all sides.

Every process is a real one, and every kill a real one. One uninterrupted run serves all tests of this file.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import answers, events, make_project, start

PROMPTED = {"zero_shot", "few_shot", "retrieval", "tuned"}
CANDIDATES = {
    "trivial_majority",
    "trivial_tfidf_lr",
    "trivial_knn",
    *PROMPTED,
    *(f"{name}_scored" for name in PROMPTED),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base) -> Path:
    return make_project(tmp_path_factory.mktemp("continued"), base)


@pytest.fixture(scope="module")
def whole(folder) -> dict[str, Any]:
    """What an uninterrupted run printed."""
    process = start("run", "recipe.yaml", "--out", "whole", "--json", cwd=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    printed: dict[str, Any] = json.loads(out)
    return printed


def stop_at(folder: Path, reached: Callable[[dict[str, Any]], bool], number: signal.Signals) -> tuple[int, str]:
    """Run into `cut` and send a signal as soon as an event of this process is the wanted one."""
    log = folder / "cut" / "events.jsonl"
    seen = log.stat().st_size if log.exists() else 0
    process = start("run", "recipe.yaml", "--out", "cut", "--json", cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and any(reached(event) for event in _complete(log, seen)):
                process.send_signal(number)
                out, err = process.communicate(timeout=60)
                return process.returncode, out + err
            time.sleep(0.005)
        raise AssertionError(f"the event never came: {process.communicate(timeout=5)}")
    finally:
        process.kill()


def _complete(log: Path, start_at: int) -> list[dict[str, Any]]:
    text = log.read_bytes()[start_at:]
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def _answering(stage: str, label: str) -> Callable[[dict[str, Any]], bool]:
    return lambda e: e["kind"] == "progress" and (e["stage"], e["label"]) == (stage, label) and e["done"] >= 8


def _validated(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda e: e["kind"] == "validation" and e["step"] >= step


def test_killed_in_every_stage_it_ends_as_the_uninterrupted_run(folder, whole):
    cut = folder / "cut"
    code, _ = stop_at(folder, _answering("baselines", "zero_shot"), signal.SIGKILL)
    assert code == -signal.SIGKILL and not (cut / "stages" / "evaluate_retrieval.json").exists()

    code, said = stop_at(folder, _validated(6), signal.SIGINT)
    assert code == 130, said
    assert "the same command continues it" in said and str(cut) in said
    assert not (cut / "stages" / "train.json").exists() and (cut / "stages" / "evaluate_retrieval.json").exists()

    code, _ = stop_at(folder, _validated(24), signal.SIGKILL)
    assert code == -signal.SIGKILL and not (cut / "stages" / "train.json").exists()

    code, _ = stop_at(folder, _answering("evaluate", "tuned"), signal.SIGKILL)
    assert code == -signal.SIGKILL and (cut / "stages" / "train.json").exists()
    assert not (cut / "stages" / "evaluate_tuned.json").exists() and not (cut / "verdict.json").exists()

    process = start("run", "recipe.yaml", "--out", "cut", "--json", cwd=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    printed = json.loads(out)
    assert printed["training"]["adapter_sha256"] == whole["training"]["adapter_sha256"]
    assert printed["comparison"] == whole["comparison"]
    # Trivial candidates score alike here: which of them is named must not depend on how fast they were this time.
    same = ("decision", "candidate", "rule", "rows_needed")
    assert {k: printed["verdict"][k] for k in same} == {k: whole["verdict"][k] for k in same}
    for name in CANDIDATES:
        file = Path("evaluation") / f"{name}.jsonl"
        assert (cut / file).read_bytes() == (folder / "whole" / file).read_bytes(), name
    for counted in ("steps", "tokens", "supervised_tokens", "best_step", "best_value"):
        assert printed["training"][counted] == whole["training"][counted]

    told = events(cut)
    resumed = [e["resumed_at"] for e in told if e["kind"] == "train_started"]
    assert resumed[0] == 0 and resumed == sorted(resumed) and resumed[-1] > 0
    assert [e["seq"] for e in told] == list(range(1, len(told) + 1))
    assert [p for p in cut.rglob("*") if p.name.endswith((".tmp", ".partial"))] == []


def test_the_object_has_the_keys_that_scripts_rely_on(folder, whole):
    assert whole["run"] == str(folder / "whole")
    verdict = whole["verdict"]
    assert verdict["decision"] in {
        "ship_tuned", "keep_prompting", "use_retrieval", "use_trivial", "use_remote", "none_good_enough", "cannot_tell"
    }  # fmt: skip
    assert {"candidate", "reason", "rule", "rows_needed"} <= verdict.keys()
    assert (verdict["rows_needed"] is not None) == (verdict["decision"] == "cannot_tell")
    assert {row["candidate"] for row in whole["comparison"]} == CANDIDATES
    for row in whole["comparison"]:
        assert set(row) == {"candidate", "metric", "value", "low", "high", "n"}
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n"] == 40
        assert row["metric"] in {"accuracy", "macro_f1"}
    training = whole["training"]
    assert training["steps"] == 60 and training["tokens"] > 60 * 4 * 20
    assert training["tokens_per_second"] == pytest.approx(training["tokens"] / training["seconds"])
    assert training["peak_memory_bytes"] > 50e6 and len(training["adapter_sha256"]) == 64


def test_the_folder_holds_what_was_promised(folder, whole):
    run = folder / "whole"
    names = {p.name for p in run.iterdir()}
    assert {"recipe.yaml", "manifest.json", "events.jsonl", "adapter", "evaluation", "report.html"} <= names
    assert {p.stem for p in (run / "evaluation").glob("*.jsonl")} == CANDIDATES
    for name in CANDIDATES:
        rows = answers(run, name)
        assert len(rows) == 40 and {"id", "prompt", "answer", "expected", "scores"} <= rows[0].keys()
        accuracy = next(r["value"] for r in whole["comparison"] if (r["candidate"], r["metric"]) == (name, "accuracy"))
        assert sum(r["scores"]["accuracy"] for r in rows) / 40 == pytest.approx(accuracy)
        assert [r["id"] for r in rows] == [r["id"] for r in answers(run)]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["rows"] == {"train": 50, "validation": 10, "test": 40}
    assert manifest["base"]["weights_sha256"] and manifest["seed"] == 0
    assert manifest["environment"]["libraries"]["torch"]
    resolved = (run / "recipe.yaml").read_text()
    settings = [line for line in resolved.splitlines() if not line.lstrip().startswith("#")]
    assert "auto" not in {line.partition(":")[2].strip() for line in settings}
    assert "# twice the rank of 4" in resolved
    report = (run / "report.html").read_text()
    assert whole["verdict"]["reason"][:20] in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


def test_the_adapter_loads_in_plain_peft_and_answers_the_same(folder, whole, base):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, str(folder / "whole" / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = answers(folder / "whole")
    for row in rows[:8]:
        ids = torch.tensor([tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert answer == row["answer"]
    assert len({row["answer"] for row in rows}) > 1 or rows[0]["answer"], "an empty answer everywhere shows nothing"


def test_a_finished_run_is_printed_and_not_repeated(folder, whole, tunesmith, monkeypatch):
    monkeypatch.chdir(folder)
    before = {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*") if p.is_file() and p.name != ".lock"}
    said = tunesmith("run", "recipe.yaml", "--out", "whole", "--json")
    assert said.code == 0 and said.json == whole
    said = tunesmith("evaluate", "recipe.yaml", "--out", "whole")
    assert said.code == 0 and "zero-shot" in said.out
    after = {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*") if p.is_file() and p.name != ".lock"}
    changed = {p.name for p in after if after[p] != before.get(p)}
    assert changed <= {"recipe.asked.yaml"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_steps=61", "train.max_steps was 60 and is now 61"),
        ("base.model=embedded:base", "base.model was '.*tiny' and is now 'embedded:base'"),
        ("baselines=[]", "baselines was "),
    ],
)
def test_another_recipe_is_refused_and_the_field_named(folder, whole, tunesmith, monkeypatch, override, words):
    monkeypatch.chdir(folder)
    said = tunesmith("run", "recipe.yaml", "--out", "whole", "--set", override, "--json")
    assert said.code == 2
    assert "this folder holds a run of another recipe" in said.error["what"]
    assert re.search(words, said.error["what"])
    assert tunesmith("run", "recipe.yaml", "--out", "whole", "--json").json == whole  # and nothing was changed


def test_new_does_not_overwrite(folder, whole, tunesmith, monkeypatch):
    monkeypatch.chdir(folder)
    said = tunesmith("run", "recipe.yaml", "--out", "whole", "--new", "--json")
    assert said.code == 2 and "--new" in said.error["what"]


def test_verdict_and_chat_and_runs_of_a_run(folder, whole, tunesmith, monkeypatch):
    monkeypatch.chdir(folder)
    here = ("--set", f"output.dir={folder}")
    assert tunesmith("verdict", "whole", "--json").json == whole
    assert tunesmith("verdict", folder / "whole", "--json").json == whole
    listed = {r["name"]: r for r in tunesmith("runs", *here, "--json").json["runs"]}
    assert listed["whole"]["state"] == "finished" and not listed["whole"]["running"]
    last = tunesmith("verdict", "last", *here, "--json").json
    assert Path(last["run"]).name == max(listed, key=lambda name: listed[name]["created"])
    said = tunesmith("verdict", "whole")
    assert said.code == 0 and "verdict" in said.out.lower()
    rows = answers(folder / "whole")
    question = rows[0]["prompt"].split("### User\n")[1].split("\n\n")[0]
    said = tunesmith("chat", "whole", "--message", question, "--json")
    assert said.code == 0
    assert said.json["answer"] == (rows[0]["parsed"] or rows[0]["answer"])  # asked in chat as in the evaluation
    untuned = tunesmith("chat", "whole", "--message", question, "--base", "--json").json
    assert untuned["model"] == "base" and untuned["answer"] != said.json["answer"]
    assert tunesmith("chat", "whole", "--message", question).out.strip() == said.json["answer"].strip()


def test_a_run_that_is_being_written_is_left_alone(folder, whole, tunesmith, monkeypatch):
    from tunesmith.runs import RunFolder

    monkeypatch.chdir(folder)
    with RunFolder.open(folder / "whole").lock():
        said = tunesmith("run", "recipe.yaml", "--out", "whole", "--json")
    assert said.code == 4 and "is writing this run" in said.error["what"]
