"""`tunesmith olive convert-adapters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.olive.exporting import unlisted
from tunesmith.cli.olive.options import Shared, common, shared, value
from tunesmith.cli.output import only_json, print_json, warn

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.adapter_files import FilesPlan


@click.command("convert-adapters")
@value("-a", "--adapter_path", help="A PEFT folder, or OUTPUT of finetune.")
@value("-m", "--model_name_or_path", help="The base, where the adapter's own word for it is not on this machine.")
@value("--adapter_format", help="onnx_adapter (default), safetensors or npz.")
@value("-o", "--output_path", metavar="FILE", help="The file to write; its ending is added where it is missing.")
@value("--dtype", help="float32 (default) or float16.")
@value("--onnx_model_path", metavar="DIR", help="The packed graph that is to load it: its names are taken.")
@unlisted(("quantize_int4", "int4_block_size", "int4_quantization_mode"))
@common
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Write what an adapter adds as one file, its scaling in it.

    An .onnx_adapter has the names of the graphs that generate-adapter and auto-opt write, and is loaded beside them.
    """
    asked = shared(flags, "convert-adapters")
    from tunesmith.pipeline.olive.adapter_files import plan_convert

    show_files(plan_convert(flags, asked.project), asked, overrides, as_json)


def show_files(plan: FilesPlan, asked: Shared, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write adapter files, or only say which."""
    from tunesmith.errors import RecipeError
    from tunesmith.pipeline.olive.adapter_files import carry_out_files

    if overrides:
        raise RecipeError("an adapter's file has no recipe", where="--set", fix="leave it out")
    for note in plan.notes:
        warn(note)
    if asked.save:
        warn("--save_config_file changes nothing: the command says it all")
    if asked.dry:
        places = list(plan.adapters) if plan.inside is None else [plan.inside[1]]
        if as_json:
            print_json({"would_write": [str(path) for path in places], "notes": list(plan.notes)})
        else:
            for path in places:
                click.echo(f"would write {path}")
        return
    with only_json(as_json):
        written = carry_out_files(plan, lambda line: None if asked.quiet else click.echo(line, err=True))
    if as_json:
        print_json({"files": [str(path) for path in written], "notes": list(plan.notes)})
    else:
        for path in written:
            click.echo(path)
