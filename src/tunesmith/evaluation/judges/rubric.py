"""A rubric: what answers are judged by, as a YAML file that people can read and change.

```yaml
name: support answers
about: Replies to customers of a bank.        # optional: what a judge should know
tie_within: 0.05                              # optional: smaller differences of the score are ties
criteria:
  - name: correct
    question: Does the answer say what the reference says?
    scale: {1: wrong, 3: partly right, 5: right and complete}
    weight: 2                                 # optional
  - name: tone
    question: Is it polite and plain?
    scale: {1: rude or stilted, 2: acceptable, 3: pleasant}
```

A scale names points on it; every whole number from its lowest to its highest is a possible score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import RecipeError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CRITERION_KEYS = {"name", "question", "scale", "weight"}
_RUBRIC_KEYS = {"name", "about", "criteria", "tie_within"}


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question about an answer. scale: words by whole number, at least two; weight: in the mean."""

    name: str
    question: str
    scale: Mapping[int, str]
    weight: float = 1.0

    @property
    def lowest(self) -> int:
        return min(self.scale)

    @property
    def highest(self) -> int:
        return max(self.scale)


@dataclass(frozen=True, slots=True)
class Rubric:
    """Criteria, and how far two answers' scores (0-1) may be apart and still be a tie."""

    name: str
    criteria: tuple[Criterion, ...]
    about: str = ""
    tie_within: float = 0.0

    def score(self, scores: Mapping[str, int]) -> float:
        """The weighted mean of all criteria, each taken from its own scale to 0-1."""
        parts = [(c.weight, (scores[c.name] - c.lowest) / (c.highest - c.lowest)) for c in self.criteria]
        return sum(weight * part for weight, part in parts) / sum(weight for weight, _ in parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def load_rubric(path: Path) -> Rubric:
    """Read a rubric. Raises `RecipeError` naming what is wrong with it."""
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        reason = str(problem).split("\n")[0]
        raise RecipeError(f"the rubric cannot be read: {reason}", where=str(path), expected="a YAML file") from problem
    return _rubric(kept, str(path))


def _rubric(kept: Any, where: str) -> Rubric:
    values = _mapping(kept, _RUBRIC_KEYS, where)
    criteria = values.get("criteria")
    if not isinstance(criteria, list) or not criteria:
        raise RecipeError("a rubric needs criteria", where=f"{where}: criteria", expected="a list of at least one")
    made = tuple(_criterion(one, f"{where}: criteria[{place}]") for place, one in enumerate(criteria))
    names = [criterion.name for criterion in made]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two criteria are named {name!r}", where=f"{where}: criteria", expected="distinct names")
    return Rubric(
        name=_text(values.get("name", "rubric"), f"{where}: name"),
        criteria=made,
        about=_text(values["about"], f"{where}: about") if "about" in values else "",
        tie_within=_number(values.get("tie_within", 0.0), f"{where}: tie_within", below=1.0),
    )


def _criterion(kept: Any, where: str) -> Criterion:
    values = _mapping(kept, _CRITERION_KEYS, where)
    name = _text(values.get("name"), f"{where}.name")
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r} cannot name a criterion", where=f"{where}.name", expected="small letters, digits and _"
        )
    scale = values.get("scale")
    if not isinstance(scale, dict) or len(scale) < 2 or not all(type(point) is int for point in scale):
        raise RecipeError(
            "a scale names at least two whole numbers",
            where=f"{where}.scale",
            expected="such as {1: wrong, 3: partly right, 5: right}",
        )
    weight = _number(values.get("weight", 1.0), f"{where}.weight")
    if weight == 0:
        raise RecipeError("a weight of 0 leaves the criterion out", where=f"{where}.weight", expected="more than 0")
    words = {point: _text(word, f"{where}.scale.{point}") for point, word in sorted(scale.items())}
    return Criterion(name, _text(values.get("question"), f"{where}.question"), words, weight)


def _mapping(kept: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(kept, dict):
        raise RecipeError("this is no mapping", where=where, expected=f"the keys {', '.join(sorted(known))}")
    strange = [str(key) for key in kept if key not in known]
    if strange:
        raise RecipeError(f"unknown {', '.join(strange)}", where=where, expected=f"the keys {', '.join(sorted(known))}")
    return kept


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise RecipeError("there is no text here", where=where, expected="a text")
    return str(value).strip()


def _number(value: Any, where: str, below: float = float("inf")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        at_most = f" and under {below:g}" if below < float("inf") else ""
        raise RecipeError(f"{value!r} is no such number", where=where, expected=f"at least 0{at_most}")
    return float(value)
