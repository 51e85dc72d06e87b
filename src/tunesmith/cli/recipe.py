"""`tunesmith recipe schema|docs`."""

from __future__ import annotations

import click


@click.group("recipe")
def command() -> None:
    """What can stand in a recipe."""


@command.command("schema")
@click.option("--json", "as_json", is_flag=True, help="The schema is JSON either way.")
def schema(as_json: bool) -> None:
    """Print the JSON schema, for editors that complete and check YAML by it."""
    from tunesmith.cli.output import print_json
    from tunesmith.recipe import recipe_schema

    del as_json
    print_json(recipe_schema())


@command.command("docs")
@click.option("--json", "as_json", is_flag=True, help="Print the settings as one JSON object.")
def docs(as_json: bool) -> None:
    """Print every setting with its type, default and meaning, as Markdown."""
    from tunesmith.cli.output import print_json
    from tunesmith.recipe import markdown, settings

    if as_json:
        print_json({s.key: {"type": s.type, "default": s.default, "help": s.help} for s in settings()})
    else:
        click.echo(markdown(), nl=False)
