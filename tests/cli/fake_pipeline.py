"""A pipeline without models, for tests of the command line: it answers what it is asked with what it was given."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.types import Finding, Message, ToolCall
from tunesmith.errors import DataError, EngineError, ResourceError, VerificationError
from tunesmith.recipe import Choice, Recipe
from tunesmith.runs import RunFolder
from tunesmith.verdict.types import Verdict

Listener = Callable[[dict[str, Any]], None]

TRAINING = {"steps": 4, "tokens": 1200, "seconds": 2.0, "tokens_per_second": 600.0, "peak_memory_bytes": 3 * 2**20}
ROWS = [
    {"candidate": "zero_shot", "metric": "accuracy", "value": 0.25, "low": 0.2, "high": 0.3, "n": 80},
    {"candidate": "tuned", "metric": "accuracy", "value": 0.75, "low": 0.7, "high": 0.8, "n": 80},
    {"candidate": "tuned", "metric": "macro_f1", "value": 0.7, "low": 0.6, "high": 0.8, "n": 80},
]
VERDICT = Verdict("ship_tuned", "tuned", "Tuned is 50 points better.", "gain", None, "accuracy", caveats=("a caveat",))
ANSWERING = {"kind": "progress", "stage": "baselines", "label": "few_shot", "total": 80, "unit": "rows"}
EVENTS: list[dict[str, Any]] = [
    {"kind": "stage_started", "stage": "baselines", "title": "baselines"},
    {**ANSWERING, "done": 40, "seconds": 2},
    {**ANSWERING, "done": 80, "seconds": 4},
    {"kind": "stage_finished", "stage": "baselines", "seconds": 4.0, "cached": False},
    {"kind": "stage_started", "stage": "train", "title": "training"},
    {"kind": "train_started", "steps": 4, "rows": 16, "parameters": 1000, "trainable": 10},
    *(
        {
            "kind": "train_step",
            "step": step,
            "steps": 4,
            "epoch": step / 2,
            "loss": 2.0 / step,
            "learning_rate": 1e-3,
            "grad_norm": 0.5,
            "tokens_per_second": 600.0,
            "seconds": step * 0.5,
            "memory_bytes": 3 * 2**20,
        }
        for step in range(1, 5)
    ),
    {"kind": "validation", "step": 4, "loss": 0.6, "metrics": {"accuracy": 0.5}, "best": True},
    {"kind": "warning", "text": "one [row] was left out"},
    {"kind": "stage_finished", "stage": "train", "seconds": 2.0, "cached": False},
]
RAISES: dict[str, Callable[[], BaseException]] = {
    "data": lambda: DataError("no rows", where="rows.csv, line 3", expected="rows", fix="add rows"),
    "resource": lambda: ResourceError("no space"),
    "verification": lambda: VerificationError("hash differs"),
    "engine": lambda: EngineError("endpoint down"),
    "bug": lambda: ZeroDivisionError("oops"),
    "disk": lambda: OSError(28, "No space left on device", "/somewhere/file"),
    "memory": lambda: MemoryError(),
    "interrupt": lambda: KeyboardInterrupt(),
}


@dataclass
class Report:
    """What `check` gives."""

    findings: tuple[Finding, ...] = ()
    choices: tuple[Choice, ...] = (Choice("train.learning_rate", 2e-3, "LoRA on a base under 50 M parameters"),)
    preview: list[list[tuple[str, float]]] = field(
        default_factory=lambda: [[("<s>", 0.0), ("ask\n", 0.0), ("learnt", 1.0), ("</s>", 1.0)]]
    )
    lengths: list[int] = field(default_factory=lambda: [3, 4, 4, 5, 40])
    estimate: dict[str, Any] = field(
        default_factory=lambda: {"training_seconds": 90.0, "peak_memory_bytes": 2**30, "steps": 600, "device": "cpu"}
    )
    numbers: None = None
    tuning_costs: None = None
    problem: None = None
    splits: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 3 if any(finding.severity == "error" for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        return {"findings": [{"code": f.code, "lines": list(f.lines)} for f in self.findings], "nan": float("nan")}


class Model:
    """Says back what it heard."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> Message:
        if tools and messages[-1].role == "user":
            return Message("assistant", "", tool_calls=(ToolCall("call_1", "look", '{"at": 1}'),))
        return Message("assistant", f"{self.name} heard {', '.join(message.content for message in messages)}")


@dataclass
class Result:
    """What `run` and `load_run` give."""

    folder: RunFolder
    verdict: Verdict | None = VERDICT
    comparison_rows: list[dict[str, Any]] = field(default_factory=lambda: ROWS)
    training: dict[str, Any] | None = field(default_factory=lambda: TRAINING)
    report: Path | None = None
    model: Model = field(default_factory=lambda: Model("tuned"))
    base: Model = field(default_factory=lambda: Model("base"))

    def to_dict(self) -> dict[str, Any]:
        return {"run": str(self.folder.path), "comparison": self.comparison_rows, "training": self.training}


class FakePipeline(types.ModuleType):
    """Stands in for `tunesmith.pipeline`; `calls` records what was asked."""

    def __init__(self) -> None:
        super().__init__("tunesmith.pipeline")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.report = Report()
        self.verdict: Verdict | None = VERDICT
        self.raises: str | None = os.environ.get("FAKE_RAISES")
        self.sleeps = float(os.environ.get("FAKE_SLEEPS", 0))

    def check(self, recipe: Recipe, listener: Listener, *, quick: bool = False) -> Report:
        self.calls.append(("check", {"recipe": recipe}))
        self._trouble()
        listener({"kind": "note", "text": "reading"})
        print("a library prints")
        return self.report

    def check_file(self, path: Path, listener: Listener, *, quick: bool = False) -> Report:
        self.calls.append(("check_file", {"path": path}))
        return self.report

    def run(
        self,
        recipe: Recipe,
        *,
        out: Path | None = None,
        new: bool = False,
        through: str = "verdict",
        train_anyway: bool = False,
        listener: Listener | None = None,
    ) -> Result:
        asked = {"recipe": recipe, "out": out, "new": new, "through": through, "train_anyway": train_anyway}
        self.calls.append(("run", asked))
        folder = RunFolder.create_at(out) if out else RunFolder.create(Path(recipe.output.dir), recipe.name or "run")
        listeners = [listener] if listener else []
        with folder.lock(), folder.events(listeners) as log:
            print("a library prints")
            for event in EVENTS:
                log.write(**event)
            time.sleep(self.sleeps)
            self._trouble()
        folder.set_status("finished", verdict="Ship tuned")
        return Result(folder, verdict=self.verdict)

    def load_run(self, folder: RunFolder) -> Result:
        self.calls.append(("load_run", {"folder": folder}))
        return Result(folder, verdict=self.verdict)

    def redecide(self, folder: RunFolder) -> Result:
        self.calls.append(("redecide", {"folder": folder}))
        return Result(folder, verdict=self.verdict)

    def _trouble(self) -> None:
        if self.raises:
            raise RAISES[self.raises]()


def install() -> FakePipeline:
    """Put the fake in the place of `tunesmith.pipeline`, in this process."""
    import tunesmith

    fake = FakePipeline()
    sys.modules["tunesmith.pipeline"] = fake
    tunesmith.pipeline = fake  # type: ignore[attr-defined]
    return fake
