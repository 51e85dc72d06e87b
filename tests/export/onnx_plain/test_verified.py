"""Plain ONNX and OpenVINO through the whole flow: written, opened, held against the tuned model, served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.export.made import made_run, recipe_of
from tests.export.onnx_plain.made import long, needs_onnx
from tests.tiny import save_base
from tunesmith.models.artifact import Kind, Target, read_artifact
from tunesmith.pipeline.exporting.flow import export_run_to

needs_onnx()

ALL: tuple[tuple[Kind, str], ...] = (
    ("onnx-plain", "fp32"), ("onnx-plain", "int8"), ("openvino", "fp16"), ("openvino", "int8"),
)  # fmt: skip


@long
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_all_exports_of_a_tuned_run_pass_their_verification(family: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    verify(family, tmp_path, ALL)


def test_an_export_of_a_tuned_run_passes_its_verification(tmp_path: Path) -> None:
    verify("llama", tmp_path, [("onnx-plain", "fp32")])


def verify(family: str, tmp_path: Path, wanted: Sequence[tuple[Kind, str]]) -> None:
    folder, _ = made_run(tmp_path / "run", recipe_of(save_base(tmp_path / "base", family), {}))
    targets = [Target(kind, precision) for kind, precision in wanted]
    done = export_run_to(folder, [(target, None) for target in targets])
    for target, one in zip(targets, done, strict=True):
        artifact = read_artifact(one.path)
        assert artifact.target == target and artifact.facts["exporter"] == "tracing"
        checks = {check.name: check.status for check in one.verification.checks}
        assert checks["logits"] == checks["tuning kept"] == checks["template"] == "passed", checks
