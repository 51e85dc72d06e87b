"""The nouns of a workflow: steps that make a model and its exports, what may vary in them, what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.searching import Sampler, Space

StepKind = Literal["train", "merge", "quantise", "onnx", "multi-onnx", "gguf", "export", "evaluate", "measure"]
Order = Literal["joint", "step-by-step"]
Rows = Literal["auto", "validation", "test"]
GoalKind = Literal["at-least", "at-most", "max-degradation"]
State = Literal["done", "failed"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What the first step gets: rows and a base to train on (`recipe`), a finished run, or a model without a run.

    Exactly one of the three is set. `recipe` beside `run` or `base` is not needed: a run keeps its own; a model
    without one has no rows, so `evaluate` is refused for it.

    Attributes
    ----------
    base, adapter: as the recipe's `base.model` and a PEFT folder on it, or None.
    adapters: further PEFT folders on the same base by name, for `multi-onnx`; the tuned model itself is not among them.
    """

    recipe: Recipe | None = None
    run: Path | None = None
    base: str | None = None
    adapter: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    chat_template: str = "auto"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Every export is made of the tuned model, not of another export.

    Attributes
    ----------
    name: unique in its workflow.
    settings: of `train` dotted keys of the recipe (`{"train.learning_rate": 1e-4}`); of `merge`, `quantise`, `onnx`,
        `multi-onnx`, `gguf` and `export`: `precision` or `bits`, `device`, `runtime`, and for `export` and `quantise`
        `kind` (one of `models.artifact.KINDS`); of `evaluate`: `rows` (auto | validation | test, where auto is
        validation as soon as anything is searched); of `measure`: `peak_memory` (true | false).
    space: settings that the search varies, by the same keys; they win over `settings`.
    """

    name: str
    kind: StepKind
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Space] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """What an outcome must reach.

    Attributes
    ----------
    measure: a metric of the task (from `evaluate`); `size_bytes`, `first_token_seconds`, `seconds_per_token`,
        `tokens_per_second` or `peak_memory_bytes` (from `measure`); `validation_loss` (from `train`); `mean_kl` or
        `top1_agreement` (from an export).
    kind: `max-degradation` says how much worse than the tuned model (before any export) it may be; with no export in
        the workflow, than the base.
    share: whether `value` of a max-degradation is a share of what the reference has, and not an amount.
    """

    measure: str
    kind: GoalKind
    value: float
    share: bool = False


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How settings are searched: jointly over all steps, or step by step, each with what was best before it.

    `trials` None is 20, or every combination with `sequential`; step by step it counts for each step.
    """

    sampler: Sampler = "tpe"
    trials: int | None = None
    seed: int = 0
    max_seconds: float | None = None
    order: Order = "joint"
    stop_when_met: bool = False


@dataclass(frozen=True, slots=True)
class Workflow:
    """Steps in their order, and the goals of their outcomes, the most important one first.

    The first goal's measure is what the search improves; without goals, the task's own metric, else the size.
    """

    name: str
    subject: Subject
    steps: tuple[Step, ...]
    goals: tuple[Goal, ...] = ()
    search: SearchPlan | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it was carried out. `folder` holds its product; `cached` says that an earlier one was taken."""

    name: str
    kind: StepKind
    settings: Mapping[str, Any]
    state: State
    seconds: float
    cached: bool
    key: str
    folder: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The steps with one choice of settings.

    Attributes
    ----------
    settings: what the search chose, by `step.key`.
    measures: by name; see `Goal.measure`. reference: the same of what a max-degradation is counted from.
    searched: step by step, the step whose settings this outcome tries, with none of the later steps carried out; None
        where all steps were.
    unmet: goals that it misses, in words; empty where it meets all.
    pareto: whether no other outcome that was finished is at least as good in every goal and better in one.
    artifact: folder of the last export, or of the trained run.
    """

    number: int
    settings: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    measures: Mapping[str, float]
    reference: Mapping[str, float] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()
    searched: str | None = None
    state: State = "done"
    error: str | None = None
    pareto: bool = False
    artifact: str | None = None

    @property
    def meets(self) -> bool:
        return self.state == "done" and not self.unmet


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """All outcomes, as they stand in `workflow.json` of the folder.

    Attributes
    ----------
    chosen: number of the best outcome that meets the goals, or None.
    reference: the chosen outcome's, or the first finished one's.
    test: the chosen outcome's metrics on test rows, where validation rows chose it.
    exit_code: 0 with an outcome chosen; where none is, that of the step that failed, or 5 where the goals are missed.
    problem: why none is chosen, in words.
    """

    folder: Path
    outcomes: Sequence[Outcome]
    chosen: int | None
    reference: Mapping[str, float]
    exit_code: int
    test: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def pareto(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.pareto)
