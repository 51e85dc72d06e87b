"""A config of promptfoo as an evaluation here: the config is read as it is, its asserts become metrics of a recipe."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Base, CustomMetric, Data, Goal, Recipe, Split, Task
from tunesmith.runs.atomic import write_text
from tunesmith.service.moving.recipe_text import RECIPE, recipe_name, recipe_text

_FORMULAS: Mapping[str, str] = {
    "equals": "1 if answer == expected else 0",
    "contains": "1 if expected in answer else 0",
    "icontains": "1 if lower(expected) in lower(answer) else 0",
}
_NEAR: Mapping[str, str] = {"similar": "rouge_l", "rouge-n": "rouge_l", "levenshtein": "rouge_l"}
_LARGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class MovedConfig:
    """What became of a config."""

    recipe: Path
    rows: int
    metrics: tuple[str, ...]
    notes: tuple[str, ...]


def move_config(config: Path, out: Path, base: str) -> MovedConfig:
    """Write a recipe for a config into the folder `out`, beside a copy of its tests.

    Raises `DataError` for what is no config or has no test that can be used, `RecipeError` where a recipe is there.
    """
    from tunesmith.data import load_examples

    if (out / RECIPE).exists():
        raise RecipeError(
            "this file exists and is never overwritten", where=str(out / RECIPE), fix="choose another --out"
        )
    told = _parsed(config)
    tests = _tests(config, told)
    rows = out / tests.name
    data = Data(train=str(tests), format="promptfoo", split=Split(validation=0.1, test=0.8))
    loaded = load_examples(data, tests, task_type="generation")
    if not loaded.examples:
        seen = "; ".join(f"{one.message}" for one in loaded.findings[:5])
        raise DataError(f"none of its tests can be used: {seen}", where=str(config))
    notes = [f"{len(one.lines) or 1} x {one.message}" for one in loaded.findings]
    metrics, near = _metrics(told, notes)
    notes += _providers(told)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tests, rows)
    recipe = Recipe(
        name=recipe_name(str(told.get("description") or config.stem), ""),
        goal=Goal(metric=next(iter(metrics), near or "auto")),
        task=Task(
            type="generation",
            instruction="",
            metrics={name: CustomMetric(formula=formula) for name, formula in metrics.items()},
        ),
        data=data.model_copy(update={"train": rows.name}),
        base=Base(model=base),
    )
    write_text(out / RECIPE, recipe_text(recipe, f"The tests of promptfoo's {config.name}."))
    names = (*metrics, *((near,) if near else ()))
    return MovedConfig(out / RECIPE, len(loaded.examples), names, tuple(notes))


def _parsed(config: Path) -> Mapping[str, Any]:
    try:
        if config.stat().st_size > _LARGEST:
            raise DataError(f"it has more than {_LARGEST:,} bytes", where=str(config), expected="a config of promptfoo")
        told = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError((error.strerror or str(error)).lower(), where=str(config)) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError("this is no YAML", where=str(config), expected="a config of promptfoo") from error
    if not isinstance(told, Mapping) or "tests" not in told:
        raise DataError(
            "it has no tests", where=str(config), expected="a config of promptfoo: prompts, providers, tests"
        )
    return told


def _tests(config: Path, told: Mapping[str, Any]) -> Path:
    """The file with the tests: the config itself, or the one file that it names."""
    tests = told["tests"]
    named = [tests] if isinstance(tests, str) else [one for one in tests or () if isinstance(one, str)]
    if not named:
        return config
    if isinstance(tests, list) and (len(named) > 1 or len(tests) > 1):
        raise DataError(
            f"its tests are spread over {len(tests)} places",
            where=str(config),
            fix="join them in one file, or bring each in with a config of its own",
        )
    path = config.parent / named[0].removeprefix("file://")
    if "*" in named[0] or not path.is_file():
        raise DataError(
            f"there is no file of tests {named[0]!r}", where=str(config), expected="one CSV, JSON or YAML file"
        )
    return path


def _metrics(told: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, str], str | None]:
    """Formulas by name, and the nearest metric of the task where an assert has only a relative here."""
    kinds = Counter(_asserts(told))
    formulas = {kind: _FORMULAS[kind] for kind in _FORMULAS if kind in kinds}
    near = next((_NEAR[kind] for kind in kinds if kind in _NEAR), None)
    for kind, count in kinds.items():
        if kind in _NEAR:
            notes.append(f"{kind} ({count} asserts): told as {_NEAR[kind]}, which measures likeness otherwise")
        elif kind not in _FORMULAS:
            notes.append(f"{kind} ({count} asserts): no metric; it needs code, a judge, or something beside the answer")
    return formulas, near


def _asserts(told: Mapping[str, Any]) -> Iterator[str]:
    shared = told.get("defaultTest")
    tests = told["tests"] if isinstance(told["tests"], list) else []
    for test in (*tests, shared):
        asserts = test.get("assert") if isinstance(test, Mapping) else None
        for one in asserts if isinstance(asserts, list) else []:
            if isinstance(one, Mapping):
                yield str(one.get("type"))


def _providers(told: Mapping[str, Any]) -> list[str]:
    """Models that promptfoo asked, as advice: a recipe that asks them costs money, so nobody writes that unasked."""
    providers = told.get("providers") or told.get("targets") or []
    names = (
        [str(one.get("id") if isinstance(one, Mapping) else one) for one in providers]
        if isinstance(providers, list)
        else [str(providers)]
    )
    return [f"{name}: to measure it beside, name it under remotes in the recipe" for name in names]
