"""OpenVINO's form of a plain graph: `openvino_model.xml` with its weights in `openvino_model.bin`.

The graph is read by OpenVINO's own runtime and saved by it; its converter tool, which reports usage to its makers, is
not called. 8-bit weights are those of the plain ONNX form, which the runtime keeps as bytes, so no
further package is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.export.onnx_plain.write import GRAPH, copy_text, traced_model, write_graph
from tunesmith.export.types import StepError, Work
from tunesmith.models.artifact import Device

MODEL = "openvino_model.xml"
_DEVICES: Mapping[Device, str] = {"cpu": "CPU", "npu": "NPU"}


def write_openvino(work: Work) -> Mapping[str, Any]:
    """Write the tuned model for OpenVINO in fp16, int8 or fp32; see `export.types.Writer`.

    Computation on a CPU is tried here; other devices are named in the facts and not tried.
    """
    from tunesmith.inference.openvino_engine import openvino_runtime

    device = _DEVICES.get(work.target.device)
    if device is None:
        raise StepError(
            "choosing a device", f"OpenVINO has none called {work.target.device}", "export with --device cpu or npu"
        )
    openvino = openvino_runtime()
    path = work.staged / MODEL
    with TemporaryDirectory(dir=work.scratch) as between:
        folder, _, traced = traced_model(work, Path(between))
        facts = write_graph(traced.path, Path(between), "int8" if work.target.precision == "int8" else "fp32")
        work.tell("writing the model for OpenVINO")
        try:
            model = openvino.Core().read_model(Path(between) / GRAPH)
            openvino.save_model(model, path, compress_to_fp16=work.target.precision == "fp16")
        except RuntimeError as error:  # what the runtime raises, whatever it was
            raise StepError("reading the graph with OpenVINO", _first(error), "export to onnx-plain") from error
        del model  # it holds on to the file
    copy_text(folder, work.staged)
    return {**facts, "exporter": traced.exporter, "device": device, "device_tried": device == "CPU",
            "bytes_of_weights": _size(path)}  # fmt: skip


def _size(path: Path) -> int:
    return path.with_suffix(".bin").stat().st_size


def _first(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
