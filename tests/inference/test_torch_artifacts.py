"""Exports that transformers opens: asked as the run asks, and refused where base or folder are others now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.export.made import made_run, recipe_of
from tests.tiny import save_base
from tunesmith.data.types import Message
from tunesmith.errors import EngineError, VerificationError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Artifact, Kind, Target, hash_files, read_artifact, write_artifact
from tunesmith.pipeline.exporting.flow import export_run

TURNS = (Message("user", "hello"),)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "llama")


def exported(folder: Path, base: Path, kind: Kind, **method: object) -> Artifact:
    run, _ = made_run(folder, recipe_of(base, method))
    return export_run(run, Target(kind, "own")).artifact


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        {},
        {"quantize": "nf4"},
        {"use_dora": True},
        {"type": "bottleneck", "bottleneck_size": 8},
        {"type": "peft", "peft_type": "IA3"},
    ],
    ids=str,
)
def test_an_adapter_is_opened_as_it_was_trained(method, base, tmp_path):
    artifact = exported(tmp_path / "run", base, "adapter", **method)
    engine = open_artifact(read_artifact(artifact.folder))
    ids = engine.renderer.prompt_ids(TURNS)
    ours = engine.logits(ids)
    assert ours.shape == (len(ids), 300) and ours.dtype.name == "float32"
    assert engine.renderer.prompt_text(TURNS) == "### User\nhello\n\n### Assistant\n"
    assert engine.context == 512 and engine.count_tokens(TURNS) == len(ids)
    said = next(engine.generate([TURNS], 4))
    assert said.answer_tokens == 4 or said.stopped


def test_an_adapter_over_other_weights_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    artifact = exported(tmp_path / "run", base, "adapter")
    shutil.rmtree(base)
    save_base(base, seed=9)
    with pytest.raises(VerificationError, match="not those that the adapter was trained on"):
        open_artifact(artifact)


def test_a_merged_model_has_no_adapters_and_wants_its_tokenizer(base, tmp_path):
    artifact = exported(tmp_path / "run", base, "merged")
    with pytest.raises(EngineError, match="holds no adapter 'x'"):
        open_artifact(artifact, "x")
    with torch.inference_mode():
        engine = open_artifact(artifact)
    assert engine.renderer.stop_ids == frozenset(artifact.stop_ids)
    for path in artifact.folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(EngineError, match="tokenizer"):
        open_artifact(artifact)


def test_a_folder_that_changed_is_not_read(base, tmp_path):
    artifact = exported(tmp_path / "run", base, "merged")
    (artifact.folder / "chat_template.jinja").write_text("other")
    (artifact.folder / "more.txt").write_text("new")
    (artifact.folder / "generation_config.json").unlink()
    with pytest.raises(VerificationError) as caught:
        read_artifact(artifact.folder)
    said = str(caught.value)
    assert "missing: generation_config.json" in said and "new: more.txt" in said
    assert "changed: chat_template.jinja" in said
    files, size = hash_files(artifact.folder)
    write_artifact(replace(artifact, files=files, bytes=size))
    assert read_artifact(artifact.folder).bytes == size
    (artifact.folder / "artifact.json").write_text("[]")
    with pytest.raises(VerificationError, match="does not describe an export"):
        read_artifact(artifact.folder)
