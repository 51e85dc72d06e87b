"""The user's own Python file: opened, its function or class found, options bound, errors told with the user's line."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tunesmith.errors import RecipeError, TunesmithError

_EXPECTED = "file.py:function or file.py:Class"


def split_reference(objective: str) -> tuple[str, str] | None:
    """File and name of `file.py:NAME`; None for the name of a built-in objective.

    Raises `RecipeError` for a file without a name, or a name that Python does not have.
    """
    file, colon, name = objective.rpartition(":")
    if not colon and not objective.endswith(".py"):
        return None
    if not colon or not name.isidentifier():
        raise RecipeError(f"{objective!r} names no function", where="train.objective", expected=_EXPECTED)
    return file, name


def load_attribute(file: Path, name: str) -> Any:
    """The function or class `name` of a Python file, which is run for this.

    Raises `RecipeError`: no such file or attribute (naming the nearest), or an error while it runs (with its line).
    """
    if not file.is_file():
        there = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, there, n=3, cutoff=0.4) or there[:5]
        raise RecipeError(
            "there is no such file",
            where=f"train.objective: {file}",
            expected=_EXPECTED,
            fix=f"files beside it: {', '.join(near)}" if near else "the path counts from the recipe's folder",
        )
    module = _run(file)
    if not hasattr(module, name):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        near = difflib.get_close_matches(name, own, n=3, cutoff=0.4) or own
        raise RecipeError(
            f"the file has no {name!r}",
            where=f"train.objective: {file}",
            expected=f"one of {', '.join(near)}" if near else "a function or a class",
        )
    return getattr(module, name)


def _run(file: Path) -> ModuleType:
    name = f"tunesmith_objective_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RecipeError("this is no Python file", where=f"train.objective: {file}", expected=_EXPECTED)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    linecache.checkcache(str(file))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's code: anything can come out of it
        del sys.modules[name]
        raise in_users_words(error, file) from error
    return module


def in_users_words(error: Exception, file: Path) -> RecipeError:
    """An error out of the user's file, with the line of that file it came from."""
    what = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, SyntaxError) and error.lineno and error.filename and Path(error.filename) == file:
        line, what = error.lineno, f"SyntaxError: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno or 0 for f in reversed(frames) if Path(f.filename) == file), 0)
    source = linecache.getline(str(file), line).strip() if line else ""
    fix = None
    if isinstance(error, ModuleNotFoundError) and error.name and (file.parent / f"{error.name}.py").is_file():
        fix = f"an objective is one file: put what it needs of {error.name}.py into it"
    return RecipeError(
        what, where=f"{file}, line {line}: {source}" if line else str(file), fix=fix or "correct this file"
    )


def call_users(call: Callable[..., Any], file: Path, arguments: Mapping[str, Any]) -> Any:
    """The call's result; an error in it becomes a `RecipeError` with the user's line.

    What says that memory is short goes through, as the loop answers it by smaller batches.
    """
    try:
        return call(**arguments)
    except (TunesmithError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # somebody else's code: anything can come out of it
        if "allocate memory" in str(error):
            raise
        raise in_users_words(error, file) from error


def bind_options(
    call: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    what: str,
    given: Iterable[str] = (),
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keywords for `call` out of `train.objective_options`.

    given: parameters that the engine fills at each call. known: values for parameters of these names that options do
    not give. Raises one `RecipeError` naming unknown options and parameters without a value.
    """
    parameters = {n: p for n, p in inspect.signature(call).parameters.items() if n not in set(given)}
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    values = {n: v for n, v in (known or {}).items() if n in names} | dict(options)
    unknown = [n for n in options if n not in names and not variadic]
    missing = [n for n in names if n not in values and parameters[n].default is inspect.Parameter.empty]
    problems = [f"has no argument {n!r}{_nearest(n, names)}" for n in unknown]
    problems += [f"needs a value for {n!r}" for n in missing]
    if problems:
        takes = ", ".join(n if n in missing else f"{n} (optional)" for n in names) or "nothing"
        raise RecipeError(
            f"{what} {'; '.join(problems)}", where="train.objective_options", expected=f"arguments: {takes}"
        )
    return values


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (is {near[0]!r} meant?)" if near else ""
