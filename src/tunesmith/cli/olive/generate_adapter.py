"""`tunesmith olive generate-adapter`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.exporting import unlisted
from tunesmith.cli.olive.options import common, shared, value
from tunesmith.cli.output import only_json, print_json, warn


@click.command("generate-adapter")
@value("--base_model_path", metavar="DIR", help="The base: a folder, or a name in the alias file.")
@value("-m", "--model_name_or_path", help="The same.")
@value("--adapter_paths", metavar="A,B", help="Adapters on it: PEFT folders or OUTPUTs of finetune; or NAME=FOLDER.")
@value("-a", "--adapter_path", help="The same.")
@value("--adapter_type", help="lora.")
@value("--adapter_format", help="onnx_adapter.")
@value("--precision", help="Of the base: fp32 (default), fp16, int8 or int4. Adapters stay exact.")
@value("-o", "--output_path", metavar="DIR", help="Gets model/, the base's graph with the adapters beside it.")
@unlisted(("task", "model_script"))
@common
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Pack one base and several adapters as one ONNX model that switches between them per request.

    Each adapter is proved by itself, and scored on the test rows of its run where it has one.
    """
    asked = shared(flags, "generate-adapter")
    from tunesmith.errors import RecipeError
    from tunesmith.pipeline.olive.packs import carry_out_pack, plan_pack
    from tunesmith.recipe import dump_yaml

    if overrides:
        raise RecipeError("a pack has no recipe", where="--set", fix="leave it out")
    plan = plan_pack(flags, asked.project)
    for note in plan.notes:
        warn(note)
    if asked.dry and as_json:
        print_json({**plan.config(), "notes": list(plan.notes)})
    elif (asked.save or asked.dry) and not as_json:
        click.echo(dump_yaml(plan.config()), nl=False)
    if asked.save:
        from tunesmith.runs import write_text

        write_text(plan.output / "config.yaml", dump_yaml(plan.config()))
    if asked.dry:
        return
    from tunesmith.cli.export import print_exported, tell_line

    with only_json(as_json):
        exported = carry_out_pack(plan, None if asked.quiet else tell_line)
    if as_json:
        print_json({**exported.to_dict(), "adapters": list(exported.artifact.adapters), "notes": list(plan.notes)})
    else:
        print_exported(exported)
