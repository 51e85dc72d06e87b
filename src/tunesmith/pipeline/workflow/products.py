"""What goes from step to step: the tuned model, and the last export of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.export.source import FolderSource, open_folders, open_source
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.torch_artifacts import ProbedTorchEngine
from tunesmith.inference.types import ProbedEngine
from tunesmith.models.artifact import hash_files, read_artifact
from tunesmith.models.methods import CARD
from tunesmith.pipeline.exporting.types import VERIFICATION
from tunesmith.pipeline.workflow.types import Subject
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, stage_key

_TOLD = (CARD, VERIFICATION)
"""Files of an export that tell of it, with times in them, and that no answer depends on."""


@dataclass(frozen=True, slots=True)
class Product:
    """A model on its way through a workflow.

    Attributes
    ----------
    run: folder of the run that tuned it; None for a model without one, which `base` and `adapter` name.
    artifact: folder of the last export of it, None before there is one; `adapter_name` is asked there.
    tuned: False for the base as it was before tuning, asked in the same way.
    """

    run: Path | None
    base: str | None = None
    adapter: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    chat_template: str = "auto"
    artifact: Path | None = None
    adapter_name: str | None = None
    tuned: bool = True

    def folder(self) -> RunFolder:
        """The run. Raises `RecipeError` where there is none."""
        if self.run is None:
            raise RecipeError("this model comes without a run, so there are no rows", where="evaluate")
        return RunFolder.open(self.run)

    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return load_recipe(self.folder().recipe_file)

    def source(self) -> FolderSource:
        """The tuned model, for exporting."""
        if self.run is not None:
            return open_source(self.folder(), self.recipe())
        assert self.base is not None
        return open_folders(self.base, self.adapter, self.chat_template)

    def sources(self) -> dict[str, FolderSource]:
        """The tuned model and the further adapters by their names, for an export that holds several."""
        source = self.source()
        further = {
            name: open_folders(source.recipe.base.model, path, source.recipe.base.chat_template, name=name)
            for name, path in self.adapters.items()
        }
        return {**({source.name: source} if source.is_adapter else {}), **further}

    def engine(self) -> ProbedEngine:
        """The last export opened, or the tuned model where there is none."""
        if self.artifact is not None:
            return open_artifact(read_artifact(self.artifact), self.adapter_name)
        source = self.source()
        base = source.open()[0] if self.tuned else source.open_base()
        return ProbedTorchEngine(base.model, source.renderer, source.context)

    def sha256(self) -> str:
        """Of the tuned model: its weights, its base's, and how it is asked."""
        source = self.source()
        return stage_key(
            base=source.base_sha256,
            tuned=hash_files(source.tuned)[0] if source.tuned != source.base_folder else None,
            template=source.template,
            adapters={name: hash_files(path)[0] for name, path in self.adapters.items()},
        )

    def content_sha256(self) -> str:
        """Of what would be asked: the export where there is one, else the tuned model."""
        if self.artifact is not None:
            files, _ = hash_files(self.artifact)
            return stage_key(files={name: sha for name, sha in files.items() if name not in _TOLD})
        return stage_key(tuned=self.sha256() if self.tuned else None, base=self.source().base_sha256)

    def bytes(self) -> int:
        """On the disk: all of an export's files; of a tuned model its weights, with its base's below an adapter."""
        if self.artifact is not None:
            return read_artifact(self.artifact, check=False).bytes
        source = self.source()
        whole = {source.tuned, source.base_folder} if source.is_adapter else {source.tuned}
        folders = whole if self.tuned else {source.base_folder}
        return sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


def first_product(subject: Subject) -> Product:
    """What the first step gets; of a recipe nothing yet, as `train` makes it. Raises `RecipeError`."""
    if subject.run is not None:
        return Product(RunFolder.open(subject.run).path, adapters=subject.adapters)
    return Product(None, subject.base, subject.adapter, adapters=subject.adapters, chat_template=subject.chat_template)
