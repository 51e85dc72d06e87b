"""What the optimising commands share: their flags, and how an export is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunesmith.cli.olive.options import Shared, common, hidden, is_on, shared, switch, value
from tunesmith.cli.output import only_json, print_json, warn

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.exports import Command, ExportPlan

Function = TypeVar("Function", bound=Callable[..., Any])


def model_flags(function: Function) -> Function:
    """The flags that name a model, an adapter on it, and the output folder; and those of every command."""
    for option in (
        switch("--test", help="Try it on a model of the same kind with two layers and random weights."),
        switch("--trust_remote_code", help="Run the code that comes with the model. Dangerous."),
        value("-o", "--output_path", metavar="DIR", help="Gets model/, the export."),
        value("-a", "--adapter_path", help="An adapter on it: a PEFT folder, or OUTPUT of finetune."),
        value("-m", "--model_name_or_path", help="A folder, a name in the alias file, or OUTPUT of finetune."),
    ):
        function = option(function)
    return common(function)


def unlisted(names: Sequence[str]) -> Callable[[Function], Function]:
    """Flags of the command that are known and not listed in --help: each is refused or named with its reason."""
    return hidden(list(names))


def run_export(command: Command, as_json: bool, overrides: Sequence[str], flags: dict[str, Any]) -> None:
    """Carry out an optimising command and show what came of it."""
    asked = shared(flags, command)
    test = is_on(flags, "test")
    from tunesmith.errors import RecipeError
    from tunesmith.pipeline.olive.exports import carry_out_export, plan_export

    if overrides:
        raise RecipeError("an export has no recipe", where="--set", fix="leave it out")
    plan = plan_export(command, flags, asked.project)
    if test:
        from tunesmith.pipeline.olive.trial import small_export

        plan = plan if asked.dry else small_export(plan)
    for note in plan.notes:
        warn(note)
    if plan.subject.trust_remote_code:
        warn(f"code that comes with {plan.subject.base} will run on this machine")
    _show(plan, asked, as_json)
    if asked.dry:
        return
    from tunesmith.cli.export import print_exported, tell_line

    with only_json(as_json):
        exported = carry_out_export(plan, None if asked.quiet else tell_line)
    if as_json:
        print_json({**exported.to_dict(), "notes": list(plan.notes)})
    else:
        print_exported(exported)


def _show(plan: ExportPlan, asked: Shared, as_json: bool) -> None:
    """Print and keep what the flags mean, as far as that is asked for: with --json one object is all there is."""
    from tunesmith.recipe import dump_yaml

    config = plan.config()
    if asked.dry and as_json:
        print_json(
            {"target": str(plan.target), "device": plan.target.device, "config": config, "notes": list(plan.notes)}
        )
    elif (asked.dry or asked.save) and not as_json:
        click.echo(f"# {plan.target} for {plan.target.device}")
        click.echo(dump_yaml(config), nl=False)
    if asked.save:
        from tunesmith.runs import write_text

        write_text(plan.output / "config.yaml", dump_yaml(config))
