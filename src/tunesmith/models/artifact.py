"""What an export leaves on the disk: a folder with `artifact.json`, which says what it is and of what it was made.

Written last, with the SHA-256 of every other file, so a folder without it was never finished, and one whose hashes
differ was changed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.runs import write_json

MANIFEST = "artifact.json"

Kind = Literal[
    "adapter", "merged", "torchao", "gptq", "awq", "fp8", "onnx", "onnx-multi", "onnx-plain", "openvino", "gguf"
]
Device = Literal["cpu", "cuda", "directml", "npu"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PRECISIONS: Mapping[Kind, tuple[str, ...]] = {
    "adapter": ("own",),
    "merged": ("own", "fp32", "bf16", "fp16"),
    "torchao": ("int8", "int4"),
    "gptq": ("int4", "int8"),
    "awq": ("int4",),
    "fp8": ("fp8",),
    "onnx": ("int4", "int8", "fp16", "fp32"),
    "onnx-multi": ("int4", "int8", "fp16", "fp32"),
    "onnx-plain": ("fp32", "int8"),
    "openvino": ("fp16", "int8", "fp32"),
    "gguf": ("q8_0", "f16", "f32", "q4_0", "q4_k_m", "q5_k_m", "q6_k"),
}
"""What each kind can hold its weights in, the default first. `own` is the dtype they have already."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be made: a kind, the precision of its weights (one of `PRECISIONS`), and for what it is meant."""

    kind: Kind
    precision: str
    device: Device = "cpu"
    runtime: str | None = None

    def __str__(self) -> str:
        return self.kind if self.precision == "own" else f"{self.kind}-{self.precision}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished export.

    Attributes
    ----------
    files: SHA-256 of every file below `folder`, by its path there with slashes; the manifest itself is not among them.
    bytes: of all of them.
    base, base_sha256: the base as the recipe names it, and the hash of its weights.
    adapters: names that can be switched to where the artifact holds several; empty where it is one model.
    chat_template: as the recipe names it; the template's text lies in the folder.
    template_sha256: of the template's text; None where nothing is asked by one.
    stop_ids: tokens that end an answer.
    context: longest prompt plus answer, in tokens.
    versions: of the libraries that made it.
    facts: what else is worth knowing, such as bits per weight.
    """

    folder: Path
    target: Target
    files: Mapping[str, str]
    bytes: int
    base: str
    base_sha256: str
    chat_template: str
    template_sha256: str | None
    stop_ids: tuple[int, ...]
    context: int
    adapters: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it was kept aside because a check failed."""
        return self.facts.get("verification", {}).get("passed") is False


def hash_files(folder: Path) -> tuple[dict[str, str], int]:
    """SHA-256 of every file below a folder but its manifest, by relative path; and their bytes in all."""
    found, size = {}, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
        size += path.stat().st_size
    return found, size


def write_artifact(artifact: Artifact) -> None:
    """Write the manifest into the artifact's folder."""
    kept = {key: value for key, value in asdict(artifact).items() if key != "folder"}
    write_json(artifact.folder / MANIFEST, kept)


def read_artifact(folder: Path, *, check: bool = True) -> Artifact:
    """The artifact in a folder. `check` compares every file with its hash.

    Raises `RecipeError` where there is none, `VerificationError` where it is damaged; all files that differ are named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RecipeError("no export is here", where=str(folder), expected=f"a folder with {MANIFEST}")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        target = Target(**kept.pop("target"))
        stops, adapters = tuple(kept.pop("stop_ids")), tuple(kept.pop("adapters"))
        artifact = Artifact(folder=folder, target=target, stop_ids=stops, adapters=adapters, **kept)
        _refuse_odd(artifact)
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise VerificationError(
            f"this file does not describe an export: {problem}", where=str(path), fix="export again"
        ) from problem
    if check:
        _refuse_changed(artifact)
    return artifact


def _refuse_odd(artifact: Artifact) -> None:
    """Raise `ValueError` for values of types, or targets, that no export has; all are named."""
    target = artifact.target
    right = {
        "target": target.kind in KINDS
        and target.precision in PRECISIONS[target.kind]
        and target.device in get_args(Device),
        "base": isinstance(artifact.base, str),
        "chat_template": isinstance(artifact.chat_template, str),
        "context": isinstance(artifact.context, int) and artifact.context > 0,
        "stop_ids": all(isinstance(one, int) for one in artifact.stop_ids),
        "adapters": all(isinstance(one, str) for one in artifact.adapters),
        "base_sha256": re.fullmatch("[0-9a-f]*", str(artifact.base_sha256)) is not None,
        "files": isinstance(artifact.files, dict),
        "facts": isinstance(artifact.facts, dict),
    }
    if wrong := [name for name, fine in right.items() if not fine]:
        raise ValueError(f"what it says of {', '.join(wrong)} cannot be")


def refuse_failed(artifact: Artifact) -> None:
    """Raise `VerificationError` for an export that was kept aside: it is not the model that was tuned."""
    if artifact.failed:
        raise VerificationError(
            "this export was kept aside, as a check of it failed",
            where=str(artifact.folder),
            expected="an export that passed",
            fix="look into its verification.json; export it in a higher precision, or another format",
        )


def _refuse_changed(artifact: Artifact) -> None:
    found, _ = hash_files(artifact.folder)
    kinds = {
        "missing": sorted(artifact.files.keys() - found.keys()),
        "new": sorted(found.keys() - artifact.files.keys()),
        "changed": sorted(k for k in artifact.files.keys() & found.keys() if artifact.files[k] != found[k]),
    }
    said = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if said:
        raise VerificationError(
            f"the files are not those that were exported ({'; '.join(said)})",
            where=str(artifact.folder),
            fix="export again, or bring back the files",
        )
