"""Settings from a YAML file: every field of `ServeSettings` by its name, all that is wrong told at once.

host: 0.0.0.0
aliases:
  gpt-4o-mini-2024-07-18: embedded:base
  support-base: ./models/support      # beside this file
limits:
  file: 100000000
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from tunesmith.errors import RecipeError
from tunesmith.service.exports import export_faults
from tunesmith.service.settings import OPENAI_NAMES, Limits, RemoteModel, ServeSettings

_STRICT = ConfigDict(extra="forbid")
_BOUNDS: Mapping[str, Any] = {
    "port": Field(ge=0, le=65535),
    "host": Field(min_length=1),
    "adapters_resident": Field(ge=1),
    "devices": Field(min_length=1),
    "drain_seconds": Field(ge=0, le=3600),
    "organization": Field(pattern=r"^[a-z0-9-]{1,40}$"),
}


def _model(name: str, kind: type[Any], other: Mapping[str, Any]) -> type[BaseModel]:
    """A model with the fields of a dataclass, none of them required."""
    types = get_type_hints(kind)
    wanted: dict[str, Any] = {
        one.name: (Annotated[other.get(one.name, types[one.name]), _BOUNDS.get(one.name)] | None, None)
        if one.name in _BOUNDS
        else (other.get(one.name, types[one.name] | None), None)
        for one in fields(kind)
    }
    model: type[BaseModel] = create_model(name, __config__=_STRICT, **wanted)
    return model


_MAY_BE_0 = frozenset({"home", "free_disk", "requests_per_minute", "request_seconds", "waiting_requests"})
_LIMITS = _model(
    "LimitsFile",
    Limits,
    {one.name: Annotated[int, Field(ge=0 if one.name in _MAY_BE_0 else 1)] | None for one in fields(Limits)},
)


_Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]


class _Remote(BaseModel):
    """One of `remotes`."""

    model_config = _STRICT

    url: _Url
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None


_FILE = _model(
    "ServeFile",
    ServeSettings,
    {
        "limits": _LIMITS | None,
        "aliases": dict[str, str] | None,
        "remotes": dict[str, _Remote] | None,
        "vllm": dict[str, _Url] | None,
        "artifacts": dict[str, str] | None,
    },
)


def read_settings(path: Path, settings: ServeSettings) -> ServeSettings:
    """`settings` with what a file says in their place.

    Aliases are added to the names of OpenAI and Azure, or replace them name by name; a folder is looked for beside the
    file. Raises `RecipeError` with everything that is wrong.
    """
    given = _parsed(path)
    try:
        told = _FILE.model_validate(given).model_dump(exclude_none=True)
    except ValidationError as error:
        raise _refusal(path, [_fault(one) for one in error.errors()]) from error
    limits = replace(settings.limits, **told.pop("limits", {}))
    aliases = {name: _base(base, path.parent) for name, base in told.pop("aliases", {}).items()}
    remotes = {name: RemoteModel(**one) for name, one in told.pop("remotes", {}).items()}
    vllm = {_base(base, path.parent): url for base, url in told.pop("vllm", {}).items()}
    artifacts = {name: _folder(folder, path.parent) for name, folder in told.pop("artifacts", {}).items()}
    faults = [fault for name, base in aliases.items() for fault in _alias_faults(name, base)]
    faults += export_faults(artifacts)
    if faults:
        raise _refusal(path, faults)
    return replace(
        settings, **told, limits=limits, aliases={**settings.aliases, **aliases}, remotes=remotes, vllm=vllm,
        artifacts=artifacts,
    )  # fmt: skip


def _parsed(path: Path) -> Any:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError((error.strerror or str(error)).lower(), where=str(path)) from error
    except UnicodeDecodeError as error:
        raise RecipeError("this is no UTF-8 text", where=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise RecipeError(f"this is no YAML: {getattr(error, 'problem', None) or error}", where=where) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RecipeError("settings are names with values", where=str(path), expected="lines such as `port: 8000`")
    return found


def _fault(error: Any) -> str:
    name = ".".join(str(step) for step in error["loc"])
    if error["type"] == "extra_forbidden":
        kind = Limits if name.startswith("limits.") else ServeSettings
        return f"{name}: there is no such setting; there are {', '.join(one.name for one in fields(kind))}"
    text = str(error["msg"])
    return f"{name}: {text[:1].lower()}{text[1:]}"


def _base(base: str, beside: Path) -> str:
    """A folder as an absolute path; anything else as it is."""
    if base.startswith("~"):
        return str(Path(base).expanduser())
    return str((beside / base).resolve()) if base.startswith(("./", "../")) else base


def _folder(folder: str, beside: Path) -> Path:
    """A folder, looked for beside the file."""
    return (beside / Path(folder).expanduser()).resolve()


def _alias_faults(name: str, base: str) -> list[str]:
    if not name.strip() or not base.strip():
        return [f"aliases.{name}: a name and a base are texts with something in them"]
    if Path(base).is_absolute() and not (Path(base) / "config.json").is_file():
        return [f"aliases.{name}: {base} is no folder of a model (it has no config.json)"]
    if base.startswith("embedded:") and base not in embedded_bases():
        return [f"aliases.{name}: there is no {base}; there are {', '.join(sorted(embedded_bases()))}"]
    return []


def embedded_bases() -> frozenset[str]:
    """The bases that come with Tunesmith."""
    import tunesmith.models

    folder = Path(tunesmith.models.__path__[0]) / "embedded"
    return frozenset(f"embedded:{config.parent.name}" for config in folder.glob("*/config.json"))


def _refusal(path: Path, faults: list[str]) -> RecipeError:
    what = faults[0] if len(faults) == 1 else f"{len(faults)} settings are wrong:\n  " + "\n  ".join(faults)
    return RecipeError(what, where=str(path), fix="see docs/service.md for every setting and its default")


def stand_ins(settings: ServeSettings) -> dict[str, list[str]]:
    """Bases, each with the names that stand for it, those of OpenAI and Azure last."""
    found: dict[str, list[str]] = {}
    for name in sorted(settings.aliases, key=lambda one: one in OPENAI_NAMES):
        found.setdefault(settings.aliases[name], []).append(name)
    return found
