"""`tunesmith serve`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import FOLDER, json_option
from tunesmith.cli.output import print_json
from tunesmith.errors import ResourceError

if TYPE_CHECKING:
    from tunesmith.service.settings import ServeSettings

NAMES_SHOWN = 3
"""Names of one base that are printed; the others are counted."""


@click.command("serve")
@click.option("--host", metavar="H", help="Address to listen at; default 127.0.0.1. A wider one needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="Default 8000; 0 is any free one.")
@click.option("--home", type=FOLDER, metavar="DIR", help="Where everything is kept; default $TUNESMITH_HOME.")
@click.option("--database", metavar="URL", help="SQLAlchemy URL; default $TUNESMITH_DATABASE, else SQLite in home.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML with any setting.")
@click.option(
    "--wait-jobs", is_flag=True, default=None, help="Reading a job waits for its end: for notebooks in one go."
)
@click.option(
    "--results-encoding",
    type=click.Choice(["plain", "base64", "auto"]),
    help="Of a job's CSV; auto: base64 for chat rows.",
)
@click.option(
    "--device", "devices", multiple=True, metavar="D", help="One job at a time on each; repeatable; default cpu."
)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Answer with an exported ONNX model; its adapters are NAME:ADAPTER. Repeatable.",
)
@click.option("--require-key", is_flag=True, default=None, help="Ask for a key on loopback too.")
@click.option("--python-graders", is_flag=True, default=None, help="Run graders written in Python, in a sandbox.")
@click.option("--no-worker", is_flag=True, help="Leave the jobs to `tunesmith worker`.")
@click.option("--no-evidence", is_flag=True, help="Do not measure what a job was worth after it has succeeded.")
@click.option("--log", metavar="FILE", help="Log file; - is standard error; default logs/server.jsonl in home.")
@json_option
def command(
    home: Path | None, file: Path | None, devices: tuple[str, ...], artifacts: tuple[str, ...], no_worker: bool,
    no_evidence: bool, log: str | None, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Serve fine-tuning, models and answers to programs written for OpenAI and Azure OpenAI.

    Prints the environment lines to paste into another terminal, and serves until Ctrl-C. Settings come from these
    flags, then the file, then their defaults (docs/service.md).
    """
    serve = _server()
    settings = settings_from(
        home,
        file,
        log,
        {
            **flags,
            "devices": devices or None,
            "worker": False if no_worker else None,
            "evidence": False if no_evidence else None,
            "artifacts": artifacts or None,
        },
    )
    serve(
        settings, lambda url: print_json(described(url, settings)) if as_json else click.echo(greeting(url, settings))
    )


def _server() -> Callable[[ServeSettings, Callable[[str], None]], None]:
    """The server's entry. Raises `ResourceError` where the packages it needs are not installed."""
    try:
        from tunesmith.service.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "tunesmith":
            raise
        raise ResourceError(
            f"a server needs {error.name}, which is not installed", fix="pip install 'tunesmith[serve]'"
        ) from error
    return serve


def settings_from(home: Path | None, file: Path | None, log: str | None, flags: dict[str, Any]) -> ServeSettings:
    """Settings by flags (None: not given), the environment, the file and the defaults, in this order of weight."""
    from dataclasses import replace

    from tunesmith.service.settings import ServeSettings, default_home

    settings = ServeSettings(home=default_home())
    if file is not None:
        from tunesmith.service.configuring import read_settings

        settings = read_settings(file, settings)
    if os.environ.get("TUNESMITH_HOME"):
        settings = replace(settings, home=default_home())
    if os.environ.get("TUNESMITH_DATABASE"):
        settings = replace(settings, database=os.environ["TUNESMITH_DATABASE"])
    given = {name: value for name, value in flags.items() if value is not None}
    if artifacts := given.pop("artifacts", None):
        from tunesmith.service.exports import parse_exports

        given["artifacts"] = {**settings.artifacts, **parse_exports(artifacts)}
    if home is not None:
        given["home"] = home
    settings = replace(settings, **given)
    settings = replace(settings, home=settings.home.expanduser().absolute())
    place = Path(log) if log else settings.log or settings.home / "logs" / "server.jsonl"
    return replace(settings, log=None if str(place) == "-" else place.expanduser())


def environment(url: str, key: str) -> dict[str, str]:
    """What clients read from the environment."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": key,
        "AZURE_OPENAI_ENDPOINT": url,
        "AZURE_OPENAI_API_KEY": key,
        "OPENAI_API_VERSION": "2024-10-21",
    }


def environment_lines(url: str, key: str) -> list[str]:
    """The same as lines for a shell."""
    return [f"export {name}={value}" for name, value in environment(url, key).items()]


def described(url: str, settings: ServeSettings) -> dict[str, Any]:
    """What `serve --json` prints once it listens; without a key in it where a real one is needed."""
    variables = environment(url, "local")
    if settings.keys_required:
        variables = {name: value for name, value in variables.items() if not name.endswith("_KEY")}
    return {
        "url": url,
        "environment": variables,
        "keys_required": settings.keys_required,
        "aliases": dict(settings.aliases),
        "artifacts": {name: str(folder) for name, folder in settings.artifacts.items()},
        "home": str(settings.home),
        "log": str(settings.log) if settings.log else None,
    }


def greeting(url: str, settings: ServeSettings) -> str:
    """What `serve` prints once it listens."""
    from tunesmith.service.configuring import stand_ins

    key = "'your key'" if settings.keys_required else "local"
    lines = [f"Tunesmith serves on {url}", ""]
    lines += [f"  {line}" for line in environment_lines(url, key)]
    lines += ["", f"  instead of https://management.azure.com (deployments): {url}", ""]
    for base, names in stand_ins(settings).items():
        more = len(names) - NAMES_SHOWN
        told = ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more names" if more > 0 else "")
        lines.append(f"{base} stands for {told}")
    lines += [f"{name} is the export in {folder}" for name, folder in settings.artifacts.items()]
    database = "" if settings.database is None else f"; database {_without_password(settings.database)}"
    lines.append(f"state in {settings.home}{database}")
    if settings.log is not None:
        lines.append(f"log in {settings.log}")
    if not settings.keys_required:
        lines.append("any text is a key: only this machine can reach the server")
    if not settings.worker:
        lines.append("jobs wait for `tunesmith worker`")
    lines.append("Ctrl-C ends it: answers are finished first, jobs go on at the next start")
    return "\n".join(lines)


def _without_password(database: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(database).render_as_string(hide_password=True)
    except ArgumentError:
        return "of the URL given"
