"""`tunesmith bundle EXPORT`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import FOLDER, json_option, run_from
from tunesmith.cli.output import only_json, print_json

_SERVERS = ("vllm", "llama.cpp", "ollama", "tunesmith")
"""`export.bundle.Server`, which is too heavy to be imported for `--help`."""


@click.command("bundle")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--for", "server", type=click.Choice(_SERVERS), help="The server; default the usual one of its kind.")
@click.option("--name", metavar="NAME", help="What clients call the model; default the run's name.")
@click.option("--run", metavar="RUN", help="The run it was made of, where it does not lie in its folder.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to write it; default beside the export.")
@json_option
def command(
    export: Path, server: str | None, name: str | None, run: str | None, out: Path | None, as_json: bool
) -> None:
    """Make an export ready to run elsewhere.

    EXPORT is the folder that `tunesmith export` wrote. The bundle holds it with a start script, a compose file where
    there is an image for the server, a card with data, evidence, licence and limits, a bill of materials (CycloneDX)
    and the SHA-256 of every file.
    """
    folder = run_from(run, ()) if run is not None else None
    from tunesmith.pipeline.bundling import bundle

    with only_json(as_json):
        made = bundle(export, out, run=folder, server=server, name=name)
    if as_json:
        print_json({"path": str(made.folder), "server": made.server, "start": made.start, "bytes": made.bytes})
    else:
        click.echo(f"written: {made.folder}, {made.bytes / 1e6:,.1f} MB\nnext: {made.start}")
