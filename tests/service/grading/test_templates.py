from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.service.grading import sample_of
from tunesmith.service.grading.templates import (
    NotJsonError,
    TemplateError,
    fill,
    namespaces_of,
    read_path,
    template_problems,
)

CALL = {"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
VALUES: dict[str, Any] = {
    "item": {"a": "text", "n": 3, "deep": {"list": [{"x": "here"}, [1, 2]]}, "two words": "both", "no": None, "ä": "ö"},
    "sample": sample_of('{"label": "pos", "p": 0.5}', [CALL]),
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{item.a}}", "text"),
        ("<{{ item.a }}|{{item.n}}>", "<text|3>"),
        ("{{item.deep.list[0].x}}", "here"),
        ("{{item.deep.list.0.x}}", "here"),
        ("{{item.deep.list[1]}}", "[1, 2]"),
        ('{{item["two words"]}}', "both"),
        ("{{item['two words']}}", "both"),
        ("{{item.no}}", "null"),
        ("{{item.ä}}", "ö"),
        ("{{sample.output_text}}", '{"label": "pos", "p": 0.5}'),
        ("{{sample.output_json.label}}", "pos"),
        ("{{sample.output_json}}", '{"label": "pos", "p": 0.5}'),
        ("{{sample.output_tools[0].function.name}}", "search"),
        ("{{sample.output_tools[0].function.arguments}}", '{"q": "x"}'),
        ("{{sample.choices[0].message.content}}", '{"label": "pos", "p": 0.5}'),
        ("no { braces }", "no { braces }"),
    ],
)
def test_filled(text: str, filled: str) -> None:
    assert fill(text, VALUES) == filled


def test_what_is_put_in_is_not_read_again() -> None:
    assert fill("{{item.a}}", {"item": {"a": "{{item.b}}", "b": "secret"}}) == "{{item.b}}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{item.b}}", "there is no 'item.b'; there is: a, deep, n, no, two words, ä"),
        ("{{item.deep.x}}", "there is no 'item.deep.x'; there is: list"),
        ("{{item.deep.list[7]}}", r"there is no 'item.deep.list\[7\]'; the list has 2 elements"),
        ("{{item.deep.list.x}}", "is a list"),
        ("{{item.a.x}}", "'item.a' is \"text\""),
        ("{{sample.output_tools[1].function.name}}", "the list has 1 elements"),
        ("{{sample.output_audio}}", "there is no 'sample.output_audio'"),
    ],
)
def test_missing_names_are_errors(text: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        fill(text, VALUES)


@pytest.mark.parametrize("text", ["{{sample.output_json}}", "{{sample.output_json.label}}"])
def test_an_answer_that_is_no_json(text: str) -> None:
    with pytest.raises(NotJsonError, match="the answer is not JSON"):
        fill(text, {"sample": sample_of("positive")})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{}}", "does not begin with"),
        ("{{a}}", "does not begin with 'item.' or 'sample.'"),
        ("{{items.a}}", "does not begin with"),
        ("{{item}}", r"names no variable; write '\{\{item.name\}\}'"),
        ("{{item.}}", "cannot be read at '.'"),
        ("{{item.a[x]}}", r"cannot be read at '\[x\]'"),
        ("{{item.a + 1}}", "cannot be read at ' \\+ 1'"),
        ("{{item.a | upper}}", "cannot be read"),
    ],
)
def test_what_cannot_be_read(text: str, says: str) -> None:
    (problem,) = template_problems(text)
    with pytest.raises(TemplateError, match=says):
        raise TemplateError(problem)


def test_every_problem_of_a_text() -> None:
    assert len(template_problems("{{a}} {{item.b}} {{item}}")) == 2


def test_namespaces() -> None:
    assert namespaces_of("{{ item.a }} {{sample['x']}} {{b}}") == {"item", "sample"}
    assert namespaces_of("plain") == frozenset()


@settings(deadline=None)
@given(st.text(max_size=30))
def test_reading_never_fails_otherwise(text: str) -> None:
    try:
        path = read_path(text)
    except TemplateError:
        return
    assert path[0] in ("item", "sample") and len(path) > 1


@settings(deadline=None)
@given(st.text(max_size=60))
def test_texts_without_templates_stay(text: str) -> None:
    if "{{" not in text:
        assert fill(text, {}) == text


@pytest.mark.parametrize("text", ["{{" * 200_000, "{" * 400_001, "{{a" * 100_000, "{{ }" * 100_000])
def test_braces_that_are_never_closed_are_read_in_one_pass(text: str) -> None:
    began = time.process_time()
    assert template_problems(text) == () and fill(text, {}) == text
    assert time.process_time() - began < 2


def test_braces_within_braces() -> None:
    assert fill('{"a": {"b": "{{item.x}}"}} {{ {{item.x}}', {"item": {"x": 1}}) == '{"a": {"b": "1"}} {{ 1'
