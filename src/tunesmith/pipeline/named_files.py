"""Files beside the rows that a recipe names and on which a run's numbers depend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tunesmith.evaluation.document_files import read_documents
from tunesmith.recipe.schema import Recipe


def task_files(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by path of the files that say what an answer is worth: the user's metrics, a JSON schema, a database."""
    named = [recipe.task.json_schema, recipe.task.database]
    for metric in recipe.task.metrics.values():
        file, colon, _ = metric.formula.rpartition(":")
        if colon and file.endswith(".py"):
            named.append(file)
    return _hashes(named)


def named_files(recipe: Recipe) -> dict[str, str]:
    """`task_files`, and the texts for forgetting and the documents, by path.

    A file that is not there is left out here: whoever needs it says so. Raises `DataError` where the documents cannot
    be read.
    """
    found = {**task_files(recipe), **_hashes([recipe.evaluate.general_text, recipe.evaluate.general_instructions])}
    if (place := recipe.data.documents) is not None:
        found[place] = read_documents(place, recipe.data.encoding).sha256
    return found


def _hashes(named: Iterable[str | None]) -> dict[str, str]:
    paths = sorted({Path(name) for name in named if name is not None})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}
