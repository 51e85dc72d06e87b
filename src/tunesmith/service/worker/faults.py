"""Why a job failed, as its `error` says it: in words for whoever made the job, without paths of this machine."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, EngineError, RecipeError, ResourceError, TunesmithError, VerificationError
from tunesmith.service.errors import ApiError
from tunesmith.service.jobs.rules import Checked, fault_of_rows

if TYPE_CHECKING:
    from tunesmith.data.types import Finding

_CODES: tuple[tuple[type[TunesmithError], str, str | None], ...] = (
    (DataError, "invalid_training_file", "training_file"),
    (RecipeError, "invalid_hyperparameters", None),
    (ResourceError, "insufficient_resources", None),
    (VerificationError, "verification_failed", None),
    (EngineError, "model_error", "model"),
)
_VALIDATION = "validation.jsonl"
"""What `inputs` calls a job's validation file."""
_PATH = re.compile(r"(?<![\w:/.])(?:/[\w.+@~-]+){2,}/?")


def fault(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """A job's `error`."""
    return {"code": code, "message": message, "param": param}


def fault_of(error: Exception, home: Path) -> dict[str, Any]:
    """The `error` of a job that ended with this exception.

    A mistake of ours says no more than that it is one: what it was stands in the log.
    """
    if isinstance(error, ApiError):
        return fault(error.code or "server_error", without_paths(error.message, home), error.param)
    if isinstance(error, DataError) and (
        found := [one for one in getattr(error, "findings", ()) if one.severity == "error"]
    ):
        return _of_findings(found, home)
    if isinstance(error, TunesmithError) and type(error).__name__ == "DivergenceError":
        said = f"The training diverged: {error.what}. Create the job again with a smaller learning_rate_multiplier."
        return fault("invalid_hyperparameters", said, "hyperparameters.learning_rate_multiplier")
    memory = out_of_memory(error)
    if memory is not None:
        return fault("insufficient_resources", f"The job ran out of memory: {memory}. {_LEANER}")
    if isinstance(error, OSError):
        return fault("insufficient_resources", _of_the_system(error))
    if isinstance(error, TunesmithError):
        code, param = _code_of(error)
        if code == "model_not_found":
            missing = f"The base that stands for this job's model cannot be used on the server: {error.what}."
            return fault(code, without_paths(missing, home), param)
        said = error.what if error.expected is None else f"{error.what} (expected: {error.expected})"
        return fault(code, without_paths(_sentence(said), home), param)
    return fault("server_error", "The job failed because of an error of the server; its log says more.")


def _of_findings(found: Sequence[Finding], home: Path) -> dict[str, Any]:
    """Rows that only the training could find to be wrong, as `rules` tells those that it finds itself."""
    faults = []
    for one in found:
        made = fault_of_rows(one, "validation" if _VALIDATION in (one.source or "") else "training")
        faults.append(replace(made, message=without_paths(made.message, home)))
    return Checked(tuple(faults), None, 0, 0).error() or {}


def _code_of(error: TunesmithError) -> tuple[str, str | None]:
    where = error.where or ""
    if isinstance(error, DataError) and _VALIDATION in where:
        return "invalid_validation_file", "validation_file"
    if isinstance(error, RecipeError) and where.startswith("base."):
        return "model_not_found", "model"
    return next(((code, param) for kind, code, param in _CODES if isinstance(error, kind)), ("server_error", None))


def died(attempts: int, signal_name: str | None) -> dict[str, Any]:
    """The `error` of a job whose process died again and again."""
    how = "" if signal_name is None else f" ({signal_name}{_OFTEN.get(signal_name, '')})"
    return fault(
        "server_error",
        f"The job's process ended unexpectedly {attempts} times{how}. The server's log says more; create the job again "
        "once the cause is mended.",
    )


def out_of_memory(error: BaseException) -> str | None:
    """What was short, where an exception means that memory was; else None."""
    if isinstance(error, MemoryError):
        return "there is not enough"
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has not enough"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "there is not enough"
    return None


_OFTEN = {"SIGKILL": ": often too little memory"}
_LEANER = "Use shorter examples, a smaller batch_size or a smaller base."


def without_paths(text: str, home: Path) -> str:
    """The text with paths of this machine cut down to their last part."""
    ours = re.compile(re.escape(str(home)) + r"(?:/[\w.+@~-]+)*/?")
    for paths in (ours, _PATH):
        text = paths.sub(lambda found: Path(found.group()).name, text)
    return text


def _of_the_system(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The server's disk is full, so the job could not be continued. Free space and create the job again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "The server may not read or write a file that the job needs."
    return f"The operating system refused something that the job needs: {(error.strerror or 'unknown').lower()}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
