"""ONNX graphs asked with ONNX Runtime itself: plain ones, and those of ONNX Runtime GenAI beneath a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.genai_config import GENAI, read_config, threads_wanted
from tunesmith.inference.past_row import PastModel
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_artifacts import folder_renderer, refuse_names
from tunesmith.inference.types import FloatArray
from tunesmith.models.artifact import Artifact, Device

GRAPH = "model.onnx"
_PROVIDERS: dict[Device, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "npu": "QNNExecutionProvider",
}
_PAST = "past_key_values."
_TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OrtGraph:
    """A graph in ONNX Runtime; implements `inference.past_row.PastGraph`. Keys and values stay in the runtime.

    kept: of each tensor that it remembers the names of input and output, (heads, width), and its type.
    """

    def __init__(self, session: Any, width: int | None = None) -> None:
        """`width`: of keys and values, where the graph itself leaves it open."""
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session = session
        inputs = {one.name: one for one in session.get_inputs()}
        past = [one for name, one in inputs.items() if name.startswith(_PAST)]
        if not past or any(one.type not in _TYPES for one in past):
            raise EngineError(
                "the graph does not take keys and values", expected=f"inputs named {_PAST}0.key and so on"
            )
        self.kept = tuple(
            (one.name, one.name.replace(_PAST, "present.", 1), _shape(one, width), _TYPES[one.type]) for one in past
        )
        self._known = frozenset(inputs)
        self._outputs = ["logits", *(present for _, present, _, _ in self.kept)]
        self._vocabulary = _whole(next(one.shape[-1] for one in session.get_outputs() if one.name == "logits"))

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    def nothing(self) -> list[Any]:
        return [self._value(np.zeros((1, heads, 0, width), dtype)) for _, _, (heads, width), dtype in self.kept]

    def step(
        self, ids: Sequence[int], past: Any, length: int, more: Mapping[str, Any] | None = None
    ) -> tuple[FloatArray, Any]:
        """See `PastGraph.step`; `more` are further inputs (`OrtValue`)."""
        count = len(ids)
        whole = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, length + count), dtype=np.int64),
            "position_ids": np.arange(length, length + count, dtype=np.int64)[None],
        }
        feed = {name: self._value(array) for name, array in whole.items() if name in self._known} | dict(more or {})
        feed |= {name: value for (name, *_), value in zip(self.kept, past, strict=True)}
        logits, *present = self._session.run_with_ort_values(self._outputs, feed)
        found: FloatArray = logits.numpy()[0].astype(np.float32, copy=False)
        return found, present

    def cut(self, past: Any, length: int) -> list[Any]:
        return [self._value(np.ascontiguousarray(one.numpy()[:, :, :length])) for one in past]


def open_graph(artifact: Artifact) -> tuple[Any, OrtGraph]:
    """The session and the graph of an artifact of kind onnx, onnx-multi or onnx-plain. Raises `EngineError`."""
    width = None
    if (artifact.folder / GENAI).is_file():
        try:
            width = int(read_config(artifact.folder)["model"]["decoder"]["head_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{GENAI} does not describe a model", where=str(artifact.folder), fix="export again"
            ) from error
    session = open_session(artifact.folder / GRAPH, artifact.target.device)
    return session, OrtGraph(session, width)


def open_ort(artifact: Artifact, adapter: str | None = None) -> SteppingEngine:
    """See `inference.artifacts.Opener`. A plain graph is one model and has no adapters to choose from."""
    refuse_names(artifact, adapter)
    _, graph = open_graph(artifact)
    return SteppingEngine(PastModel(graph), folder_renderer(artifact), artifact.context)


def open_session(path: Path, device: Device = "cpu") -> Any:
    """A graph opened with ONNX Runtime on a device.

    Raises `EngineError` where the runtime, or its part for that device, is not installed, or refuses the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "onnxruntime is not installed", where=str(path), fix="pip install 'tunesmith[onnx]'"
        ) from error
    provider = _PROVIDERS[device]
    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise EngineError(
            f"this onnxruntime cannot compute on {device}: it has no {provider}",
            where=str(path),
            expected=f"one of {', '.join(there)}",
            fix="install the onnxruntime package for that device, or export for --device cpu",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised, and told once
    options.intra_op_num_threads = threads_wanted() or 0
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    # The runtime's errors have no common ancestor but Exception.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(str(path), path.name)
        raise EngineError(
            f"ONNX Runtime does not open the model: {first[:300]}", where=str(path), fix="export again"
        ) from error


def _shape(tensor: Any, width: int | None) -> tuple[int, int]:
    """Heads and width of keys or values [batch, heads, tokens, width]."""
    return _whole(tensor.shape[1]), tensor.shape[3] if isinstance(tensor.shape[3], int) else _whole(width)


def _whole(size: Any) -> int:
    if not isinstance(size, int):
        raise EngineError("the graph leaves a size open that must be known", expected="heads, width and vocabulary")
    return size
