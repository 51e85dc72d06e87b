"""`tunesmith olive quantize`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.olive.exporting import model_flags, run_export, unlisted
from tunesmith.cli.olive.options import value


@click.command("quantize")
@model_flags
@value("--algorithm", help="rtn (default; torchao, or GPTQ's format), gptq, awq, or kquant (as ONNX).")
@value("--precision", help="int4 or int8; default int4, of rtn int8.")
@value("-d", "--data_name", help="Rows that calibrate; of what finetune wrote, its own training rows do.")
@value("--data_files", metavar="FILE", help="The same, as a file.")
@value("--text_template", metavar="TEXT", help="How a calibration row becomes text.")
@value("--max_samples", metavar="N", help="Calibration rows; default 128.")
@unlisted(
    ("task", "act_precision", "implementation", "use_qdq_encoding", "subset", "split", "input_cols", "batch_size",
     "model_script", "script_dir", "device", "provider", "test_metrics", "test_llama_path")
)  # fmt: skip
def command(as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Keep a model's weights in 4 or 8 bits, open it again, and prove how near it stays.

    Nothing is fetched: without rows to calibrate with, gptq and awq round to the nearest, and say so.
    """
    run_export("quantize", as_json, overrides, flags)
