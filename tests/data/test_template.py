"""Templates: what is input, what is answer, and messages for what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.template import cell_text, parse_template, render_prompt
from tunesmith.errors import RecipeError


def render(template: str, **values: object) -> tuple[str, str]:
    shape = parse_template(template)
    return render_prompt(shape.prompt, values), cell_text(values[shape.answer]) + shape.tail


def test_the_last_placeholder_and_what_follows_is_the_answer() -> None:
    assert render('"{phrase}" → "{tone}"', phrase="Oh no", tone="sad") == ('"Oh no" → "', 'sad"')


def test_several_placeholders_and_names_with_spaces() -> None:
    template = "{title}: {the text} | {title} = { label }."
    assert render(template, **{"title": "A", "the text": "b", "label": "c"}) == ("A: b | A = ", "c.")


def test_doubled_braces_are_literal() -> None:
    assert render("{{x}} {a} {{}} → {{{b}}}", a="1", b="2") == ("{x} 1 {} → {", "2}")


def test_braces_in_cells_are_left_alone() -> None:
    assert render("{a} → {b}", a="{b}", b="{{") == ("{b} → ", "{{")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no placeholder", "there is none"),
        ("only {one}", r"there is only \{one\}"),
        ("{a} → {b", "character 7 opens no placeholder"),
        ("{a} → b}", "character 8 closes no placeholder"),
        ("{} → {b}", "character 1 opens no placeholder"),
        ("{a{b} → {c}", "character 1 opens no placeholder"),
    ],
)
def test_templates_that_are_none(template: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_template(template)
    assert caught.value.where == "data.template"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (None, ""),
        (51.0, "51.0"),
        (3, "3"),
        (True, "true"),
        (["é", 1], '["é", 1]'),
        ({"a": None}, '{"a": null}'),
    ],
)
def test_cells_as_text(value: object, text: str) -> None:
    assert cell_text(value) == text


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_literal_text_and_values_come_out_as_they_went_in(a: str, b: str, c: str, x: str, y: str) -> None:
    def escaped(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    # A literal brace next to a placeholder is ambiguous ("{{{"), so a space keeps them apart.
    template = f"{escaped(a)} {{x}} {escaped(b)} {{y}} {escaped(c)}"
    assert render(template, x=x, y=y) == (f"{a} {x} {b} ", f"{y} {c}")
