"""`tunesmith data subsets RECIPE`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import FOLDER, RECIPE_FILE, RecipeCommand, recipe_from, recipe_options
from tunesmith.cli.output import only_json, print_json


@click.command("subsets", cls=RecipeCommand, sections=("data", "train", "evaluate", "verdict"))
@click.argument("recipe", type=RECIPE_FILE)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default NAME-curve beside the recipe.")
@click.option("--train", is_flag=True, help="Train on each subset, score it, and say what more rows would buy.")
@recipe_options
def command(
    recipe: Path, out: Path | None, train: bool, overrides: tuple[str, ...], as_json: bool, trust_remote_code: bool
) -> None:
    """Freeze nested parts of the training rows: a quarter, a half, all (data.learning_curve_shares).

    Every part holds the smaller ones and, in a classification, every label in proportion. DIR/subsets.json lists the
    rows by id and line. With --train, a model is trained on each part and scored on the same test rows; the curve and
    what follows from it stand in DIR/learning_curve.html. Interrupted, the same command goes on.
    """
    asked = recipe_from(recipe, overrides, trust_remote_code)
    folder = out if out is not None else recipe.resolve().parent / f"{asked.name or recipe.stem}-curve"
    with only_json(as_json):
        from tunesmith.cli.display import open_display
        from tunesmith.pipeline.learning_curve import run_learning_curve, subsets_of
        from tunesmith.pipeline.prepare import DataFindingsError, read_data
        from tunesmith.pipeline.subsets import freeze_subsets

        rows = read_data(asked)
        if any(f.severity == "error" for f in rows.findings):
            raise DataFindingsError(rows.findings)
        subsets = subsets_of(asked, rows)
        file = freeze_subsets(folder, subsets, seed=asked.data.split.seed, test_sha256=rows.splits.hashes["test"])
        curve = None
        if train:
            with open_display() as display:
                curve = run_learning_curve(asked, rows, folder, display)
    told = [{"share": s.share, "rows": len(s.rows), "sha256": s.sha256} for s in subsets]
    if as_json:
        print_json({"file": str(file), "subsets": told, "curve": curve.to_dict() if curve is not None else None})
        return
    for subset in told:
        click.echo(f"{subset['share']:>6.1%} {subset['rows']:>9,} rows  {str(subset['sha256'])[:12]}")
    click.echo(f"written: {file}")
    if curve is not None:
        from tunesmith.verdict.wording import bare_points, metric_name, percent

        click.echo(f"\n{metric_name(curve.metric)} on {curve.test_rows:,} test rows")
        for point in curve.points:
            click.echo(
                f"{point.rows:>9,} rows  {percent(point.value)}  {bare_points(point.low)} to {bare_points(point.high)}"
            )
        for expected in curve.extrapolation.predictions if curve.extrapolation is not None else ():
            click.echo(
                f"{expected.rows:>9,} rows  {percent(expected.value)}  {bare_points(expected.low)} to "
                f"{bare_points(expected.high)}  (expected)"
            )
        click.echo(curve.conclusion)
        click.echo(f"written: {folder / 'learning_curve.html'}")
