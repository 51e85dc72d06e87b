"""`tunesmith olive capture-onnx-graph`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.exporting import model_flags, run_export, unlisted
from tunesmith.cli.olive.options import switch, value


@click.command("capture-onnx-graph")
@model_flags
@switch("--use_model_builder", help="Make a folder for ONNX Runtime GenAI; without it, a plain graph.")
@switch("--use_ort_genai", help="The same.")
@value("--precision", help="fp32, fp16, int8 or int4.")
@unlisted(
    ("task", "conversion_device", "use_dynamo_exporter", "use_mobius_builder", "fixed_param_dict",
     "past_key_value_name", "torch_dtype", "target_opset", "int4_block_size", "int4_accuracy_level", "exclude_embeds",
     "exclude_lm_head", "enable_cuda_graph", "extra_mb_options", "model_script", "script_dir", "test_metrics",
     "test_llama_path", "device", "provider")
)  # fmt: skip
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Make an ONNX graph of a model as it is, open it again, and prove that it is the same model."""
    run_export("capture-onnx-graph", as_json, overrides, flags)
