"""A workflow from its first step to the outcome that is chosen.

Every step is cached by what decides its result, so the trials of a search share what they have in common, a workflow
that was interrupted goes on, and one that is run again does nothing. What was found stands in `workflow.json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import EngineError, RecipeError, ResourceError, TunesmithError, VerificationError
from tunesmith.pipeline.prepare import Listener
from tunesmith.pipeline.workflow.cache import versions
from tunesmith.pipeline.workflow.checking import check_workflow, searched
from tunesmith.pipeline.workflow.goals import choose, sign, unmet, with_pareto
from tunesmith.pipeline.workflow.products import Product, first_product
from tunesmith.pipeline.workflow.steps import EXPORTS, Bench, Carried, carry_out, prove
from tunesmith.pipeline.workflow.types import Outcome, SearchPlan, Step, StepRecord, Workflow, WorkflowResult
from tunesmith.recipe.searching import Space
from tunesmith.runs import write_json
from tunesmith.runs.lock import locked
from tunesmith.search.trials import Measured, Plan, Trial, run_trials

RECORD = "workflow.json"
_MEASURING = ("evaluate", "measure")


@dataclass(slots=True)
class _Work:
    """A workflow while it is carried out; `outcomes` in the order in which they came.

    counted: keys of the steps that are in `spent`, the seconds that all steps so far took when they were carried out.
    """

    workflow: Workflow
    bench: Bench
    outcomes: list[Outcome] = field(default_factory=list)
    errors: dict[int, TunesmithError] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    spent: float = 0.0


def run_workflow(workflow: Workflow, out: Path, listener: Listener | None = None) -> WorkflowResult:
    """Carry a workflow out in the folder `out`, or on where it was interrupted.

    A step that fails ends its outcome, not the search; what became of each is in the result and in `workflow.json`.

    Raises `RecipeError` for a workflow that makes no sense (everything at once) and `ResourceError` where another
    process writes the folder. Whether anything usable came out says the result: `require` raises where nothing did.
    """
    check_workflow(workflow)
    if out.exists() and not out.is_dir():
        raise RecipeError("this is a file", where=str(out), expected="a folder")
    cache = out / "steps"
    cache.mkdir(parents=True, exist_ok=True)
    tell: Listener = listener if listener is not None else lambda event: None
    work = _Work(workflow, Bench(cache.resolve(), tell, searching=bool(searched(workflow))))
    with locked(cache / ".lock"):
        _carry_out_all(work, out)
        result = _concluded(work, out)
        write_json(out / RECORD, _record(workflow, result))
    return result


def require(result: WorkflowResult) -> WorkflowResult:
    """The result. Raises a `TunesmithError` with its exit code where no outcome was chosen."""
    if result.exit_code == 0:
        return result
    kind = VerificationError if result.exit_code == VerificationError.exit_code else EngineError
    error = kind(result.problem or "nothing was chosen", where=str(result.folder / RECORD))
    error.exit_code = result.exit_code
    raise error


def _carry_out_all(work: _Work, out: Path) -> None:
    """All outcomes: one, those of a joint search, or those of a search for each step after the other."""
    workflow = work.workflow
    if workflow.search is None:
        _outcome(work, {}, workflow.steps)
    elif workflow.search.order == "joint":
        _search(work, workflow.search, searched(workflow), {}, workflow.steps, None, out / "trials.jsonl")
    else:
        _step_by_step(work, workflow.search, out)


def _step_by_step(work: _Work, plan: SearchPlan, out: Path) -> None:
    """Each step's settings with what was best before it; the steps that follow are carried out with the last search."""
    steps, fixed = work.workflow.steps, dict[str, Any]()
    places = [place for place, step in enumerate(steps) if step.space]
    for place in places:
        step = steps[place]
        last = place == places[-1]
        # A step is judged by what measures follow it at once, and where none do, by all of the workflow's.
        tried = steps if last else (*steps[: place + 1], *(s for s in steps[place + 1 :] if s.kind in _MEASURING))
        spaces = {f"{step.name}.{key}": space for key, space in step.space.items()}
        partly = None if last else step.name
        record = out / f"trials-{step.name}.jsonl"
        best = _search(work, plan, spaces, fixed, tried, partly, record)
        if best is None:
            return
        fixed |= best.values


def _search(
    work: _Work, plan: SearchPlan, spaces: Mapping[str, Space], fixed: Mapping[str, Any], steps: Sequence[Step],
    partly: str | None, record: Path,
) -> Trial | None:  # fmt: skip
    """Outcomes for values of these spaces. Returns the best trial; None where every one failed."""
    measure = _objective(work.workflow)
    numbers: dict[int, int] = {}

    def try_values(trial: int, values: Mapping[str, Any]) -> Measured:
        before = work.spent
        outcome = _outcome(work, {**fixed, **values}, steps, partly)
        numbers[trial] = outcome.number
        if outcome.state == "failed":
            raise work.errors[outcome.number]
        value, name = _score(outcome, measure)
        return Measured(sign(name) * value, facts={"outcome": outcome.number, "measure": name},
                        seconds=work.spent - before)  # fmt: skip

    def heard(event: dict[str, Any]) -> None:
        if event["kind"] == "trial" and event["same_as"] is not None:
            first = work.outcomes[numbers[event["same_as"]] - 1]
            again = replace(first, number=len(work.outcomes) + 1)
            work.outcomes.append(again)
            if first.number in work.errors:
                work.errors[again.number] = work.errors[first.number]
        if event["kind"] == "trial_started":
            said = ", ".join(f"{key} {value}" for key, value in event["values"].items())
            work.bench.tell(f"trial {event['number']}: {said}")

    def met(trial: Trial) -> bool:
        return plan.stop_when_met and bool(work.outcomes) and work.outcomes[-1].meets and partly is None

    # Steps are cached, so trials are asked for again each time, and all that is the same is only looked up. The time
    # of a step counts as when it was carried out, so that a search whose time was over does nothing when run again.
    record.unlink(missing_ok=True)
    search = Plan(spaces, plan.sampler, "maximize", plan.trials, plan.max_seconds, plan.seed)
    try:
        return run_trials(search, try_values, record, subject=work.workflow.name, listener=heard, enough=met).best
    except EngineError:
        if numbers and all(number in work.errors for number in numbers.values()):
            return None  # every trial failed, and each outcome says why
        raise


def _outcome(work: _Work, values: Mapping[str, Any], steps: Sequence[Step], partly: str | None = None) -> Outcome:
    """The steps with these values by `step.key`; kept among the outcomes, failed or not."""
    number = len(work.outcomes) + 1
    records: list[StepRecord] = []
    measures: dict[str, float] = {}
    reference: dict[str, float] = {}
    product = first_product(work.workflow.subject)
    error: TunesmithError | None = None
    for step in steps:
        chosen = {key.partition(".")[2]: v for key, v in values.items() if key.partition(".")[0] == step.name}
        settings = {**step.settings, **chosen}
        began = time.monotonic()
        try:
            reference |= _reference(work, step, settings, product)
            carried = _carried(work, step, settings, product)
        except TunesmithError as found:
            error = found
            seconds = time.monotonic() - began
            failed = StepRecord(step.name, step.kind, settings, "failed", seconds, False, "", error=str(found))
            records.append(failed)
            work.bench.tell(f"step {step.name} failed: {found.what.splitlines()[0]}")
            break
        product, done, seconds = carried.product, carried.done, time.monotonic() - began
        measures |= carried.measures
        folder = str(done.product)
        record = StepRecord(step.name, step.kind, settings, "done", seconds, done.cached, done.key, folder)
        records.append(record)
    goals = work.workflow.goals if partly is None else ()
    place = product.artifact or product.run
    outcome = Outcome(
        number=number,
        settings=dict(values),
        steps=tuple(records),
        measures=measures,
        reference=reference,
        unmet=unmet(goals, measures, reference) if error is None else (),
        searched=partly,
        state="done" if error is None else "failed",
        error=str(error) if error is not None else None,
        artifact=str(place) if place is not None and error is None else None,
    )
    work.outcomes.append(outcome)
    if error is not None:
        work.errors[number] = error
    return outcome


def _carried(work: _Work, step: Step, settings: Mapping[str, Any], product: Product) -> Carried:
    try:
        carried = carry_out(step, settings, product, work.workflow.subject.recipe, work.bench)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"not enough memory in step {step.name}", fix="use smaller settings") from error
    if carried.done.key not in work.counted:
        work.counted.add(carried.done.key)
        work.spent += carried.done.seconds
    return carried


def _reference(work: _Work, step: Step, settings: Mapping[str, Any], product: Product) -> dict[str, float]:
    """What measures are held against, where a goal asks: those of the tuned model, or of the base with no export."""
    wanted = any(goal.kind == "max-degradation" for goal in work.workflow.goals)
    if not wanted or step.kind not in _MEASURING:
        return {}
    if product.artifact is not None:
        return dict(_carried(work, step, settings, replace(product, artifact=None, adapter_name=None)).measures)
    if any(one.kind in EXPORTS for one in work.workflow.steps):
        return {}
    return dict(_carried(work, step, settings, replace(product, tuned=False)).measures)


def _objective(workflow: Workflow) -> str | None:
    """The measure that the search improves; None takes the task's own metric, which is known once it was measured."""
    return workflow.goals[0].measure if workflow.goals else None


def _score(outcome: Outcome, measure: str | None) -> tuple[float, str]:
    """What a sampler is told, and its measure."""
    name = measure if measure is not None and measure in outcome.measures else _default_measure(outcome)
    return outcome.measures[name], name


_OTHERS = (
    *("validation_loss", "mean_kl", "top1_agreement"),
    *("first_token_seconds", "tokens_per_second", "seconds_per_token", "peak_memory_bytes"),
)


def _default_measure(outcome: Outcome) -> str:
    """The task's own metric, else the size, else what training measured, else what there is."""
    of_training = [name for name in outcome.measures if name.startswith("training.")]
    of_task = [name for name in outcome.measures if name not in ("size_bytes", *_OTHERS, *of_training)]
    ranked = [*of_task, "size_bytes", *of_training, *_OTHERS]
    found = next((name for name in ranked if name in outcome.measures), None)
    if found is None:
        raise EngineError("nothing was measured", fix="add a step evaluate or measure")
    return found


def _concluded(work: _Work, out: Path) -> WorkflowResult:
    """The Pareto set, the choice, and for a search the test rows' view of it."""
    done = [one for one in work.outcomes if one.state == "done" and one.searched is None]
    measures = _measures(work.workflow, done)
    outcomes = with_pareto(work.outcomes, measures)
    chosen = choose(outcomes, measures)
    code, problem = (0, None) if chosen is not None else _failure(work)
    test: Mapping[str, float] = {}
    if chosen is not None and work.bench.searching:
        test, failed = _on_test_rows(work, chosen)
        if failed:
            listed = "".join(f"\n  - {said}" for said in failed)
            code, problem = VerificationError.exit_code, f"the chosen export fails on the test rows:{listed}"
    shown = chosen or (done[0] if done else None)
    return WorkflowResult(
        folder=out.resolve(),
        outcomes=outcomes,
        chosen=chosen.number if chosen is not None else None,
        reference=shown.reference if shown is not None else {},
        exit_code=code,
        test=test,
        problem=problem,
    )


def _measures(workflow: Workflow, done: Sequence[Outcome]) -> list[str]:
    """By what outcomes are compared: the goals' measures, or else the one that the search improves, and the size."""
    if workflow.goals:
        return list(dict.fromkeys(goal.measure for goal in workflow.goals))
    if not done or not done[0].measures:
        return []
    first = _default_measure(done[0])
    return [first, *(name for name in ("validation_loss", "size_bytes") if name in done[0].measures and name != first)]


def _failure(work: _Work) -> tuple[int, str]:
    """Why nothing was chosen: every outcome failed, or none meets the goals."""
    failed = [one for one in work.outcomes if one.state == "failed"]
    if len(failed) == len(work.outcomes) or not any(one.searched is None for one in work.outcomes if one not in failed):
        codes = {work.errors[one.number].exit_code for one in failed}
        reasons = dict.fromkeys(f"{_failed_step(one)}: {one.error}" for one in failed)
        listed = "\n".join(f"  - {reason}" for reason in list(reasons)[:5])
        code = codes.pop() if len(codes) == 1 else EngineError.exit_code
        if len(work.outcomes) == 1:
            return code, next(iter(reasons))
        return code, f"{len(failed)} of {len(work.outcomes)} outcomes failed:\n{listed}"
    missed = dict.fromkeys(said for one in work.outcomes for said in one.unmet)
    listed = "\n".join(f"  - {said}" for said in list(missed)[:8])
    return VerificationError.exit_code, f"no outcome meets the goals:\n{listed}"


def _failed_step(outcome: Outcome) -> str:
    return next((record.name for record in outcome.steps if record.state == "failed"), "workflow")


def _on_test_rows(work: _Work, chosen: Outcome) -> tuple[Mapping[str, float], Sequence[str]]:
    """The chosen outcome on test rows, which no trial answered: its metrics, and the checks of its export that failed.

    Nothing where no metric was measured, or there are no test rows.
    """
    steps = {step.name: step for step in work.workflow.steps}
    if not any(record.kind == "evaluate" for record in chosen.steps):
        return {}, ()
    product = first_product(work.workflow.subject)
    for record in chosen.steps:
        if record.kind == "train" or record.kind in EXPORTS:
            product = _carried(work, steps[record.name], record.settings, product).product
    if not product.folder().manifest()["data"]["rows"]["test"]:
        return {}, ()
    if product.artifact is None or product.adapter_name is not None:
        return _carried(work, Step("test", "evaluate"), {"rows": "test"}, product).measures, ()
    proved = prove(product, work.bench)
    return proved.measures, proved.done.result["failed"]


def _record(workflow: Workflow, result: WorkflowResult) -> dict[str, Any]:
    """What `workflow.json` holds."""
    return {
        "name": workflow.name,
        "goals": [asdict(goal) for goal in workflow.goals],
        "search": asdict(workflow.search) if workflow.search is not None else None,
        "spaces": {
            name: space.model_dump(mode="json", exclude_defaults=True) for name, space in searched(workflow).items()
        },
        "versions": versions(),
        **result_dict(result),
    }


def result_dict(result: WorkflowResult) -> dict[str, Any]:
    """A result as JSON values."""
    return {
        "folder": str(result.folder),
        "chosen": result.chosen,
        "pareto": [outcome.number for outcome in result.pareto],
        "reference": dict(result.reference),
        "test": dict(result.test),
        "exit_code": result.exit_code,
        "problem": result.problem,
        "outcomes": [asdict(outcome) for outcome in result.outcomes],
    }


def outcome_rows(result: WorkflowResult) -> Iterator[tuple[str, ...]]:
    """The outcomes as a table of text: a heading, then a line each."""
    settings = list(dict.fromkeys(key for one in result.outcomes for key in one.settings))
    measures = list(dict.fromkeys(key for one in result.outcomes for key in one.measures))
    yield ("outcome", *settings, *measures, "")
    for one in result.outcomes:
        said = one.error.splitlines()[0] if one.error else "; ".join(one.unmet)
        marks = [mark for mark, is_so in (("chosen", one.number == result.chosen), ("Pareto", one.pareto)) if is_so]
        yield (
            str(one.number),
            *("" if key not in one.settings else str(one.settings[key]) for key in settings),
            *("" if key not in one.measures else f"{one.measures[key]:.5g}" for key in measures),
            ", ".join([*marks, *([said] if said else [])]),
        )
