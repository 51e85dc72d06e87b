"""Text with `{column}` placeholders, and how a row becomes input and answer.

A template such as `"{phrase}" → "{tone}"` is cut at its last placeholder: the text before it is the input, the value
of the placeholder is the answer that is scored, and that value with the literal text behind it is what is learnt.
`{{` and `}}` stand for the braces themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RecipeError

_EXPECTED = 'text with {column} placeholders, such as "{phrase}" → "{tone}"; {{ and }} are literal braces'


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the input: literal text, a column, literal text. An `optional` part vanishes where it is empty."""

    before: str
    column: str | None = None
    after: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row becomes an input and an answer; `tail` is literal text learnt behind the answer."""

    prompt: tuple[Part, ...]
    answer: str
    tail: str = ""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns every row must have, the answer last."""
        inputs = [p.column for p in self.prompt if p.column is not None and not p.optional]
        return tuple(dict.fromkeys([*inputs, self.answer]))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are used."""
        return tuple(dict.fromkeys([*(p.column for p in self.prompt if p.column is not None), self.answer]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of the input."""
        return tuple(dict.fromkeys(p.column for p in self.prompt if p.column is not None))


def mapping(prompt: str, answer: str) -> Shape:
    """One column in, one column out."""
    return Shape((Part("", prompt),), answer)


def parse_template(template: str) -> Shape:
    """Cut a template into its `Shape`. Raises `RecipeError` for unbalanced braces and for too few placeholders."""
    literals, names = _pieces(template)
    if len(names) < 2:
        found = f"only {{{names[0]}}}" if names else "none"
        raise RecipeError(
            f"a template needs a placeholder for the input and, last, one for the answer; there is {found}",
            where="data.template",
            expected=_EXPECTED,
        )
    parts = [Part(literal, name) for literal, name in zip(literals[:-2], names[:-1], strict=True)]
    if literals[-2]:
        parts.append(Part(literals[-2]))
    return Shape(tuple(parts), names[-1], literals[-1])


def _pieces(template: str) -> tuple[list[str], list[str]]:
    """Literals [n + 1] around n placeholder names."""
    literals, names, text, i = [], [], "", 0
    while i < len(template):
        char = template[i]
        if template[i : i + 2] in ("{{", "}}"):
            text, i = text + char, i + 2
        elif char == "{":
            end = template.find("}", i)
            name = template[i + 1 : end].strip() if end > 0 else ""
            if not name or "{" in name:
                raise RecipeError(
                    f"the brace at character {i + 1} opens no placeholder: {template[i : i + 20]!r}",
                    where="data.template",
                    expected=_EXPECTED,
                    fix="write {{ for a literal brace",
                )
            literals.append(text)
            names.append(name)
            text, i = "", end + 1
        elif char == "}":
            raise RecipeError(
                f"the brace at character {i + 1} closes no placeholder: {template[max(0, i - 20) : i + 1]!r}",
                where="data.template",
                expected=_EXPECTED,
                fix="write }} for a literal brace",
            )
        else:
            text, i = text + char, i + 1
    return [*literals, text], names


def cell_text(value: Any) -> str:
    """A cell as text: strings as they are, nothing for null, everything else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False)


def render_prompt(parts: Sequence[Part], values: Mapping[str, Any]) -> str:
    """The input text of one row."""
    out = []
    for part in parts:
        if part.column is None:
            out.append(part.before)
            continue
        text = cell_text(values.get(part.column))
        if part.optional and not text.strip():
            continue
        out.append(f"{part.before}{text}{part.after}")
    return "".join(out)
