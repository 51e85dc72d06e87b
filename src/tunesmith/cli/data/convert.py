"""`tunesmith data convert FILE --to FORMAT`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option, set_option
from tunesmith.cli.output import print_json, warn


@click.command("convert")
@click.argument("source")
@click.option(
    "--to", required=True, metavar="FORMAT", help="openai-chat, trl, alpaca, sharegpt, or one format by name."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="File to write; default SOURCE.FORMAT.jsonl."
)
@click.option("--lossy", is_flag=True, help="Write although something is lost; it is still named.")
@set_option
@json_option
def command(source: str, to: str, out: Path | None, lossy: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the rows of SOURCE in another format.

    SOURCE is anything data.train may be; how it is read can be said with --set data.format=NAME, data.template=TEXT and
    so on. What the format has no place for is named, and nothing is written without --lossy.
    """
    from tunesmith.data import convert, targets
    from tunesmith.data.findings import shortened
    from tunesmith.data.sources import address_of
    from tunesmith.errors import RecipeError
    from tunesmith.recipe import apply_overrides, parse_recipe

    if to not in targets():
        raise RecipeError(f"rows cannot be written as {to!r}", where="--to", expected=", ".join(targets()))
    data = apply_overrides({"data": {"train": source}}, overrides)
    if set(data) != {"data"}:
        raise RecipeError("only data can be set here", where="--set", expected="data.KEY=VALUE")
    address = address_of(source)
    # A source that is no file is named after what it is, in the working directory.
    beside = address.path.parent if address.kind == "file" else Path()
    stem = address.path.name.split(".")[0].split("#")[0] or "rows"
    target = out if out is not None else beside / f"{stem}.{to}.jsonl"
    done = convert(parse_recipe(data).data, to, target, lossy=lossy)
    if as_json:
        losses = [{"what": loss.what, "lines": list(loss.lines)} for loss in done.losses]
        told = {"rows": done.rows, "written": done.written, "format": done.format, "reason": done.reason}
        print_json({"out": str(done.out), **told, "to": to, "losses": losses})
        return
    click.echo(f"{address.shown}: {done.rows:,} rows, {done.format} ({done.reason})")
    for loss in done.losses:
        warn(f"lost: {loss.what} ({len(loss.lines):,} rows: {shortened(loss.lines)})")
    click.echo(f"written: {done.out}, {done.written:,} rows as {to}")
