"""`tunesmith adapters`: one file per sub-command."""

from __future__ import annotations

import click

from tunesmith.cli.group import LazyGroup

COMMANDS = {
    "check": ("tunesmith.cli.adapters.check", "Say what an adapter is, and which servers take it."),
    "convert": ("tunesmith.cli.adapters.convert", "Make an adapter plain LoRA, or a file for llama.cpp or ONNX."),
    "merge": ("tunesmith.cli.adapters.merge", "Add adapters of one base to one another."),
    "pack": ("tunesmith.cli.adapters.pack", "Put several adapters over one base, to be switched between."),
}


@click.group("adapters", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Work with trained adapters: of runs, or folders that the peft library reads."""
