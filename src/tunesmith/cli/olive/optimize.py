"""`tunesmith olive optimize`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.exporting import model_flags, run_export, unlisted
from tunesmith.cli.olive.options import value


@click.command("optimize")
@model_flags
@value("--provider", help="ONNX Runtime's provider; default CPUExecutionProvider.")
@value("--device", help="cpu, gpu or npu.")
@value("--precision", help="fp32, fp16, int8 or int4; default fp32.")
@value("--exporter", help="model_builder (default), or dynamo_exporter, torchscript_exporter: a plain graph.")
@unlisted(
    ("task", "act_precision", "num_split", "memory", "dim_param", "dim_value", "use_qdq_format", "surgeries",
     "block_size", "modality", "enable_aot", "qnn_env_path", "extra_mb_options", "model_script", "script_dir",
     "use_ort_genai", "use_model_builder", "test_metrics", "test_llama_path")
)  # fmt: skip
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Make ONNX of a model at a precision and for a device, open it again, and prove that it is the same model.

    An adapter is merged. int4 and int8 keep weights alone in fewer bits and need no calibration data.
    """
    run_export("optimize", as_json, overrides, flags)
