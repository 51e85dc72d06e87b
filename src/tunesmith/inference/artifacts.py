"""Exported models opened again, by the runtime each is made for, to be asked like any other model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from tunesmith.inference.types import ProbedEngine
from tunesmith.models.artifact import Artifact, Kind

_OPENERS: Mapping[Kind, str] = {
    "adapter": "tunesmith.inference.torch_artifacts:open_adapter",
    "merged": "tunesmith.inference.torch_artifacts:open_model",
    "torchao": "tunesmith.inference.quantised_artifacts:open_torchao",
    "gptq": "tunesmith.inference.quantised_artifacts:open_gptq",
    "awq": "tunesmith.inference.quantised_artifacts:open_awq",
    "fp8": "tunesmith.inference.quantised_artifacts:open_fp8",
    "onnx": "tunesmith.inference.genai_engine:open_genai",
    "onnx-multi": "tunesmith.inference.genai_engine:open_genai",
    "onnx-plain": "tunesmith.inference.ort_engine:open_ort",
    "openvino": "tunesmith.inference.openvino_engine:open_openvino",
    "gguf": "tunesmith.inference.gguf_engine:open_gguf",
}


class Opener(Protocol):
    """Opens an artifact's folder; `adapter` names the one to ask where it holds several (None: the base alone)."""

    def __call__(self, artifact: Artifact, adapter: str | None = None) -> ProbedEngine: ...


def open_artifact(artifact: Artifact, adapter: str | None = None) -> ProbedEngine:
    """An exported model, asked through the tokenizer and template that lie in its folder.

    `adapter` names the one to ask where the artifact holds several; None is the base alone. Raises `EngineError` where
    the runtime is missing or refuses it.
    """
    module, _, name = _OPENERS[artifact.target.kind].partition(":")
    return cast(Opener, getattr(import_module(module), name))(artifact, adapter)
