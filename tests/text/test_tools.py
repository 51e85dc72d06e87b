"""Tools: rendered by the template or in plain words, learnt exactly, and asked for as they were learnt."""

from __future__ import annotations

import functools
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.tokenizers import ALTERNATING, CHATML, HERMES, LLAMA3, TEXT_ARGUMENTS, merging, with_special
from tunesmith.data.types import Example, Message, ToolCall, Toolset, offering
from tunesmith.errors import RecipeError
from tunesmith.models.load import load_base
from tunesmith.recipe.schema import Base
from tunesmith.tasks.conversation import asking_conversation, training_conversation
from tunesmith.tasks.generation import Generation
from tunesmith.text.answers import read_answer
from tunesmith.text.preview import preview
from tunesmith.text.render import Renderer, offered_by
from tunesmith.text.template_tools import ToolForm

TOOL = json.dumps(
    {"type": "function", "function": {"name": "look", "description": "é", "parameters": {"type": "object"}}}
)
OTHER = json.dumps({"type": "function", "function": {"name": "add"}})
NATIVE = {"hermes": HERMES, "text": TEXT_ARGUMENTS}
PLAIN = {"plain": (None, "plain"), "raw": (None, "raw"), "chatml": (CHATML, "tokenizer"),
         "llama 3": (LLAMA3, "tokenizer"), "alternating": (ALTERNATING, "tokenizer")}  # fmt: skip
TEXTS = st.text(st.sampled_from('ab #{}"'), max_size=8)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.lists(st.booleans(), max_size=2), max_size=2)


@functools.cache
def native(name: str, merges: bool = False) -> Renderer:
    return Renderer((merging if merges else with_special)(NATIVE[name]))


@functools.cache
def plain(name: str, merges: bool = False) -> Renderer:
    source, wanted = PLAIN[name]
    return Renderer((merging if merges else with_special)(source), wanted)


@st.composite
def conversations(draw: st.DrawFn, most_calls: int = 2, said: st.SearchStrategy[str] = TEXTS) -> tuple[Message, ...]:
    """Questions, each with calls and their results before the answer, or a call as the last turn; tools offered."""
    made = [Message("system", "s" + draw(TEXTS))] if draw(st.booleans()) else []
    count = 0
    for _ in range(draw(st.integers(1, 2))):
        made.append(Message("user", "a" + draw(TEXTS)))
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            anew = draw(st.booleans())  # ids begin anew in this turn
            for number in range(draw(st.integers(1, most_calls))):
                count += 1
                name = draw(st.sampled_from(["look", "add"]))
                calls.append(ToolCall(f"id {number if anew else count}", name, json.dumps(draw(ARGUMENTS))))
            made.append(Message("assistant", draw(said), tool_calls=tuple(calls)))
            made += [Message("tool", "r" + draw(TEXTS), tool_call_id=call.id) for call in calls]
        made.append(Message("assistant", "b" + draw(TEXTS)))
    ends = [i for i, message in enumerate(made) if message.role == "assistant"]
    return offering(made[: draw(st.sampled_from(ends)) + 1], [TOOL, OTHER], draw(st.sampled_from([None, True])))


def template_mask(r: Renderer, messages: tuple[Message, ...]) -> tuple[list[int], list[int]]:
    """Ids, and which of them the template itself says are the assistant's: by its `generation` blocks."""
    offered = offered_by(messages)
    made = r.tokenizer.apply_chat_template(
        r._turns(messages),
        tools=[json.loads(text) for text in offered.definitions] if offered else None,
        return_assistant_tokens_mask=True,
        return_dict=True,
        parallel_tool_calls=True,
    )
    return made["input_ids"], made["assistant_masks"]


@pytest.mark.parametrize("name", NATIVE)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_learnt_is_what_the_template_calls_the_assistants(name: str, data: Any) -> None:
    r = native(name)
    messages = data.draw(
        conversations(most_calls=2 if name == "hermes" else 1, said=TEXTS if name == "hermes" else st.just(""))
    )
    ids, mask = template_mask(r, messages)
    made = r.sample(messages)
    assert made.ids.tolist() == ids
    assert (made.weights > 0).astype(int).tolist() == mask and made.supervised == sum(mask) > 0
    assert r.ends_turn(made)


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("name", [*NATIVE, *PLAIN])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_answer_and_call_is_asked_with_the_ids_before_it(name: str, merges: bool, data: Any) -> None:
    r = native(name, merges) if name in NATIVE else plain(name, merges)
    few = name == "text"
    messages = data.draw(conversations(most_calls=1 if few else 2, said=st.just("") if few else TEXTS))
    made = r.sample(messages)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = r.prompt_ids(messages[:i])
            assert made.ids[: len(prompt)].tolist() == prompt
            assert r.tokenizer.decode(prompt) == r.prompt_text(messages[:i])
    together = list(r.samples([messages, messages[:2], messages]))
    assert together[2].ids.tolist() == made.ids.tolist()
    assert np.array_equal(together[0].weights, made.weights)


@pytest.mark.parametrize("name", [*NATIVE, *PLAIN])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_is_learnt_is_read_back_as_what_was_meant(name: str, data: Any) -> None:
    """A model that has learnt a row to the letter is scored right on it."""
    r = native(name) if name in NATIVE else plain(name)
    few = name == "text"
    messages = data.draw(conversations(most_calls=1 if few else 2, said=st.just("")))
    if name == "llama 3":  # it trims what is said
        messages = tuple(replace(m, content=m.content.strip()) for m in messages)
    prompt = r.prompt_ids(messages[:-1])
    made = r.sample(messages, "last")
    answer = r.answer(made.ids[len(prompt) :][made.weights[len(prompt) :] > 0].tolist(), messages[:-1])
    last = messages[-1]
    assert answer.content.strip() == last.content.strip()
    assert [(c.name, json.loads(c.arguments)) for c in answer.calls] == [
        (c.name, json.loads(c.arguments)) for c in last.tool_calls
    ]


def test_plain_words_written_out() -> None:
    """Learnt text stands between bars."""
    messages = offering(
        (
            Message("user", "hi"),
            Message("assistant", "so", tool_calls=(ToolCall("1", "look", '{"at":1}'), ToolCall("2", "add", "{}"))),
            Message("tool", "3", tool_call_id="2"),
            Message("tool", "4", tool_call_id="1"),
            Message("assistant", "bye"),
        ),
        [OTHER],
        parallel=False,
    )
    r = plain("plain")
    assert r.tools == "plain"
    made = r.sample(messages)
    shown, before = "", 0.0
    for text, weight in zip(r.token_texts(made.ids.tolist()), made.weights.tolist(), strict=True):
        shown += ("|" if weight != before else "") + text
        before = weight
    assert shown == (
        'You may call these tools:\n{"name": "add"}\n\n'
        'To call a tool, write a line such as: call NAME {"argument": "value"}\nCall at most one tool in a turn.\n\n'
        '### User\nhi\n\n### Assistant\n|so\ncall look {"at": 1}\ncall add {}</s>|\n\n'
        "### User\nresult of add:\n3\n\nresult of look:\n4\n\n### Assistant\n|bye</s>|\n\n"
    )
    shown_row = preview(r, [made])[0]
    assert "".join(text for text, weight in shown_row.tokens if weight).startswith('so\ncall look {"at": 1}')


def test_ids_that_begin_anew_in_each_turn_name_the_right_tool() -> None:
    def turns(name: str) -> tuple[Message, Message]:
        return Message("assistant", "", tool_calls=(ToolCall("1", name, "{}"),)), Message("tool", "3", tool_call_id="1")

    row = offering((Message("user", "hi"), *turns("look"), *turns("add"), Message("assistant", "so")), [TOOL])
    for r, marks in (
        (plain("plain"), ("result of look:", "result of add:")),
        (native("text"), ("tool look", "tool add")),
    ):
        text = r.prompt_text(row[:-1])
        assert 0 < text.index(marks[0]) < text.index(marks[1])


def test_the_system_message_stays_first_and_strict_templates_get_turns_in_turn() -> None:
    asked = offering((Message("system", "be kind"), Message("user", "hi")), [OTHER])
    assert plain("plain").prompt_text(asked).startswith("be kind\n\nYou may call these tools:\n")
    folded = plain("alternating").prompt_text(asked)
    assert folded.startswith("<|head|>user\nbe kind\n\nYou may call") and folded.count("<|head|>user") == 1
    assert "system" in plain("chatml").prompt_text(offering((Message("user", "hi"),), [OTHER]))


def test_a_weight_of_zero_keeps_a_call_out_of_the_loss() -> None:
    call = Message("assistant", "", 0.0, tool_calls=(ToolCall("1", "look", "{}"),))
    rest = (Message("user", "hi"), call, Message("tool", "3", tool_call_id="1"), Message("assistant", "bye"))
    for r, end in ((native("hermes"), "<|im_end|>"), (native("text"), "<|eot|>"), (plain("plain"), "</s>")):
        made = r.sample(offering(rest, [TOOL]))
        assert r.tokenizer.decode(made.ids[made.weights > 0]) == f"bye{end}"
        half = r.sample(offering((rest[0], replace(call, weight=0.5)), [TOOL]))
        assert set(half.weights.tolist()) == {0.0, 0.5} and r.ends_turn(half)


def test_a_call_may_end_otherwise_than_a_text_and_tags_are_no_end() -> None:
    def names(r: Renderer) -> set[str]:
        return {r.tokenizer.convert_ids_to_tokens(i) for i in r.stop_ids}

    assert names(native("text")) == {"</s>", "<|eot|>", "<|tail|>"}
    assert names(native("hermes")) == {"</s>", "<|im_end|>"}
    assert native("hermes").tools == "template" and plain("llama 3").tools == "plain"


def test_templates_are_tried_for_the_form_they_take() -> None:
    assert native("hermes")._form == ToolForm(objects=True, short_ids=False)
    assert native("text")._form == ToolForm(objects=False, short_ids=True)
    only_listed = Renderer(with_special("{{ tools | tojson }}" + CHATML))  # shows tools, but no calls
    assert only_listed.tools == "plain"


def test_parallel_calls_are_told_to_the_template_and_what_it_refuses_is_told() -> None:
    several = Message("assistant", "", tool_calls=(ToolCall("1", "look", "{}"), ToolCall("2", "look", "{}")))
    row = (Message("user", "hi"), several)
    r = native("text")
    assert "; " in r.tokenizer.decode(r.sample(offering(row, [TOOL], parallel=True)).ids)
    with pytest.raises(RecipeError, match=r"one call at a time[\s\S]*chat_template: plain"):
        r.sample(offering(row, [TOOL], parallel=False))


def test_a_template_of_its_own_for_tools_is_used_for_them_alone() -> None:
    tokenizer = with_special()
    tokenizer.chat_template = {"default": LLAMA3, "tool_use": HERMES}
    r = Renderer(tokenizer)
    asked = (Message("user", "hi"),)
    assert r.prompt_text(asked).startswith("<|begin|>") and r.prompt_text(offering(asked, [TOOL])).startswith("<|im_")
    assert LLAMA3 in r.source and HERMES in r.source
    again = pickle.loads(pickle.dumps(r))
    assert again.prompt_ids(offering(asked, [TOOL])) == r.prompt_ids(offering(asked, [TOOL]))


def test_rows_with_and_without_tools_and_with_others_are_rendered_together_as_alone() -> None:
    r = native("hermes")
    rows = [
        offering((Message("user", f"a{i}"), Message("assistant", "b")), tools)
        for i, tools in enumerate(([TOOL], [], [OTHER], [TOOL, OTHER], [], [TOOL]))
    ]
    for made, row in zip(r.samples(rows), rows, strict=True):
        assert made.ids.tolist() == r.sample(row).ids.tolist()
        text = r.tokenizer.decode(made.ids)
        offered = offered_by(row)
        for name, tool in (('"look"', TOOL), ('"add"', OTHER)):
            assert (name in text) == (offered is not None and tool in offered.definitions)


def test_a_task_asks_with_the_tools_it_trains_with() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("1", "look", "{}"),))
    turns = (Message("system", "s"), Message("user", "q"), call)
    example = Example("1", turns, "[]", 1, "x", tools=(TOOL,), parallel_tool_calls=False)
    shot = replace(example, id="2", tools=(OTHER,))
    task = Generation(given_instruction="Be brief.")
    for r in (native("hermes"), plain("chatml")):
        ids = r.sample(training_conversation(task, example)).ids.tolist()
        prompt = r.prompt_ids(asking_conversation(task, example))
        assert ids[: len(prompt)] == prompt and "look" in r.tokenizer.decode(prompt)
        with_shot = r.prompt_text(asking_conversation(task, example, [shot]))
        assert "look" in with_shot and '"add"' not in with_shot  # a shot shows calls; what is offered is the row's own
    asked = asking_conversation(task, example)
    assert offered_by(asked) == Toolset((TOOL,), parallel=False)


def test_the_embedded_base_is_told_of_tools_in_plain_words() -> None:
    base = load_base(Base(model="embedded:tiny"))
    r = Renderer(base.tokenizer)
    assert r.tools == "plain"
    call = Message("assistant", "", tool_calls=(ToolCall("1", "look", '{"at": "é"}'),))
    made = r.sample(offering((Message("user", "Where?"), call), [TOOL]))
    learnt = made.ids[made.weights > 0]
    assert r.tokenizer.decode(learnt) == 'call look {"at": "é"}<|end|>'
    assert "You may call these tools" in r.tokenizer.decode(made.ids) and r.ends_turn(made)


# --- reading answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('call look {"at": "x"}', "", [("look", {"at": "x"})]),
        ('I see.\ncall look {}\ncall add {"n": [1]}\n', "I see.", [("look", {}), ("add", {"n": [1]})]),
        ('call look {"at": }', 'call look {"at": }', []),
        ("call look [1]", "call look [1]", []),
        ("call me {later}", "call me {later}", []),
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "", [("look", {})]),
        ('Well.\n<tool_call>{"name": "a", "arguments": "{\\"n\\": 1}"}</tool_call>', "Well.", [("a", {"n": 1})]),
        ('<tool_call>{"name": "look"}</tool_call>', '<tool_call>{"name": "look"}</tool_call>', []),
        ('{"name": "look", "parameters": {"at": 1}}', "", [("look", {"at": 1})]),
        ('<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}', "", [("a", {}), ("b", {})]),
        ('[TOOL_CALLS][{"name": "a", "arguments": {}}]', "", [("a", {})]),
        ('[{"name": "a", "arguments": {}}, 3]', '[{"name": "a", "arguments": {}}, 3]', []),
        ('{"name": "Ann"}', '{"name": "Ann"}', []),
        ("", "", []),
        ("[" * 5000, "[" * 5000, []),
    ],
)
def test_answers_are_read(text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    made = read_answer(text)
    assert made.content == content
    assert [(call.name, json.loads(call.arguments)) for call in made.calls] == calls
    assert [call.id for call in made.calls] == [f"call_{n}" for n in range(1, len(calls) + 1)]


def test_an_answer_is_scored_in_the_form_that_rows_expect() -> None:
    assert read_answer('call look {"at":1}').expected_form == '[{"name": "look", "arguments": {"at": 1}}]'
    assert read_answer("Yes.\ncall look {}").expected_form == '[{"name": "look", "arguments": {}}]'
    assert read_answer("Yes.").expected_form == "Yes."
    r = plain("plain")
    ids = r.tokenizer("call look {}")["input_ids"]
    assert r.answer(ids, (Message("user", "q"),)).calls == ()  # nobody spoke of tools
    assert r.answer(ids, offering((Message("user", "q"),), [TOOL])).calls != ()


NAMED_TAGS = HERMES.replace(
    """{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}""",
    """{{- '\n<tool_call>\n<function=' + call.function.name + '>' -}}
{%- for key, value in call.function.arguments | items -%}
{{- '<parameter=' + key + '>' + value | string + '</parameter>' -}}
{%- endfor -%}
{{- '</function>\n</tool_call>' -}}""",
)


def test_a_template_whose_calls_cannot_be_read_back_gets_plain_words() -> None:
    """It shows definition, call and result, but what a model learns from it would never count as a call."""
    assert NAMED_TAGS != HERMES
    r = Renderer(with_special(NAMED_TAGS))
    assert r.tools == "plain" and native("hermes").tools == "template"
    call = Message("assistant", "", tool_calls=(ToolCall("1", "look", '{"at": "x"}'),))
    row = offering((Message("user", "hi"), call), [TOOL])
    made = r.sample(row)
    answer = r.answer(made.ids[made.weights > 0].tolist(), row[:1])
    assert [(c.name, json.loads(c.arguments)) for c in answer.calls] == [("look", {"at": "x"})]
    assert r.stop_ids == Renderer(with_special(CHATML)).stop_ids
