"""How a recipe that was brought in is written and called: short, and whatever a name says stays a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.yaml_text import dump_yaml

RECIPE = "recipe.yaml"


def recipe_text(recipe: Recipe, about: str, comments: Mapping[str, str] | None = None) -> str:
    """What of a recipe is not as usual, as YAML under a line about where it comes from."""
    told = _without_empty(recipe.model_dump(mode="json", exclude_defaults=True))
    told["base"] = {"model": recipe.base.model, **told.get("base", {})}
    line = " ".join(about.split())[:300]
    safe = "".join(c if c.isprintable() else "?" for c in line)
    return f"# {safe}\n" + dump_yaml(told, comments)


def recipe_name(name: str, id: str) -> str:
    """A name as recipes and folders may have it, with the end of an id."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    while "--" in kept:
        kept = kept.replace("--", "-")
    own = id.replace("_", "-").rpartition("-")[2]  # without the prefix that says what it is an id of
    end = "".join(c for c in own if c.isascii() and c.isalnum())[-8:]
    return "-".join(part for part in (kept[:48].strip("-") or "unnamed", end) if part)


def _without_empty(told: Mapping[str, Any]) -> dict[str, Any]:
    """Without sections in which everything is as usual."""
    kept = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in told.items()}
    return {key: value for key, value in kept.items() if value != {}}
