"""The folder of a run: made, found, locked, its stages cached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, ResourceError, VerificationError
from tunesmith.runs import RunFolder, environment, list_runs, resolve_run, stage_key

HOLDER = """
import sys, time
from pathlib import Path
from tunesmith.runs import RunFolder
with RunFolder.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "runs"


def test_names_never_collide(root):
    runs = [RunFolder.create(root, "phrases") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.name.startswith("phrases-2") and run.path.parent == root for run in runs)
    assert [run.path for run in list_runs(root)] == [run.path for run in reversed(runs)]


def test_a_chosen_folder_is_begun_once_then_opened(tmp_path):
    first = RunFolder.create_at(tmp_path / "a" / "b")
    created = first.manifest()["created"]
    assert RunFolder.create_at(tmp_path / "a" / "b").manifest()["created"] == created
    assert RunFolder.open(tmp_path / "a" / "b") == first


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(RecipeError, match=r"thesis\.doc"):
        RunFolder.create_at(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]
    with pytest.raises(RecipeError, match="no run is here"):
        RunFolder.open(tmp_path)
    with pytest.raises(ResourceError, match="cannot be written"):
        RunFolder.create_at(tmp_path / "thesis.doc")


def test_leftovers_of_a_check_or_a_killed_start_do_not_matter(tmp_path):
    (tmp_path / "check.json").write_text("{}")
    (tmp_path / ".manifest.json.12ab34cd.tmp").write_text("{")
    run = RunFolder.create_at(tmp_path)
    with run.lock():
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "check.json", "manifest.json"]


def test_locking_removes_what_a_killed_process_was_writing(root):
    run = RunFolder.create(root, "x")
    (run.checkpoints / ".step-4.12ab34cd.tmp").mkdir(parents=True)
    (run.checkpoints / ".step-4.12ab34cd.tmp" / "weights").write_text("half")
    (run.checkpoints / "step-2").mkdir()
    with run.lock():
        assert [p.name for p in run.checkpoints.iterdir()] == ["step-2"]


def test_runs_are_found_by_last_name_recipe_name_and_path(root, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="no run yet"):
        resolve_run("last", root)
    first, second = RunFolder.create(root, "phrases"), RunFolder.create(root, "intents")
    elsewhere = RunFolder.create_at(tmp_path / "elsewhere")
    (root / "not-a-run").mkdir()
    assert resolve_run("last", root) == second
    assert resolve_run(first.name, root) == first
    assert resolve_run("phrases", root) == first
    assert resolve_run(str(elsewhere.path), root) == elsewhere
    monkeypatch.chdir(tmp_path)
    assert resolve_run("elsewhere", root) == elsewhere
    with pytest.raises(RecipeError, match=f"did you mean {first.name}") as caught:
        resolve_run(first.name.replace("phrases", "phrase"), root)
    assert caught.value.exit_code == 2


def test_status_and_verdict_line(root):
    run = RunFolder.create(root, "x")
    assert (run.summary().state, run.summary().verdict, run.summary().running) == ("unfinished", None, False)
    run.set_status("failed", error="disk full")
    assert (run.summary().state, run.summary().error) == ("failed", "disk full")
    run.set_status("finished", verdict="Ship tuned")
    assert (run.summary().state, run.summary().verdict, run.summary().error) == ("finished", "Ship tuned", None)
    with run.lock():
        assert run.summary().running
    assert not run.summary().running


def test_the_manifest_merges_sections(root):
    run = RunFolder.create(root, "x")
    run.update_manifest(data={"a": 1, "b": 1}, seed=1)
    run.update_manifest(data={"b": 2, "c": 3}, seed=2)
    manifest = run.manifest()
    assert (manifest["data"], manifest["seed"], manifest["run"]) == ({"a": 1, "b": 2, "c": 3}, 2, run.name)


def test_a_damaged_manifest_is_named_and_does_not_hide_other_runs(root):
    broken, whole = RunFolder.create(root, "broken"), RunFolder.create(root, "whole")
    broken.manifest_file.write_text("{")
    assert list_runs(root) == [whole, broken]
    with pytest.raises(VerificationError, match=r"manifest\.json: not valid JSON"):
        broken.manifest()


def test_the_lock_holds_against_another_process_and_ends_with_it(root):
    run = RunFolder.create(root, "x")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert run.running
        with pytest.raises(ResourceError, match=rf"pid {process.pid}\) is writing this run") as caught, run.lock():
            pytest.fail("two processes hold the lock")
        assert caught.value.exit_code == 4
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not run.running
    with run.lock(), pytest.raises(ResourceError, match=f"pid {os.getpid()}"), run.lock():
        pytest.fail("the lock was taken twice")
    with run.lock():
        pass


def test_a_stage_is_done_for_its_inputs_only(root):
    run = RunFolder.create(root, "x")
    key = stage_key(data="abc", seed=1)
    assert run.stage_done("train", key) is None
    run.finish_stage("train", key, {"loss": 0.1})
    assert run.stage_done("train", key) == {"loss": 0.1}
    assert run.stage_done("train", stage_key(data="abc", seed=2)) is None
    assert RunFolder.open(run.path).stage_done("train", key) == {"loss": 0.1}
    assert json.loads((run.stages / "train.json").read_text())["key"] == key


def test_a_damaged_stage_record_is_named(root):
    run = RunFolder.create(root, "x")
    run.finish_stage("train", "k", {})
    for content in ("", "[]", '{"key": "k"}'):
        (run.stages / "train.json").write_text(content)
        with pytest.raises(VerificationError, match=r"train\.json"):
            run.stage_done("train", "k")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "A"])
def test_stage_names_never_become_paths(root, name):
    with pytest.raises(ValueError, match="cannot name a stage"):
        RunFolder.create(root, "x").finish_stage(name, "k", {})


def test_stage_keys_depend_on_values_not_on_order():
    @dataclass(frozen=True)
    class Point:
        x: int
        path: Path

    assert stage_key(a=1, b={"x": 1, "y": (1, 2)}) == stage_key(b={"y": [1, 2], "x": 1}, a=1)
    assert stage_key(a={"x", "y", "z"}) == stage_key(a=["x", "y", "z"])
    assert stage_key(a=Point(1, Path("p"))) == stage_key(a={"x": 1, "path": "p"})
    assert len({stage_key(a=value) for value in (1, "1", 1.5, None, [1], [], {}, [[1]])}) == 8
    with pytest.raises(TypeError, match="object"):
        stage_key(a=object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        stage_key(a=float("nan"))


def test_the_environment_says_what_it_ran_on():
    found = environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**20 and found["cpu"]
    assert {"torch", "transformers", "numpy"} <= set(found["libraries"])
    json.dumps(found)
