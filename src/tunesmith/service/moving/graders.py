"""Graders of OpenAI's evals as metrics of a recipe; what has none is said with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.tasks.formula import LONGEST

_OUTPUT = re.compile(r"\s*\{\{\s*sample\.output_text\s*\}\}\s*")
_FORMULAS: Mapping[str, str] = {
    "eq": "1 if answer == {right} else 0",
    "ne": "1 if answer != {right} else 0",
    "like": "1 if {right} in answer else 0",
    "ilike": "1 if lower({right}) in lower(answer) else 0",
}
_MEASURES: Mapping[str, tuple[str, str]] = {
    "rouge_l": ("generation", "rouge_l"),
    "rouge_1": ("summarisation", "rouge_1"),
    "rouge_2": ("summarisation", "rouge_2"),
    "bleu": ("translation", "bleu"),
}
"""Measures of likeness that are metrics here too, each with the task that has it."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A grader as a metric: one of a task's own (`formula` None), or a formula. `reference` is the template of the
    right answer; `threshold` the value from which a row passed.
    """

    grader: str
    metric: str
    task: str
    formula: str | None
    reference: str
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A grader that is no metric, and why."""

    grader: str
    reason: str


def mapped_graders(graders: Any) -> Iterator[Mapped | Unmapped]:
    """Each grader of an eval or a job, those within a `multi` one by one."""
    for one in graders if isinstance(graders, list) else [graders]:
        if not isinstance(one, Mapping):
            continue
        if one.get("type") == "multi":
            parts = one.get("graders")
            yield Unmapped(
                str(one.get("name", "multi")),
                f"the formula {one.get('calculate_output')!r} over its parts, which follow",
            )
            yield from mapped_graders(list(parts.values()) if isinstance(parts, Mapping) else parts)
        else:
            yield _mapped(one)


def metric_name(text: str) -> str:
    """A grader's name as a metric may be called."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"check_{name}".rstrip("_")


def _mapped(grader: Mapping[str, Any]) -> Mapped | Unmapped:
    kind, name = str(grader.get("type")), str(grader.get("name") or grader.get("type"))
    reference = str(grader.get("reference", ""))
    if kind in ("string_check", "text_similarity") and not _OUTPUT.fullmatch(str(grader.get("input", ""))):
        return Unmapped(name, f"looks at {grader.get('input')!r}, and metrics see the whole answer only")
    if kind == "string_check":
        formula = _FORMULAS.get(str(grader.get("operation")))
        if formula is None:
            return Unmapped(name, f"the operation {grader.get('operation')!r} is not known")
        right = "expected" if "{{" in reference else repr(reference)
        written = formula.format(right=right)
        place, colon, _ = written.rpartition(":")
        if colon and place.endswith(".py"):
            return Unmapped(name, "with its reference it would read as the place of a function")
        if len(written) > LONGEST:
            return Unmapped(name, f"its reference has {len(reference):,} characters, more than a formula may have")
        return Mapped(name, metric_name(name), "generation", written, reference)
    if kind == "text_similarity":
        measure = str(grader.get("evaluation_metric"))
        if measure not in _MEASURES:
            return Unmapped(name, f"there is no metric {measure} in recipes; graders of the service have it")
        task, metric = _MEASURES[measure]
        threshold = grader.get("pass_threshold")
        return Mapped(name, metric, task, None, reference, float(threshold) if threshold is not None else None)
    if kind in ("label_model", "score_model"):
        return Unmapped(name, "a model judges: `tunesmith judge` does that, once it agrees with people")
    if kind == "python":
        return Unmapped(name, "it is code, which nothing that is brought in may be; write it as a metric of yours")
    return Unmapped(name, f"graders of type {kind!r} are not known")
