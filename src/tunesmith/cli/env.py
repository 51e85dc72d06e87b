"""`tunesmith env`."""

from __future__ import annotations

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.output import print_json
from tunesmith.cli.serve import environment, environment_lines


@click.command("env")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="Where the server is.")
@click.option("--key", default="local", show_default=True, metavar="KEY", help="On loopback any text will do.")
@json_option
def command(url: str, key: str, as_json: bool) -> None:
    """Print the lines that point programs written for OpenAI and Azure OpenAI at a Tunesmith server.

    Use it as `eval "$(tunesmith env)"`.
    """
    import shlex

    if as_json:
        print_json(environment(url.rstrip("/"), key))
        return
    click.echo("\n".join(environment_lines(shlex.quote(url.rstrip("/")), shlex.quote(key))))
