"""Bundles of real exports, and the commands that make and send them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Said
from tunesmith.cli.main import invoke
from tunesmith.errors import VerificationError
from tunesmith.models.artifact import Target
from tunesmith.pipeline.bundling import bundle
from tunesmith.pipeline.exporting.flow import export_run
from tunesmith.pipeline.loading import load_run
from tunesmith.runs import RunFolder
from tunesmith.text.templates import RAW

MERGED = Target("merged", "own")


@pytest.fixture(scope="session")
def exported_once(tuned_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(tuned_once.path, folder)
    export_run(RunFolder.open(folder), MERGED)
    return folder


@pytest.fixture
def exported(exported_once, tmp_path) -> Path:
    """The export of a run, in a copy of its own."""
    shutil.copytree(exported_once, tmp_path / "tones")
    return tmp_path / "tones" / "export" / "merged"


@pytest.fixture
def command(capsys):
    def run(*arguments: str | Path) -> Said:
        code = invoke([*map(str, arguments)])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


def test_the_card_tells_what_the_run_and_the_verification_measured(exported):
    made = bundle(exported)
    card = (made.folder / "README.md").read_text()
    result = load_run(RunFolder.open(exported.parents[1]))
    assert made.folder == exported.with_name("merged-bundle") and result.comparison is not None
    value = f"{100 * result.comparison.value('tuned').value:.1f} %"
    assert f"| tuned | {value} |" in card and f"| **merged** | {value} |" in card and "| zero_shot |" in card
    for name in ("logits", "tuning kept", "template", "answers", "task", "stops"):
        assert f"| {name} | passed |" in card
    assert "rank 8" in card and "40 test" in card and json.loads((made.folder / "sbom.cdx.json").read_text())
    assert "# tones" in card and "95 % intervals" in card


def test_an_export_elsewhere_knows_its_run_only_where_it_is_named(exported, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    alone = bundle(moved, tmp_path / "alone", name="mine")
    assert "Nothing was measured on a task." in (alone.folder / "README.md").read_text()
    named = bundle(moved, tmp_path / "named", run=RunFolder.open(exported.parents[1]))
    assert "held-out rows" in (named.folder / "README.md").read_text()


def test_from_within_the_folder(exported, command, monkeypatch):
    monkeypatch.chdir(exported)
    said = command("bundle", ".", "--for", "tunesmith", "--json")
    assert said.code == 0 and Path(said.json["path"]) == exported.with_name("merged-bundle")
    assert said.json["server"] == "tunesmith" and Path(said.json["start"]).is_file()
    again = command("bundle", ".")
    assert again.code == 2 and "exists already" in again.err


def test_what_was_changed_or_kept_aside_goes_nowhere(tuned, exported, command, damaging):
    damaging(lambda folder: (folder / "chat_template.jinja").write_text(RAW))
    with pytest.raises(VerificationError):
        export_run(tuned, MERGED)
    failed = tuned.path / "export" / "merged.failed"
    for said in (command("bundle", failed), command("push", failed, "hub:me/mine")):
        assert said.code == 5 and "kept aside" in said.err
    (exported / "verification.json").write_text("{}")
    said = command("bundle", exported)
    assert said.code == 5 and "verification.json" in said.err
    assert command("bundle", exported.parent).code == 2


@pytest.mark.parametrize(
    ("registry", "code", "words"),
    [
        ("ftp:x", 2, "names no registry"), ("hub:", 2, "names no registry"), ("hub:name", 2, "is no repository"),
        ("mlflow:recipes", 2, "mlflow"),
    ],
)  # fmt: skip
def test_a_registry_that_is_none_is_refused(exported, command, monkeypatch, registry, code, words):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = command("push", exported, registry)
    assert said.code == code and words in said.err.lower()
    assert not (Path.cwd() / "mlruns").exists()
