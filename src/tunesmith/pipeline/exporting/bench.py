"""What all trials of `--auto` share: rows, the tuned model's side, what earlier calls found, and where it all lies."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.source import FolderSource
from tunesmith.models.artifact import Artifact, Target, hash_files, read_artifact
from tunesmith.pipeline.exporting.choosing import Judged, Limits, Outcome, Wish, outcome_from_dict
from tunesmith.pipeline.exporting.records import AUTO, EXPORTS
from tunesmith.pipeline.exporting.reference import Reference, Tell, measure_reference
from tunesmith.pipeline.exporting.rows import FrozenRows, Part, calibration_ids, frozen_rows
from tunesmith.pipeline.exporting.types import Verification
from tunesmith.pipeline.exporting.verify import margin_of
from tunesmith.pipeline.workflow.cache import step_key
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, environment

FOLDER = "auto"
"""Folder below a run's `export/` with the exports among which is chosen."""
_KEPT = 1
"""Of how outcomes are measured and kept; a change must change it, so that what was kept before is measured anew."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wanted of an export: limits, and what is best among those within them.

    max_loss: of the deciding metric (0-1); None takes the recipe's margin. max_bytes: with the base that it needs.
    max_latency: seconds to a whole answer. accept_unsure: take also what too few rows cannot show to be within
    `max_loss`, where it measured so.
    """

    best: Wish = "speed"
    max_loss: float | None = None
    max_bytes: int | None = None
    max_latency: float | None = None
    accept_unsure: bool = False


class Bench:
    """What all trials share; the tuned model is asked only when the first needs it."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        source: FolderSource,
        rows: FrozenRows,
        wishes: Wishes,
        scratch: Path,
        tell: Tell,
    ) -> None:
        self.folder, self.recipe, self.source, self.rows = folder, recipe, source, rows
        self.wishes, self.scratch, self.tell = wishes, scratch, tell
        self.answers = folder.evaluation / EXPORTS / "validation"
        self.file = folder.evaluation / EXPORTS / AUTO
        self.before = _read(self.file)
        margin, whose = margin_of(recipe, wishes.max_loss)
        self.limits = Limits(
            margin, whose, wishes.max_bytes, wishes.max_latency, wishes.accept_unsure,
            recipe.evaluate.confidence, recipe.verdict.power,
        )  # fmt: skip

    @cached_property
    def reference(self) -> Reference:
        """The tuned model's side on validation rows."""
        return self._reference("validation", self.rows, self.answers)

    def test_reference(self) -> Reference:
        """The same on the frozen test rows; asked for once, when the choice was made."""
        rows = frozen_rows(self.folder, self.recipe)
        if isinstance(rows, str):
            raise RecipeError(f"the choice cannot be confirmed: {rows}", where=str(self.folder.path))
        return self._reference("test", rows, self.folder.evaluation)

    def _reference(self, part: Part, rows: FrozenRows, answers: Path) -> Reference:
        found = measure_reference(self.source, rows, answers, self.scratch / part, self.tell)
        gc.collect()
        return found

    @cached_property
    def calibration(self) -> Sequence[Sequence[int]]:
        """Training rows for quantisers."""
        return calibration_ids(self.rows, self.source.renderer, self.recipe)

    @cached_property
    def _inputs(self) -> Mapping[str, Any]:
        """What decides every outcome beside its target."""
        source, here = self.source, environment()
        return {
            "base": source.base_sha256,
            "tuned": hash_files(source.tuned)[0],
            "template": source.template,
            "rows": self.folder.manifest()["data"]["splits_sha256"],
            "evaluate": self.recipe.evaluate,
            "metric": str(self.recipe.goal.metric),
            "seed": self.recipe.train.seed,
            "machine": {name: here[name] for name in ("platform", "cpu", "cores", "gpu")},
        }

    def key(self, target: Target) -> str:
        """Hash of all that decides what comes of a target."""
        return step_key("auto", kept=_KEPT, target=target, **self._inputs)

    def place(self, target: Target) -> Path:
        """Where the export of a target lies while it may be chosen."""
        return self.folder.path / "export" / FOLDER / str(target)

    def known(self) -> dict[str, Outcome]:
        """Outcomes of earlier calls by their keys: those that were measured. Others may come out otherwise now."""
        try:
            kept = [outcome_from_dict(one) for one in self.before.get("outcomes", ())]
            return {one.key: one for one in kept if one.line is not None}
        except (KeyError, TypeError, AttributeError):
            return {}

    def confirmed_before(self, chosen: Judged) -> Verification | None:
        """What the test rows said of this very export, where it was chosen before with the same loss allowed."""
        if chosen.outcome.key not in self.known() or self.before.get("chosen") != chosen.outcome.name:
            return None
        place, margin = str(self.place(chosen.outcome.target)), self.limits.max_loss
        try:
            same = self.before["path"] == place and self.before["limits"]["max_loss"] == margin
            said = self.before["confirmed"] if same else None
            return verification_from(said) if said is not None else None
        except (KeyError, TypeError, AttributeError):
            return None

    def whole(self, target: Target) -> Artifact | None:
        """The export of a target, if it lies there undamaged."""
        try:
            return read_artifact(self.place(target))
        except (RecipeError, VerificationError):
            return None


def _read(file: Path) -> dict[str, Any]:
    """What an earlier call left; nothing where there is none, or what is there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def verification_from(said: Mapping[str, Any]) -> Verification:
    """A verification from its JSON values. Raises `KeyError` or `TypeError` for something else."""
    return Verification.from_dict({name: value for name, value in said.items() if name != "passed"})
