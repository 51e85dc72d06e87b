"""`tunesmith olive auto-opt`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.exporting import model_flags, run_export, unlisted
from tunesmith.cli.olive.options import switch, value


@click.command("auto-opt")
@model_flags
@value("--device", help="cpu, gpu or npu.")
@value("--provider", help="ONNX Runtime's provider, such as CPUExecutionProvider.")
@value("--precision", help="fp32, fp16, int8 or int4; default fp32, on a GPU fp16.")
@switch("--use_ort_genai", help="Make a folder for ONNX Runtime GenAI, and inference_model.json for Foundry Local.")
@switch("--use_model_builder", help="The same.")
@unlisted(
    ("task", "data_name", "split", "subset", "input_cols", "batch_size", "use_dynamo_exporter", "use_qdq_encoding",
     "dynamic_to_fixed_shape_dim_param", "dynamic_to_fixed_shape_dim_value", "num_splits", "cost_model",
     "mixed_precision_overrides_config", "model_script", "script_dir", "test_metrics", "test_llama_path", "memory")
)  # fmt: skip
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Make ONNX of a model, open it again, and prove that it is the same model.

    With an adapter and ONNX Runtime GenAI the base's graph takes the adapter as an input, beside it as .onnx_adapter;
    `optimize` merges it instead. Of what finetune wrote, the export is scored on the run's test rows.
    """
    run_export("auto-opt", as_json, overrides, flags)
