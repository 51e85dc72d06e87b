"""The renderer: the same ids in training and in chat, and exactly the right tokens learnt."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.tokenizers import ALTERNATING, CHATML, LLAMA3, THINKING, merging, with_special
from tests.tiny import byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.errors import EngineError, RecipeError
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample

TEMPLATES = {"plain": (None, "plain"), "raw": (None, "raw"), "chatml": (None, "chatml")} | {
    name: (source, "tokenizer") for name, source in (("own chatml", CHATML), ("llama 3", LLAMA3))
}
TEXTS = st.text(st.sampled_from("ab \nA#s\u00e9\u2192"), max_size=12)


@functools.cache
def renderer(template: str, merges: bool = False) -> Renderer:
    source, wanted = TEMPLATES[template] if template in TEMPLATES else ({"thinking": THINKING}[template], "tokenizer")
    return Renderer(merging(source) if merges else with_special(source), wanted)


@st.composite
def conversations(draw: st.DrawFn, turns: int = 4) -> list[Message]:
    """A system message or none, then questions and answers in turn, an answer last."""
    messages = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, turns))):
        weight = draw(st.sampled_from([0.0, 1.0]))
        messages += [Message("user", "a" + draw(TEXTS)), Message("assistant", draw(TEXTS), weight)]
    return messages


def turns(*contents: str) -> list[Message]:
    return [Message("assistant" if i % 2 else "user", c) for i, c in enumerate(contents)]


def learnt(made: Sample, r: Renderer) -> str:
    """The learnt tokens as text."""
    return "".join(r.token_texts(made.ids[made.weights > 0].tolist()))


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=conversations(), loss=st.sampled_from(["assistant", "last", "all"]))
@settings(max_examples=40, deadline=None)
def test_a_row_has_the_same_ids_in_training_and_in_chat(template, merges, messages, loss):
    r = renderer(template, merges)
    ids = r.sample(messages, loss).ids.tolist()
    prompt = r.prompt_ids(messages[:-1])
    assert ids[: len(prompt)] == prompt
    # What follows is the answer, so the prompt is the whole of what comes before it.
    assert r.tokenizer.decode(prompt) == r.prompt_text(messages[:-1])
    assert r.tokenizer.decode(ids[len(prompt) :]).lstrip().startswith(messages[-1].content.strip())


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=conversations())
@settings(max_examples=25, deadline=None)
def test_earlier_prompts_are_beginnings_of_later_rows(template, merges, messages):
    """Learning every turn of a conversation: each answer is learnt after exactly the ids it is asked with."""
    r = renderer(template, merges)
    ids = r.sample(messages).ids.tolist()
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = r.prompt_ids(messages[:i])
            assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("template", TEMPLATES)
@given(messages=conversations())
@settings(max_examples=25, deadline=None)
def test_what_is_learnt_are_the_answers_up_to_their_end(template, messages):
    r = renderer(template)
    made = r.sample(messages)
    end = {"plain": "</s>", "raw": "</s>", "llama 3": "<|eot|>"}.get(template, "<|im_end|>")
    trim = str.strip if template == "llama 3" else str
    answers = [trim(m.content) for m in messages if m.role == "assistant" and m.weight]
    ids = made.ids[made.weights > 0].tolist()
    assert r.tokenizer.decode(ids) == "".join(answer + end for answer in answers)
    assert made.supervised == sum(len(answer.encode()) + 1 for answer in answers)
    assert r.ends_turn(made) == bool(answers)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "### User\nhi\n\n### Assistant\n|no</s>|\n\n### User\nwhy\n\n### Assistant\n|so</s>|\n\n"),
        ("raw", "hi|no</s>|why|so</s>|"),
        (
            "chatml",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n|no<|im_end|>|\n<|im_start|>user\nwhy<|im_end|>\n"
            "<|im_start|>assistant\n|so<|im_end|>|\n",
        ),
        (
            "llama 3",
            "<|begin|><|head|>user<|tail|>\n\nhi<|eot|><|head|>assistant<|tail|>\n\n|no<|eot|>|"
            "<|head|>user<|tail|>\n\nwhy<|eot|><|head|>assistant<|tail|>\n\n|so<|eot|>|",
        ),
    ],
)
def test_loss_spans_written_out(template, expected):
    """Learnt text stands between bars."""
    r = renderer(template)
    made = r.sample(turns("hi", "no", "why", "so"))
    shown, before = "", 0.0
    for text, weight in zip(r.token_texts(made.ids.tolist()), made.weights.tolist(), strict=True):
        shown += ("|" if weight != before else "") + text
        before = weight
    assert shown + ("|" if before else "") == expected


def test_loss_last_and_all():
    r = renderer("raw")
    messages = turns("hi", "no", "why", "so")
    assert learnt(r.sample(messages, "assistant"), r) == "no</s>so</s>"
    assert learnt(r.sample(messages, "last"), r) == "so</s>"
    whole = r.sample(messages, "all")
    assert learnt(whole, r) == "ino</s>whyso</s>"  # nothing comes before the first token
    assert whole.weights[0] == 0 and whole.weights[1:].all()


def test_a_template_that_leaves_answers_out_is_refused():
    tokenizer = byte_tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(EngineError, match="leaves out what the assistant says"):
        Renderer(tokenizer, "tokenizer")


def test_a_message_of_weight_zero_is_not_learnt_but_read():
    r = renderer("raw")
    messages = turns("hi", "no", "why", "so")
    messages[1] = Message("assistant", "no", weight=0.0)
    assert learnt(r.sample(messages), r) == "so</s>"
    assert r.sample(messages).ids.tolist() == r.sample(turns("hi", "no", "why", "so")).ids.tolist()
    messages[3] = Message("assistant", "so", weight=0.5)
    assert r.sample(messages).weights.tolist() == [0] * 8 + [0.5] * 3
    assert r.sample(messages[:2], "last").supervised == 0


def test_what_follows_the_last_answer_is_read_and_not_learnt():
    r = renderer("raw")
    made = r.sample(turns("hi", "no", "why"))
    assert r.tokenizer.decode(made.ids) == "hino</s>why"
    assert learnt(made, r) == "no</s>"
    assert r.sample(turns("hi")).supervised == 0


def test_a_template_that_rewrites_history_is_refused_for_several_answers_and_named():
    r = renderer("thinking")
    with pytest.raises(EngineError, match=r"message 2: .*'tokenizer' changes earlier turns[\s\S]*train\.loss: last"):
        r.sample(turns("hi", "no", "why", "so"))
    one = r.sample(turns("hi", "no"))
    assert learnt(one, r) == "<think>\n\n</think>\n\nno<|im_end|>"


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
def test_a_template_that_rewrites_history_is_learnt_and_asked_as_it_renders(merges):
    """With loss `last` only the end of a conversation is learnt, and chat asks with the ids before it."""
    r = renderer("thinking", merges)
    messages = turns("hi", "no", "why", "so", "and", "a b")
    made = r.sample(messages, "last")
    prompt = r.prompt_ids(messages[:-1])
    assert made.ids[: len(prompt)].tolist() == prompt
    assert r.tokenizer.decode(prompt) == r.prompt_text(messages[:-1])
    assert "<think>" not in r.prompt_text(messages[:-1])
    assert learnt(made, r) == "<think>\n\n</think>\n\na b<|im_end|>"


def test_stops_are_the_end_token_and_the_templates_end_of_turn():
    for template, end in (("plain", set()), ("raw", set()), ("chatml", {"<|im_end|>"}), ("llama 3", {"<|eot|>"})):
        r = renderer(template)
        assert {r.tokenizer.convert_ids_to_tokens(i) for i in r.stop_ids} == {"</s>"} | end


def test_a_template_without_end_learns_the_answer_and_says_it_does_not_end():
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content }} {% endfor %}")
    r = Renderer(tokenizer)
    made = r.sample(turns("hi", "no"))
    assert learnt(made, r) == "no "
    assert not r.ends_turn(made)


def test_decode_drops_the_end_and_keeps_spaces():
    r = renderer("plain")
    end = r.tokenizer.eos_token_id
    assert r.decode([*r.tokenizer("  a , b ")["input_ids"], end]) == "  a , b "
    assert r.decode([end]) == "" and r.decode([]) == ""


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_question():
    r = Renderer(with_special(ALTERNATING))
    assert r.folds_system and not renderer("chatml").folds_system
    messages = [Message("system", "be kind"), *turns("hi", "no", "why", "so")]
    assert r.prompt_text(messages[:2]) == "<|head|>user\nbe kind\n\nhi<|eot|><|head|>assistant\n"
    made = r.sample(messages)
    assert learnt(made, r) == "no<|eot|>so<|eot|>"
    assert made.ids[: len(r.prompt_ids(messages[:-1]))].tolist() == r.prompt_ids(messages[:-1])
    plain = renderer("plain").prompt_text(messages[:2])
    assert plain.startswith("be kind\n\n### User\nhi")  # other templates keep them apart


def test_what_a_template_refuses_is_told():
    r = Renderer(with_special(ALTERNATING))
    with pytest.raises(RecipeError, match="Roles must alternate"):
        r.prompt_ids([Message("user", "hi"), Message("user", "there")])


def test_weights_and_ids_have_the_types_of_a_sample():
    made = renderer("plain").sample(turns("hi", "no"), example_id="row 7")
    assert made.ids.dtype == np.int64 and made.weights.dtype == np.float32
    assert made.ids.shape == made.weights.shape and made.example_id == "row 7"
    assert made.weights[0] == 0
