"""The whole of Tunesmith on real data: banking77 (intents) and tasteset (foods in recipes), with the embedded base.

    python benchmarks/verdicts.py [--data DIR] [--out DIR] [--quick] [NAME ...]

Each run answers the published question: is a tuned model worth it here, and if not, what is? Whatever the answer, it
goes to benchmarks/results/verdicts-<date>.json and benchmarks/verdicts.md. Interrupted, the same command continues.
DIR of the data is $TUNESMITH_TEST_DATA, else ../shared/data. `--quick` takes 400 rows and 40 steps.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith import Recipe, run
from tunesmith.verdict.headline import headline

HERE = Path(__file__).resolve().parent


def recipes(root: Path, quick: bool) -> dict[str, Recipe]:
    """The published recipes by name."""
    small: Mapping[str, Any] = {"max_steps": 40, "evaluations": 2} if quick else {}
    banking = Recipe.model_validate(
        {
            "name": "banking77",
            "task": "classification",
            "goal": {"use_case": "Route questions of bank customers to one of 77 intents", "metric": "accuracy"},
            "data": {
                "train": str(root / "banking77" / "train.csv"),
                "columns": {"prompt": "text", "answer": "category"},
                "max_rows": 400 if quick else 3000,
            },
            "train": {"epochs": 6, "batch_size": 16, "evaluations": 3, "eval_rows": 48, **small},
        }
    )
    tasteset = Recipe.model_validate(
        {
            "name": "tasteset",
            "task": "extraction",
            "goal": {"use_case": "Foods of a recipe as a JSON list", "metric": "entity_f1"},
            "data": {
                "train": str(root / "tasteset" / "TASTEset.csv"),
                "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
                "span_types": ["FOOD"],
                **({"max_rows": 400} if quick else {}),
            },
            "train": {"epochs": 5, "evaluations": 3, "eval_rows": 32, **small},
        }
    )
    return {"banking77": banking, "tasteset": tasteset}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All runs as markdown."""
    lines = [
        "# Verdicts on real data",
        "",
        "Made by `python benchmarks/verdicts.py`. Values with 95 % intervals; tuned is LoRA on `embedded:base`.",
    ]
    for result in results:
        lines += ["", f"## {result['name']}", "", f"**{result['headline']}**", "", result["reason"], ""]
        metrics = list(dict.fromkeys(row["metric"] for row in result["comparison"]))
        lines += [f"| candidate | {' | '.join(metrics)} | n |", "|---|" + "---|" * (len(metrics) + 1)]
        for candidate in dict.fromkeys(row["candidate"] for row in result["comparison"]):
            rows = {row["metric"]: row for row in result["comparison"] if row["candidate"] == candidate}
            cells = [f"{rows[m]['value']:.3f} ({rows[m]['low']:.3f} to {rows[m]['high']:.3f})" for m in metrics]
            lines.append(f"| {candidate} | {' | '.join(cells)} | {rows[metrics[0]]['n']} |")
        training = result["training"]
        lines += [
            "",
            f"Training: {training['steps']} steps, {training['tokens']:,} tokens in {training['seconds']:.0f} s "
            f"({training['tokens_per_second']:,.0f} tokens/s, peak {training['peak_memory_bytes'] / 2**20:,.0f} MiB); "
            f"the whole run took {result['seconds']:.0f} s.",
        ]
    return "\n".join(lines) + "\n"


def show(event: Mapping[str, Any]) -> None:
    """Stages and validations, one line each."""
    if event["kind"] in ("stage_started", "stage_finished", "validation"):
        print(json.dumps({k: v for k, v in event.items() if k not in ("seq", "time")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="banking77, tasteset; default both")
    default = os.environ.get("TUNESMITH_TEST_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "verdicts", help="folder of the runs")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    results = []
    for name, recipe in recipes(arguments.data, arguments.quick).items():
        if arguments.names and name not in arguments.names:
            continue
        began = time.monotonic()
        result = run(recipe, out=arguments.out / (name + ("-quick" if arguments.quick else "")), listener=show)
        assert result.verdict is not None
        results.append(
            {
                "name": name,
                "seconds": time.monotonic() - began,
                "headline": headline(result.verdict),
                "reason": result.verdict.reason,
                "base_sha256": result.folder.manifest()["base"]["weights_sha256"],
                **{k: v for k, v in result.to_dict().items() if k not in ("run", "report")},
            }
        )
        print(headline(result.verdict), flush=True)
    if not arguments.quick:
        target = HERE / "results" / f"verdicts-{date.today()}.json"
        target.write_text(json.dumps(results, indent=1, default=str) + "\n")
        (HERE / "verdicts.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
