"""A stage of a run: keyed by a hash of its inputs, read when it was done before, begun anew when they changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.named_files import task_files
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.runs import RunFolder, stage_key, write_text
from tunesmith.text.render import TOOLS_VERSION

_PROGRESS_SECONDS = 0.5


class Stage:
    """One stage in a run folder: `result` is what an earlier process left for the same inputs, or None.

    Leftovers of a begun stage with other inputs (`paths`, relative to the run) are removed.
    """

    def __init__(self, folder: RunFolder, name: str, paths: Sequence[str], **inputs: Any) -> None:
        self.folder, self.name, self.key = folder, name, stage_key(**inputs)
        self.result = folder.stage_done(name, self.key)
        begun = folder.path / "stages" / f"{name}.begun"
        if self.result is None and not (begun.is_file() and begun.read_text() == self.key):
            for pattern in paths:
                for path in folder.path.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_text(begun, self.key)

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result under the key."""
        self.folder.finish_stage(self.name, self.key, result)


def data_key(prepared: Prepared) -> dict[str, Any]:
    """What every stage depends on: rows, base, rendering, task."""
    renderer = prepared.renderer
    # Only where there are tools: every other run goes on with what it has done before they were rendered.
    tools = {"version": TOOLS_VERSION, "source": renderer.source, "how": renderer.tools}
    return {
        "splits": dict(prepared.rows.splits.hashes),
        "base": prepared.base.weights_sha256,
        "template": renderer.template,
        "task": prepared.recipe.task.model_dump(),
        "dtype": prepared.recipe.base.dtype,
        "quantize": prepared.recipe.method.quantize,
        "add_tokens": prepared.recipe.base.add_tokens,
        **({"tools": tools} if prepared.has_tools else {}),
        **({"task_files": files} if (files := task_files(prepared.recipe)) else {}),
    }


def engine_of(prepared: Prepared) -> TorchEngine:
    """The base (or, once tuned in place, the tuned model) as an engine."""
    limit = prepared.base.context
    return TorchEngine(prepared.base.model, prepared.renderer, limit, prepared.recipe.evaluate.batch_size)


def progress(listener: Listener, stage: str, label: str) -> Callable[[int, int], None]:
    """A callback `(done, total)` that tells the listener now and then."""
    began = time.monotonic()
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told < _PROGRESS_SECONDS:
            return
        told = time.monotonic()
        listener(
            {
                "kind": "progress",
                "stage": stage,
                "label": label,
                "done": done,
                "total": total,
                "unit": "rows",
                "seconds": time.monotonic() - began,
            }
        )

    return tell
