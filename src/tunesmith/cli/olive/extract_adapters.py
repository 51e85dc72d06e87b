"""`tunesmith olive extract-adapters`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.convert_adapters import show_files
from tunesmith.cli.olive.exporting import unlisted
from tunesmith.cli.olive.options import common, shared, value


@click.command("extract-adapters")
@value("-m", "--model_name_or_path", help="OUTPUT of finetune, a PEFT folder, or a model with LoRA tensors inside.")
@value("-o", "--output_path", metavar="DIR", help="Gets one file for each adapter; default adapters.")
@value("-f", "--format", help="onnx_adapter, safetensors or npz.")
@value("--dtype", help="float32 (default) or float16.")
@value("--onnx_model_path", metavar="DIR", help="The packed graph that is to load it: its names are taken.")
@unlisted(("cache_dir", "task", "trust_remote_code", "model_script", "script_dir"))
@common
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Write the adapters of a model to files, one for each, their scaling in them."""
    asked = shared(flags, "extract-adapters")
    from tunesmith.pipeline.olive.adapter_files import plan_extract

    show_files(plan_extract(flags, asked.project), asked, overrides, as_json)
