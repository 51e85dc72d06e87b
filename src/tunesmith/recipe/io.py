"""A recipe in and out: YAML, overrides, JSON schema, hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.recipe.checks import check_values
from tunesmith.recipe.overrides import apply_overrides, expand_short, resolve_paths, short_forms
from tunesmith.recipe.problems import InvalidRecipeError, from_validation
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.yaml_text import dump_yaml, load_yaml

# A run's name and place change nothing in what comes out of it.
_NO_RESULT = frozenset({"name", "output"})

_RECIPE_ENDINGS = frozenset({".yaml", ".yml"})


def is_recipe_file(path: Path) -> bool:
    """Whether a path names a recipe rather than rows: by its ending, or as JSON that is one object with `data`."""
    if path.suffix.lower() in _RECIPE_ENDINGS:
        return True
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(data, dict) and "data" in data


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Paths in the file count from the file's folder, paths in `overrides` from the working directory; both are absolute
    in the result. Raises `RecipeError`: a file that cannot be read, is not YAML, holds rows, or has wrong settings
    (all named in one error).
    """
    data = read_recipe_data(Path(path), overrides)
    return parse_recipe(data, str(path))


def read_recipe_data(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe file's mapping with short forms expanded, paths absolute and overrides applied, not yet validated."""
    where = str(path)
    if not path.exists():
        raise RecipeError(
            "no such recipe file", where=where, fix="check the path; `tunesmith init FILE` writes a recipe"
        )
    if path.is_dir():
        raise RecipeError("this is a folder", where=where, expected="a recipe file (YAML)")
    if path.suffix.lower() not in {*_RECIPE_ENDINGS, ".json", ""}:
        raise RecipeError(
            "this is not a recipe", where=where, expected="a YAML file", fix=f"write one with `tunesmith init {path}`"
        )
    try:
        data = load_yaml(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=where, expected="a recipe in UTF-8") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=where) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {_yaml_problem(error)}", where=f"{where}{_yaml_line(error)}") from error
    if not isinstance(data, dict):
        raise RecipeError(
            "this is not a recipe", where=where, expected="a mapping with at least `data: FILE`",
            fix="for a file of rows, write a recipe with `tunesmith init FILE`",
        )  # fmt: skip
    data = resolve_paths(expand_short(data), path.resolve().parent)
    return apply_overrides(data, overrides, base=Path.cwd())


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A validated recipe from a mapping; raises one `InvalidRecipeError` that lists every problem."""
    try:
        recipe = Recipe.model_validate(expand_short(data))
    except ValidationError as error:
        raise InvalidRecipeError(from_validation(error), where) from error
    problems = check_values(recipe)
    if problems:
        raise InvalidRecipeError(problems, where)
    return recipe


def dump_recipe(recipe: Recipe, comments: Mapping[str, str] | None = None, *, omit_auto: bool = False) -> str:
    """A recipe as YAML with comments above the dotted keys that have one; settings that are not set are left out.

    `omit_auto` also leaves out what is still `auto` because it does not apply (labels of a generation task), for the
    resolved recipe of a run. Reading the text gives an equal recipe.
    """
    data = _without(recipe.model_dump(mode="json"), omit_auto=omit_auto)
    return dump_yaml(data, comments)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, short forms included."""
    schema = Recipe.model_json_schema()
    for name in short_forms():
        place = schema["properties"][name]
        description = place.pop("description", "")
        schema["properties"][name] = {"anyOf": [{"type": "string"}, place], "description": description}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Tunesmith recipe"}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over everything that decides results: all settings but the run's name and place."""
    data = recipe.model_dump(mode="json", exclude=set(_NO_RESULT))
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(first: Recipe, second: Recipe) -> list[tuple[str, Any, Any]]:
    """The settings that decide results and differ, as (dotted key, first value, second value)."""
    one, two = (_flat(r.model_dump(mode="json", exclude=set(_NO_RESULT))) for r in (first, second))
    keys = [*one, *(key for key in two if key not in one)]
    return [(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        inner = isinstance(value, dict) and value
        flat.update(_flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return flat


def _without(data: Mapping[str, Any], *, omit_auto: bool) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if value is None or (omit_auto and value == "auto"):
            continue
        inner = _without(value, omit_auto=omit_auto) if isinstance(value, dict) else value
        if inner != {}:
            kept[key] = inner
    return kept


def _yaml_problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _yaml_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""
