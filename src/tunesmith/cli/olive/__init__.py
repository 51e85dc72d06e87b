"""`tunesmith olive`: Olive's commands with Olive's flags, one file per command."""

from __future__ import annotations

import click

from tunesmith.cli.group import LazyGroup

COMMANDS = {
    "finetune": ("tunesmith.cli.olive.finetune", "Tune a model on a data set."),
    "auto-opt": ("tunesmith.cli.olive.auto_opt", "Make ONNX of a model, and of an adapter on it, and prove it."),
    "optimize": ("tunesmith.cli.olive.optimize", "Make ONNX of a model at a precision and for a device, and prove it."),
    "run": ("tunesmith.cli.olive.run", "Run a workflow file: tuning, search, exports, goals."),
    "generate-adapter": ("tunesmith.cli.olive.generate_adapter", "Pack one base and several adapters as ONNX."),
    "convert-adapters": ("tunesmith.cli.olive.convert_adapters", "Write an adapter as .onnx_adapter or safetensors."),
    "extract-adapters": ("tunesmith.cli.olive.extract_adapters", "Write the adapters of a model to files."),
    "quantize": ("tunesmith.cli.olive.quantize", "Quantise the weights of a model."),
    "capture-onnx-graph": ("tunesmith.cli.olive.capture", "Make an ONNX graph of a model as it is."),
}


@click.group("olive", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Olive's commands, with the flags that Olive and texts about it document.

    Hub ids stand for files and folders of this machine, through `aliases.yaml`; nothing is fetched. Every command ends
    with an exit code other than 0 where it fails. docs/olive.md says what becomes of each flag.
    """
