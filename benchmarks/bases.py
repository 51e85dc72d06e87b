"""Does the order of `tunesmith bases`, made before anything is tuned, foretell the order of the tuned models?

    python benchmarks/bases.py [--data DIR] [--out DIR] [FOLDER ...]

Several bases are compared on two data sets (tasteset: foods of a recipe as a JSON list; banking77: 77 intents), and
each is then tuned shortly by the same recipe and scored on the test rows. Agreement of the two orders is Kendall's
tau-b and whether the first is the same, for each figure that could be ranked by. FOLDERs are further bases, beside the
embedded ones, stories260K (where DIR has it) and a base of the embedded one's shape with random weights. DIR is
$TUNESMITH_TEST_DATA, else ../shared/data. Interrupted, the same command continues. Writes results/bases-<date>.json
and bases.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from _stories_base import save_stories
from tunesmith import Recipe, run
from tunesmith.pipeline.base_types import BaseEntry
from tunesmith.pipeline.bases import compare_bases

HERE = Path(__file__).resolve().parent
ROWS = 60
FIGURES: Mapping[str, tuple[str, int]] = {
    "shown": ("bits per byte of answers, behind examples", -1),
    "answers": ("bits per byte of answers, alone", -1),
    "better": ("the lower of these two", -1),
    "inputs": ("bits per byte of inputs", -1),
    "few_shot": ("few-shot score", 1),
    "zero_shot": ("zero-shot score", 1),
    "parameters": ("parameters", 1),
}
"""Figures that could be ranked by: in words, and whether more (1) or less (-1) is better."""


def recipes(root: Path) -> dict[str, dict[str, Any]]:
    """What every base is compared and tuned by; the tuning is short, and the same for all."""
    common = {"evaluations": 2, "eval_rows": 24, "patience": 0}
    return {
        "tasteset": {
            "name": "tasteset",
            "task": "extraction",
            "goal": {"metric": "entity_f1"},
            "data": {
                "train": str(root / "tasteset" / "TASTEset.csv"),
                "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
                "span_types": ["FOOD"],
                "max_rows": 450,
                "split": {"test": 120, "validation": 60},
            },
            "train": {"max_steps": 140, "batch_size": 8, **common},
            "baselines": [],
        },
        "banking77": {
            "name": "banking77",
            "task": "classification",
            "goal": {"metric": "accuracy"},
            "data": {
                "train": str(root / "banking77" / "train.csv"),
                "columns": {"prompt": "text", "answer": "category"},
                "max_rows": 2500,
                "split": {"test": 300, "validation": 77},
            },
            "train": {"max_steps": 260, "batch_size": 16, **common},
            "evaluate": {"few_shot_k": [4]},
            "baselines": [],
        },
    }


def untrained(folder: Path) -> Path:
    """A base of the embedded one's shape and tokenizer whose weights were never trained."""
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.models.load import load_base
    from tunesmith.recipe.schema import Base

    base = load_base(Base())
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(base.model.config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def figures(entry: BaseEntry) -> dict[str, float | None]:
    """What a base could be ranked by, from its entry; None where it was not measured."""
    found = entry.measured
    if found is None:
        return dict.fromkeys(FIGURES)
    bits = {name: getattr(found, name) for name in ("shown", "answers", "inputs")}
    values: dict[str, float | None] = {name: None if one is None else one.value for name, one in bits.items()}
    pair = [value for name in ("shown", "answers") if (value := values[name]) is not None]
    scores = {name: getattr(found, name) for name in ("few_shot", "zero_shot")}
    return {
        **values,
        "better": min(pair) if pair else None,
        **{name: None if one is None else one.value for name, one in scores.items()},
        "parameters": float(found.parameters),
    }


def agreement(before: Mapping[str, float | None], after: Mapping[str, float], better: int) -> dict[str, Any]:
    """Kendall's tau-b of the order by a figure and the tuned one, and whether the same base is first in both."""
    names = [name for name in after if before.get(name) is not None]
    ours = [better * float(before[name] or 0.0) for name in names]
    tuned = [after[name] for name in names]
    tau = float(kendalltau(ours, tuned).statistic) if len(set(ours)) > 1 and len(set(tuned)) > 1 else None
    first = [name for name, value in zip(names, ours, strict=True) if value == max(ours)]
    best = max(after, key=lambda name: after[name])
    return {"tau": tau, "first": first, "first_is_best": first == [best], "bases": len(names)}


def measure(name: str, raw: Mapping[str, Any], bases: Mapping[str, str], out: Path) -> dict[str, Any]:
    """One data set: the comparison, then every base tuned."""
    recipe = Recipe.model_validate(raw)
    report = compare_bases(recipe, list(bases.values()), rows=ROWS, out=out / f"{name}-bases")
    by_path = {path: label for label, path in bases.items()}
    entries = {by_path[entry.base]: entry for entry in report.entries}
    tuned: dict[str, dict[str, Any]] = {}
    for label, path in bases.items():
        if entries[label].measured is None:
            continue
        one = recipe.model_copy(update={"base": recipe.base.model_copy(update={"model": path})})
        result = run(one, out=out / f"{name}-{label.replace(':', '-').replace(' ', '-')}", through="evaluate")
        assert result.comparison is not None and result.training is not None
        value = result.comparison.value("tuned")
        tuned[label] = {"value": value.value, "low": value.low, "high": value.high, "n": value.n,
                        "training_seconds": result.training["seconds"]}  # fmt: skip
        print(name, label, tuned[label], flush=True)
    values = {label: one["value"] for label, one in tuned.items()}
    before = {label: figures(entry) for label, entry in entries.items()}
    return {
        "name": name,
        "metric": str(report.metric),
        "rule": report.ranking.rule,
        "rows": report.rows,
        "shots": report.shots,
        "compared_seconds": sum(entry.measured.seconds for entry in report.entries if entry.measured is not None),
        "ranked": [by_path[one.base] for one in report.ranking.ranked],
        "clearly_behind": [by_path[one.base] for one in report.ranking.ranked if one.clearly_behind],
        "left_out": {by_path[base]: reason for base, reason in report.ranking.left_out.items()},
        "before": before,
        "tuned": tuned,
        "agreement": {
            figure: agreement({label: one[figure] for label, one in before.items()}, values, better)
            for figure, (_, better) in FIGURES.items()
        },
    }


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Which figure foretells the best base?",
        "",
        "Made by `python benchmarks/bases.py`. Bases are compared before tuning, then tuned shortly by one recipe",
        "(LoRA, one seed) and scored on the test rows. Few bases, two data sets, and large differences between most of",
        "the bases: this shows which figures tell bad from good, and not how they split hairs. The two best differ by",
        "less than their intervals on both sets, so which of them is first is mostly chance. The rule of",
        "`tunesmith bases` (answers behind examples; inputs where the answer is a label) was chosen after a first look",
        "at these figures, so they show that it fits, and do not prove it for other bases.",
        "",
        "| figure ranked by | " + " | ".join(f"{r['name']}: tau, first right" for r in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for figure, (words, _) in FIGURES.items():
        cells = []
        for result in results:
            found = result["agreement"][figure]
            tau = "all alike" if found["tau"] is None else f"{found['tau']:+.2f}"
            cells.append(f"{tau}, {'yes' if found['first_is_best'] else 'no'}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    for result in results:
        lines += [
            "",
            f"## {result['name']}",
            "",
            f"Measured on {result['rows']} validation rows with {result['shots']} examples, in "
            f"{result['compared_seconds']:.0f} s for all bases. Tuned: {result['metric']} on "
            f"{next(iter(result['tuned'].values()))['n']} test rows, with 95 % intervals. Ranked by {result['rule']}.",
            "",
            "| base | parameters | answers behind examples | answers alone | inputs | few-shot | zero-shot | tuned |",
            "|---|---|---|---|---|---|---|---|",
        ]
        order = sorted(result["tuned"], key=lambda label: -result["tuned"][label]["value"])
        for label in order:
            one, tuned = result["before"][label], result["tuned"][label]
            shown = [f"{one[k]:.3f}" if one[k] is not None else "–" for k in ("shown", "answers", "inputs")]
            shown += [f"{one[k]:.3f}" if one[k] is not None else "–" for k in ("few_shot", "zero_shot")]
            lines.append(
                f"| {label} | {one['parameters']:,.0f} | {' | '.join(shown)} | "
                f"{tuned['value']:.3f} ({tuned['low']:.3f} to {tuned['high']:.3f}) |"
            )
        behind = ", ".join(result["clearly_behind"]) or "none"
        lines += ["", f"The order of `tunesmith bases`: {', '.join(result['ranked'])}; clearly behind: {behind}."]
        for label, reason in result["left_out"].items():
            lines.append(f"Not ranked: {label} ({reason}).")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="further bases")
    default = os.environ.get("TUNESMITH_TEST_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "bases", help="folder of the runs")
    arguments = parser.parse_args()
    bases = {"embedded:base": "embedded:base", "embedded:tiny": "embedded:tiny"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    bases["untrained"] = str(untrained(arguments.out / "untrained").resolve())
    if (arguments.data / "stories260K").is_dir():
        stories = save_stories(arguments.data / "stories260K", arguments.out / "stories260K")
        bases["stories260K"] = str(stories.resolve())
    for number, folder in enumerate(arguments.folders, 1):
        bases[f"earlier round {number}" if len(arguments.folders) > 1 else "earlier round"] = str(folder.resolve())
    results = [measure(name, raw, bases, arguments.out) for name, raw in recipes(arguments.data).items()]
    (HERE / "results" / f"bases-{date.today()}.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "bases.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
