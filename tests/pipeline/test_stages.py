"""What each command does and leaves undone, and the kinds of recipe."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.pipeline.conftest import QUICK, answers, edit, events, tone_rows, write_csv
from tests.tiny import save_base
from tunesmith.models.training_text import TrainingTextRecord
from tunesmith.runs import RunFolder


def run_of(said) -> Path:
    assert said.code == 0, said
    return Path(said.json["run"])


def test_train_measures_nothing_else(project, tunesmith):
    said = tunesmith("train", "recipe.yaml", "--json", *QUICK)
    run = run_of(said)
    assert said.json["verdict"] is None and said.json["comparison"] == [] and said.json["training"]["steps"] == 2
    assert not (run / "evaluation").exists() and not (run / "report.html").exists()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert [e["stage"] for e in events(run) if e["kind"] == "stage_started"] == ["check", "train"]


def test_baselines_train_nothing(project, tunesmith):
    said = tunesmith("baselines", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[trivial, zero_shot]")
    run = run_of(said)
    measured = {r["candidate"] for r in said.json["comparison"]}
    assert measured >= {"trivial_majority", "trivial_tfidf_lr", "zero_shot"} and "tuned" not in measured
    assert said.json["training"] is None and not (run / "adapter").exists()
    said = tunesmith("chat", run, "--message", "gladly", "--json")
    assert said.code == 2 and "no tuned model yet" in said.error["what"]
    said = tunesmith("verdict", run, "--json")
    assert said.code == 2 and "no verdict yet" in said.error["what"]


def test_commands_continue_each_other_in_one_folder(project, tunesmith):
    quick = (*QUICK, "--set", "baselines=[trivial, few_shot]", "--json")
    trained = tunesmith("train", "recipe.yaml", *quick)
    run = run_of(trained)
    adapter = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    evaluated = tunesmith("evaluate", "recipe.yaml", *quick)
    assert run_of(evaluated) == run and evaluated.json["verdict"] is None
    measured = {r["candidate"] for r in evaluated.json["comparison"]}
    assert measured >= {"trivial_majority", "trivial_tfidf_lr", "few_shot", "tuned"}
    whole = tunesmith("run", "recipe.yaml", *quick)
    assert run_of(whole) == run and whole.json["verdict"]["decision"]
    assert whole.json["comparison"] == evaluated.json["comparison"]
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == adapter
    assert len([e for e in events(run) if e["kind"] == "train_started"]) == 1
    printed = tunesmith("baselines", "recipe.yaml", *quick)  # a verdict has all that a lesser command asks for
    assert printed.json == whole.json


def test_without_out_the_same_recipe_is_found_again_and_new_begins_again(project, tunesmith):
    quick = ("recipe.yaml", "--json", *QUICK)
    first, second = tunesmith("train", *quick), tunesmith("train", *quick)
    assert run_of(first) == run_of(second) and first.json == second.json
    other = tunesmith("train", *quick, "--set", "train.seed=1")
    assert run_of(other) != run_of(first)
    assert other.json["training"]["adapter_sha256"] != first.json["training"]["adapter_sha256"]
    again = tunesmith("train", *quick, "--new")
    assert run_of(again) not in (run_of(first), run_of(other))
    assert again.json["training"]["adapter_sha256"] == first.json["training"]["adapter_sha256"]
    assert run_of(tunesmith("train", *quick)) == run_of(again)  # the newest of this recipe
    assert len(list((project / "runs").iterdir())) == 3


def test_no_baselines_leave_nothing_to_compare_with(project, tunesmith):
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[]")
    run = run_of(said)
    assert {r["candidate"] for r in said.json["comparison"]} == {"tuned", "tuned_scored"}
    assert said.json["verdict"]["decision"] in ("ship_tuned", "none_good_enough", "cannot_tell")
    assert said.json["verdict"]["best_alternative"] is None
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_tuning_writes_a_model_that_transformers_loads(project, tunesmith, family):
    save_base(project / "own", family)
    full = ("--set", "method.type=full", "--set", "base.model=own", "--set", "baselines=[zero_shot]")
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, *full)
    run = run_of(said)
    assert not (run / "adapter").exists() and len(said.json["training"]["adapter_sha256"]) == 64
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 30)[None]
    tuned = AutoModelForCausalLM.from_pretrained(run / "model")(ids).logits
    assert not torch.allclose(tuned, AutoModelForCausalLM.from_pretrained(project / "own")(ids).logits, atol=1e-3)
    rows = answers(run)
    question = rows[0]["prompt"].split("### User\n")[1].split("\n\n")[0]
    answer = tunesmith("chat", run, "--message", question, "--json").json["answer"]
    assert answer == (rows[0]["parsed"] or rows[0]["answer"].strip())


def test_without_validation_rows_training_goes_to_its_end(project, tunesmith):
    none = ("--set", "data.split.validation=0", "--set", "baselines=[trivial]", "--set", "train.patience=1")
    said = tunesmith("train", "recipe.yaml", "--json", "--set", "train.max_steps=8", *none)
    assert said.code == 0 and said.json["training"]["steps"] == 8 and not said.json["training"]["stopped_early"]
    run = run_of(said)
    assert not [e for e in events(run) if e["kind"] == "validation"]


def write_extraction(project: Path) -> None:
    found = [json.dumps(["flour", "salt"][: 1 + n % 2]) for n in range(90)]
    rows = [{"text": f"mix {n} flour and salt {n}", "found": names} for n, names in enumerate(found)]
    (project / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    edit(project, "train: rows.csv", "train: rows.jsonl, columns: {prompt: text, answer: found}")


def test_extraction_end_to_end(project, tunesmith):
    write_extraction(project)
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK)
    by = {(r["candidate"], r["metric"]): r["value"] for r in said.json["comparison"]}
    assert {m for _, m in by} >= {"entity_f1", "valid_json"}
    assert len([c for c, m in by if m == "entity_f1" and c.startswith("trivial_")]) >= 2
    assert run_of(said)


def test_generation_end_to_end_from_chat_rows(project, tunesmith):
    rows = [
        {"messages": [
            {"role": "system", "content": "answer in kind"}, {"role": "user", "content": f"say {n} again"},
            {"role": "assistant", "content": f"{n} it is", "weight": 0}, {"role": "user", "content": f"and {n + 1}"},
            {"role": "assistant", "content": f"this time it is the number {n + 1} that you have asked for"}]}
        for n in range(90)
    ]  # fmt: skip
    (project / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    edit(project, "rows.csv", "rows.jsonl")
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[trivial, zero_shot]")
    run = run_of(said)
    assert {r["metric"] for r in said.json["comparison"]} >= {"rouge_l", "exact_match"}
    (first, *_) = answers(run)
    assert first["prompt"].startswith("answer in kind\n\n### User\nsay ")
    assert first["prompt"].endswith("### Assistant\n")
    shown = tunesmith("check", "recipe.yaml", "--json").json["preview"][0]
    learnt = "".join(t["text"] for t in shown if t["weight"])
    assert learnt.startswith("this time it is the number") and learnt.endswith("</s>")


def test_a_text_template_is_learnt_and_asked_as_it_is_written(project, tunesmith):
    edit(project, "train: rows.csv", """train: rows.csv, template: '"{phrase}" → "{tone}"'""")
    raw = ("--set", "base.chat_template=raw", "--set", "task.instruction=")
    said = tunesmith("check", "recipe.yaml", "--json", *raw)
    assert said.code == 0, said
    shown = said.json["preview"][0]
    text = "".join(t["text"] for t in shown)
    learnt = "".join(t["text"] for t in shown if t["weight"])
    assert '" → "' in text and learnt in {f'{tone}"</s>' for tone in ("warm", "cold", "neutral")}
    said = tunesmith("run", "recipe.yaml", "--json", *raw, "--set", "baselines=[trivial]", "--set", "train.max_steps=4")
    run = run_of(said)
    rows = answers(run)
    phrases = {f'"{phrase}" → "' for phrase, _ in tone_rows()}
    assert {r["prompt"] for r in rows} <= phrases
    assert {r["expected"] for r in rows} == {"warm", "cold", "neutral"}


def test_files_of_their_own_for_validation_and_test(project, tunesmith):
    rows = tone_rows(100)
    for name, part in (("rows", rows[:60]), ("validation", rows[60:75]), ("test", rows[75:])):
        write_csv(project / f"{name}.csv", part)
    own = ("--set", "data.validation=validation.csv", "--set", "data.test=test.csv", "--set", "baselines=[trivial]")
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, *own)
    run = run_of(said)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["rows"] == {"train": 60, "validation": 15, "test": 25}
    assert {r["n"] for r in said.json["comparison"]} == {25}


def test_a_changed_stage_is_done_again_and_what_it_left_is_not_mixed_in(project, tunesmith):
    """A run that failed in training is begun again with other rows under the same recipe: nothing old may remain."""
    arguments = ("run", "recipe.yaml", "--out", "run", "--json", *QUICK, "--set", "baselines=[trivial]")
    train_only = ("train", *arguments[1:])
    before = tunesmith(*train_only)
    assert before.code == 0
    write_csv(project / "rows.csv", [(f"changed {a}", b) for a, b in tone_rows()])
    said = tunesmith(*arguments)
    assert said.code == 0
    assert said.json["training"]["adapter_sha256"] != before.json["training"]["adapter_sha256"]
    rows = answers(project / "run")
    assert all("changed" in r["prompt"] for r in rows)


def test_rows_that_a_base_was_trained_on_are_named_in_the_verdict(project, base, tunesmith):
    rows = [(f"a long phrase that a base may well have met in its own text {a}", b) for a, b in tone_rows()]
    write_csv(project / "rows.csv", rows)
    own = Path(shutil.copytree(base, project / "own"))
    TrainingTextRecord.from_texts(phrase for phrase, _ in rows).save(own / "training_text.hashes")
    own_base = ("--set", "base.model=own", "--set", "baselines=[zero_shot]")
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, *own_base)
    run = run_of(said)
    told = "40 of 40 test rows occur in the text the base was trained on"
    assert any(told in caveat for caveat in said.json["verdict"]["caveats"])
    assert len(json.loads((run / "manifest.json").read_text())["base"]["test_rows_in_training_text"]) == 40


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", "float32"), ("gemma3", "float32"), ("qwen3", "bfloat16"), ("gemma2", "bfloat16")]
)
def test_other_bases_and_types_go_the_same_way(project, tunesmith, family, dtype):
    save_base(project / "own", family)
    own = ("--set", "base.model=own", "--set", f"base.dtype={dtype}", "--set", "baselines=[few_shot]")
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, *own)
    run = run_of(said)
    resumed = tunesmith("run", "recipe.yaml", "--json", *QUICK, *own, "--out", "again")
    assert resumed.json["training"]["adapter_sha256"] == said.json["training"]["adapter_sha256"]
    assert answers(project / "again") == answers(run)


def test_asking_nothing_is_refused(project, tunesmith):
    raw = ("--set", "base.chat_template=raw", "--set", "task.instruction=")
    run = run_of(tunesmith("train", "recipe.yaml", "--json", *QUICK, *raw))
    said = tunesmith("chat", run, "--message", "", "--json")
    assert said.code == 2 and "nothing to answer" in said.error["what"]


def test_alternatives_asked_for_after_everything_was_measured_are_read(project, tunesmith):
    quick = ("recipe.yaml", "--json", "--out", "run", *QUICK, "--set", "baselines=[trivial]")
    whole = tunesmith("evaluate", *quick)
    assert "tuned" in {row["candidate"] for row in whole.json["comparison"]}
    for command in ("baselines", "train", "evaluate"):
        assert tunesmith(command, *quick).json == whole.json, "what was compared is not compared without tuned"
    assert tunesmith("run", *quick).json["verdict"] is not None


def test_a_run_that_goes_on_is_unfinished_until_its_end(project, tunesmith, monkeypatch):
    quick = ("recipe.yaml", "--json", "--out", "run", *QUICK, "--set", "baselines=[trivial]")
    assert tunesmith("baselines", *quick).code == 0
    folder = RunFolder.open(project / "run")
    assert folder.summary().state == "finished"

    def interrupted(*_, **__):
        assert folder.summary().state == "unfinished"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_module("tunesmith.pipeline.run"), "run_training", interrupted)
        assert tunesmith("run", *quick).code == 130
    assert (folder.summary().state, folder.summary().verdict) == ("unfinished", None)
    assert tunesmith("run", *quick).code == 0 and folder.summary().state == "finished"
