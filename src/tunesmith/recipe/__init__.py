"""What a run is: one typed object, from YAML, the command line or Python, and back."""

from tunesmith.recipe.describe import Setting, markdown, settings
from tunesmith.recipe.io import (
    differences,
    dump_recipe,
    is_recipe_file,
    load_recipe,
    parse_recipe,
    recipe_hash,
    recipe_schema,
)
from tunesmith.recipe.overrides import apply_overrides
from tunesmith.recipe.problems import InvalidRecipeError, Problem
from tunesmith.recipe.resolve import Choice, Facts, resolve, settle
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.yaml_text import dump_yaml

__all__ = [
    "Choice",
    "Facts",
    "InvalidRecipeError",
    "Problem",
    "Recipe",
    "Setting",
    "apply_overrides",
    "differences",
    "dump_recipe",
    "dump_yaml",
    "is_recipe_file",
    "load_recipe",
    "markdown",
    "parse_recipe",
    "recipe_hash",
    "recipe_schema",
    "resolve",
    "settings",
    "settle",
]
