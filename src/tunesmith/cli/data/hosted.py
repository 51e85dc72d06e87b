"""`tunesmith data hosted FILE --for openai`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import print_json
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.data.hosted import Method
    from tunesmith.data.hosted.errors import Part, Service


@click.command("hosted")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--for", "service", type=click.Choice(["openai", "azure"]), default="openai", show_default=True)
@click.option(
    "--method", type=click.Choice(["supervised", "dpo", "reinforcement"]), default="supervised", show_default=True
)
@click.option("--part", type=click.Choice(["training", "validation"]), default="training", show_default=True)
@json_option
def command(file: Path, service: Service, method: Method, part: Part, as_json: bool) -> int:
    """Say what a hosted service would refuse FILE for: every rule at once, with its own codes and words.

    Ends with 3 where it would be refused. Nothing is sent anywhere.
    """
    from tunesmith.data.findings import shortened
    from tunesmith.data.hosted import check_for_service

    made = check_for_service(file, service=service, method=method, part=part)
    if as_json:
        refusals = [
            {"finding": asdict(found), "stage": said.stage, "error": said.body()} for found, said in made.refusals
        ]
        print_json({"file": str(file), "service": service, "rows": made.rows, "refusals": refusals})
    else:
        for found, said in made.refusals:
            where = f" ({'line' if len(found.lines) == 1 else 'lines'} {shortened(found.lines)})" if found.lines else ""
            click.echo(f"{said.stage}, {said.code or said.status}: {said.message}{where}\n  to do: {found.fix}")
        if made.accepted:
            click.echo(f"{file}: {made.rows:,} rows, nothing that {service} is known to refuse")
    return 0 if made.accepted else DataError.exit_code
