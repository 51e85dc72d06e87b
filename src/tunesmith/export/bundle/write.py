"""Writing a bundle: the export is checked, copied, and given all that it needs elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.export.bundle.card import card
from tunesmith.export.bundle.launch import MODEL, START, launch
from tunesmith.export.bundle.sbom import sbom
from tunesmith.export.bundle.types import Bundled, Story, server_for
from tunesmith.models.artifact import hash_files, read_artifact, refuse_failed
from tunesmith.models.writing import system_errors
from tunesmith.runs import staged_folder

CARD, SBOM, SUMS = "README.md", "sbom.cdx.json", "SHA256SUMS"
_BESIDE = 1_000_000
"""Bytes that everything but the model takes at most."""


def write_bundle(export: Path, out: Path, story: Story, server: str | None = None) -> Bundled:
    """Make a bundle of the export in a folder, for a server (None: the usual one of its kind).

    The export's files are compared with their hashes first. Raises `RecipeError` where there is no export, the server
    does not take it, or `out` exists; `VerificationError` where it was changed or is no sound one; `ResourceError`
    where the disk is full.
    """
    artifact = read_artifact(export)
    refuse_failed(artifact)
    if out.exists():
        raise RecipeError("this path exists already", where=str(out), fix="choose another, or remove it")
    chosen = server_for(artifact, server)
    started = launch(artifact, chosen, story.name)
    with system_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
    if free < artifact.bytes + _BESIDE:
        raise ResourceError(
            f"the bundle takes {artifact.bytes / 1e6:,.0f} MB, the disk has {free / 1e6:,.0f} MB left",
            where=str(out),
            fix="free some, or choose another --out",
        )
    with staged_folder(out) as staged, system_errors(staged):
        shutil.copytree(export, staged / MODEL)
        for name, text in started.files.items():
            (staged / name).write_text(text, encoding="utf-8")
        (staged / START).chmod(0o755)
        (staged / CARD).write_text(card(artifact, story, chosen, started), encoding="utf-8")
        (staged / SBOM).write_text(json.dumps(sbom(artifact, story), indent=2, ensure_ascii=False) + "\n", "utf-8")
        hashes, size = hash_files(staged)
        sums = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
        (staged / SUMS).write_text(sums, encoding="utf-8")
    return Bundled(out, chosen, f"{out / START}", size)
