"""The model that an export command names: a base, a base with an adapter, or what `finetune` left in a folder.

Where a model or an adapter comes from a run, the run is found again, so that the export is scored on its test rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.models.load import base_folder, files_sha256
from tunesmith.pipeline.olive.finetune import RUN
from tunesmith.pipeline.olive.layout import ADAPTER, MODEL
from tunesmith.pipeline.olive.project import Project
from tunesmith.runs import RunFolder
from tunesmith.runs.folder import is_run

if TYPE_CHECKING:
    from tunesmith.export.source import FolderSource


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to export: the run it comes from, or its folders."""

    name: str
    run: RunFolder | None = None
    base: str | None = None
    adapter: Path | None = None
    trust_remote_code: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether what was tuned is an adapter."""
        return self.run.adapter.is_dir() if self.run is not None else self.adapter is not None

    def source(self) -> FolderSource:
        """The tuned model on its way out. Raises as `open_source` and `open_folders`."""
        from tunesmith.export.source import open_folders, open_source
        from tunesmith.recipe import load_recipe

        if self.run is not None:
            return open_source(self.run, load_recipe(self.run.recipe_file))
        assert self.base is not None
        return open_folders(self.base, self.adapter, trust_remote_code=self.trust_remote_code)


def find_subject(
    model: str | None, adapter: str | None, project: Project, *, said: str = "--model_name_or_path",
    adapter_said: str = "--adapter_path", trust_remote_code: bool = False,
) -> Subject:  # fmt: skip
    """What a model's name and an adapter's folder mean together.

    Raises `RecipeError` where one is missing, or is an export already; `VerificationError` where the adapter was
    trained on other weights than the model's.
    """
    if adapter is not None:
        folder = adapter_folder(adapter, project, adapter_said)
        run = run_of(folder)
        if model is None and run is None:
            raise RecipeError("missing", where=said, expected="the folder of the base that the adapter belongs to")
        base = project.model(_model_in(model), said) if model is not None else None
        if run is not None:
            if base is not None:
                _refuse_other_base(run, base, folder)
            return Subject(_name(folder), run)
        return Subject(_name(folder), None, base, folder, trust_remote_code)
    if model is None:
        raise RecipeError("missing", where=said, expected="a model's folder, or a name in the alias file")
    place = Path(model).expanduser()
    if is_run(place) or is_run(place / RUN):
        run_folder = RunFolder.open(place if is_run(place) else place / RUN)
        return Subject(place.resolve().name, run_folder)
    _refuse_graph(place, said)
    if place.name == MODEL and is_run(place.parent / RUN):
        run_folder = RunFolder.open(place.parent / RUN)
        if not run_folder.adapter.is_dir():  # tuned in full: the folder is the tuned model
            return Subject(place.resolve().parent.name, run_folder)
    base = project.model(model, said)
    return Subject(Path(base.rpartition(":")[2]).name, None, base, None, trust_remote_code)


def _model_in(name: str) -> str:
    """The folder of the base where OUTPUT of `finetune` stands for it; every other name as it is."""
    model = Path(name).expanduser() / MODEL
    return str(model) if is_run(model.parent / RUN) and model.is_dir() else name


def adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a PEFT folder. Raises `EngineError` where it is none."""
    try:
        kept = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"this is no adapter: {error}", where=str(folder / CONFIG)) from error
    if not isinstance(kept, dict) or not isinstance(kept.get("base_model_name_or_path") or "", str):
        raise EngineError("this is no adapter's configuration", where=str(folder / CONFIG), expected="peft_type: LORA, "
                          "base_model_name_or_path: …")  # fmt: skip
    return kept


def adapter_folder(name: str, project: Project, said: str) -> Path:
    """The PEFT folder that a path means: itself, or the `adapter/` in what `finetune` wrote. Raises `RecipeError`."""
    place = Path(project.models.get(name, name)).expanduser()
    for folder in (place, place / ADAPTER):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    raise RecipeError(
        f"there is no adapter in {name!r}",
        where=said,
        expected=f"a folder with {CONFIG}, or one that `tunesmith olive finetune` wrote",
    )


def run_of(adapter: Path) -> RunFolder | None:
    """The run that trained an adapter, where it lies beside it and still has the same one."""
    for folder in (adapter.parent / RUN, adapter.parent):
        if not is_run(folder):
            continue
        run = RunFolder.open(folder)
        own, given = run.adapter / WEIGHTS, adapter / WEIGHTS
        if own.is_file() and given.is_file() and files_sha256([own]) == files_sha256([given]):
            return run
    return None


def _refuse_other_base(run: RunFolder, base: str, adapter: Path) -> None:
    expected = run.manifest().get("base", {}).get("weights_sha256")
    folder = base_folder(base)
    if expected is None or folder is None:
        return
    found = files_sha256(sorted(folder.glob("*.safetensors")))
    if found != expected:
        raise VerificationError(
            "the adapter was trained on other weights than this model's",
            where=str(adapter), expected=f"weights with the SHA-256 {expected[:16]}…; {folder} has {found[:16]}…",
            fix="give the base that it was trained on",
        )  # fmt: skip


def _refuse_graph(place: Path, said: str) -> None:
    if place.suffix == ".onnx" or (place.is_dir() and not (place / "config.json").is_file() and _has_graph(place)):
        raise RecipeError(
            "this is an ONNX graph, which says no more which weights were tuned",
            where=f"{said}: {place}", expected="the model it was made of, with its adapter",
            fix="give the folders with safetensors (OUTPUT/model and OUTPUT/adapter of finetune)",
        )  # fmt: skip


def _has_graph(place: Path) -> bool:
    return any(place.glob("*.onnx")) or any(place.glob("model/*.onnx"))


def _name(adapter: Path) -> str:
    return adapter.parent.name if adapter.name == ADAPTER else adapter.name
