"""Settings from the command line over those of a file: `train.max_steps=10`."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BeforeValidator, ValidationError

from tunesmith.recipe.describe import field_at, section_of, settings
from tunesmith.recipe.problems import InvalidRecipeError, Problem, from_validation, unknown_key
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.yaml_text import load_yaml


def short_forms() -> dict[str, Any]:
    """Sections that may be one word, with the function that expands it: `lora` becomes `{type: lora}`."""
    return {
        name: rule.func
        for name, field in Recipe.model_fields.items()
        for rule in field.metadata
        if isinstance(rule, BeforeValidator)
    }


def expand_short(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which short forms are sections, and sections left empty (all lines commented out) are absent."""
    expanded = copy.deepcopy(dict(data))
    for name, expand in short_forms().items():
        if name in expanded:
            expanded[name] = expand(expanded[name])
    return _without_empty_sections(expanded, [])


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str], base: Path | None = None) -> dict[str, Any]:
    """`data` with each `dotted.key=value` set; the value is read as YAML, text settings take it as it is.

    `base` is the folder from which relative paths in overrides count (None leaves them). A section can be given in
    its short form (`method=full`) or as a mapping; either is merged into what is there, and so are names of your own;
    `{}` removes those (`remotes={}`). Raises `InvalidRecipeError` naming every override that is wrong, and with them
    all that is wrong in the recipe itself.
    """
    result = expand_short(data)
    problems: list[Problem] = []
    text_keys = {setting.key for setting in settings() if setting.text}
    for override in overrides:
        key, equals, raw = override.partition("=")
        key = key.strip()
        path = key.split(".")
        field = field_at(path)
        if not equals or not key:
            problems.append(Problem(override, "not an override", expected="key.path=value"))
        elif field is None:
            problems.append(unknown_key(path))
        else:
            try:
                value = _read(raw, text=key in text_keys)
            except yaml.YAMLError:
                problems.append(Problem(key, f"cannot read {raw!r}", expected="a YAML value, such as 10 or [a, b]"))
                continue
            if len(path) == 1 and path[0] in short_forms():
                value = short_forms()[path[0]](value)
            if section_of(field) is not None and not isinstance(value, dict):
                problems.append(Problem(key, f"{raw!r} is not allowed", expected=f"a setting in it: {key}.NAME=value"))
                continue
            if value or section_of(field) is None:  # an empty section adds nothing
                _put(result, path, value, base)
    if problems:
        others = _wrong_besides(result, {problem.key for problem in problems})
        raise InvalidRecipeError([*problems, *others], "--set and the recipe" if others else "--set")
    return result


def _wrong_besides(data: Mapping[str, Any], known: Container[str]) -> list[Problem]:
    """What else is wrong with the settings that are there; overrides may be all of a recipe, so nothing is missing."""
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        return [problem for problem in from_validation(error) if problem.key not in known and problem.what != "missing"]
    return []


def resolve_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a recipe's mapping made absolute, counted from `folder`.

    Data files, documents, the file of an objective and those of a task always are paths (of `FILE#PART` what stands
    before the mark, of an address with `://` nothing); a base model, an encoder, a teacher and a chat template are
    where they begin with `.`, `/` or `~`, or name something that exists in the folder, as they may be a name instead.
    """
    result = copy.deepcopy(dict(data))
    sources = ("train", "validation", "test", "documents")
    places = [("data", name) for name in sources] + [("evaluate", "general_text"), ("evaluate", "general_instructions")]
    for section, name in places:
        inner = result.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(name), str):
            inner[name] = _absolute_source(inner[name], folder)
    task = result.get("task")
    if isinstance(task, dict):
        _resolve_task_paths(task, folder)
    base = result.get("base")
    if isinstance(base, dict):
        for name in ("model", "chat_template"):
            value = base.get(name)
            # A folder that happens to be called `plain` does not hide the template of that name.
            if isinstance(value, str) and _is_path(value, folder, file=name == "chat_template"):
                base[name] = str(_absolute(value, folder))
    evaluate = result.get("evaluate")
    encoder = evaluate.get("embedding_model") if isinstance(evaluate, dict) else None
    if isinstance(evaluate, dict) and isinstance(encoder, str) and _is_path(encoder, folder, file=False):
        evaluate["embedding_model"] = str(_absolute(encoder, folder))
    train = result.get("train")
    if isinstance(train, dict):
        file, colon, name = str(train.get("objective", "")).rpartition(":")
        if colon and file.endswith(".py"):
            train["objective"] = f"{_absolute(file, folder)}:{name}"
        distillation = train.get("distillation")
        if isinstance(distillation, dict) and isinstance(distillation.get("teacher"), str):
            teacher = distillation["teacher"]
            if _is_path(teacher, folder, file=False):
                distillation["teacher"] = str(_absolute(teacher, folder))
    return result


def _resolve_task_paths(task: dict[str, Any], folder: Path) -> None:
    """A schema's and a database's file, and the files of the user's metrics."""
    for name in ("json_schema", "database"):
        if isinstance(task.get(name), str):
            task[name] = str(_absolute(task[name], folder))
    metrics = task.get("metrics")
    for metric in metrics.values() if isinstance(metrics, dict) else ():
        file, colon, name = str(metric.get("formula", "") if isinstance(metric, dict) else "").rpartition(":")
        if colon and file.endswith(".py"):
            metric["formula"] = f"{_absolute(file, folder)}:{name}"


def _read(raw: str, *, text: bool) -> Any:
    if not text:
        return load_yaml(raw)
    try:
        value = load_yaml(raw)
    except yaml.YAMLError:
        return raw
    # `{phrase} → {tone}` and `12` are text here; quotes and null mean what they mean in the file.
    return value if isinstance(value, str) or (value is None and raw.strip() in ("null", "~")) else raw


def _put(data: dict[str, Any], path: Sequence[str], value: Any, base: Path | None) -> None:
    nested: Any = value
    for part in reversed(path):
        nested = {part: nested}
    _merge(data, resolve_paths(nested, base) if base is not None else nested)


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        inner = target.get(key)
        if isinstance(inner, dict) and isinstance(value, dict) and value:
            _merge(inner, value)
        else:
            target[key] = value


def _without_empty_sections(data: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in data.items():
        field = field_at([*path, key]) if isinstance(key, str) else None
        section = field is not None and section_of(field) is not None
        if section and value is None:
            continue
        kept[key] = _without_empty_sections(value, [*path, key]) if section and isinstance(value, dict) else value
    return kept


def _absolute_source(value: str, folder: Path) -> str:
    """A data source counted from `folder`; a file whose name has a `#` comes before a part of another file."""
    if "://" in value:
        return value
    whole = _absolute(value, folder)
    if "#" not in value or whole.exists():
        return str(whole)
    file, _, part = value.partition("#")
    return f"{_absolute(file, folder)}#{part}"


def _absolute(value: str, folder: Path) -> Path:
    return (folder / Path(value).expanduser()).resolve()


def _is_path(value: str, folder: Path, *, file: bool) -> bool:
    if value.startswith((".", "/", "~")):
        return True
    there = folder / value
    return there.is_file() if file else not value.startswith("embedded:") and there.exists()
