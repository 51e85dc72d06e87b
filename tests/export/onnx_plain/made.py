"""Small models on their way out, without a run around them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tunesmith.export.types import Work
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import ProbedEngine
from tunesmith.models.artifact import Artifact, Device, Kind, Target, hash_files, read_artifact, write_artifact
from tunesmith.text.render import Renderer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
CONTEXT = 512
long = pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 writes every format")


@dataclass
class ModelSource:
    """A model and the byte tokenizer; implements as much of `export.types.Source` as writers of merged models need."""

    model: Any
    name: str = "small"
    context: int = CONTEXT
    template: str | None = TEMPLATE
    renderer: Renderer = field(default_factory=lambda: Renderer(tiny.byte_tokenizer(TEMPLATE)))

    def merged(self, scratch: Path) -> Path:
        folder = scratch / "merged"
        if not folder.is_dir():
            self.model.save_pretrained(folder)
            tiny.byte_tokenizer(TEMPLATE).save_pretrained(folder)
        return folder

    def engine(self) -> TorchEngine:
        return TorchEngine(self.model, self.renderer, self.context)


def write(
    writer: Any, kind: Kind, precision: str, source: ModelSource, folder: Path, device: Device = "cpu"
) -> Artifact:
    """An artifact with its manifest, as the flow of exporting leaves it behind."""
    staged, scratch = folder / "staged", folder / "scratch"
    staged.mkdir(parents=True)
    scratch.mkdir()
    target = Target(kind, precision, device)
    facts = writer(Work(source, target, staged, scratch, tell=lambda line: None))  # type: ignore[arg-type]
    files, size = hash_files(staged)
    artifact = Artifact(
        staged, target, files, size, "small", "0" * 64, "auto", None, (256,), source.context, facts=dict(facts)
    )
    write_artifact(artifact)
    return read_artifact(staged)


def engine_of(artifact: Artifact) -> ProbedEngine:
    return open_artifact(artifact)


def needs_onnx() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
