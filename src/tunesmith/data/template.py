"""Text with `{column}` placeholders, and how a row becomes input and answer.

A template such as `"{phrase}" → "{tone}"` is cut at its last placeholder: the text before it is the input, the value
of the placeholder is the answer that is scored, and that value with the literal text behind it is what is learnt.
`answer` names more placeholders than the last one; then the answer begins at the first of them. `{{` and `}}` stand
for the braces themselves; `{a.b}` and `{a[0]}` look inside a cell that holds an object or a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.errors import RecipeError

_EXPECTED = 'text with {column} placeholders, such as "{phrase}" → "{tone}"; {{ and }} are literal braces'
_STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(\d{1,9})\]")
_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>"
    r"|<(?:bos|eos|pad|unk|mask|sep|cls|endoftext|(?:begin|end|start)_of_[a-z]{1,12}|fim_[a-z]{1,12})>"
    r"|\[(?:BOS|EOS|PAD|UNK|MASK|SEP|CLS)\]"
)
"""Literals that only make sense as one token. `[INST]` is not among them: Llama 2 was trained on it as plain text."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text: literal text, a column, literal text. An `optional` part vanishes where it is empty."""

    before: str
    column: str | None = None
    after: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row becomes an input and an answer.

    The answer is the text of `lead` (empty unless a template's answer begins before its last placeholder) and the
    value of `answer`; `tail` is literal text learnt behind it. Several `fields` make a JSON object, of which `answer`
    is the last.
    """

    prompt: tuple[Part, ...]
    answer: str
    tail: str = ""
    lead: tuple[Part, ...] = ()
    fields: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        """Columns every row must have, the answer last."""
        parts = [p.column for p in (*self.prompt, *self.lead) if p.column is not None and not p.optional]
        return tuple(dict.fromkeys([*parts, *self.fields, self.answer]))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are used."""
        parts = [p.column for p in (*self.prompt, *self.lead) if p.column is not None]
        return tuple(dict.fromkeys([*parts, *self.fields, self.answer]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of the input."""
        return tuple(dict.fromkeys(p.column for p in self.prompt if p.column is not None))


def mapping(prompt: str, answer: str) -> Shape:
    """One column in, one column out."""
    return Shape((Part("", prompt),), answer)


def parse_template(template: str, answer: Sequence[str] = ()) -> Shape:
    """Cut a template into its `Shape`; `answer` names the placeholders that are the answer, by default the last one.

    Raises `RecipeError` for unbalanced braces, for too few placeholders, and for answers that are no placeholders or do
    not stand at the end.
    """
    literals, names = _pieces(template)
    if len(names) < 2:
        found = f"only {{{names[0]}}}" if names else "none"
        raise RecipeError(
            f"a template needs a placeholder for the input and, last, one for the answer; there is {found}",
            where="data.template",
            expected=_EXPECTED,
        )
    cut = _cut(names, answer) if answer else len(names) - 1
    prompt = [Part(literal, name) for literal, name in zip(literals[:cut], names[:cut], strict=True)]
    if literals[cut]:
        prompt.append(Part(literals[cut]))
    lead = [
        Part("" if i == cut else literals[i], names[i], literals[i + 1] if i == len(names) - 2 else "")
        for i in range(cut, len(names) - 1)
    ]
    return Shape(tuple(prompt), names[-1], literals[-1], tuple(lead))


def _cut(names: Sequence[str], answer: Sequence[str]) -> int:
    """The index of the first placeholder of the answer."""
    unknown = [name for name in answer if name not in names]
    if unknown:
        raise RecipeError(
            f"the template has no placeholder {{{unknown[0]}}}",
            where="data.answer",
            expected=f"names among: {', '.join(names)}",
        )
    cut = min(i for i, name in enumerate(names) if name in answer)
    others = [name for name in names[cut:] if name not in answer]
    if others:
        raise RecipeError(
            f"{{{others[0]}}} stands behind the beginning of the answer and is not part of it",
            where="data.answer",
            expected="the placeholders of the answer at the end of the template",
            fix=f"move {{{others[0]}}} forward, or name it in data.answer too",
        )
    if cut == 0:
        raise RecipeError("nothing of the template is input", where="data.answer", expected="an input before it")
    return cut


def special_literals(template: str) -> tuple[str, ...]:
    """What a template's own text holds that only makes sense as a single token, such as `<|eot_id|>` or `</s>`.

    Each once, in order. A tokenizer that does not know one of them would spell it out in pieces, and the model would
    learn those.
    """
    literals, _ = _pieces(template)
    return tuple(dict.fromkeys(match.group() for literal in literals for match in _SPECIAL.finditer(literal)))


def refuse_unknown_specials(template: str, known: Container[str]) -> None:
    """Raise `RecipeError` naming the special literals of `template` that are not among the `known` tokens."""
    unknown = [literal for literal in special_literals(template) if literal not in known]
    if unknown:
        one = len(unknown) == 1
        raise RecipeError(
            f"the tokenizer of the base does not know {', '.join(unknown)}",
            where="data.template",
            expected="special tokens of this base" if not one else "a special token of this base",
            fix=f"use the base's own, or add {'it' if one else 'them'} with base.add_tokens: [{', '.join(unknown)}]",
        )


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


@cache
def _steps(name: str) -> tuple[str | int, ...]:
    """`a.b[0]` as its steps; a name that is not such a path is one step."""
    matches = list(_STEP.finditer(name))
    if not name or name.startswith(".") or "".join(match.group() for match in matches) != name:
        return (name,)
    return tuple(int(m.group(2)) if m.group(1) is None else m.group(1) for m in matches)


def root_column(name: str, columns: Container[str]) -> str:
    """The column a placeholder looks into: itself where there is such a column, else the first step of its path."""
    return name if name in columns else str(_steps(name)[0])


def has_field(values: Mapping[str, Any], name: str) -> bool:
    """Whether a row has what a placeholder names; null counts as being there."""
    return _find(values, name)[0]


def field_of(values: Mapping[str, Any], name: str, defaults: Mapping[str, str] | None = None) -> Any:
    """What a placeholder names in a row; None where it is not there. `defaults` fill in for what says nothing."""
    value = values[name] if name in values else _find(values, name)[1]
    if defaults and name in defaults and not cell_text(value).strip():
        return defaults[name]
    return value


def _find(values: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    if name in values:
        return True, values[name]
    found: Any = values
    for step in _steps(name):
        inside = step in found if isinstance(found, Mapping) else isinstance(found, list) and _reaches(step, found)
        if not inside:
            return False, None
        found = found[step]
    return True, found


def _reaches(step: str | int, found: list[Any]) -> bool:
    return isinstance(step, int) and step < len(found)


def cell_text(value: Any) -> str:
    """A cell as text: strings as they are, nothing for null, everything else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False)


def input_text(value: Any) -> str:
    """A cell as input: as `cell_text`, but a list of texts is its texts, one per line."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return cell_text(value)


def render_prompt(parts: Sequence[Part], values: Mapping[str, Any], defaults: Mapping[str, str] | None = None) -> str:
    """The text of the parts for one row."""
    out = []
    for part in parts:
        if part.column is None:
            out.append(part.before)
            continue
        text = input_text(field_of(values, part.column, defaults))
        if part.optional and not text.strip():
            continue
        out.append(f"{part.before}{text}{part.after}")
    return "".join(out)
