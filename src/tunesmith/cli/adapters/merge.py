"""`tunesmith adapters merge a=RUN1 b=RUN2`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.adapters.naming import Named, adapters_from, base_option
from tunesmith.cli.options import FOLDER, json_option, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

_HOWS = ("linear", "cat", "svd", "ties", "dare_ties", "dare_linear", "magnitude_prune")


@click.command("merge")
@click.argument("adapters", nargs=-1, required=True, metavar="NAME=RUN[:WEIGHT]...")
@click.option("--how", type=click.Choice(_HOWS), default="cat", show_default=True, help="What is done; see above.")
@click.option("--weights", metavar="W,W,...", help="One weight for each adapter, in their order; default 1.")
@click.option("--rank", type=int, metavar="N", help="For svd: the rank of the result; default the largest.")
@click.option("--density", type=float, metavar="SHARE", help="For ties, dare and magnitude_prune: share that stays.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="For dare: of its draws.")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder to write.")
@base_option
@set_option
@json_option
def command(
    adapters: tuple[str, ...],
    how: str,
    weights: str | None,
    rank: int | None,
    density: float | None,
    seed: int,
    out: Path,
    base: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add adapters of one base to one another, by the methods of the peft library.

    `cat` is the weighted sum of what they add to the weights, exactly, with their ranks added up; `svd` the nearest to
    it of one rank. `linear` adds A and B each by itself, so their products mix. `ties`, `dare_ties`, `dare_linear` and
    `magnitude_prune` thin A and B out first. How far the result is from the exact sum is said. Adapters of other base
    weights are refused. The result is a folder that the peft library loads.
    """
    from tunesmith.export.adapter import Part, combine, save_plain
    from tunesmith.runs import staged_folder

    _refuse_existing(out)
    with only_json(as_json):
        named = adapters_from(adapters, overrides, base)
        shares = _weights(named, weights)
        parts = [Part(one.name, one.source, share) for one, share in zip(named, shares, strict=True)]
        combined = combine(parts, how, rank=rank, density=density, seed=seed)  # type: ignore[arg-type]
        title = " + ".join(one.name for one in named)
        with staged_folder(out) as staged:
            save_plain(named[0].source, combined.adapter, staged, title, combined.made)
    if as_json:
        weighed = {one.name: share for one, share in zip(named, shares, strict=True)}
        facts = {"rank": combined.adapter.rank, "distance": combined.distance}
        print_json({"path": str(out), "how": how, "weights": weighed, **facts, "made": list(combined.made)})
        return
    for line in combined.made:
        click.echo(f"  {line}", err=True)
    click.echo(out)


def _weights(named: list[Named], given: str | None) -> list[float]:
    if given is None:
        return [1.0 if one.weight is None else one.weight for one in named]
    if any(one.weight is not None for one in named):
        raise RecipeError("weights are given twice", where="--weights", expected="--weights, or NAME=RUN:WEIGHT")
    try:
        found = [float(text) for text in given.split(",")]
    except ValueError as error:
        raise RecipeError(f"{given!r} are no weights", where="--weights", expected="numbers with commas") from error
    if len(found) != len(named):
        raise RecipeError(
            f"{len(found)} weights for {len(named)} adapters", where="--weights", expected=f"{len(named)} numbers"
        )
    return found


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise RecipeError("this path exists already", where=str(out), fix="choose another, or remove it")
