"""Calls in the way each template writes them: found out, held to by a grammar, read while they come."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.service.asking.templates import KINDS, tokenizer_of, tokenizer_with
from tunesmith.data.types import Message, ToolCall, Toolset
from tunesmith.inference.serving.types import Piece
from tunesmith.service.asking.call_form import CallForm, call_form, schema_fault
from tunesmith.service.asking.chat_request import Function
from tunesmith.service.asking.reading import FreeReader, HeldReader, clear_length
from tunesmith.service.asking.tools import Offer, answer_grammar, grammar_of
from tunesmith.service.asking.turns import Turn
from tunesmith.text.answers import read_answer
from tunesmith.text.render import Renderer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
GET, GET_ALL = Function(name="get", parameters=CITY, strict=True), Function(name="get_all")
BOTH = (GET, GET_ALL)
OSLO, ANY = '{"city": "Oslo"}', '{"deep": {"a}": ["{"]}}'


House = tuple[Renderer, CallForm, Any]
_houses: dict[str, House] = {}


def house(kind: str) -> House:
    """A template's renderer, the form of its calls, and its tokens as llguidance reads them."""
    if kind not in _houses:
        _houses[kind] = made_house(tokenizer_of(kind))
    return _houses[kind]


def made_house(tokenizer: Any) -> House:
    import llguidance.hf

    renderer = Renderer(tokenizer)
    form = call_form(renderer)
    assert form is not None
    return renderer, form, llguidance.hf.from_tokenizer(tokenizer, eos_token=sorted(renderer.stop_ids))


def written(kind: str, *calls: tuple[str, str], content: str = "") -> str:
    """What the template writes for these calls, to the end of the turn, special tokens included."""
    renderer = house(kind)[0]
    tools = Toolset(tuple(json.dumps({"type": "function", "function": {"name": name}}) for name, _ in calls))
    made = tuple(ToolCall(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls))
    turns = (Message("user", "q", tools=tools), Message("assistant", content, tool_calls=made))
    text = next(s.text for s in reversed(renderer.segments(turns, last_only=True)) if s.message is not None)
    stops = renderer.tokenizer.convert_ids_to_tokens(sorted(renderer.stop_ids))
    return text[: min(at for end in stops if (at := text.find(end)) >= 0)]


def seen(kind: str, text: str) -> str:
    """As an engine shows it: without special tokens."""
    for special in house(kind)[1].specials:
        text = text.replace(special, "")
    return text


def keeps(kind: str, grammar: str, text: str) -> bool:
    """Whether a whole answer keeps a grammar; special tokens in it are tokens."""
    from llguidance import LLMatcher

    renderer, _, tokens = house(kind)
    matcher = LLMatcher(tokens, grammar, log_level=0)
    assert not matcher.is_error(), f"{matcher.get_error()}\n{grammar}"
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("kind", KINDS)
def test_required_calls_are_what_the_template_writes(kind: str) -> None:
    form = house(kind)[1]
    grammar = grammar_of(Offer(BOTH, BOTH, "required"), form, None)
    assert grammar is not None
    assert keeps(kind, grammar, written(kind, ("get", OSLO)))
    assert keeps(kind, grammar, written(kind, ("get_all", ANY)))
    wrong = [("get", '{"town": "Oslo"}'), ("get", '{"city": 3}'), ("got", OSLO)]
    assert not any(keeps(kind, grammar, written(kind, call)) for call in wrong)
    assert not keeps(kind, grammar, "It rains.") and not keeps(kind, grammar, "")
    if form.between is None:
        assert kind == "one"
        return
    two = written(kind, ("get", OSLO), ("get_all", ANY))
    assert keeps(kind, grammar, two)
    alone = grammar_of(Offer(BOTH, BOTH, "required", parallel=False), form, None)
    assert alone is not None and not keeps(kind, alone, two) and keeps(kind, alone, written(kind, ("get", OSLO)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_function_is_the_only_one(kind: str) -> None:
    grammar = grammar_of(Offer(BOTH, (GET,), "required"), house(kind)[1], None)
    assert grammar is not None
    assert keeps(kind, grammar, written(kind, ("get", OSLO))) and not keeps(
        kind, grammar, written(kind, ("get_all", "{}"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strict_functions_are_kept_where_the_model_chooses(kind: str) -> None:
    form = house(kind)[1]
    grammar = grammar_of(Offer(BOTH, BOTH, "auto"), form, None)
    assert grammar is not None
    assert all(
        keeps(kind, grammar, text) for text in ("It rains.", "please call me\nor not", "", written(kind, ("get", OSLO)))
    )
    assert keeps(kind, grammar, written(kind, ("get_all", ANY)))
    assert not keeps(kind, grammar, written(kind, ("get", '{"town": "Oslo"}')))
    assert not keeps(kind, grammar, written(kind, ("got", OSLO)))
    if form.mark[0] != "whole":
        beside = f"Let me look.\n{written(kind, ('get', OSLO)).lstrip()}"
        assert keeps(kind, grammar, beside) and read_answer(seen(kind, beside)).calls
        assert not keeps(kind, grammar, beside.replace("city", "town"))
    loose = (GET_ALL,)
    assert grammar_of(Offer(loose, loose, "auto"), form, None) is None, "nothing to hold: the answer is free"


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_in_json_or_a_call(kind: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    grammar = grammar_of(Offer(BOTH, BOTH, "auto"), house(kind)[1], schema)
    assert grammar is not None
    assert keeps(kind, grammar, '{"n": 3}') and keeps(kind, grammar, written(kind, ("get", OSLO)))
    assert not keeps(kind, grammar, "three") and not keeps(kind, grammar, '{"n": "3"}')


FAMILIES = ["llama3_1", "llama3_2", "qwen2_5", "qwen3", "qwen3_8", "qwen3_instruct_2507", "gemma3", "phi3", "gptoss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_of_well_known_families(family: str) -> None:
    """Those that come with another package, where it is installed: what they write keeps what they are held to."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("trl, which brings these templates, is not installed")
    path = Path(found.origin).parent / "chat_templates" / f"{family}.jinja"
    if not path.exists():
        pytest.skip(f"this trl has no template of {family}")
    source = path.read_text(encoding="utf-8")
    specials = sorted(set(re.findall(r"<\|\w+\|>|<start_of_turn>|<end_of_turn>", source)))
    _houses[family] = made_house(tokenizer_with(source, specials))
    form = house(family)[1]
    required = grammar_of(Offer(BOTH, BOTH, "required"), form, None)
    chosen = grammar_of(Offer(BOTH, BOTH, "auto"), form, None)
    assert required is not None and chosen is not None
    calls = [("get", OSLO), ("get_all", ANY)] if form.between is not None else [("get", OSLO)]
    text = written(family, *calls)
    assert keeps(family, required, text) and keeps(family, chosen, text)
    assert not keeps(family, required, "It rains.") and keeps(family, chosen, "It rains.")
    turn, _ = read_in(HeldReader(0, ids(), form, ["get", "get_all"]), cut(seen(family, text), [3, 20]))
    assert [(call.name, json.loads(call.arguments)) for call in turn.calls] == [(n, json.loads(a)) for n, a in calls]


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_that_refer_to_themselves(kind: str) -> None:
    """References are right wherever a schema comes to stand in a grammar: alone, or beside others."""
    tree = {"type": "object", "properties": {"leaf": {"type": "integer"}, "left": {"$ref": "#/$defs/tree"}}}
    schema = {"$defs": {"tree": {**tree, "additionalProperties": False}}, "$ref": "#/$defs/tree"}
    grow = Function(name="get", parameters={"$defs": schema["$defs"], **tree}, strict=True)
    grammar = grammar_of(Offer((grow,), (grow,), "auto"), house(kind)[1], schema)
    assert grammar is not None
    right, wrong = '{"left": {"left": {"leaf": 1}}}', '{"left": {"left": {"leaf": "1"}}}'
    assert keeps(kind, grammar, right) and keeps(kind, grammar, written(kind, ("get", right)))
    assert not keeps(kind, grammar, wrong) and not keeps(kind, grammar, written(kind, ("get", wrong)))


def test_json_is_on_one_line_or_on_lines_of_its_own() -> None:
    grammar = answer_grammar({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]})
    for text in ('{"a":[1,2]}', '{"a": [1, 2]}', json.dumps({"a": [1, {"b": 2}]}, indent=2)):
        assert keeps("plain", grammar, text), text
    for text in ('{"a"  : []}', '{"a":\t[]}', '{"a": \n\n\n\n[]}'):
        assert not keeps("plain", grammar, text), text


def test_why_a_schema_cannot_be_kept_is_said_in_a_line() -> None:
    assert schema_fault({"type": "object"}) is None
    kept_by_none: list[dict[str, Any]] = [
        {"type": "strin"}, {"not": {}}, {"type": "string", "pattern": "(?=x)"}, {"$ref": "#/$defs/none"}, {"$ref": "#"}
    ]  # fmt: skip
    for schema in kept_by_none:
        fault = schema_fault(schema)
        assert fault and "\n" not in fault and "start:" not in fault, fault


def test_schemas_that_take_long_to_compile_are_refused_at_once() -> None:
    def steps(*numbers: float) -> dict[str, Any]:
        return {"type": "array", "items": {"anyOf": [{"type": "number", "multipleOf": number} for number in numbers]}}

    assert all(schema_fault(steps(*kept)) is None for kept in ((0.01, 5, 30, 1e6), (9973,), (0.25,)))
    begin = process_time()
    for numbers in ((999_983,), (9.99983,), (9973, 9967), (-123_456_789_123,), (1e-300 / 3,)):
        fault = schema_fault({"type": "object", "properties": {"a": steps(*numbers)}, "required": ["a"]})
        assert fault and "multipleOf" in fault, numbers
    assert process_time() - begin < 1
    assert schema_fault({"type": "object", "properties": {"multipleOf": {"type": "integer"}}}) is None
    for odd in (True, "2", None, [3], float("inf"), float("nan"), 0):
        assert schema_fault({"type": "number", "multipleOf": odd}), odd


def cut(text: str, places: list[int]) -> list[Piece]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    parts = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return [*(Piece(0, part) for part in parts), Piece(0, "", finish="stop")]


def read_in(reader: Any, pieces: list[Piece]) -> tuple[Turn, list[Any]]:
    turn, events = Turn(), []
    for piece in pieces:
        for event in reader.feed(piece):
            turn.take(event)
            events.append(event)
    return turn, events


def ids() -> Any:
    numbers = count()
    return lambda: f"call_{next(numbers)}"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_held_calls_are_read_however_they_are_cut(kind: str, data: st.DataObject) -> None:
    form = house(kind)[1]
    values = st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.lists(st.text(max_size=3)))
    several = data.draw(st.integers(1, 1 if form.between is None else 3))
    calls = [
        (data.draw(st.sampled_from(["get", "get_all"])), json.dumps(data.draw(values), ensure_ascii=False))
        for _ in range(several)
    ]
    text = seen(kind, written(kind, *calls))
    pieces = cut(text, data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    turn, _ = read_in(HeldReader(0, ids(), form, ["get", "get_all"]), pieces)
    assert [(call.name, json.loads(call.arguments)) for call in turn.calls] == [(n, json.loads(a)) for n, a in calls]
    assert turn.text == "" and len({call.id for call in turn.calls}) == several


PARTS = st.sampled_from(
    ["call ", "ca", "call get {", '"city": 1', "}", "\n", " ", "text", "<tool_call>", "<tool", "</tool_call>", "{", "]",
     '{"name": "get", "arguments": {"a": 1}}', 'call get {"a": 1}', "🙂", "[TOOL_CALLS]", "ü"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@example(parts=['call get {"a": 1}', "\n", "\n"], places=[])
@given(parts=st.lists(PARTS, max_size=8), places=st.lists(st.integers(0, 200), max_size=10))
def test_free_answers_are_read_however_they_are_cut(parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    whole = read_answer(text)
    turn, events = read_in(FreeReader(0, ids()), cut(text, places))
    assert [(call.name, call.arguments) for call in turn.calls] == [(call.name, call.arguments) for call in whole.calls]
    if whole.calls:
        assert turn.text.strip() == whole.content.strip()
    else:
        assert turn.text == text
    assert events[-1].called == bool(whole.calls)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(PARTS, max_size=6), more=st.lists(PARTS, max_size=4))
def test_what_is_clear_stays_content_whatever_follows(parts: list[str], more: list[str]) -> None:
    before = "".join(parts)
    clear = before[: clear_length(before)]
    read = read_answer(before + "".join(more))
    content = read.content if read.calls else before + "".join(more)
    assert content.lstrip().startswith(clear.lstrip())


def test_plain_text_is_not_kept_back() -> None:
    assert clear_length("It rains in Oslo.") == 17 and clear_length("It rains \n") == 8
    assert clear_length("a < b and call") == 14 and clear_length("Hm.\ncal") == 3 and clear_length("Hm.\ncallous") == 11
    assert clear_length("see <tool") == 3 and clear_length('{"name"') == 0 and clear_length("") == 0


def test_a_call_that_is_cut_is_told_as_far_as_it_goes() -> None:
    turn, events = read_in(
        HeldReader(0, ids(), house("plain")[1], ["get"]),
        [Piece(0, 'call get {"ci'), Piece(0, "", finish="length")],
    )
    assert turn.calls[0].arguments == '{"ci' and turn.finish == "length" and events[-1].called
    turn, events = read_in(HeldReader(0, ids(), house("plain")[1], ["get"]), [Piece(0, "call g", finish="length")])
    assert turn.text == "call g" and not events[-1].called
