"""A run laid out as Olive's commands expect it: `adapter/` and `model/` beside it, and the metrics in one file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.models.load import base_folder
from tunesmith.runs import is_run, staged_folder, write_json
from tunesmith.runs.events import event_json, read_events

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.finetune import Plan
    from tunesmith.pipeline.result import Result

_LEFT_OUT = (
    ".*",
    "*.hashes",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.onnx.data",
    "*.onnx_data",
)
"""What of a base's folder is not taken along: hidden files, and the same weights in formats that are not read here."""
ADAPTER, MODEL, METRICS = "adapter", "model", "metrics.json"


def refuse_occupied(plan: Plan) -> None:
    """Raise `RecipeError` where a finished output would take the place of what no earlier one wrote."""
    output = plan.output.resolve()
    base = base_folder(plan.recipe.base.model)
    if base is not None and base.resolve() in (output, output / MODEL):
        raise RecipeError("this is the base's own folder", where=f"--output_path {plan.output}", fix="choose another")
    there = [name for name in (ADAPTER, MODEL) if (output / name).exists()]
    if there and not is_run(plan.run_folder):
        raise RecipeError(
            f"{' and '.join(there)} in it would be written over, and no run beside it made that",
            where=f"--output_path {plan.output}", fix="choose another folder",
        )  # fmt: skip


def write_output(plan: Plan, result: Result) -> None:
    """Put adapter, model and metrics of a finished run into its output folder.

    Files of weights are linked where the disk can (a base may be large), else copied. A folder that is there already
    is written anew. Raises `ResourceError` where it cannot be written.
    """
    folder, output = result.folder, plan.output
    if folder.adapter.is_dir():
        _link_folder(folder.adapter, output / ADAPTER)
        base = base_folder(result.recipe.base.model)
        if base is not None:
            _link_folder(base, output / MODEL)
    else:
        _link_folder(folder.model, output / MODEL)
    write_json(output / METRICS, metrics_of(result))


def metrics_of(result: Result) -> dict[str, Any]:
    """What is known of how well it went, as JSON values: training, validation, test rows, verdict."""
    told = event_json(result.to_dict())
    kept = {key: told[key] for key in ("training", "comparison", "verdict", "candidates", "report")}
    history = [
        {key: value for key, value in event.items() if key not in ("seq", "time", "kind")}
        for event in read_events(result.folder.events_file)
        if event.get("kind") == "validation"
    ]
    return {**kept, "validation": history}


def link_logs(logs: Path, run: Path, name: str) -> None:
    """Make the TensorBoard files of a run appear below `logs` while it goes on. Raises `RecipeError` where something
    else is there."""
    target = run.resolve() / "tensorboard"
    link = logs / name
    try:
        logs.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.resolve() != target:
            link.unlink()
        if not link.exists() and not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
        elif not link.is_symlink():
            raise RecipeError(
                "something else is here already", where=str(link), expected="a folder for this run's logs",
                fix="choose another --logging_dir",
            )  # fmt: skip
    except OSError as error:
        raise ResourceError(
            f"cannot be written: {error.strerror}", where=str(logs), fix="choose another --logging_dir"
        ) from error


def _link_folder(source: Path, target: Path) -> None:
    """A folder with the same files, without `_LEFT_OUT` and an output folder that lies in it."""
    patterns, output = shutil.ignore_patterns(*_LEFT_OUT), target.parent.resolve()

    def left_out(folder: str, names: list[str]) -> set[str]:
        return patterns(folder, names) | {name for name in names if Path(folder, name).resolve() == output}

    with staged_folder(target) as staged:
        shutil.copytree(source, staged, dirs_exist_ok=True, copy_function=_link, ignore=left_out)


def _link(source: str, target: str) -> str:
    """One file, linked where it is of weights and the disk can, else copied."""
    real = os.path.realpath(source)  # a hub's cache holds links of its own
    if source.endswith(".safetensors"):
        try:
            os.link(real, target)
            return target
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(real, target)
    return target
