"""Templates: what is input, what is answer, and messages for what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.template import (
    cell_text,
    field_of,
    has_field,
    parse_template,
    refuse_unknown_specials,
    render_prompt,
    special_literals,
)
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


LLAMA = "<|start_header_id|>user<|end_header_id|>\n{phrase}<|eot_id|><|start_header_id|>assistant\n{tone}</s>"


def test_special_literals_are_found_outside_of_placeholders_only() -> None:
    assert special_literals(LLAMA) == ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>")
    assert special_literals("<b>{x}</b> a <| b |> [INST] {<|y|>}") == ()
    assert special_literals("[SEP] <start_of_turn>{x} <eos> {y}<fim_suffix>") == (
        "[SEP]",
        "<start_of_turn>",
        "<eos>",
        "<fim_suffix>",
    )


def test_special_literals_that_the_tokenizer_does_not_know_are_named() -> None:
    known = {"<|start_header_id|>": 1, "<|end_header_id|>": 2, "</s>": 3}
    with pytest.raises(RecipeError, match=r"does not know <\|eot_id\|>\n") as caught:
        refuse_unknown_specials(LLAMA, known)
    assert caught.value.where == "data.template"
    assert "base.add_tokens" in str(caught.value.fix)
    refuse_unknown_specials(LLAMA, {**known, "<|eot_id|>": 4})


@pytest.mark.parametrize(
    ("name", "there", "value"),
    [
        ("a", True, {"b": [1, {"c": None}]}),
        ("a.b[0]", True, 1),
        ("a.b[1].c", True, None),
        ("a.b[2]", False, None),
        ("a.x", False, None),
        ("a[0]", False, None),
        ("a.b.c", False, None),
        ("a.b[-1]", False, None),
        ("a..b", False, None),
        ("x", False, None),
        ("[0]", False, None),
    ],
)
def test_paths(name: str, there: bool, value: object) -> None:
    row = {"a": {"b": [1, {"c": None}]}}
    assert has_field(row, name) is there
    assert field_of(row, name) == value


@given(st.text(max_size=12))
def test_any_text_is_a_path_or_not_and_never_a_crash(name: str) -> None:
    assert has_field({name: 1}, name)
    assert has_field({"a": [{"b": 1}]}, name) == (name in ("a", "a[0]", "a[0].b"))
