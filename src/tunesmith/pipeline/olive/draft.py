"""A recipe while it is put together from another tool's words: settings, what was left out and why, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.recipe.problems import InvalidRecipeError, Problem

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass
class Draft:
    """Settings by dotted recipe key. `notes` name what has no counterpart; `problems` are raised together.

    `defaults` hold where nobody says anything else. `names` are what flags are called where they came from: of a
    configuration file the key, `passes.lora.r` for `--r`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, said: str) -> None:
        """One setting. `said` is the flag or key it came from; two that disagree are a problem."""
        if key in self.settings and self.settings[key] != value:
            self.wrong(said, f"says {value!r} where another one says {self.settings[key]!r}", expected="one of them")
            return
        self.settings[key] = value

    def note(self, said: str, reason: str) -> None:
        """Something that was given and changes nothing here."""
        line = f"{self.names.get(said, said)}: {reason}"
        if line not in self.notes:
            self.notes.append(line)

    def wrong(self, said: str, what: str, *, expected: str | None = None, fix: str | None = None) -> None:
        """Something that cannot be done as it was said."""
        self.problems.append(Problem(self.names.get(said, said), what, expected, fix))

    def raise_problems(self, where: str) -> None:
        """Raise one `InvalidRecipeError` with every problem; nothing where there is none."""
        if self.problems:
            raise InvalidRecipeError(self.problems, where)

    def whole(self, said: str, value: Any, *, least: int = 0) -> int | None:
        """A whole number, or None with the problem noted."""
        try:
            number = int(value) if not isinstance(value, bool | float) or value == int(value) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or isinstance(value, bool) or number < least:
            self.wrong(said, f"{_shown(value)} is not allowed", expected=f"integer, at least {least}")
            return None
        return number

    def number(self, said: str, value: Any) -> float | None:
        """A number, or None with the problem noted."""
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or number != number or number in (float("inf"), -float("inf")):
            self.wrong(said, f"{_shown(value)} is not allowed", expected="a number")
            return None
        return number

    def truth(self, said: str, value: Any) -> bool | None:
        """True or false, as YAML or as a word, or None with the problem noted."""
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        self.wrong(said, f"{_shown(value)} is not allowed", expected="true or false")
        return None

    def words(self, said: str, value: Any) -> list[str] | None:
        """A list of texts, also as one text with commas, or None with the problem noted."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
            self.wrong(said, f"{_shown(value)} is not allowed", expected="names, with commas between them")
            return None
        return list(value)

    def choice(self, said: str, value: Any, choices: Mapping[str, Any]) -> Any:
        """What a word stands for, or None with the problem and the nearest word noted."""
        from tunesmith.recipe.problems import nearest

        if isinstance(value, str) and value in choices:
            return choices[value]
        near = nearest(value, choices) if isinstance(value, str) else None
        expected = ", ".join(choices)
        self.wrong(
            said, f"{_shown(value)} is not allowed", expected=expected, fix=f"did you mean {near}?" if near else None
        )
        return None


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections, as a recipe file has them."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return result


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
