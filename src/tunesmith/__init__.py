"""Tunesmith: fine-tunes language models and proves whether it was worth it.

from tunesmith import Recipe, run

result = run(Recipe.from_yaml("recipe.yaml"))
print(result.verdict.reason)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.errors import TunesmithError as TunesmithError
    from tunesmith.pipeline import Result as Result
    from tunesmith.pipeline import check as check
    from tunesmith.pipeline import run as run
    from tunesmith.recipe.schema import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "Result", "TunesmithError", "check", "run"]

_WHERE = {
    "Recipe": "tunesmith.recipe.schema",
    "Result": "tunesmith.pipeline",
    "TunesmithError": "tunesmith.errors",
    "check": "tunesmith.pipeline",
    "run": "tunesmith.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `tunesmith --help` does not wait for torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
