"""Whether a folder is what was written, before it is sent anywhere."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.bundle.launch import MODEL
from tunesmith.export.bundle.write import SUMS
from tunesmith.models.artifact import MANIFEST, Artifact, hash_files, read_artifact, refuse_failed


def ready_to_send(folder: Path) -> Artifact:
    """The export in a bundle, or in its own folder, with every file compared with its hash.

    Raises `RecipeError` where neither is there, `VerificationError` where a file was changed, and for an export that
    was kept aside.
    """
    if (folder / MANIFEST).is_file():
        artifact = read_artifact(folder)
        refuse_failed(artifact)
        return artifact
    if not (folder / SUMS).is_file():
        raise RecipeError(
            "neither a bundle nor an export is here", where=str(folder), expected=f"a folder with {SUMS} or {MANIFEST}"
        )
    lines = [line.partition("  ") for line in (folder / SUMS).read_text("utf-8").splitlines()]
    expected = {name: digest for digest, _, name in lines}
    found, _ = hash_files(folder)
    found.pop(SUMS)
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if changed:
        raise VerificationError(
            f"the bundle was changed: {', '.join(changed)}", where=str(folder), fix="make the bundle again"
        )
    return read_artifact(folder / MODEL)
