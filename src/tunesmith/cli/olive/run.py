"""`tunesmith olive run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.olive.options import Shared, common, shared, switch, value
from tunesmith.cli.output import RunInterrupted, only_json, print_json, warn

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.config import RunPlan


@click.command("run")
@click.option(
    "--config", "--run-config", "configs", multiple=True, metavar="FILE",
    help="JSON or YAML; repeatable: later files change earlier ones.",
)  # fmt: skip
@switch("--setup", help="No effect: nothing has to be set up; the workflow is run.")
@switch("--list_required_packages", help="Say which extras of Tunesmith the workflow needs, and end.")
@value("--package-config", metavar="FILE", help="Refused: passes of one's own are not loaded from files.")
@value("-o", "--output_path", metavar="DIR", help="In place of the file's output_dir.")
@common
def command(configs: tuple[str, ...], as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Run a workflow file: tuning, a search over its settings, exports of what was tuned, and goals for them.

    A fragment (a search space, passes with other values, a training_config) is put over the file before it, or over
    what `run: {config: FILE}` and `finetune:` of the alias file say. Passes without one that tunes export a model.
    """
    asked = shared(flags, "run")
    from tunesmith.errors import RecipeError

    base = flags.pop("config", None)
    files = [*([str(base)] if base and str(base) not in configs else []), *configs]
    if not files:
        raise RecipeError("missing", where="--config", expected="a JSON or YAML file", fix="--config FILE")
    if flags["package_config"] is not None:
        raise RecipeError(
            "passes of one's own are not loaded from files", where="--package-config", fix="leave it out; "
            "a loss of your own is `train.objective: file.py:Class`",
        )  # fmt: skip
    if flags["setup"] is not None:
        warn("--setup changes nothing: nothing has to be set up, and the workflow is run")
    from tunesmith.cli.olive.options import is_on
    from tunesmith.pipeline.olive.config import carry_out_run, plan_run

    listed = is_on(flags, "list_required_packages")
    plan = plan_run([Path(file) for file in files], asked.project, overrides, flags["output_path"],
                    writes=not listed and (asked.save or not asked.dry))  # fmt: skip
    for note in plan.notes:
        warn(note)
    if plan.recipe is not None and plan.recipe.base.trust_remote_code:
        warn(f"code that comes with {plan.recipe.base.model} will run on this machine")
    if listed:
        _print_extras(plan, as_json)
        return
    _show(plan, asked, as_json)
    if plan.plan is not None:
        click.echo(plan.plan.rows, err=True)
    if asked.dry:
        return
    from tunesmith.cli.display import open_display

    with only_json(as_json), open_display() as display:
        try:
            done = carry_out_run(plan, None if asked.quiet else display)
        except KeyboardInterrupt:
            raise RunInterrupted(plan.output if plan.output.is_dir() else None) from None
    _finish(plan, done, as_json)


def _finish(plan: RunPlan, done: Any, as_json: bool) -> None:
    """Show what was done, and end with the exit code of a workflow that did not reach its goals."""
    if plan.workflow is not None:
        from tunesmith.cli.olive.outcomes import print_outcomes
        from tunesmith.pipeline.workflow.flow import result_dict

        print_json(result_dict(done)) if as_json else print_outcomes(done)
        if done.exit_code:
            click.get_current_context().exit(done.exit_code)
        return
    if as_json:
        print_json({**done.to_dict(), "output": str(plan.output), "notes": list(plan.notes)})
        return
    from tunesmith.cli.tables import print_result

    result = getattr(done, "result", done)
    if hasattr(done, "trials"):
        click.echo(f"best of {len(done.trials.trials)} trials: number {done.best.number}")
        for name, chosen in done.best.values.items():
            click.echo(f"  {name}: {chosen}")
    if result is not None:
        print_result(result)
    click.echo(f"output: {plan.output}")


def _show(plan: RunPlan, asked: Shared, as_json: bool) -> None:
    """Print and keep what the files mean, as far as that is asked for: with --json one object is all there is."""
    from tunesmith.cli.olive.outcomes import workflow_json
    from tunesmith.recipe import dump_recipe, dump_yaml

    recipe_text = dump_recipe(plan.recipe) if plan.recipe is not None else None
    if asked.save:
        from tunesmith.runs import write_text

        write_text(plan.output / "config.yaml", dump_yaml(plan.config))
        if recipe_text is not None:
            write_text(plan.output / "recipe.yaml", recipe_text)
    if asked.dry and as_json:
        recipe = plan.recipe.model_dump(mode="json") if plan.recipe is not None else None
        workflow = workflow_json(plan.workflow) if plan.workflow is not None else None
        print_json({"recipe": recipe, "workflow": workflow, "notes": list(plan.notes)})
        return
    if as_json or not (asked.save or asked.dry):
        return
    if recipe_text is not None:
        click.echo(recipe_text, nl=False)
    for step in plan.workflow.steps if plan.workflow is not None else ():
        said = ", ".join(f"{key} {chosen}" for key, chosen in step.settings.items())
        click.echo(f"step {step.name}: {step.kind}{f' ({said})' if said else ''}")


_EXTRAS = {
    "onnx": {"onnx"}, "multi-onnx": {"onnx"}, "onnx-plain": {"onnx"}, "openvino": {"onnx", "openvino"},
    "gguf": {"gguf"}, "quantise": {"quantise"}, "torchao": {"quantise"},
}  # fmt: skip


def _print_extras(plan: RunPlan, as_json: bool) -> None:
    steps = plan.workflow.steps if plan.workflow is not None else ()
    extras = {extra for step in steps for extra in _EXTRAS.get(step.settings.get("kind", step.kind), ())}
    if plan.recipe is not None and plan.recipe.search is not None:
        extras.add("search")
    if as_json:
        print_json({"extras": sorted(extras)})
    else:
        click.echo(f"pip install 'tunesmith[{','.join(sorted(extras))}]'" if extras else "tunesmith alone is enough")
