"""An export of a run from beginning to end, and what must be left behind when it does not reach the end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.export.made import made_run, recipe_of
from tests.models.peft_side import answers, difference
from tests.tiny import byte_tokenizer
from tunesmith.errors import DataError, EngineError, RecipeError, ResourceError
from tunesmith.export import writers
from tunesmith.export.source import open_folders, open_source
from tunesmith.export.types import StepError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.exporting import flow, space
from tunesmith.pipeline.exporting.flow import export_pack, export_run, export_run_to, export_source
from tunesmith.pipeline.exporting.measure import Speed, measure_artifact
from tunesmith.pipeline.exporting.records import export_lines
from tunesmith.pipeline.exporting.rows import calibration_ids, frozen_rows
from tunesmith.pipeline.loading import load_run
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder, read_events

MERGED, ADAPTER = Target("merged", "own"), Target("adapter", "own")
long = pytest.mark.skipif(
    os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 measures and packs for real"
)
CHECKS = ["logits", "tuning kept", "template", "answers", "task", "stops"]


def nothing_left(folder: Path) -> bool:
    return not list(folder.rglob(".*.tmp"))


def test_two_exports_of_a_run_are_proved_and_recorded(tuned):
    heard: list[dict[str, Any]] = []
    merged, adapter = export_run_to(tuned, [(MERGED, None), (ADAPTER, None)], listener=heard.append)
    for exported, kind in ((merged, "merged"), (adapter, "adapter")):
        assert exported.path == tuned.path / "export" / kind and exported.verification.passed
        assert [check.name for check in exported.verification.checks] == CHECKS
        assert {check.status for check in exported.verification.checks} == {"passed"}
        found = read_artifact(exported.path)  # every hash is that of the file
        assert found == exported.artifact and found.facts["verification"]["passed"] is True
        assert found.facts["speed"]["decode"] > 0 and found.versions["transformers"]
        kept = json.loads((exported.path / "verification.json").read_text())["verification"][0]
        assert kept["checks"] == list(exported.verification.to_dict()["checks"])
        assert "| stops | passed |" in (exported.path / "README.md").read_text()
    scores = merged.verification.numbers["scores"]
    compared = load_run(tuned).comparison
    assert compared is not None and scores["value"] == compared.value("tuned").value and scores["n"] == 40
    assert scores["margin"] == 0.01 and "min_gain" in scores["margin_of"]
    assert (tuned.evaluation / "exports" / "merged.jsonl").read_text().count("\n") == 40
    kinds = [event["kind"] for event in read_events(tuned.events_file)]
    assert kinds.count("export_started") == kinds.count("export_finished") == 2
    told = [e["text"] for e in heard if e["kind"] == "note"]
    assert told.count("opening the tuned model") == 1 and "writing merged" in told
    assert all(e["seconds"] >= 0 for e in heard if e["kind"] == "note")
    assert nothing_left(tuned.path)
    # Plain transformers says what the tuned model says.
    tuned_model = open_source(tuned, load_recipe(tuned.recipe_file)).open()[0].model
    assert difference(answers(AutoModelForCausalLM.from_pretrained(merged.path)), answers(tuned_model)) < 1e-5
    # And the report has both.
    report = tuned.report.read_text()
    assert 'id="exports"' in report and "2 of 2 exports passed every check" in report
    assert [one.name for one in export_lines(tuned)] == ["adapter", "merged"]


def test_an_export_that_was_moved_is_opened_again(tuned):
    exported = export_run(tuned, MERGED)
    moved = tuned.path / "moved"
    exported.path.rename(moved)
    artifact = read_artifact(moved)
    assert open_artifact(artifact).logits([5, 6, 7]).shape == (3, 300)
    speed = Speed(**artifact.facts["speed"])
    assert speed.first_token == pytest.approx(speed.prompt_tokens / speed.prefill) and speed.peak_memory is None


@long
def test_speed_and_memory_in_a_process_of_its_own(tuned):
    exported = export_run(tuned, MERGED, measure=True)
    speed = Speed(**exported.artifact.facts["speed"])
    assert speed.decode > 0 and speed.prefill > 0 and (speed.peak_memory or 0) > 50e6
    assert [one.peak_memory for one in export_lines(tuned)] == [speed.peak_memory]
    with pytest.raises(EngineError, match="no export is here"):
        measure_artifact(tuned.path)


def test_a_path_that_exists_is_refused_before_anything_is_done(tuned, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RecipeError, match="exists already"):
        export_run(tuned, MERGED, out=tmp_path / "there")
    with pytest.raises(RecipeError, match="same folder"):
        export_run_to(tuned, [(MERGED, None), (MERGED, None)])
    with pytest.raises(RecipeError, match="no precision 'int3'"):
        export_run(tuned, Target("gguf", "int3"))
    assert list((tmp_path / "there").iterdir()) == [] and not (tuned.path / "export").exists()


def test_nothing_that_belongs_to_others_is_written_over(tuned, tmp_path, monkeypatch):
    (tmp_path / "mine.failed").mkdir()
    (tmp_path / "mine.failed" / "notes").write_text("theirs")
    with pytest.raises(RecipeError, match="if it fails"):
        export_run(tuned, MERGED, out=tmp_path / "mine")
    assert (tmp_path / "mine.failed" / "notes").read_text() == "theirs"

    def write(work: Any) -> Any:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "notes").write_text("theirs")
        return writers.writer_of("merged")(work)

    monkeypatch.setattr(flow, "writer_of", lambda kind: write)
    with pytest.raises(ResourceError, match="written there meanwhile"):
        export_run(tuned, MERGED, out=tmp_path / "late")
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["notes"]
    assert export_lines(tuned) == () and nothing_left(tmp_path)  # the run knows only of exports that have a name


def test_room_is_asked_for_all_exports_together(tuned):
    source = open_source(tuned, load_recipe(tuned.recipe_file))
    one, two = (space.needed_bytes(source, targets) for targets in ([MERGED], [MERGED, Target("merged", "fp32")]))
    plain, onnx = (
        space.needed_bytes(source, [Target("merged", "fp32"), *more]) for more in ([], [Target("onnx", "int8")])
    )
    assert two > one and onnx > plain
    assert space.needed_bytes(source, [MERGED], 3) > one


def test_a_disk_that_is_too_small_is_told_first(tuned, monkeypatch):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(ResourceError, match="1 MB are free") as caught:
        export_run(tuned, MERGED)
    assert caught.value.exit_code == 4 and not (tuned.path / "export").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt(), MemoryError(), StepError("building", "no such layer", "gguf")])
def test_whatever_ends_it_nothing_half_done_stays(end, tuned, monkeypatch):
    def write(work: Any) -> Any:
        (work.staged / "half").write_bytes(b"0" * 100)
        (work.scratch / "large").write_bytes(b"0" * 100)
        raise end

    monkeypatch.setattr(flow, "writer_of", lambda kind: write)
    with pytest.raises(type(end)) as caught:
        export_run(tuned, MERGED)
    assert not (tuned.path / "export" / "merged").exists() and nothing_left(tuned.path)
    assert not tuned.running
    if isinstance(end, StepError):
        assert caught.value.exit_code == 6 and "to do: gguf" in str(caught.value)
        failed = [e for e in read_events(tuned.events_file) if e["kind"] == "export_failed"]
        assert failed[0]["step"] == "building"
        monkeypatch.setattr(flow, "writer_of", writers.writer_of)
        assert export_run(tuned, MERGED).verification.passed


def test_a_run_that_is_being_written_is_left_alone(tuned):
    with tuned.lock(), pytest.raises(ResourceError):
        export_run(tuned, MERGED)


def test_the_loss_that_is_allowed_is_the_user_s_or_the_recipe_s(tuned):
    first = export_run(tuned, MERGED, out=tuned.path / "a", max_loss=0.05)
    scores = first.verification.numbers["scores"]
    assert scores["margin"] == 0.05 and scores["margin_of"] == "as --max-loss allows"


def test_rows_that_are_others_now_are_no_test_rows(tuned, tuned_once):
    recipe = load_recipe(tuned.recipe_file)
    rows = Path(recipe.data.train)
    before = rows.read_text()
    try:
        rows.write_text(before.replace("warm", "hot"))
        exported = export_run(tuned, MERGED, out=tuned.path / "a")
        assert exported.verification.check("task").status == "not possible"
        assert "other rows" in exported.verification.check("task").text and exported.verification.passed
        rows.unlink()
        exported = export_run(tuned, MERGED, out=tuned.path / "b")
        assert "cannot be read" in exported.verification.check("task").text
    finally:
        rows.write_text(before)


def test_calibration_sees_training_rows_only_as_they_were_learnt(tuned):
    recipe = load_recipe(tuned.recipe_file)
    rows = frozen_rows(tuned, recipe)
    assert not isinstance(rows, str)
    source = open_source(tuned, recipe)
    texts = [source.tokenizer.decode(list(ids)) for ids in calibration_ids(rows, source.renderer, recipe)]
    asked = {example.messages[0].content for example in rows.train}
    assert len(texts) == len(rows.train) and all(any(text in one for text in asked) for one in texts)
    held_out = {example.messages[0].content for example in rows.test}
    assert not [one for one in texts for text in held_out if f"{text}\n" in one]
    assert all("### Assistant" in one and one.rstrip().endswith("</s>") for one in texts)


def test_a_run_without_test_rows_asked_or_answers(base, tmp_path):
    """Made by hand: there are no rows, and what can be checked without them is."""
    recipe = recipe_of(base, {"quantize": "nf4"})
    folder, _ = made_run(tmp_path / "run", recipe)
    exported = export_run(folder, MERGED)
    found = {check.name: check.status for check in exported.verification.checks}
    assert found["task"] == "not possible" and found["logits"] == found["template"] == "passed"
    pairs = recipe.model_copy(update={"data": recipe.data.model_copy(update={"columns": _pairs(recipe)})})
    source = open_source(folder, pairs)
    exported = export_source(source, MERGED, tmp_path / "out")
    found = {check.name: check.status for check in exported.verification.checks}
    assert found["logits"] == "passed" and found["template"] == found["answers"] == found["stops"] == "not possible"
    assert exported.artifact.template_sha256 is None


def _pairs(recipe: Any) -> Any:
    return recipe.data.columns.model_copy(update={"second": "b"})


def test_a_model_without_a_run(base, tmp_path):
    folder, _ = made_run(tmp_path / "run", recipe_of(base, {}))
    exported = export_source(open_folders(str(base), folder.adapter, "plain"), MERGED, tmp_path / "tuned")
    assert exported.verification.check("task").status == "not possible"
    assert exported.verification.check("tuning kept").status == "passed"
    plain = export_source(open_folders(str(base), None, "plain"), MERGED, tmp_path / "plain")
    assert plain.verification.check("tuning kept").status == "not possible" and plain.verification.passed


@long
def test_a_pack_proves_each_adapter_by_itself(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir")
    base = wide_base(tmp_path / "base")
    sources = {}
    for seed, name in enumerate(("a", "b"), 1):
        folder, _ = made_run(tmp_path / name, recipe_of(base, {}), seed=seed)
        sources[name] = open_source(folder, load_recipe(folder.recipe_file))
    exported = export_pack(str(base), sources, Target("onnx-multi", "fp32"), tmp_path / "out")
    assert [one.adapter for one in exported.verifications] == ["a", "b"] == list(exported.artifact.adapters)
    assert all(one.passed for one in exported.verifications)
    one, other = (open_artifact(exported.artifact, name).logits([5, 6, 7]) for name in ("a", "b"))
    assert abs(one - other).max() > 0.01
    card = (exported.path / "README.md").read_text()
    assert "### a" in card and "### b" in card


def wide_base(folder: Path) -> Path:
    """Heads of 16 numbers, which ONNX Runtime's attention wants."""
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, eos_token_id=256,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)  # fmt: skip
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_pack_wants_adapters_of_one_base(base, tmp_path):
    target = Target("onnx-multi", "fp32")
    with pytest.raises(RecipeError, match="nothing to pack"):
        export_pack(str(base), {}, target, tmp_path / "out")
    whole = open_folders(str(base), None)
    with pytest.raises(RecipeError, match="one is tuned in full"):
        export_pack(str(base), {"one": whole}, target, tmp_path / "out")


def test_what_the_run_never_asked_is_asked_now(tuned):
    """A run that was only trained has no answers to compare with, and no report."""
    for path in [*tuned.evaluation.glob("tuned*"), tuned.path / "decided_from.json"]:
        path.unlink()
    exported = export_run(tuned, MERGED)
    assert exported.verification.check("task").status == "passed"
    assert (tuned.evaluation / "exports" / "tuned.jsonl").is_file()


def test_the_result_exports_too(tuned, tmp_path):
    result = load_run(tuned)
    exported = result.export("merged", tmp_path / "half", bits=16)
    assert exported.artifact.target.precision == "bf16" and exported.verification.passed
    with pytest.raises(RecipeError, match="has no 4 bits"):
        result.export("merged", bits=4)
    shutil.rmtree(tmp_path / "half")


def test_an_empty_run_is_refused(tmp_path, base):
    folder = RunFolder.create_at(tmp_path / "empty")
    with pytest.raises((RecipeError, DataError)):
        export_run(folder, MERGED)
    assert not (folder.path / "export").exists()
