"""Manifests of exports: what is read is what was written, and one that describes none is told as damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import VerificationError
from tunesmith.models.artifact import MANIFEST, Artifact, Target, hash_files, read_artifact, write_artifact


def made(folder: Path) -> Artifact:
    (folder / "model.bin").write_bytes(b"weights")
    files, size = hash_files(folder)
    artifact = Artifact(
        folder, Target("onnx-multi", "int4", "cuda", "ort-genai"), files, size, "embedded:base", "0" * 64, "auto", None,
        (6, 7), 2048, ("a", "b"), facts={"bits_per_weight": 4.5},
    )  # fmt: skip
    write_artifact(artifact)
    return artifact


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    assert read_artifact(made(tmp_path).folder) == made(tmp_path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target": {"kind": "onnxx", "precision": "int4"}}, "target"),
        ({"target": {"kind": ["onnx"], "precision": "int4"}}, "target"),
        ({"target": {"kind": "onnx", "precision": "q8_0"}}, "target"),
        ({"target": {"kind": "onnx", "precision": "int4", "device": "moon"}}, "target"),
        ({"adapters": [{}], "stop_ids": ["a"]}, "stop_ids, adapters"),
        ({"context": "2048", "base": 7}, "base, context"),
        ({"context": 0}, "context"),
        ({"files": [], "facts": None}, "files, facts"),
    ],
)
def test_values_that_no_export_has_are_damage_and_all_are_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path = made(tmp_path).folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(VerificationError, match=f"what it says of {named} cannot be"):
        read_artifact(tmp_path, check=False)
