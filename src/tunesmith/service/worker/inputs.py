"""The files of a job under readable names, in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tunesmith.runs import staged_file
from tunesmith.service.errors import ApiError
from tunesmith.service.store.nouns import File, Job
from tunesmith.service.worker.desk import Desk


def lay_out(desk: Desk, job: Job) -> tuple[Path, Path | None]:
    """The training file and, if there is one, the validation file.

    They stay there although somebody deletes them from the server. Raises `ApiError` naming a file that is gone, or
    cannot be read.
    """
    training = _laid(desk, job.training_file, "training")
    if job.validation_file is None:
        return training, None
    return training, _laid(desk, job.validation_file, "validation")


def _laid(desk: Desk, file_id: str, part: str) -> Path:
    target = desk.inputs / f"{part}.jsonl"
    if target.is_file():
        return target
    param = f"{part}_file"
    file = desk.store.get(File, file_id)
    if file is None or file.blob is None:
        message = f"The file {file_id} was deleted before the job could read it."
        raise ApiError(400, message, param=param, code=f"invalid_{param}")
    try:
        source: Path = desk.blobs.path(file.blob)
        with staged_file(target) as staged:
            _name_too(source, staged)
    except (KeyError, PermissionError) as error:
        message = f"The content of the file {file_id} cannot be read on the server."
        raise ApiError(500, message, param=param, code="server_error") from error
    return target


def _name_too(source: Path, target: Path) -> None:
    """A second name for the bytes of a file; a copy where its disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
