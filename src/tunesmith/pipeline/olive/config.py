"""Olive's configuration files (JSON or YAML) as a recipe, a search over it, and a workflow of exports.

A configuration becomes the flags of `finetune` first, so that a file and a command line mean the same, and what is
wrong is told by the file's own keys. Several files are put together in their order: a base and fragments such as a
search space, `passes` with other values, or a `training_config`. What no file says comes from the alias file's
`finetune`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.pipeline.olive.config_files import read_files
from tunesmith.pipeline.olive.config_passes import Targets, targets_of, unique_names
from tunesmith.pipeline.olive.config_sections import (
    read_data_sets,
    read_model,
    read_passes,
    read_training,
    section_of,
)
from tunesmith.pipeline.olive.draft import Draft
from tunesmith.pipeline.olive.finetune import Plan, plan_finetune
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.spaces import NAMES as SPACE_NAMES
from tunesmith.pipeline.olive.spaces import read_space, read_strategy
from tunesmith.pipeline.olive.subject import find_subject
from tunesmith.pipeline.olive.systems import device_of, on_device
from tunesmith.pipeline.workflow.types import SearchPlan, Step, Subject, Workflow
from tunesmith.recipe import Recipe
from tunesmith.recipe.problems import nearest

_OUTPUT = "olive-output"
_NO_EFFECT = {
    "host": "the work is done on this machine",
    "log_severity_level": "progress is told always",
    "ort_log_severity_level": "progress is told always",
    "log_to_file": "events.jsonl of a run holds everything",
    "cache_dir": "every step is kept below the output folder, by the hash of its inputs",
    "clean_cache": "a step is made again where its inputs changed",
    "clean_evaluation_cache": "answers are kept by the hash of their inputs",
    "evaluate_input_model": "the base is measured before tuning, always",
    "no_artifacts": "the output folder is laid out always",
    "plot_pareto_frontier": "outcomes are listed with those that no other one beats",
    "packaging_config": "an export is a folder of its own with hashes and a card",
    "azureml_client": "nothing is sent to a cloud",
    "workflow_id": "the output folder names it",
    "workflow_host": "the work is done on this machine",
    "auto_optimizer_config": "passes say what is made",
    "enable_shared_cache": "nothing is kept in a cloud's storage",
}
_SECTIONS = ("input_model", "model", "data_configs", "passes", "evaluators", "evaluator", "search_strategy",
             "search_space", "training_config", "training_args", "output_dir", "engine", "systems",
             "target", *_NO_EFFECT)  # fmt: skip


@dataclass(frozen=True)
class RunPlan:
    """What `olive run` is going to do: a training (or a search over it), or a workflow that begins with one.

    plan: of the training; None where a finished model is exported. workflow: None where nothing follows the training.
    """

    output: Path
    plan: Plan | None
    workflow: Workflow | None
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    """The files, put together."""

    @property
    def recipe(self) -> Recipe | None:
        return self.plan.recipe if self.plan is not None else None


def plan_run(
    paths: Sequence[Path], project: Project, overrides: Sequence[str] = (), output: str | None = None, *,
    writes: bool = True,
) -> RunPlan:  # fmt: skip
    """What configuration files mean together. Raises `RecipeError` with everything that is wrong in them.

    writes: as of `plan_finetune`.
    """
    config = read_files(paths)
    where = " + ".join(str(path) for path in paths)
    draft, names = Draft(), dict[str, str]()
    draft.names = names
    given: dict[str, Any] = {}
    _unknown(config, draft)
    read_model(config, given, names, draft)
    passes, tuned = read_passes(config, given, names, draft)
    read_data_sets(config, given, names, draft)
    read_training(config, given, names, draft)
    targets = _targets(config, draft)
    said = output or section_of(config, "engine").get("output_dir") or config.get("output_dir") or _OUTPUT
    if not isinstance(said, str):
        draft.wrong("output_dir", f"{said!r} is not allowed", expected="a folder")
    folder = Path(said if isinstance(said, str) else _OUTPUT)
    device = device_of(config, names, draft)
    steps = on_device(unique_names(passes.steps), device, draft)
    space, strategy = _search(config, given, names, draft)
    tunes = tuned or not steps
    if not tunes:
        if overrides:
            draft.wrong("--set", "no pass tunes, so that there is no recipe", fix="leave it out")
        if space:
            draft.note("search_space", "changes nothing: no pass tunes, and what it names are settings of a training")
        return _export_only(config, given, steps, targets, folder, project, draft, where)
    if steps:
        recipe_search = None
    else:
        recipe_search = _recipe_search(space, strategy, draft)
        if targets.goals:
            draft.note(
                "evaluators", "goals are of exports; a training is measured by its task's metrics and the verdict"
            )
    if recipe_search is not None:
        draft.settings["search"] = recipe_search
        if given.pop("logging_dir", None) is not None:
            draft.note("--logging_dir", "changes nothing: every trial is a run that keeps its own events")
    try:
        plan = plan_finetune({**given, "output_path": str(folder)}, project, overrides, draft, writes=writes)
    except RecipeError as error:
        raise _in_file(error, where) from error
    workflow = None
    if steps:
        subject = Subject(recipe=plan.recipe)
        train = Step("train", "train", {}, _spaces(space))
        workflow = Workflow(folder.name, subject, _all(train, steps, targets), targets.goals, _plan_of(space, strategy))
    return RunPlan(folder, plan, workflow, plan.notes, config)


def carry_out_run(plan: RunPlan, listener: Any = None) -> Any:
    """Do it: a `WorkflowResult`, a search's `Found`, or a run's `Result`, with the output folder laid out."""
    from tunesmith.pipeline.olive.finetune import carry_out

    if plan.workflow is not None:
        from tunesmith.pipeline.workflow.flow import run_workflow

        return run_workflow(plan.workflow, plan.output, listener)
    assert plan.plan is not None
    if getattr(plan.plan.recipe, "search", None) is None:
        return carry_out(plan.plan, listener)
    from tunesmith.pipeline.olive.layout import refuse_occupied, write_output
    from tunesmith.pipeline.searching.flow import search_recipe

    refuse_occupied(plan.plan)
    trials_only = plan.plan.through == "train"
    found = search_recipe(plan.plan.recipe, out=plan.plan.run_folder, trials_only=trials_only, listener=listener)
    if found.result is not None:
        write_output(plan.plan, found.result)
    return found


def _export_only(
    config: Mapping[str, Any], given: Mapping[str, Any], steps: Sequence[Step], targets: Targets, folder: Path,
    project: Project, draft: Draft, where: str,
) -> RunPlan:  # fmt: skip
    """Passes without one that tunes: a finished model, with its adapter, is exported."""
    name = given.get("model_name_or_path") or project.flags.get("finetune", {}).get("model_name_or_path")
    place = draft.names.get("--model_name_or_path", "input_model.model_path")
    found = None
    try:
        found = find_subject(
            str(name) if name is not None else None, given.get("adapter_path"), project, said=place,
            adapter_said=draft.names.get("--adapter_path", "input_model.adapter_path"),
        )  # fmt: skip
    except TunesmithError as error:
        draft.wrong(error.where or place, error.what, expected=error.expected, fix=error.fix)
    for flag in given.keys() - {"model_name_or_path", "adapter_path", "task"}:
        draft.note(f"--{flag}", "changes nothing: no pass tunes, and rows of quantisers come from a run")
    draft.raise_problems(where)
    assert found is not None
    goals = targets.goals
    if found.run is None and targets.evaluate:
        draft.note("evaluators", "a model without a run has no rows to answer: size and speed are measured")
        targets = replace(targets, evaluate=False)
        goals = tuple(g for g in goals if g.measure in ("seconds_per_token", "tokens_per_second", "size_bytes"))
    run = found.run.path if found.run is not None else None
    subject = Subject(run=run, base=found.base, adapter=found.adapter)
    workflow = Workflow(folder.name, subject, _all(None, steps, targets), goals)
    return RunPlan(folder, None, workflow, tuple(draft.notes), config)


def _all(train: Step | None, steps: Sequence[Step], targets: Targets) -> tuple[Step, ...]:
    names = {step.name for step in steps}
    made = [*([train] if train is not None and "train" not in names else []), *steps]
    if targets.evaluate:
        made.append(Step("evaluate" if "evaluate" not in names else "evaluate-goals", "evaluate"))
    if (targets.measure or not targets.evaluate) and not any(step.kind == "measure" for step in steps):
        made.append(Step("measure" if "measure" not in names else "measure-goals", "measure"))
    return tuple(made)


def _unknown(config: Mapping[str, Any], draft: Draft) -> None:
    for name, value in config.items():
        if name not in _SECTIONS:
            near = nearest(name, _SECTIONS)
            draft.wrong(name, "unknown section", fix=f"did you mean {near}?" if near else None,
                        expected=", ".join(_SECTIONS[:11]))  # fmt: skip
        elif name in _NO_EFFECT and value not in (None, False):
            draft.note(name, f"changes nothing: {_NO_EFFECT[name]}")


def _targets(config: Mapping[str, Any], draft: Draft) -> Targets:
    evaluators = section_of(config, "evaluators")
    wanted = config.get("evaluator") or section_of(config, "engine").get("evaluator")
    if isinstance(wanted, dict):
        return targets_of(wanted, "evaluator", draft)
    if wanted is None:
        if len(evaluators) == 1:
            wanted = next(iter(evaluators))
        else:
            if evaluators:
                draft.wrong("evaluator", "missing", expected=f"one of: {', '.join(evaluators)}")
            return Targets()
    if not isinstance(evaluators.get(str(wanted)), dict):
        draft.wrong("evaluator", f"there is no evaluator {wanted!r}", expected=", ".join(evaluators) or "evaluators:")
        return Targets()
    return targets_of(evaluators[str(wanted)], f"evaluators.{wanted}", draft)


def _search(
    config: Mapping[str, Any], given: dict[str, Any], names: Mapping[str, str], draft: Draft
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The space by recipe keys, and how it is searched; values that were lists in a pass are part of it."""
    engine = section_of(config, "engine")
    said = "search_strategy" if "search_strategy" in config else "engine.search_strategy"
    strategy = read_strategy(config.get("search_strategy", engine.get("search_strategy")), draft, said)
    space: dict[str, Any] = {}
    if config.get("search_space") is not None:
        space = read_space(config["search_space"], draft)
    for flag in ("r", "lora_r", "rank", "alpha", "lora_alpha", "lora_dropout", "learning_rate"):
        if isinstance(given.get(flag), list):
            values = given.pop(flag)
            place = names.get(f"--{flag}", flag)
            if strategy is None and not space:
                draft.wrong(place, f"{values!r} are several values, and no search is asked for",
                            expected="one value, or search_strategy")  # fmt: skip
            else:
                space[SPACE_NAMES[flag]] = {"type": "choice", "values": values}
    if strategy is not None and not space and (config.get("search_space") is None):
        draft.note("search_strategy", "changes nothing: no setting has several values")
        strategy = None
    if space and strategy is None:
        strategy = {}
    for key in space:  # what is searched is not also said
        for flag, known in SPACE_NAMES.items():
            if known == key and flag in given:
                draft.note(names.get(f"--{flag}", flag), "is searched, so that this value is not used")
                del given[flag]
    return space, strategy


def _recipe_search(space: Mapping[str, Any], strategy: Mapping[str, Any] | None, draft: Draft) -> dict[str, Any] | None:
    """The recipe's section `search`; None where nothing is searched."""
    if not space or strategy is None:
        return None
    for key, name in (("order", "execution_order"), ("stop_when_met", "stop_when_goals_met")):
        if key in strategy:
            draft.note(f"search_strategy.{name}", "changes nothing: the training is the only step, and has no goals")
    kept = {key: strategy[key] for key in ("sampler", "trials", "seed", "max_seconds") if key in strategy}
    return {"space": dict(space), **kept}


def _spaces(space: Mapping[str, Any]) -> dict[str, Any]:
    from tunesmith.recipe.spaces import read_spaces

    return dict(read_spaces(space, "search_space")) if space else {}


def _plan_of(space: Mapping[str, Any], strategy: Mapping[str, Any] | None) -> SearchPlan | None:
    if not space or strategy is None:
        return None
    return SearchPlan(**strategy)


def _in_file(error: RecipeError, where: str) -> RecipeError:
    """The same error, told of the file instead of the command."""
    from tunesmith.recipe.problems import InvalidRecipeError

    if isinstance(error, InvalidRecipeError):
        return InvalidRecipeError(error.problems, where)
    return error
