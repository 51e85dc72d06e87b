"""`tunesmith export`, on a run that was really tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import Said
from tunesmith.cli.main import invoke
from tunesmith.runs import RunFolder
from tunesmith.text.templates import RAW


@pytest.fixture
def command(capsys):
    def run(*arguments: str | Path) -> Said:
        code = invoke(["export", *map(str, arguments)])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


def test_checks_and_times_go_to_stderr_and_the_folder_to_stdout(tuned: RunFolder, command):
    said = command(tuned.path, "--to", "merged")
    assert said.code == 0 and said.out.strip() == str(tuned.path / "export" / "merged")
    assert " s] opening the tuned model" in said.err and "✓ stops" in said.err
    again = command(tuned.path, "merged")
    assert again.code == 2 and "exists already" in again.err


def test_the_old_form_and_json(tuned: RunFolder, command, tmp_path):
    said = command(tuned.path, "adapter", "--out", tmp_path / "a", "--json", "--max-loss", "2.5")
    assert said.code == 0
    told = said.json
    assert told["run"] == str(tuned.path) and told["to"] == "adapter" and told["path"] == str(tmp_path / "a")
    (found,) = told["exports"][0]["verification"]
    assert found["passed"] is True and found["numbers"]["scores"]["margin"] == 0.025
    assert (tmp_path / "a" / "artifact.json").is_file()


def test_several_formats_go_below_the_folder_that_is_named(tuned: RunFolder, command, tmp_path):
    said = command(tuned.path, "--to", "adapter, merged", "--out", tmp_path / "both")
    assert said.code == 0
    assert said.out.split() == [str(tmp_path / "both" / "adapter"), str(tmp_path / "both" / "merged")]


def test_what_does_not_go_ends_before_the_run_is_touched(tuned: RunFolder, command):
    events = tuned.events_file.read_bytes()
    said = command(tuned.path, "--to", "onnx,adapter", "--bits", "5", "--device", "tpu", "--json")
    assert said.code == 2 and "tpu" in said.error["what"]
    said = command(tuned.path)
    assert said.code == 2 and "--to" in said.err
    said = command(tuned.path, "--to", "gguf", "--max-loss", "-1")
    assert said.code == 2
    assert tuned.events_file.read_bytes() == events and not (tuned.path / "export").exists()


def test_a_failed_check_ends_with_5_and_names_it(tuned: RunFolder, command, damaging):
    damaging(lambda folder: (folder / "chat_template.jinja").write_text(RAW))
    said = command(tuned.path, "--to", "merged", "--json")
    assert said.code == 5 and "template: " in said.error["what"]
    assert said.error["where"].endswith("merged.failed") and json.loads(said.out)["error"]["exit_code"] == 5
    assert "failed: template" in tuned.report.read_text()
