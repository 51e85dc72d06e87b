"""What a job leaves: models that were asked once and answered, and files to take away."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from tunesmith.data.types import Message
from tunesmith.errors import VerificationError
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.models.methods import load_tuned
from tunesmith.pipeline.opening import open_base
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import staged_folder
from tunesmith.service.store.nouns import File
from tunesmith.service.worker.desk import Desk
from tunesmith.text.render import Renderer

ADAPTER_ZIP = "adapter.zip"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of everything in an archive, so that equal adapters make equal archives."""
_QUESTION = (Message("user", "Hello"),)


def place_model(desk: Desk, step: int, made: Path) -> str:
    """Put a model's folder where servers look for it; returns its place within the home folder.

    The name depends on job and step alone, so a worker that was killed half-way leaves nothing behind.
    """
    place = f"models/{hashlib.sha256(f'{desk.job_id}/{step}'.encode()).hexdigest()[:24]}"
    target = desk.settings.home / place
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(target) as staged:
            shutil.copytree(made, staged, dirs_exist_ok=True)
    return place


def require_answer(recipe: Recipe, folder: Path) -> None:
    """Load a model from its folder as a server does, and ask it once.

    Raises `EngineError` or `VerificationError` where it cannot be loaded, or does not answer.
    """
    base, _ = open_base(recipe)
    load_tuned(base, folder, recipe.method)
    engine = TorchEngine(base.model, Renderer(base.tokenizer, recipe.base.chat_template), base.context)
    answer = next(iter(engine.generate([_QUESTION], 4)))
    if answer.answer_tokens < 1:
        raise VerificationError("the tuned model writes nothing", where=str(folder))


def archive(desk: Desk, folder: Path, name: str) -> File:
    """A model's folder as one file to take away; the record is still to be added."""
    staged = desk.inputs / name
    try:
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EARLIEST)
                with path.open("rb") as source, packed.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        return desk.result_file(name, staged)
    finally:
        staged.unlink(missing_ok=True)
