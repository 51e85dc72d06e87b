"""The whole of Tunesmith on real data with the embedded base: intents, foods, summaries, sums, shell commands.

    python benchmarks/verdicts.py [--data DIR] [--out DIR] [--quick] [--through STAGE] [NAME ...]

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


_ENGINE = {"cuda_graphs": "off", "compile": "off", "patience": 0}
"""The plain engine, so that the figures are those of any machine."""


def recipes(root: Path, quick: bool) -> dict[str, Recipe]:
    """The published recipes by name."""
    sections: dict[str, dict[str, Any]] = {
        "banking77": {
            "task": "classification",
            "goal": {"use_case": "Route questions of bank customers to one of 77 intents", "metric": "accuracy"},
            "data": {
                "train": str(root / "banking77" / "train.csv"),
                "columns": {"prompt": "text", "answer": "category"},
                "max_rows": 3000,
            },
            "method": {"rank": 32},
            "train": {"learning_rate": 2e-3, "epochs": 8, "batch_size": 16, "evaluations": 4, "eval_rows": 150},
            "evaluate": {"decoding": ["free", "grammar", "scored"], "few_shot_k": [1, 4], "retrieval_k": [1, 4]},
        },
        "tasteset": {
            "task": "extraction",
            "goal": {"use_case": "Foods of a recipe as a JSON list", "metric": "entity_f1"},
            "data": {
                "train": str(root / "tasteset" / "TASTEset.csv"),
                "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
                "span_types": ["FOOD"],
            },
            "method": {"rank": 32},
            "train": {"learning_rate": 2e-3, "epochs": 20, "batch_size": 8, "evaluations": 6, "eval_rows": 96},
            "evaluate": {"decoding": ["free", "grammar"]},
        },
        "scitldr": {
            "task": "summarisation",
            "goal": {"use_case": "Say in one sentence what a paper shows, from its abstract", "metric": "rouge_l"},
            "data": {
                "train": str(root / "scitldr" / "train.jsonl"),
                "validation": str(root / "scitldr" / "dev.jsonl"),
                "test": str(root / "scitldr" / "test.jsonl"),
                "columns": {"prompt": "source", "answer": "target"},
            },
            "train": {"epochs": 3, "evaluations": 3, "eval_rows": 32, "select_by": "loss"},
            "evaluate": {"few_shot_k": [1, 2], "retrieval_k": [1, 2]},
        },
        "svamp": {
            "task": "maths",
            "goal": {"use_case": "Solve sums told in words, in one step", "metric": "accuracy"},
            "data": {"train": str(root / "svamp" / "SVAMP.json"), "template": "{Body}. {Question} → {Answer}"},
            "train": {"epochs": 15, "evaluations": 5, "eval_rows": 100},
        },
        "tldr": {
            "task": "generation",
            "goal": {"use_case": "Turn a wish into a shell command", "metric": "rouge_l"},
            "data": {
                "train": str(root / "tldr" / "nl2cmd.jsonl"),
                "columns": {"prompt": "instruction", "answer": "output"},
                "documents": str(root / "tldr" / "tldr_pages.jsonl"),
                "max_rows": 5000,
                "split": {"group_by": "command"},
            },
            "train": {"epochs": 5, "evaluations": 3, "eval_rows": 64, "select_by": "loss"},
        },
    }
    found = {}
    for name, given in sections.items():
        data = {**given["data"], "max_rows": 400} if quick else given["data"]
        train = {**given["train"], **_ENGINE, **({"max_steps": 40, "evaluations": 2} if quick else {})}
        found[name] = Recipe.model_validate({**given, "name": name, "data": data, "train": train})
    return found


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
            f"({training['tokens_per_second']:,.0f} tokens/s, peak {training['peak_memory_bytes'] / 2**20:,.0f} MiB).",
        ]
    return "\n".join(lines) + "\n"


def show(event: Mapping[str, Any]) -> None:
    """Stages and validations, one line each."""
    if event["kind"] in ("stage_started", "stage_finished", "validation"):
        print(json.dumps({k: v for k, v in event.items() if k not in ("seq", "time")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the data sets; default all")
    default = os.environ.get("TUNESMITH_TEST_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "verdicts", help="folder of the runs")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--through", choices=("train", "verdict"), default="verdict", help="train: only that, for now")
    arguments = parser.parse_args()
    results = []
    for name, recipe in recipes(arguments.data, arguments.quick).items():
        if arguments.names and name not in arguments.names:
            continue
        began = time.monotonic()
        folder = arguments.out / (name + ("-quick" if arguments.quick else ""))
        result = run(recipe, out=folder, through=arguments.through, listener=show)
        if arguments.through == "train":
            continue
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
    if results and not arguments.quick:
        target = HERE / "results" / f"verdicts-{date.today()}.json"
        target.write_text(json.dumps(results, indent=1, default=str) + "\n")
        (HERE / "verdicts.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
