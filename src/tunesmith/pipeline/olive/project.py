"""The alias file: what hub ids stand for on this machine, and what commands mean where they leave something out.

```yaml
models:   {meta-llama/Llama-3.2-1B-Instruct: bases/llama-1b}
datasets: {org/phrases: data/phrases.jsonl}
finetune: {model_name_or_path: bases/llama-1b, data_name: org/phrases}     # flags a command leaves out
tasks:    {classification: {data_name: org/phrases, text_template: "{phrase}\\n{tone}"}}   # --task_name
recipe:   {evaluate.bootstrap: 2000}                                         # settings that no flag has
```

Nothing is ever fetched by a hub id alone: a name that stands for nothing here is an error that says how to give it one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.recipe.problems import InvalidRecipeError, Problem, nearest

FILE = "aliases.yaml"
VARIABLE = "TUNESMITH_ALIASES"
COMMANDS = (
    "finetune", "auto-opt", "optimize", "run", "generate-adapter", "convert-adapters", "extract-adapters", "quantize",
    "capture-onnx-graph",
)  # fmt: skip
_SECTIONS = ("models", "datasets", "tasks", "recipe", *COMMANDS)
_HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Project:
    """What an alias file says; empty where there is none. Paths are absolute, counted from the file's folder."""

    file: Path | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def model(self, name: str, said: str) -> str:
        """The folder (or `embedded:NAME`) that a model's name stands for.

        An alias comes before a folder of that name, a folder before the hub's cache on this machine. Raises
        `RecipeError` where it stands for nothing.
        """
        from tunesmith.models.base_files import cached_folder

        short = name.removeprefix(_HUB).strip("/") if name.startswith(_HUB) else name
        for known in (name, short):
            if known in self.models:
                return self.models[known]
        if name.startswith("embedded:"):
            return name
        folder = Path(name).expanduser()
        if folder.is_dir():
            return str(folder.resolve())
        if short.count("/") == 1 and not short.startswith((".", "~")) and (cached := cached_folder(short, None)):
            return str(cached)
        raise self._unknown("model", short, said, self.models, "a folder with config.json and safetensors")

    def rows(self, name: str, subset: str | None, said: str) -> str:
        """The file, folder or address that a data set's name stands for. Raises `RecipeError` where it is nothing."""
        short = name.removeprefix(f"{_HUB}datasets/").strip("/") if name.startswith(_HUB) else name
        for known in (f"{short}:{subset}" if subset else short, short):
            if known in self.datasets:
                return self.datasets[known]
        if "://" in name or Path(name).expanduser().exists():
            return name if "://" in name else str(Path(name).expanduser().resolve())
        raise self._unknown("data set", short, said, self.datasets, "a file of rows, or a folder of data sets")

    def _unknown(self, what: str, name: str, said: str, known: Mapping[str, str], example: str) -> RecipeError:
        section = "models" if what == "model" else "datasets"
        near = nearest(name, known)
        place = str(self.file) if self.file is not None else FILE
        looks_local = name.startswith((".", "/", "~")) or Path(name).suffix != ""
        alias = (
            f"write `{section}: {{{name}: PATH}}` into {place} (or name such a file by --aliases FILE or ${VARIABLE})"
        )
        return RecipeError(
            f"there is no {what} {name!r} here, and none is fetched",
            where=said,
            expected=f"a name in the alias file, or the path of {example}",
            fix=f"did you mean {near}?" if near else "correct the path" if looks_local else alias,
        )

    def refuse_remote_code(self) -> None:
        """Raise `RecipeError` where the file switches on code that comes with a model: only a person may."""
        flags = {**self.flags, **{f"tasks.{name}": flags for name, flags in self.tasks.items()}}
        said = [f"{place}.trust_remote_code" for place, given in flags.items() if given.get("trust_remote_code")]
        if said:
            raise RecipeError(
                f"{' and '.join(said)} cannot be switched on by a file", where=str(self.file),
                expected="said on the command line", fix="add --trust_remote_code if you trust the code of the model",
            )  # fmt: skip


def load_project(named: str | Path | None = None) -> Project:
    """The alias file that is named, else that of `$TUNESMITH_ALIASES`, else `aliases.yaml` in the working folder.

    Raises `RecipeError` for one that was named and cannot be read, with everything that is wrong in it.
    """
    wanted = named or os.environ.get(VARIABLE)
    path = Path(wanted) if wanted else Path(FILE)
    if not path.is_file():
        if wanted:
            raise RecipeError(
                "there is no such alias file", where=str(path), expected="a YAML file with models: and datasets:"
            )
        return Project()
    return _parse(read_mapping(path), path.resolve())


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping. Raises `RecipeError`."""
    import yaml

    from tunesmith.recipe.yaml_text import load_yaml

    where = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        data = _json(text) if path.suffix == ".json" else load_yaml(text)
    except FileNotFoundError as error:
        raise RecipeError("there is no such file", where=where, fix="check the path") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=where) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=where, expected="UTF-8") from error
    except json.JSONDecodeError as error:
        raise RecipeError(f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not valid JSON: {error}", where=where) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise RecipeError(f"not valid YAML or JSON: {problem}", where=f"{where}{line}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError("this is not a mapping of settings", where=where, expected="YAML or JSON with named settings")
    return data


def _json(text: str) -> Any:
    """JSON by its own rules: tabs between values, and pairs of surrogates, which YAML reads otherwise.

    Raises `ValueError` for no JSON, and for a key that is there twice.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
        return found

    return json.loads(text, object_pairs_hook=mapping)


def _parse(data: Mapping[str, Any], path: Path) -> Project:
    problems: list[Problem] = []
    sections: dict[str, Mapping[str, Any]] = {}
    for name, value in data.items():
        if name not in _SECTIONS:
            near = nearest(name, _SECTIONS)
            fix = f"did you mean {near}?" if near else None
            problems.append(Problem(name, "unknown section", expected=", ".join(_SECTIONS), fix=fix))
        elif value is not None and not isinstance(value, dict):
            problems.append(Problem(name, f"{value!r} is not allowed", expected="a mapping of names"))
        else:
            sections[name] = value or {}
    for name, value in sections.get("tasks", {}).items():
        if not isinstance(value, dict):
            problems.append(Problem(f"tasks.{name}", f"{value!r} is not allowed", expected="flags of finetune by name"))
    for section in ("models", "datasets"):
        for name, value in sections.get(section, {}).items():
            if not isinstance(value, str) or not value:
                problems.append(Problem(f"{section}.{name}", f"{value!r} is not allowed", expected="a path"))
    if problems:
        raise InvalidRecipeError(problems, str(path))
    return Project(
        path,
        {name: _absolute(value, path.parent) for name, value in sections.get("models", {}).items()},
        {name: _absolute(value, path.parent) for name, value in sections.get("datasets", {}).items()},
        sections.get("tasks", {}),
        {command: sections[command] for command in COMMANDS if command in sections},
        _dotted(sections.get("recipe", {})),
    )


def _absolute(value: str, folder: Path) -> str:
    """A path counted from the alias file; addresses and embedded bases are what they are."""
    if "://" in value or value.startswith("embedded:"):
        return value
    return str((folder / Path(value).expanduser()).resolve())


def _dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, whether they were written as sections or with dots."""
    from tunesmith.recipe.describe import field_at, section_of

    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        field_there = field_at(name.split("."))
        if isinstance(value, dict) and field_there is not None and section_of(field_there) is not None:
            found.update(_dotted(value, f"{name}."))
        else:
            found[name] = value
    return found
