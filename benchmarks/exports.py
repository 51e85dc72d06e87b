"""Is every export the tuned model, in every format and family?

    python benchmarks/exports.py [--work DIR] [--data DIR] [--fresh] [--page] [--speed] [CASE ...]

CASE is `tasteset` or a family: llama, qwen3, mistral, granite, gemma3, phi3; all by default. `tasteset` is
`embedded:base` tuned on TASTEset, and for exports of several adapters also on the recipes of `examples/recipes`. The
families are small models with random weights in the shapes of published ones, tuned for a minute on two small tasks.
Every format is exported by the functions of `tunesmith export` and `tunesmith adapters pack`, verified on the frozen
test rows, and opened by the programs it is made for, with no code of Tunesmith (`tests/pipeline/exporting/others.py`).

DIR of the data is $TUNESMITH_TEST_DATA, else ../shared/data. What is missing is trained. What was found is kept below
`--work` (build/exports) as soon as it is there: interrupted, the same command continues. Writes exports.md and
results/exports-<date>.json, and ends with 5 where an export is not as it must be. An hour on two cores. `--speed` then
measures the exports of `tasteset` anew, each in a process of its own: on a machine that does nothing else.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # families and independent readers are those of the tests

from tests.pipeline.exporting.families import FAMILIES, FURTHER, REQUIRED, TARGETS, save_family, tuned_family

from _exports_cases import attempt
from _exports_page import page
from tunesmith import Recipe, run
from tunesmith.export.source import open_source
from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.flow import export_pack, export_run
from tunesmith.pipeline.exporting.measure import measure_artifact
from tunesmith.recipe import load_recipe
from tunesmith.runs import RunFolder, environment, write_json, write_text

HERE = Path(__file__).resolve().parent
TASTESET = "tasteset"
FAMILY_LOSS = 0.1
"""Of the metric that a family's exports may lose: one of 32 test rows is three points."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "exports")
    data = os.environ.get("TUNESMITH_TEST_DATA", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--fresh", action="store_true", help="make every export again")
    parser.add_argument("--page", action="store_true", help="make none, and write the page of what was found so far")
    parser.add_argument("--speed", action="store_true", help="measure speed and memory anew")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=[TASTESET, *FAMILIES])
    asked = parser.parse_args()
    unknown = [case for case in asked.cases if case not in (TASTESET, *FAMILIES)]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}")
    work = asked.work.resolve()
    if asked.fresh:
        shutil.rmtree(work / "found", ignore_errors=True)
    for case in () if asked.page else asked.cases:
        base, runs = tasteset(work, asked.data) if case == TASTESET else family(work, case)
        for target in (*TARGETS, *FURTHER):
            kept = work / "found" / case / f"{target}.json"
            if not kept.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                loss = None if case == TASTESET else FAMILY_LOSS
                write_json(kept, tried(base, runs, target, work / "made" / case / str(target), loss))
            print(f"{case:<10} {target!s:<18} {said(read(kept))}", flush=True)
    if asked.speed:
        measure_again(work)
    found = {case: dict(records(work / "found" / case)) for case in (TASTESET, *FAMILIES)}
    found = {case: lines for case, lines in found.items() if lines}
    write_json(HERE / "results" / f"exports-{date.today()}.json", {"environment": environment(), "found": found})
    write_text(HERE / "exports.md", page(found, REQUIRED))
    wrong = [(case, name) for case, lines in found.items() for name, one in lines.items() if not right(case, name, one)]
    for case, name in wrong:
        print(f"not as it must be: {case} {name}", file=sys.stderr)
    return 5 if wrong else 0


def tried(base: str, runs: Mapping[str, RunFolder], target: Target, out: Path, loss: float | None) -> dict[str, Any]:
    """The record of one export, of the first run; of kinds that hold several adapters, of all runs."""
    for path in (out, out.with_name(f"{out.name}.failed")):
        shutil.rmtree(path, ignore_errors=True)
    sources = {name: open_source(folder, load_recipe(folder.recipe_file)) for name, folder in runs.items()}
    if target.kind == "onnx-multi":
        return attempt(lambda: export_pack(base, sources, target, out, runs=runs, max_loss=loss), sources)
    name, first = next(iter(runs.items()))
    return attempt(lambda: export_run(first, target, out=out, max_loss=loss), {"": sources[name]})


def measure_again(work: Path) -> None:
    """Speed and peak memory of the exports of `tasteset`; of several adapters the first is switched in."""
    for target, record in records(work / "found" / TASTESET):
        if record["outcome"] == "verified":
            adapter = TASTESET if target.startswith("onnx-multi") else None
            speed = measure_artifact(work / "made" / TASTESET / target, adapter).to_dict()
            facts = {**record["facts"], "speed": speed}
            write_json(work / "found" / TASTESET / f"{target}.json", {**record, "facts": facts})
            print(f"{target:<18} {speed['decode']:,.0f} tokens/s, {speed['peak_memory'] / 1e6:,.0f} MB", flush=True)


def right(case: str, name: str, record: Mapping[str, Any]) -> bool:
    """Whether a record is as it must be: verified and read by others as well; or, where a family need not have the
    format, a step that failed with its reason; or a program that is not installed."""
    if record["outcome"] == "verified":
        return all(one.get("right", True) for one in record["others"])
    required = name in ("adapter", "merged") or (case in (TASTESET, *REQUIRED) and name in map(str, TARGETS))
    return record["outcome"] == "not here" or (record["outcome"] == "step" and not required)


def said(record: Mapping[str, Any]) -> str:
    """A record in a line."""
    if record["outcome"] != "verified":
        return f"{record['outcome']}: {record.get('step', '')} {record['reason']}"
    words = {True: "agrees", False: "does not agree"}
    tools = [one.get("said") or f"{one['tool']} {words[one['right']]}" for one in record["others"]]
    return "; ".join(["verified", *dict.fromkeys(tools)])


def tasteset(work: Path, data: Path) -> tuple[str, dict[str, RunFolder]]:
    """The embedded base, and the runs that tuned it."""
    examples = HERE.parent / "examples" / "recipes"
    settings = {
        "name": TASTESET,
        "task": "extraction",
        "goal": {"use_case": "Foods of a recipe as a JSON list", "metric": "entity_f1"},
        "data": {
            "train": str(data / "tasteset" / "TASTEset.csv"),
            "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
            "span_types": ["FOOD"],
        },
        "base": "embedded:base",
        "method": {"rank": 32},
        "train": {"learning_rate": 2e-3, "epochs": 20, "batch_size": 8, "evaluations": 6, "eval_rows": 96},
    }
    made = {TASTESET: finished(work / TASTESET) or run(Recipe(**settings), out=work / TASTESET).folder}
    made["recipes"] = (
        finished(work / "recipes") or run(load_recipe(examples / "recipe.yaml"), out=work / "recipes").folder
    )
    return "embedded:base", made


def family(work: Path, name: str) -> tuple[str, dict[str, RunFolder]]:
    """A family's base, and two runs that tuned it."""
    base = work / "families" / name / "base"
    if not (base / "config.json").is_file():
        save_family(base, name)
    folder = base.parent
    return str(base), {rows: finished(folder / rows) or tuned_family(folder / rows, base, rows) for rows in ("a", "b")}


def finished(path: Path) -> RunFolder | None:
    """A run that came to its verdict; None where it has to be made, or continued."""
    return RunFolder.open(path) if (path / "verdict.json").is_file() else None


def records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was found of a case, in the order of the table."""
    for target in order():
        path = folder / f"{target}.json"
        if path.is_file():
            yield target, read(path)


def order() -> Sequence[str]:
    return [str(target) for target in (*TARGETS, *FURTHER)]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    sys.exit(main())
