"""Models for OpenVINO (`export.onnx_plain.openvino`), asked with its runtime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.genai_config import threads_wanted
from tunesmith.inference.past_row import PastModel
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_artifacts import folder_renderer, refuse_names
from tunesmith.inference.types import FloatArray
from tunesmith.models.artifact import Artifact

MODEL = "openvino_model.xml"
_PAST = "past_key_values."


def openvino_runtime() -> Any:
    """The module `openvino`, without the part that reports usage to its makers: it does so as soon as it is imported,
    and goes without where that package cannot be imported.

    Raises `EngineError` where it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # the language's way: not to be imported
    try:
        import openvino
    except ImportError as error:
        raise EngineError("openvino is not installed", fix="pip install 'tunesmith[openvino]'") from error
    return openvino


class OpenVinoGraph:
    """A compiled model; implements `inference.past_row.PastGraph`. One row at a time works with it."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        inputs = {_name(one): one for one in compiled.inputs}
        self._past = {
            name: (one.partial_shape[1].get_length(), one.partial_shape[3].get_length())
            for name, one in inputs.items()
            if name.startswith(_PAST)
        }
        self._known = frozenset(inputs)
        self._outputs = ["logits", *(name.replace(_PAST, "present.", 1) for name in self._past)]
        self._vocabulary = int(compiled.output("logits").partial_shape[2].get_length())

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    def nothing(self) -> list[FloatArray]:
        return [np.zeros((1, heads, 0, width), dtype=np.float32) for heads, width in self._past.values()]

    def step(self, ids: Sequence[int], past: Any, length: int) -> tuple[FloatArray, Any]:
        count = len(ids)
        feed = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, length + count), dtype=np.int64),
            "position_ids": np.arange(length, length + count, dtype=np.int64)[None],
            **dict(zip(self._past, past, strict=True)),
        }
        self._request.infer({name: array for name, array in feed.items() if name in self._known})
        # Copies: the request's own memory is written over by the next pass.
        logits, *present = (self._request.get_tensor(name).data.copy() for name in self._outputs)
        return logits[0], present

    def cut(self, past: Any, length: int) -> list[FloatArray]:
        return [np.ascontiguousarray(one[:, :, :length]) for one in past]


def open_openvino(artifact: Artifact, adapter: str | None = None) -> SteppingEngine:
    """See `inference.artifacts.Opener`. Devices other than the CPU are passed on by their name and were not tried."""
    refuse_names(artifact, adapter)
    openvino = openvino_runtime()
    device = str(artifact.facts.get("device", "CPU"))
    core = openvino.Core()
    if device not in core.available_devices:
        raise EngineError(
            f"OpenVINO finds no {device} here", where=str(artifact.folder), expected=", ".join(core.available_devices)
        )
    try:
        compiled = core.compile_model(artifact.folder / MODEL, device, _settings(device))
    except RuntimeError as error:  # what the runtime raises, whatever it was
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise EngineError(
            f"OpenVINO does not open the model: {lines[-1][:300]}", where=str(artifact.folder), fix="export again"
        ) from error
    return SteppingEngine(PastModel(OpenVinoGraph(compiled)), folder_renderer(artifact), artifact.context)


def _settings(device: str) -> dict[str, Any]:
    threads = threads_wanted() if device == "CPU" else None
    return {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}


def _name(port: Any) -> str:
    """An input's name as the graph has it; a tensor may have been given further ones."""
    ours = ("input_ids", "attention_mask", "position_ids")
    return str(next((name for name in port.names if name in ours or name.startswith(_PAST)), port.any_name))
