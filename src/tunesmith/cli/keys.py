"""`tunesmith keys`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import FOLDER, json_option
from tunesmith.cli.output import print_json

if TYPE_CHECKING:
    from tunesmith.service.store.nouns import Key
    from tunesmith.service.store.sql import SqlStore

SCOPES = ("read", "infer", "train", "admin")
_DAY = 86_400
_LONGEST_NAME = 100


def _store_options(function: Callable[..., Any]) -> Callable[..., Any]:
    home = click.option("--home", type=FOLDER, metavar="DIR", help="Of the server; default $TUNESMITH_HOME.")
    database = click.option("--database", metavar="URL", help="Of the server; default $TUNESMITH_DATABASE, or in home.")
    return home(database(json_option(function)))


@click.group("keys")
def command() -> None:
    """Make, list and revoke the keys of a server. Changes hold at once, also while it runs.

    Scopes: read looks at everything; infer asks models, and nothing else; train uploads, tunes and deletes, and may
    read; admin may do all of it, and what concerns the server.
    """


@command.command("create")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Repeatable; default read, infer, train."
)
@click.option("--days", type=click.IntRange(1, 36_500), metavar="N", help="The key expires after so many days.")
@_store_options
def create(
    name: str, scopes: tuple[str, ...], days: int | None, home: Path | None, database: str | None, as_json: bool
) -> None:
    """Make a key called NAME, and print its secret: this once, for it is not kept."""
    from tunesmith.service.keys import USUAL, create_key

    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise click.BadParameter(f"a name has 1 to {_LONGEST_NAME} printable characters", param_hint="NAME")
    expires_at = int(time.time()) + days * _DAY if days is not None else None
    with _store(home, database, new=True) as store:
        key, secret = create_key(store, name, scopes or USUAL, expires_at=expires_at)
    if as_json:
        print_json({**_shown(key), "secret": secret})
        return
    click.echo(secret)
    click.echo(f"key {key.id} ({', '.join(key.scopes)}); the secret is not shown again", err=True)


@command.command("list")
@_store_options
def list_(home: Path | None, database: str | None, as_json: bool) -> None:
    """List the keys, revoked ones too."""
    from tunesmith.service.keys import list_keys

    with _store(home, database) as store:
        keys = list_keys(store)
    if as_json:
        print_json({"keys": [_shown(key) for key in keys]})
        return
    if not keys:
        click.echo("no keys; make one with `tunesmith keys create NAME`")
    for key in keys:
        click.echo(f"{key.id}  {_state(key):<20}  {','.join(key.scopes):<16}  {key.name}")


@command.command("revoke")
@click.argument("id")
@_store_options
def revoke(id: str, home: Path | None, database: str | None, as_json: bool) -> None:
    """End the key with this ID for good."""
    from tunesmith.errors import RecipeError
    from tunesmith.service.keys import revoke_key

    with _store(home, database) as store:
        key = revoke_key(store, id)
    if key is None:
        raise RecipeError(f"there is no key {id!r}", fix="`tunesmith keys list` shows their ids")
    if as_json:
        print_json(_shown(key))
    else:
        click.echo(f"revoked {key.id} ({key.name})")


@contextmanager
def _store(home: Path | None, database: str | None, *, new: bool = False) -> Iterator[SqlStore]:
    """The store of the server that these options name, as `tunesmith serve` finds it; made only where it may be `new`.

    Raises `RecipeError` where there is none.
    """
    from tunesmith.cli.serve import settings_from
    from tunesmith.errors import RecipeError
    from tunesmith.service.store import open_store

    settings = settings_from(home, None, None, {"database": database})
    if not new and settings.database is None and not (settings.home / "store.sqlite").exists():
        raise RecipeError("no server has its home here", where=str(settings.home), fix="name its folder with --home")
    store, _ = open_store(settings)
    try:
        yield store
    finally:
        store.close()


def _shown(key: Key) -> dict[str, Any]:
    """A key without its digest."""
    return {name: value for name, value in asdict(key).items() if name != "digest"} | {"state": _state(key)}


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    if key.expires_at <= time.time():
        return "expired"
    return f"until {time.strftime('%Y-%m-%d', time.gmtime(key.expires_at))}"
