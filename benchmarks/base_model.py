"""Is the small base worth tuning? Foods of recipes as JSON lists, and intents of bank customers, with intervals.

    python benchmarks/base_model.py                                  # embedded:base, all tasks, the first settings
    python benchmarks/base_model.py --base work/pretrain/base/model --only tasteset --methods lora full --tries 4
    python benchmarks/base_model.py --smoke                          # does it all run? Six steps each, nothing written

Tasks: `tasteset` (FOOD spans), `recipes` (examples/recipes), `banking77` (all rows, the published test file). For each
task and method the first `--tries` settings of `SETTINGS` are trained; the best on validation rows (its metric at the
checkpoint that is kept) is evaluated on the test rows beside the baselines, the others never see them. What was tried
stands in the results. Everything is kept under `--out`: interrupted, the same command continues, and a run with more
tries trains only what is new. Results go to benchmarks/results/base_model.json and benchmarks/base_model.md; tasks and
methods that were not asked for keep their results of the same base. Data: `--data`, else $TUNESMITH_TEST_DATA, else
../shared/data. A try on tasteset took eleven minutes on two cores that others used too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import Recipe, run
from tunesmith.models.load import base_folder
from tunesmith.pipeline.result import Result

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "base_model.json"
METHODS = ("lora", "full")

_LONG = {"evaluations": 6, "patience": 0, "batch_size": 8, "eval_rows": 96}
_FULL = {"weight_decay": 0.1, "beta2": 0.99}
_INTENTS = {"evaluations": 4, "patience": 0, "batch_size": 16, "eval_rows": 250}

Settings = Mapping[str, Mapping[str, Any]]

EXTRACTION: Mapping[str, tuple[Settings, ...]] = {
    "lora": (
        {"method": {"rank": 32}, "train": {**_LONG, "learning_rate": 2e-3, "epochs": 20}},
        {"method": {"rank": 32}, "train": {**_LONG, "learning_rate": 4e-3, "epochs": 20}},
        {"method": {"rank": 64, "dropout": 0.1}, "train": {**_LONG, "learning_rate": 2e-3, "epochs": 30}},
        {"method": {"rank": 32}, "train": {**_LONG, "learning_rate": 2e-3, "epochs": 20, "loss": "all"}},
        {"method": {"rank": 64}, "train": {**_LONG, "learning_rate": 1e-3, "epochs": 20}},
    ),
    "full": (
        {"method": {}, "train": {**_LONG, **_FULL, "learning_rate": 6e-4, "epochs": 15}},
        {"method": {}, "train": {**_LONG, "learning_rate": 1e-3, "epochs": 15, "optimizer": "muon"}},
        {"method": {}, "train": {**_LONG, **_FULL, "learning_rate": 3e-4, "epochs": 15}},
    ),
}
INTENTS: Mapping[str, tuple[Settings, ...]] = {
    "lora": (
        {"method": {"rank": 32}, "train": {**_INTENTS, "learning_rate": 2e-3, "epochs": 8}},
        {"method": {"rank": 64}, "train": {**_INTENTS, "learning_rate": 1e-3, "epochs": 8}},
        {"method": {"rank": 32}, "train": {**_INTENTS, "learning_rate": 3e-3, "epochs": 8}},
    ),
    "full": (
        {"method": {}, "train": {**_INTENTS, **_FULL, "learning_rate": 5e-4, "epochs": 6}},
        {"method": {}, "train": {**_INTENTS, **_FULL, "learning_rate": 1e-3, "epochs": 6}},
    ),
}
SETTINGS: Mapping[str, Mapping[str, tuple[Settings, ...]]] = {
    "tasteset": EXTRACTION,
    "recipes": EXTRACTION,
    "banking77": INTENTS,
}
"""By task and method, the settings that are tried, the likeliest first. Small bases bear high rates and many epochs."""

ASKED: Mapping[str, str] = {
    "tasteset": "tuned above zero-shot, few-shot and the dictionary, intervals of the differences above 0",
    "recipes": "tuned above zero-shot, few-shot and the dictionary, intervals of the differences above 0",
    "banking77": "tuned at least 80 % accuracy",
}
_BEATEN = ("zero_shot", "few_shot", "trivial_dictionary")
_ACCURACY = 0.80
_SHOWN = ("learning_rate", "epochs", "batch_size", "optimizer", "loss")


@dataclass(frozen=True)
class Options:
    """What all tasks have in common. `key`: beginning of the hash of the base's weights."""

    base: str
    key: str
    data: Path
    out: Path
    tries: int
    smoke: bool


def task_sections(name: str, options: Options) -> dict[str, Any]:
    """The recipe of a task without base, method and training."""
    sections: dict[str, Any]
    if name == "tasteset":
        sections = {
            "task": "extraction",
            "goal": {"use_case": "Foods of a recipe as a JSON list", "metric": "entity_f1"},
            "data": {
                "train": str(options.data / "tasteset" / "TASTEset.csv"),
                "columns": {"prompt": "ingredients", "answer": "ingredients_entities"},
                "span_types": ["FOOD"],
            },
        }
    elif name == "recipes":
        example = Recipe.from_yaml(HERE.parent / "examples" / "recipes" / "recipe.yaml")
        sections = {key: example.model_dump(exclude_unset=True)[key] for key in ("task", "goal", "data")}
    else:
        sections = {
            "task": "classification",
            "goal": {"use_case": "Route questions of bank customers to one of 77 intents", "metric": "accuracy"},
            "data": {
                "train": str(options.data / "banking77" / "train.csv"),
                "test": str(options.data / "banking77" / "test.csv"),
                "columns": {"prompt": "text", "answer": "category"},
                "split": {"validation": 500},
            },
            # Zero-shot and few-shot answers of a base of this size are no labels at all (verdicts.md).
            "baselines": ["trivial"],
        }
    if options.smoke:
        few = {"validation": 12, "test": 12}
        rows = {"max_rows": 800, "split": {"validation": 160, "test": 160}} if name == "banking77" else {"split": few}
        sections["data"] = {**sections["data"], **rows}
        sections["data"].pop("test", None)
        sections["evaluate"] = {"bootstrap": 200, "few_shot_k": [1], "retrieval_k": [1], "latency_rows": 2}
    return sections


def recipe_of(name: str, method: str, settings: Settings, options: Options) -> Recipe:
    """One setting as a recipe."""
    short = {"epochs": 1, "max_steps": 6, "evaluations": 1, "eval_rows": 4} if options.smoke else {}
    return Recipe.model_validate(
        {
            "name": f"{name}-{method}",
            **task_sections(name, options),
            "base": options.base,
            "method": {"type": method, **settings["method"]},
            "train": {**settings["train"], **short},
        }
    )


def measure(name: str, method: str, options: Options) -> dict[str, Any]:
    """Try settings on validation rows, then evaluate the best one on the test rows."""
    tried: list[tuple[float, int, dict[str, Any]]] = []
    choices = SETTINGS[name][method][: options.tries]
    for number, settings in enumerate(choices):
        result = run(
            recipe_of(name, method, settings, options), out=_folder(name, method, number, options), through="train"
        )
        assert result.training is not None
        facts = result.training
        tried.append(
            (
                float(facts["best_value"]),
                number,
                {
                    **{key: dict(value) for key, value in settings.items()},
                    "validation": facts["best_value"],
                    "best_step": facts["best_step"],
                    "steps": facts["steps"],
                    "seconds": round(facts["seconds"], 1),
                },
            )
        )
        print(f"{name:10} {method:5} try {number + 1}: validation {facts['best_value']:.4f}", flush=True)
    best = max(tried, key=lambda one: (one[0], -one[1]))[1]
    began = time.monotonic()
    result = run(recipe_of(name, method, choices[best], options), out=_folder(name, method, best, options))
    return {
        "task": name,
        "method": method,
        "tried": [facts for _, _, facts in tried],
        "chosen": best,
        "metric": _deciding(name),
        "evaluation_seconds": round(time.monotonic() - began, 1),
        **_scores(result, _deciding(name)),
    }


def _folder(name: str, method: str, number: int, options: Options) -> Path:
    """One folder for each base and setting, so that nothing is trained twice."""
    return options.out / f"{name}-{method}-{number}-{options.key}{'-smoke' if options.smoke else ''}"


def _deciding(name: str) -> str:
    return "accuracy" if name == "banking77" else "entity_f1"


def _scores(result: Result, metric: str) -> dict[str, Any]:
    comparison = result.comparison
    assert comparison is not None
    names = list(dict.fromkeys(value.candidate for value in comparison.values))
    differences = [comparison.difference("tuned", other) for other in names if other != "tuned"]
    return {
        "candidates": {
            name: [round(getattr(comparison.value(name, metric), key), 4) for key in ("value", "low", "high")]
            for name in names
        },
        "tuned_minus": {d.b: [round(n, 4) for n in (d.difference, d.low, d.high)] for d in differences},
        "test_rows": comparison.value("tuned", metric).n,
        "rows": dict(result.folder.manifest()["data"]["rows"]),
        "base_sha256": result.folder.manifest()["base"]["weights_sha256"],
        "base_parameters": result.folder.manifest()["base"]["parameters"],
        "train_seconds": round(float(result.training["seconds"]), 1) if result.training is not None else None,
    }


def reached(one: Mapping[str, Any]) -> bool:
    """Whether a result is what was asked for (`ASKED`)."""
    if one["task"] == "banking77":
        return bool(one["candidates"]["tuned"][0] >= _ACCURACY)
    return all(one["tuned_minus"][other][1] > 0 for other in _BEATEN)


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as markdown: what was asked, the candidates, what was tried."""
    first = results[0]
    lines = [
        "# The small base, tuned",
        "",
        "Written by `python benchmarks/base_model.py`; do not edit. Test rows, with intervals of 95 %; settings were",
        f"chosen on validation rows. Base of {first['base_parameters']:,} parameters, weights "
        f"`{first['base_sha256'][:12]}`.",
        "",
        "| task | method | tuned | best other | tuned minus it | asked | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        other = max((n for n in one["candidates"] if n != "tuned"), key=lambda n: one["candidates"][n][0])
        lines.append(
            f"| {one['task']} | {one['method']} | **{_cell(one['candidates']['tuned'])}** | {other} "
            f"{_cell(one['candidates'][other])} | {_points(one['tuned_minus'][other])} | {ASKED[one['task']]} | "
            f"{'reached' if reached(one) else '**not reached**'} |"
        )
    for one in results:
        lines += [
            "",
            f"## {one['task']}, {one['method']}",
            "",
            f"{one['rows']['train']:,} training, {one['rows']['validation']:,} validation, {one['test_rows']:,} test "
            f"rows; trained in {one['train_seconds']:,.0f} s.",
            "",
            f"| candidate | {one['metric']} | tuned minus it, points |",
            "|---|---|---|",
        ]
        for name, values in one["candidates"].items():
            minus = _points(one["tuned_minus"][name]) if name != "tuned" else ""
            lines.append(f"| {name} | {_cell(values)} | {minus} |")
        lines += ["", "| tried | validation | best step | seconds |", "|---|---|---|---|"]
        for number, tried in enumerate(one["tried"]):
            mark = " (chosen)" if number == one["chosen"] else ""
            lines.append(
                f"| {_settings(tried)}{mark} | {tried['validation']:.4f} | {tried['best_step']} of {tried['steps']} | "
                f"{tried['seconds']:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*values)


def _points(values: Sequence[float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(round(100 * v, 1) + 0.0 for v in values))  # no "-0.0"


def _settings(tried: Mapping[str, Any]) -> str:
    train = {k: tried["train"][k] for k in _SHOWN if k in tried["train"]}
    shown = {**tried["method"], **train}.items()
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in shown)


def keep(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Earlier results of the same base and the new ones, in the order of tasks and methods."""
    earlier = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    base = found[0]["base_sha256"]
    known = {(one["task"], one["method"]): dict(one) for one in earlier if one["base_sha256"] == base}
    known |= {(one["task"], one["method"]): dict(one) for one in found}
    return [known[name, method] for name in SETTINGS for method in METHODS if (name, method) in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("TUNESMITH_TEST_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--base", default="embedded:base", help="folder of a model, or embedded:NAME")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora"], metavar="METHOD")
    parser.add_argument("--tries", type=int, default=1, help="settings tried for each task and method")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own")
    parser.add_argument("--data", type=Path, default=Path(shared))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "base_model", help="folder of the runs")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    folder = base_folder(arguments.base)
    if folder is None:
        parser.error(f"--base {arguments.base}: expected a folder or embedded:NAME")
    key = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:8]
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    options = Options(arguments.base, key, arguments.data, arguments.out, max(1, arguments.tries), arguments.smoke)
    found = [measure(name, method, options) for name in arguments.only for method in arguments.methods]
    if options.smoke:
        print(page(found))
        return
    results = keep(found)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "base_model.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
