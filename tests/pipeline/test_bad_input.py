"""What is commonly wrong ends in a clear error or a finding, with its exit code, and leaves nothing half-done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import QUICK, answers, edit, tone_rows, write_csv
from tests.training.small import full_disk


def findings(said) -> dict[str, dict]:
    return {f["code"]: f for f in said.json["findings"]}


def nothing_begun(project: Path) -> bool:
    """No run in the project has anything but its record of what was asked."""
    half = [p.name for p in project.rglob("*") if p.name.endswith((".tmp", ".partial"))]
    made = {p.name for run in project.glob("runs/*") for p in run.iterdir()}
    return not half and made <= {"manifest.json", "events.jsonl", "recipe.asked.yaml", ".lock"}


# Files that cannot be read at all: an error from every command.
UNREADABLE = {
    "missing": (None, "there is no such file"),
    "empty": (b"", "the file is empty"),
    "only blanks": (b" \n\n", "the file is empty"),
    "header only": (b"phrase,tone\n", "header but no row"),
    "archive": (b"PK\x03\x04 rest", "zip archive"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("command", ["check", "run", "train"])
def test_a_file_that_cannot_be_read(project, tunesmith, command, kind):
    content, words = UNREADABLE[kind]
    (project / "rows.csv").unlink()
    if content is not None:
        (project / "rows.csv").write_bytes(content)
    said = tunesmith(command, "recipe.yaml", "--json")
    assert said.code == 3 == said.error["exit_code"]
    assert words in said.error["what"] and str(project / "rows.csv") in said.error["where"]
    assert said.error["fix"] or said.error["expected"]
    assert nothing_begun(project)


def lines_with(project: Path, changes: dict[int, bytes], name: str = "rows.csv") -> Path:
    """The project's rows with some 1-based lines replaced."""
    lines = (project / "rows.csv").read_bytes().splitlines()
    for number, text in changes.items():
        lines[number - 1] = text
    (project / name).write_bytes(b"\n".join(lines) + b"\n")
    return project / name


def as_jsonl(project: Path, changes: dict[int, str]) -> Path:
    """The project's rows as JSONL with some 1-based lines replaced; the recipe is pointed at them."""
    lines = [json.dumps({"phrase": phrase, "tone": tone}) for phrase, tone in tone_rows()]
    for number, text in changes.items():
        lines[number - 1] = text
    (project / "rows.jsonl").write_text("\n".join(lines) + "\n")
    edit(project, "rows.csv", "rows.jsonl")
    return project / "rows.jsonl"


def test_broken_json_lines_are_all_named_and_stop_the_run(project, tunesmith):
    rows = as_jsonl(project, {7: '{"phrase": "a", "tone": ', 31: "not json"})
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code == 3
    errors = [f for f in said.json["findings"] if f["severity"] == "error"]
    assert sorted(line for f in errors for line in f["lines"]) == [7, 31]
    assert all(f["message"] and f["fix"] and f["source"] == str(rows) for f in errors)
    said = tunesmith("run", "recipe.yaml", "--json")
    assert said.code == 3 and "lines 7" in said.error["what"] and "31" in said.error["what"]
    assert nothing_begun(project)


def test_rows_without_the_column_and_with_empty_answers_are_listed_at_once(project, tunesmith):
    without, blank = {3: '{"phrase": "a"}', 9: '{"tone": "warm"}'}, {5: '{"phrase": "b", "tone": ""}'}
    as_jsonl(project, {**without, **blank, 11: '{"phrase": "c", "tone": "  "}'})
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.columns={prompt: phrase, answer: tone}")
    found = findings(said)
    assert said.code == 3
    missing = [f for f in said.json["findings"] if f["code"] == "missing_column"]
    assert {f["field"]: f["lines"] for f in missing} == {"tone": [3], "phrase": [9]}
    assert found["empty_answer"] | {"lines": [5, 11], "count": 2, "severity": "warning"} == found["empty_answer"]


def test_warnings_alone_do_not_stop(project, tunesmith):
    as_jsonl(project, {5: '{"phrase": "b", "tone": ""}'})
    assert tunesmith("check", "recipe.yaml", "--json").code == 0
    said = tunesmith("train", "recipe.yaml", "--json", *QUICK)
    assert said.code == 0 and "an empty answer" in said.err


def test_latin_1_is_a_finding_with_its_line_and_right_with_the_encoding_named(project, tunesmith):
    lines_with(project, {4: "café lent 2,warm".encode("latin-1")})
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code == 3
    (error,) = [f for f in said.json["findings"] if f["severity"] == "error"]
    assert error["lines"] == [4] and "encoding" in error["fix"]
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.encoding=latin-1")
    assert said.code == 0


def test_utf8_with_a_byte_order_mark(project, tunesmith):
    rows = project / "rows.csv"
    rows.write_bytes(b"\xef\xbb\xbf" + rows.read_bytes())
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code == 0 and said.json["splits"]["sizes"] == {"train": 50, "validation": 10, "test": 40}


def test_a_column_that_is_not_there(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "data.columns={prompt: phrase, answer: mood}")
    assert said.code == 3
    assert "mood" in json.dumps(said.error) and "tone" in json.dumps(said.error)


def test_a_label_seen_once_is_a_warning_with_its_line(project, tunesmith):
    lines_with(project, {10: b"gladly 8,ironic"})
    said = tunesmith("check", "recipe.yaml", "--json")
    found = findings(said)
    assert said.code == 0
    assert (found["label_seen_once"]["lines"], found["label_seen_once"]["severity"]) == ([10], "warning")


def test_rows_longer_than_the_context_are_left_out_and_named(project, tunesmith):
    long = tone_rows()[14][0] + " very" * 120
    lines_with(project, {i: f"{long} {i},warm".encode() for i in range(16, 40)})
    apart = ("--set", "data.split.near_duplicates=ignore")  # they are nearly the same, and would all be in one part
    said = tunesmith("check", "recipe.yaml", "--json", *apart)
    found = findings(said)["row_too_long"]
    assert said.code == 0 and found["severity"] == "warning"
    assert set(found["lines"]) <= set(range(16, 40)) and found["count"] == len(found["lines"]) > 0
    assert "512" in found["message"] and "ever cut" in found["fix"]
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, *apart, "--set", "baselines=[trivial, few_shot]")
    assert said.code == 0
    unanswered = [a for a in answers(Path(said.json["run"])) if len(a["prompt"]) > 500]
    assert unanswered and all(a["answer"] == "" and a["scores"]["accuracy"] == 0 for a in unanswered)


def test_rows_that_are_all_too_long(project, tunesmith):
    write_csv(project / "rows.csv", [(f"{a} {'very ' * 120}", b) for a, b in tone_rows()])
    said = tunesmith("check", "recipe.yaml", "--json")
    assert said.code == 3 and findings(said)["row_too_long"]["severity"] == "error"
    assert tunesmith("run", "recipe.yaml", "--json").code == 3
    assert nothing_begun(project)


def test_a_length_beyond_the_context_is_refused(project, tunesmith):
    said = tunesmith("run", "recipe.yaml", "--json", "--set", "train.max_length=4000")
    assert said.code == 2 and said.error["where"] == "train.max_length" and "512" in json.dumps(said.error)


@pytest.mark.parametrize("task", ["auto", "classification", "generation"])
def test_ten_thousand_identical_rows(project, tunesmith, task):
    write_csv(project / "rows.csv", [("gladly", "warm")] * 10_000)
    said = tunesmith("check", "recipe.yaml", "--json", "--set", f"task.type={task}")
    assert said.code == 3
    found = findings(said)["identical_rows"]
    assert found["severity"] == "error" and found["count"] == 10_000 and found["lines"] == list(range(2, 10_002))
    said = tunesmith("run", "recipe.yaml", "--json", "--set", f"task.type={task}")
    assert said.code == 3 and "the same" in said.error["what"]
    assert len(said.error["what"]) < 1_000
    assert nothing_begun(project)


def test_too_few_rows_to_split(project, tunesmith):
    write_csv(project / "rows.csv", tone_rows(20))
    said = tunesmith("run", "recipe.yaml", "--json")
    assert said.code == 3 and said.error["where"] == "data.split"


def copy_of(base: Path, project: Path) -> Path:
    edit(project, str(base), "mybase")
    return Path(shutil.copytree(base, project / "mybase"))


def test_a_base_without_tokenizer(project, base, tunesmith):
    folder = copy_of(base, project)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    for command in ("check", "run"):
        said = tunesmith(command, "recipe.yaml", "--json")
        assert said.code == 6 and "has no tokenizer" in said.error["what"]
        assert str(folder) in said.error["where"] and said.error["fix"]
    assert nothing_begun(project)


def test_a_tokenizer_without_chat_template_gets_a_named_default(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json")
    choice = {c["key"]: c for c in said.json["choices"]}["base.chat_template"]
    assert choice["value"] == "plain" and choice["reason"] == "the tokenizer brings none"
    shown = "".join(token["text"] for token in said.json["preview"][0])
    assert "### User\n" in shown and "### Assistant\n" in shown
    said = tunesmith("check", "recipe.yaml", "--json", "--set", "base.chat_template=tokenizer")
    assert said.code == 2 and "no chat template" in said.error["what"]


@pytest.mark.parametrize("model", ["nowhere/./at/all", "embedded:nothing", "/no/such/folder"])
def test_a_base_that_is_not_there(project, tunesmith, model):
    said = tunesmith("run", "recipe.yaml", "--json", "--set", f"base.model={model}")
    assert said.code == 2 and said.error["where"] == "base.model"
    assert nothing_begun(project)


def test_a_damaged_base(project, base, tunesmith):
    weights = copy_of(base, project) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    said = tunesmith("run", "recipe.yaml", "--json")
    assert said.code == 6 and "could not be loaded" in said.error["what"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(project, tunesmith):
    project.chmod(0o500)
    try:
        said = tunesmith("run", "recipe.yaml", "--json", "--out", "here")
        assert said.code == 4 and "permission" in said.error["what"] and str(project) in said.error["where"]
    finally:
        project.chmod(0o700)


@pytest.mark.parametrize("out", ["rows.csv", "rows.csv/run", "full"])
def test_an_out_that_cannot_be_a_run_folder(project, tunesmith, out):
    (project / "full").mkdir()
    (project / "full" / "letter.txt").write_text("mine")
    said = tunesmith("run", "recipe.yaml", "--json", "--out", out)
    assert said.code in (2, 4) and out.split("/")[0] in said.error["where"]
    assert (project / "rows.csv").is_file() and (project / "full" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_full_disk_in_training_ends_with_4_and_is_continued(project, tunesmith, method):
    """The limit lets the small files through and stops the checkpoints."""
    arguments = ("train", "recipe.yaml", "--out", "run", "--json", *QUICK, "--set", f"method.type={method}")
    with full_disk({"lora": 20_000, "full": 70_000}[method]):
        said = tunesmith(*arguments)
    assert said.code == 4, said
    assert "cannot be written" in said.error["what"] and "the same command" in said.error["fix"]
    run = project / "run"
    assert not (run / "adapter").exists() and not (run / "model").exists()
    assert [p for p in run.rglob("*") if p.name.endswith(".tmp")] == []
    assert json.loads((run / "manifest.json").read_text())["status"]["state"] == "failed"
    assert tunesmith(*arguments).code == 0
    assert (run / ("adapter" if method == "lora" else "model")).is_dir()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_disk_that_is_full_when_the_result_is_saved(project, tunesmith, method, monkeypatch):
    """Checkpoints are done; the weights of the result no longer fit."""
    from tunesmith.pipeline import training

    arguments = ("train", "recipe.yaml", "--out", "run", "--json", *QUICK, "--set", f"method.type={method}")
    save = training._save

    def late(*given):
        with full_disk(10_000):
            return save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", late)
        said = tunesmith(*arguments)
    assert said.code == 4, said
    assert not (project / "run" / "adapter").exists() and not (project / "run" / "model").exists()
    assert tunesmith(*arguments).code == 0


def test_a_wrong_key_and_a_wrong_value_are_both_named(project, tunesmith):
    edit(project, "max_steps", "max_stpes")
    edit(project, "rank: 4", "rank: -1")
    said = tunesmith("run", "recipe.yaml", "--json")
    assert said.code == 2
    assert "max_steps" in json.dumps(said.error) and "method.rank" in json.dumps(said.error)


def test_a_rank_beyond_the_layers(project, tunesmith):
    said = tunesmith("train", "recipe.yaml", "--json", "--set", "method.rank=64")
    assert said.code == 2 and said.error["where"] == "method.rank"


def test_a_metric_of_another_task(project, tunesmith):
    said = tunesmith("run", "recipe.yaml", "--json", *QUICK, "--set", "goal.metric=rouge_l")
    assert said.code == 2 and said.error["where"] == "goal.metric"
    assert "accuracy" in said.error["expected"]
    assert nothing_begun(project)
