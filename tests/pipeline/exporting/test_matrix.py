"""Families against formats: exported from a run, verified on its rows, and opened by programs that know nothing of
Tunesmith. A few of them always; all of them with TUNESMITH_LONG=1, as `benchmarks/exports.py` has them in a table.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.exporting.families import (
    FAMILIES,
    FURTHER,
    REQUIRED,
    TARGETS,
    save_family,
    tuned_family,
)
from tests.pipeline.exporting.others import Reading, asked_ids, divergence, read_by_others
from tunesmith.export.source import FolderSource, open_folders, open_source
from tunesmith.export.types import StepError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Artifact, Target
from tunesmith.pipeline.exporting.flow import export_pack, export_run, export_source
from tunesmith.pipeline.exporting.reference import Reference, measure_reference
from tunesmith.pipeline.exporting.rows import frozen_rows
from tunesmith.pipeline.exporting.types import Exported, Verification
from tunesmith.pipeline.exporting.verify import verify
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
long = pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 exports all families")
genai = pytest.mark.skipif(find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed")

LOSS = 0.1
"""Of 32 rows one is three points."""
CLOSE = 2e-3
"""Mean KL in nats between two programs on one file: llama.cpp rounds what it multiplies to 8 bits."""

Runs = Callable[[str, str], RunFolder]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by family and task, each made when it is first asked for; of one family all have the same base."""
    root = tmp_path_factory.mktemp("families")

    def run_of(family: str, rows: str) -> RunFolder:
        folder = root / family / rows
        if not folder.is_dir():
            base = folder.with_name("base")
            if not base.is_dir():
                save_family(base, family)
            tuned_family(folder, base, rows, steps=60)
        return RunFolder.open(folder)

    return run_of


def source_of(run: RunFolder) -> FolderSource:
    return open_source(run, load_recipe(run.recipe_file))


def exported(runs: Runs, family: str, target: Target, out: Path) -> tuple[Exported, dict[str | None, FolderSource]]:
    """The export, and the tuned models in it by the names of their adapters."""
    first = runs(family, "a")
    if target.kind != "onnx-multi":
        return export_run(first, target, out=out, max_loss=LOSS), {None: source_of(first)}
    folders = {"a": first, "b": runs(family, "b")}
    sources = {name: source_of(folder) for name, folder in folders.items()}
    base = sources["a"].recipe.base.model
    return export_pack(base, sources, target, out, runs=folders, max_loss=LOSS), dict(sources)


def prove(done: Exported, sources: Mapping[str | None, FolderSource]) -> list[str]:
    """Every check was made and passed, and every other program says the same; returns the programs that did."""
    assert len(done.verifications) == len(sources)
    for one in done.verifications:
        assert one.passed and one.numbers["scores"]["n"] == 32
        outcome = {check.name: check.status for check in one.checks}
        assert {outcome[name] for name in ("logits", "tuning kept", "template", "stops")} == {"passed"}
    tools = []
    for name, source in sources.items():
        engine = open_artifact(done.artifact, name)
        for reading in read_by_others(done.artifact.target.kind, done.path, source.base_folder, name):
            if isinstance(reading, Reading):
                assert divergence(engine.logits(reading.ids), reading.logits) < CLOSE, reading.tool
                assert reading.ids == asked_ids(source.renderer), reading.tool
                tools.append(reading.tool)
    return tools


@pytest.mark.parametrize("target", [Target("adapter", "own"), Target("merged", "own"), Target("gguf", "q8_0")], ids=str)
def test_a_mistral_is_the_same_model_elsewhere(target: Target, runs: Runs, tmp_path: Path) -> None:
    done, sources = exported(runs, "mistral", target, tmp_path / "out")
    expected = {"adapter": "peft", "merged": "transformers", "gguf": "gguf + transformers"}
    assert expected[target.kind] in prove(done, sources)


@pytest.fixture(scope="module")
def pack(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, dict[str | None, FolderSource]]:
    return exported(runs, "qwen3", Target("onnx-multi", "fp32"), tmp_path_factory.mktemp("pack") / "out")


@genai
def test_two_adapters_over_one_qwen_are_each_their_own_model(pack: Any) -> None:
    done, sources = pack
    assert prove(done, sources) == ["onnxruntime-genai", "onnxruntime-genai"]
    ids = asked_ids(sources["a"].renderer)
    one, other = (open_artifact(done.artifact, name).logits(ids) for name in ("a", "b"))
    assert divergence(one, other) > 0.1


@long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", [*TARGETS, *FURTHER], ids=str)
def test_every_family_in_every_format(family: str, target: Target, runs: Runs, tmp_path: Path) -> None:
    if target.kind == "torchao" and find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    required = target.kind in ("adapter", "merged") or (family in REQUIRED and target in TARGETS)
    try:
        done, sources = exported(runs, family, target, tmp_path / "out")
    except StepError as error:
        assert not required, error
        assert error.step and error.reason and error.instead
        return
    tools = prove(done, sources)
    assert tools or target.kind in ("gptq", "awq", "fp8", "gguf")  # what reads the former needs a GPU


# What is wrong with an export is put into it after it was verified, and the same checks are made again.


class Judge:
    """An export of a run that is verified again, as it is and damaged; `adapter` is the run's name in it."""

    def __init__(self, run: RunFolder, artifact: Artifact, folder: Path, adapter: str | None = None) -> None:
        source = source_of(run)
        rows = frozen_rows(run, source.recipe)
        self.artifact, self.folder, self.adapter = artifact, folder, adapter
        self.reference: Reference = measure_reference(source, rows, run.evaluation, folder, lambda line: None)

    def found(self, name: str, damage: Callable[[Path], None]) -> Verification:
        copy = self.folder / name
        shutil.copytree(self.artifact.folder, copy)
        damage(copy)
        return self.of(replace(self.artifact, folder=copy))

    def of(self, artifact: Artifact) -> Verification:
        return verify(
            artifact, open_artifact(artifact, self.adapter), self.reference, adapter=self.adapter, max_loss=LOSS,
            answers=self.folder / f"{artifact.folder.name}-answers", tell=lambda line: None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def gguf_judge(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    run, folder = runs("mistral", "a"), tmp_path_factory.mktemp("judge-gguf")
    return Judge(run, export_run(run, Target("gguf", "f16"), out=folder / "whole", max_loss=LOSS).artifact, folder)


@pytest.fixture(scope="module")
def onnx_judge(runs: Runs, pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(runs("qwen3", "a"), pack[0].artifact, tmp_path_factory.mktemp("judge-onnx"), "a")


def failed(found: Verification) -> set[str]:
    return {check.name for check in found.failed}


def in_gguf(name: str, factor: float) -> Callable[[Path], None]:
    """A tensor multiplied where it lies."""

    def damage(folder: Path) -> None:
        import gguf

        reader = gguf.GGUFReader(folder / "model.gguf", "r+")
        (tensor,) = [one for one in reader.tensors if one.name == name]
        tensor.data[:] = (tensor.data.astype(np.float32) * factor).astype(tensor.data.dtype)
        reader.data.flush()

    return damage


def in_onnx(part: str, factor: float) -> Callable[[Path], None]:
    """A weight of the graph multiplied."""

    def damage(folder: Path) -> None:
        import onnx
        from onnx import numpy_helper

        path = folder / "model.onnx"
        graph = onnx.load(path)
        matrices = [one for one in graph.graph.initializer if len(one.dims) == 2 and "lora" not in one.name]
        (kept,) = [one for one in matrices if part in one.name]
        kept.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kept) * np.float32(factor), kept.name))
        for old in (path, folder / "model.onnx.data"):
            old.unlink(missing_ok=True)
        onnx.save(graph, path)

    return damage


def other_words(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    text = path.read_text()
    path.write_text(text.replace("INST", "ASK").replace("<|turn|>assistant", "<|turn|>answer"))


def other_words_inside(folder: Path) -> None:
    """The template in the file alone, by which llama.cpp asks; as long as before, so that nothing moves."""
    path = folder / "model.gguf"
    data = path.read_bytes()
    assert data.count(b"[INST] ") == 1
    path.write_bytes(data.replace(b"[INST] ", b"[TSNI] "))


def nothing(folder: Path) -> None:
    pass


def half_the_scale(folder: Path) -> None:
    """Of one adapter's file; the graph stays as it is."""
    import onnxruntime as ort

    path = folder / json.loads((folder / "adapters.json").read_text())["a"]
    kept: Any = ort.AdapterFormat.read_adapter(str(path))
    halves = {  # named, as the runtime holds on to the memory without owning it
        name: value.numpy() * np.float32(0.5 if "lora_B" in name else 1)
        for name, value in kept.get_parameters().items()
    }
    kept.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(half) for name, half in halves.items()})
    path.unlink()
    kept.export_adapter(str(path))


def test_what_is_wrong_in_a_gguf_file_is_seen(gguf_judge: Judge) -> None:
    assert gguf_judge.found("again", nothing).passed
    zeroed = gguf_judge.found("zeroed", in_gguf("blk.1.attn_q.weight", 0.0))
    assert "logits" in failed(zeroed) and "template" not in failed(zeroed)
    assert "logits" in failed(gguf_judge.found("scaled", in_gguf("blk.0.ffn_down.weight", 0.5)))
    asked = gguf_judge.found("asked", other_words)
    assert "template" in failed(asked) and "logits" not in failed(asked)
    inside = gguf_judge.found("inside", other_words_inside)
    assert failed(inside) == {"template"} and "inside the file" in inside.check("template").text


def test_a_gguf_file_with_half_of_what_was_learnt_is_seen(gguf_judge: Judge, tmp_path: Path) -> None:
    """A whole file, of the same adapter with half its alpha."""
    source = gguf_judge.reference.source
    adapter = tmp_path / "adapter"
    shutil.copytree(source.tuned, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    halved = json.dumps({**config, "lora_alpha": config["lora_alpha"] / 2})
    (adapter / "adapter_config.json").write_text(halved)
    other = export_source(open_folders(source.recipe.base.model, adapter), Target("gguf", "f16"), tmp_path / "out")
    found = gguf_judge.of(other.artifact)
    assert {"logits", "tuning kept"} <= failed(found) and 0.2 < (found.check("tuning kept").value or 0) < 0.95


@genai
def test_what_is_wrong_in_an_onnx_model_is_seen(onnx_judge: Judge) -> None:
    assert onnx_judge.found("again", nothing).passed
    zeroed = onnx_judge.found("zeroed", in_onnx("layers.1.mlp.down_proj", 0.0))
    assert "logits" in failed(zeroed) and "template" not in failed(zeroed)
    halved = onnx_judge.found("halved", half_the_scale)
    assert {"logits", "tuning kept"} <= failed(halved) and 0.2 < (halved.check("tuning kept").value or 0) < 0.95
    asked = onnx_judge.found("asked", other_words)
    assert "template" in failed(asked) and "logits" not in failed(asked)
