"""Tests of promptfoo: variables, and asserts of which one says what the answer is.

From YAML or JSON (`vars`, `assert`; the config's one prompt is filled in), or from CSV, where `__expected` columns are
the asserts and all other columns without `__` are variables. What an assert means is read as promptfoo documents it;
one that needs code, a judge or a file cannot be turned into an expected answer and is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.openai_evals import with_answers
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.sources.yaml_rows import CONFIG
from tunesmith.data.template import cell_text
from tunesmith.data.types import Content, Row

_EXPECTED = "__expected"
_CELL = re.compile(r"(?P<type>[a-z][a-z-]*)(?:\([\d.]+\))?:(?P<value>.*)", re.DOTALL)
_VARIABLE = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_WHOLE = frozenset({"equals"})
_LIKE = frozenset(
    {"similar", "rouge-n", "bleu", "gleu", "meteor", "levenshtein", "factuality", "model-graded-factuality"}
)
"""Asserts whose value is a reference: the answer is to be like it."""
_PART = frozenset({"contains", "icontains", "starts-with"})
_ANY = frozenset({"contains-any", "icontains-any"})
_OTHERS = """
answer-relevance assert-set classifier contains-all contains-html contains-json contains-sql contains-xml
context-faithfulness context-recall context-relevance cost eval file finish-reason fn g-eval grade guardrails
icontains-all is-html is-json is-refusal is-sql is-valid-openai-function-call is-valid-openai-tools-call is-xml
javascript latency llm-rubric max-score model-graded-closedqa moderation perplexity perplexity-score pi python regex
ruby select-best webhook word-count
"""
_TYPES = frozenset({*_WHOLE, *_LIKE, *_PART, *_ANY, *_OTHERS.split()})
"""What may stand before the colon of a CSV cell; any other text with a colon is an answer."""

How = Literal["whole", "like", "any", "part"]


@dataclass(frozen=True, slots=True)
class _Said:
    """What one assert says of the answer: texts of which one is right; None where it says nothing that can be used."""

    type: str
    how: How | None
    texts: tuple[str, ...] = ()


class Promptfoo:
    """A prompt filled with a test's variables, and the expected answer."""

    name = "promptfoo"
    title = "promptfoo tests: vars and assert"
    columns = ("vars", "assert", CONFIG, "description", "options", "threshold", "metadata", _EXPECTED)

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with objects of variables, or columns that begin with `__expected`."""
        if sample.has("vars") and sample.share("vars", dict) == 1.0:
            return Recognition(0.97, "objects under vars")
        if any(name.startswith(_EXPECTED) for name in sample.columns):
            return Recognition(0.97, f"a column {_EXPECTED}", sample.columns)
        return None

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The filled prompt and what the asserts expect, or None with every reason noted."""
        variables = _variables(row.values)
        asked = self._asked(row, variables, log)
        right = _expected(row, variables, log)
        return with_answers(asked, right, row, log) if asked is not None and right is not None else None

    def _asked(self, row: Row, variables: Mapping[str, Any], log: FindingLog) -> Any | None:
        """The prompt: the config's one, filled in, or the only variable; with the test's prefix and suffix."""
        lists = [name for name, value in variables.items() if isinstance(value, list)]
        if lists:
            log.add(
                "test_variable_missing", row.line, f"{', '.join(lists)}: a list, of which each is tried", field="vars"
            )
            return None
        template = _template(row.values)
        if template is None and len(variables) != 1:
            log.add("test_input_unclear", row.line, f"its variables are {', '.join(variables) or 'none'}", field="vars")
            return None
        if template is None and row.values.get(CONFIG):
            log.add("prompts_unused", row.line, field=CONFIG)
        only = cell_text(next(iter(variables.values()), None))
        asked, missing = (only, []) if template is None else _fill(template, variables)
        if missing:
            log.add("test_variable_missing", row.line, ", ".join(missing), field=CONFIG)
            return None
        around = [_around(row.values, name) for name in ("prefix", "suffix")]
        if not any(around):
            return asked
        if isinstance(asked, list):
            log.add("test_input_unclear", row.line, "a prefix or suffix around turns", field="options")
            return None
        return f"{around[0]}{cell_text(asked)}{around[1]}"


def _variables(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A test's variables: under `vars`, or in CSV all columns without `__`."""
    given = values.get("vars")
    if isinstance(given, Mapping):
        return given
    return {name: value for name, value in values.items() if not name.startswith("__") and name != CONFIG}


def _template(values: Mapping[str, Any]) -> str | None:
    """The config's prompt where it has exactly one that is a text with places for variables: else it is a prompt's
    label. CSV may put texts before and after the prompt, but has no prompt itself."""
    prompts = values.get(CONFIG)
    several = prompts if isinstance(prompts, list) else [prompts]
    if len(several) != 1:
        return None
    only = several[0].get("raw") if isinstance(several[0], Mapping) else several[0]
    return only if isinstance(only, str) and "{{" in only and not only.startswith("file://") else None


def _fill(template: str, variables: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The template, or the turns that it is the JSON of, with variables in place of `{{name}}`; and the placeholders
    for which there is none."""
    more = [shown for begin, shown in (("{%", "{% … %}"), ("{#", "{# … #}")) if begin in template]
    missing = [*_fill_text(template, variables)[1], *more]

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return _fill_text(value, variables)[0]
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return filled(_turns(template) or template), missing


def _fill_text(text: str, variables: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The same for a value, which stays a text."""
    missing = [name for name in dict.fromkeys(_VARIABLE.findall(text)) if name not in variables]
    return _VARIABLE.sub(lambda found: cell_text(variables.get(found.group(1))), text), missing


def _turns(template: str) -> list[Any] | None:
    """A prompt that is the JSON of turns as those turns."""
    try:
        value = json.loads(template) if template.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    turns = isinstance(value, list) and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if turns and value else None


def _around(values: Mapping[str, Any], name: str) -> str:
    """The text a test puts before or after its prompt."""
    options = values.get("options")
    return cell_text(options.get(name) if isinstance(options, Mapping) else values.get(f"__{name}"))


def _expected(row: Row, variables: Mapping[str, Any], log: FindingLog) -> list[str] | None:
    """The right answers as the asserts have them, the plainest kind first; None where none says it."""
    said = [_said(one, variables) for one in _asserts(row.values)]
    for how in ("whole", "like", "any", "part"):
        fitting = [one for one in said if one.how == how]
        if how != "like" and len({one.texts for one in fitting}) > 1:  # all must hold, so none is the answer
            continue
        if fitting:
            unused = [one.type for one in said if one not in fitting]
            if unused:
                log.add("assert_unused", row.line, ", ".join(dict.fromkeys(unused)), field="assert")
            if how in ("any", "part"):
                log.add("assert_loose", row.line, fitting[0].type, field="assert")
            return [text for one in fitting for text in one.texts]
    types = ", ".join(dict.fromkeys(one.type for one in said)) or "there is no assert"
    log.add("assert_unmapped", row.line, types, field="assert")
    return None


def _asserts(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All asserts of a test; those of a set one by one, those of CSV as the objects they stand for."""
    given = values.get("assert")
    for one in given if isinstance(given, list) else []:
        if isinstance(one, Mapping) and isinstance(one.get("assert"), list):
            yield from _asserts(one)
        else:
            yield one if isinstance(one, Mapping) else {"type": cell_text(one)[:40]}
    for name, cell in values.items():
        if name.startswith(_EXPECTED) and cell_text(cell).strip():
            yield _from_cell(cell_text(cell).strip())


def _from_cell(text: str) -> Mapping[str, Any]:
    """`contains: Paris` as an assert; a text without a type is the whole answer."""
    found = _CELL.fullmatch(text)
    type_ = found.group("type") if found is not None else text
    if type_ in _TYPES or type_.removeprefix("not-") in _TYPES:
        value = found.group("value").strip() if found is not None else None
        several = type_ in _ANY and value is not None
        return {"type": type_, "value": [part.strip() for part in str(value).split(",")] if several else value}
    return {"type": "equals", "value": text}


def _said(one: Mapping[str, Any], variables: Mapping[str, Any]) -> _Said:
    type_, value = str(one.get("type", "no type")), one.get("value")
    how: How | None = (
        "whole" if type_ in _WHOLE
        else "like" if type_ in _LIKE
        else "any" if type_ in _ANY
        else "part" if type_ in _PART
        else None
    )  # fmt: skip
    if how is None:
        return _Said(type_, None)
    several: Sequence[Any] = value if how in ("any", "like") and isinstance(value, list) else [value]
    texts = []
    for text in map(cell_text, several):
        filled, missing = _fill_text(text, variables)
        if missing or not filled.strip():
            return _Said(f"{type_} ({', '.join(missing) or 'no value'})", None)
        if filled.startswith(("file://", "package:")):
            return _Said(f"{type_} ({filled})", None)
        texts.append(filled)
    return _Said(type_, how, tuple(texts))


FORMAT = Promptfoo()
