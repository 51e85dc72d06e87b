"""What a trivial baseline is made of: how it learns, and the rule it has learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.data.types import Example

Rule = Callable[[Sequence[Example]], Sequence[str]]
"""Rows -> an answer's text for each."""
Learned = tuple[Rule, Mapping[str, Any]]
"""A rule, and facts about it worth showing."""
Learn = Callable[[Sequence[Example], Sequence[Example]], Learned]
"""(training rows, validation rows) -> what was learnt from the first and chosen on the second."""
