"""A project whose recipe searches, with trainings of two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.conftest import edit

SEARCH = """
search:
  space:
    train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
    method.rank: {type: choice, values: [2, 4, 8]}
  sampler: random
  trials: 3
"""


@pytest.fixture
def searching(project) -> Path:
    """The project folder; its recipe has a search section."""
    edit(project, "max_steps: 60", "max_steps: 2")
    edit(project, "evaluations: 10", "evaluations: 1")
    edit(project, "max_new_tokens: 16", "max_new_tokens: 4, forgetting: false")
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "baselines: [trivial]\n" + SEARCH)
    return project
