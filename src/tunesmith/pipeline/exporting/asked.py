"""What is asked of an export, and what is refused before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.export.source import FolderSource
from tunesmith.models.artifact import MANIFEST, Target
from tunesmith.pipeline.exporting.targets import refuse_impossible


@dataclass(frozen=True, slots=True)
class Asked:
    """What one export is to be: `folder` is the one it gets, `bits` a plan of mixed precision, by module.

    mixed: mean KL in nats per token within which the writer makes such a plan itself.
    """

    target: Target
    folder: Path
    bits: Mapping[str, int]
    mixed: float | None = None


def refuse(asked: Sequence[Asked]) -> None:
    """Raise `RecipeError` for targets that are none, and for paths that are taken."""
    for one in asked:
        refuse_impossible(one.target)
        if one.mixed is not None and one.target.kind != "gptq":
            raise RecipeError(f"{one.target.kind} is not made with mixed precision", where="--mixed", expected="gptq")
        if one.mixed is not None and not one.mixed > 0:
            raise RecipeError(f"a mean KL of {one.mixed} cannot be kept", where="--mixed", expected="a number above 0")
        refuse_taken(one.folder)
    if len({one.folder for one in asked}) < len(asked):
        raise RecipeError("two exports would get the same folder", where="--to", fix="name each format once")


def refuse_taken(folder: Path) -> None:
    """Raise `RecipeError` where something lies at a path, or at the one that the export gets if a check fails."""
    if folder.exists():
        raise RecipeError("this path exists already", where=str(folder), fix="choose another, or remove it")
    if (aside := aside_of(folder)).exists() and not (aside / MANIFEST).is_file():
        raise RecipeError(
            "something else has the name that the export gets if it fails",
            where=str(aside),
            fix="choose another --out",
        )


def refuse_strangers(base: str, sources: Mapping[str, FolderSource]) -> None:
    """Raise `RecipeError` where adapters are not all of one base; all are named at once."""
    if not sources:
        raise RecipeError("there is nothing to pack", where="adapters", expected="name=RUN, at least one")
    whole = [name for name, source in sources.items() if not source.is_adapter]
    hashes = {source.base_sha256 for source in sources.values()}
    other = [name for name, source in sources.items() if source.recipe.base.model != base]
    said = []
    if whole:
        said.append(f"{', '.join(whole)} {'is' if len(whole) == 1 else 'are'} tuned in full")
    if len(hashes) > 1 or (other and len({sources[n].base_folder for n in sources}) > 1):
        said.append("they were tuned on different bases")
    if said:
        raise RecipeError(
            "; ".join(said), where="adapters", expected=f"adapters of {base}, all of the same weights",
            fix="pack only adapters of one base",
        )  # fmt: skip


def aside_of(folder: Path) -> Path:
    """Where an export is kept that failed."""
    return folder.with_name(f"{folder.name}.failed")
