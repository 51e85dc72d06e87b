"""Models for OpenVINO: the same numbers, in every precision, and nothing is told to anybody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.export.onnx_plain.made import ModelSource, engine_of, long, needs_onnx, write
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.export.onnx_plain.openvino import MODEL, write_openvino
from tunesmith.export.types import StepError

needs_onnx()
pytest.importorskip("openvino")

IDS = list(range(3, 43))
PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("family", "precision", "largest"),
    [
        ("llama", "fp32", 1e-4),
        pytest.param("gemma2", "fp32", 1e-4, marks=long),
        pytest.param("gpt2", "fp32", 1e-4, marks=long),
        pytest.param("llama", "fp16", 3e-2, marks=long),
        ("qwen3", "int8", 1.0),
        pytest.param("llama", "int8", 1.0, marks=long),
    ],
)
def test_the_model_is_the_same(family: str, precision: str, largest: float, tmp_path: Path) -> None:
    source = ModelSource(tiny.build(family))
    artifact = write(write_openvino, "openvino", precision, source, tmp_path)
    with torch.inference_mode():
        expected = source.model(input_ids=torch.tensor([IDS])).logits[0].log_softmax(-1)
    engine = engine_of(artifact)
    got = torch.from_numpy(engine.logits(IDS)).log_softmax(-1)
    assert float((got - expected).abs().max()) < largest
    assert float((expected.exp() * (expected - got)).sum(-1).mean()) < 0.02
    assert artifact.facts["device"] == "CPU" and artifact.facts["device_tried"]
    prompts = [(Message("user", "lost card"),), (Message("user", "where?"),)]
    if precision == "fp32":
        assert [one.text for one in engine.generate(prompts, 8)] == [
            one.text for one in source.engine().generate(prompts, 8)
        ]
        said = [["yes", "no"]] * 2
        assert np.allclose(list(engine.score(prompts, said)), list(source.engine().score(prompts, said)), atol=1e-3)


def test_lower_precisions_are_smaller(tmp_path: Path) -> None:
    source = ModelSource(tiny.build("llama", vocabulary=4_000))
    sizes = {
        precision: write(write_openvino, "openvino", precision, source, tmp_path / precision).facts["bytes_of_weights"]
        for precision in ("fp32", "fp16", "int8")
    }
    assert sizes["fp16"] < 0.55 * sizes["fp32"] and sizes["int8"] < 0.7 * sizes["fp32"]


def test_a_device_that_is_not_here_is_passed_on_and_said(tmp_path: Path) -> None:
    source = ModelSource(tiny.build("llama"))
    artifact = write(write_openvino, "openvino", "fp16", source, tmp_path / "npu", device="npu")
    assert artifact.facts["device"] == "NPU" and not artifact.facts["device_tried"]
    with pytest.raises(EngineError, match="finds no NPU here"):
        engine_of(artifact)
    with pytest.raises(StepError, match="none called directml"):
        write(write_openvino, "openvino", "fp16", source, tmp_path / "dml", device="directml")


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    artifact = write(write_openvino, "openvino", "fp32", ModelSource(tiny.build("llama")), tmp_path)
    copied = tmp_path / "copied"
    shutil.copytree(artifact.folder, copied)
    (copied / MODEL).write_text("<nothing/>")
    with pytest.raises(EngineError, match="does not open the model"):
        engine_of(replace(artifact, folder=copied))


def test_nothing_is_sent_and_nothing_is_kept(tmp_path: Path) -> None:
    """In a process of its own: no connection, no file in the home folder, the reporting part of OpenVINO unused."""
    home = tmp_path / "home"
    home.mkdir()
    script = """
import socket, sys
from pathlib import Path
def refuse(*_, **__):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
try:
    import openvino_telemetry
except ImportError:
    pass
else:
    def used(*_, **__):
        raise AssertionError("usage was reported")
    openvino_telemetry.Telemetry.__init__ = openvino_telemetry.Telemetry.init = used
    from openvino_telemetry.utils.sender import TelemetrySender
    TelemetrySender.send = used
from tests import tiny
from tests.export.onnx_plain.made import ModelSource, engine_of, write
from tunesmith.export.onnx_plain.openvino import write_openvino
artifact = write(write_openvino, "openvino", "int8", ModelSource(tiny.build("llama")), Path(sys.argv[1]))
print(engine_of(artifact).logits([5, 6, 7]).shape)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "made")],
        cwd=PROJECT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}", "CI": ""},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert "(3, 300)" in told.stdout
    written = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert not [name for name in written if "intel" in name.lower() or "openvino" in name.lower()], written
