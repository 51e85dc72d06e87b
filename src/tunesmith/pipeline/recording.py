"""The resolved recipe and the manifest of a run: what it is made of and on what."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tunesmith.models.load import LoadedBase
from tunesmith.pipeline.continuing import identity
from tunesmith.pipeline.evidence import COMPARISON
from tunesmith.pipeline.loading import TASK
from tunesmith.pipeline.named_files import named_files
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import dump_recipe, recipe_hash
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, environment, write_json, write_text
from tunesmith.tasks import task_record

PARTS = ("train", "validation", "test")


def record(prepared: Prepared, recipe: Recipe, folder: RunFolder) -> None:
    """Write the resolved recipe and the manifest."""
    reasons = {c.key: c.reason for c in prepared.choices}
    write_text(folder.recipe_file, dump_recipe(prepared.recipe, reasons, omit_auto=True))
    write_json(folder.path / TASK, task_record(prepared.task))
    rows = prepared.rows
    data = {
        "files_sha256": rows.sources,
        "other_files_sha256": named_files(recipe),
        "splits_sha256": dict(rows.splits.hashes),
        "rows": {part: len(getattr(rows.splits, part)) for part in PARTS},
        "left_out": rows.left_out,
    }
    more = {
        "chat_template": prepared.renderer.template,
        "test_rows_in_training_text": list(prepared.seen_test_rows),
    }
    update_manifest(folder, recipe, prepared.recipe, data, prepared.base, more)


def update_manifest(
    folder: RunFolder,
    asked: Recipe,
    resolved: Recipe,
    data: Mapping[str, Any],
    base: LoadedBase,
    more: Mapping[str, Any],
) -> None:
    """Write down rows, base, seed, environment and command; `more` is said of the base.

    Where rows, or files beside them, are no longer those that were written down, no stage counts as reached any more.
    """
    _forget_what_changed(folder, data)
    folder.update_manifest(
        recipe_sha256=recipe_hash(identity(asked)),
        data=dict(data),
        base={
            "model": base.name,
            "revision": base.revision,
            "weights_sha256": base.weights_sha256,
            "parameters": base.parameters,
            "context": base.context,
            **more,
        },
        seed=resolved.train.seed,
        environment=environment(),
        command=sys.argv,
    )


def _forget_what_changed(folder: RunFolder, data: Mapping[str, Any]) -> None:
    manifest = folder.manifest()
    known = manifest.get("data")
    if known is None or all(known.get(key, {}) == data.get(key, {}) for key in ("files_sha256", "other_files_sha256")):
        return
    (folder.path / COMPARISON).unlink(missing_ok=True)
    folder.update_manifest(reached=dict.fromkeys(manifest.get("reached", {}), False))
