"""Plain ONNX and OpenVINO through the whole flow: written, opened, held against the tuned model, served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.made import made_run, recipe_of
from tests.export.onnx_plain.made import needs_onnx
from tests.tiny import save_base
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.exporting.flow import export_run_to

needs_onnx()


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_exports_of_a_tuned_run_pass_their_verification(family: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder, _ = made_run(tmp_path / "run", recipe_of(save_base(tmp_path / "base", family), {}))
    targets = [
        Target("onnx-plain", "fp32"),
        Target("onnx-plain", "int8"),
        Target("openvino", "fp16"),
        Target("openvino", "int8"),
    ]
    done = export_run_to(folder, [(target, None) for target in targets])
    for target, one in zip(targets, done, strict=True):
        artifact = read_artifact(one.path)
        assert artifact.target == target and artifact.facts["exporter"] == "tracing"
        checks = {check.name: check.status for check in one.verification.checks}
        assert checks["logits"] == checks["tuning kept"] == checks["template"] == "passed", checks
