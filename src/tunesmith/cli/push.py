"""`tunesmith push FOLDER REGISTRY`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

_KINDS = ("hub", "mlflow")


@click.command("push")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("registry")
@click.option("--public", is_flag=True, help="Make a new repository of the hub public.")
@json_option
def command(folder: Path, registry: str, public: bool, as_json: bool) -> None:
    """Send a bundle or an export to a registry.

    REGISTRY is `hub:OWNER/NAME` (the Hugging Face hub; private unless `--public`) or `mlflow:NAME` (the registry that
    MLFLOW_TRACKING_URI names, Azure ML's among them). What was changed since it was written is not sent.
    """
    kind, _, name = registry.partition(":")
    if kind not in _KINDS or not name:
        raise RecipeError(f"{registry!r} names no registry", where="REGISTRY", expected="hub:OWNER/NAME or mlflow:NAME")
    with only_json(as_json):
        from tunesmith.export.bundle.push import push_to_hub, push_to_mlflow
        from tunesmith.export.bundle.sending import ready_to_send

        artifact = ready_to_send(folder)
        if kind == "hub":
            sent = push_to_hub(folder, name, private=not public)
        else:
            tags = {"base": artifact.base, "export": str(artifact.target), "base_sha256": artifact.base_sha256}
            sent = push_to_mlflow(folder, name, tags=tags)
    if as_json:
        print_json({"url": sent.url, "version": sent.version})
    else:
        click.echo(f"sent: {sent.url}, version {sent.version}")
