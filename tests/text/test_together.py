"""Rendering and tokenising many conversations at once gives what one by one does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.test_render import TEMPLATES, conversations, renderer
from tests.text.tokenizers import ALTERNATING, THINKING, merging, with_special
from tests.tiny import byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.errors import EngineError, RecipeError
from tunesmith.text import render
from tunesmith.text.render import Renderer


@pytest.mark.parametrize("merges", [False, True], ids=["bytes", "merges"])
@pytest.mark.parametrize("template", [*TEMPLATES, "thinking"])
@given(many=st.lists(conversations(3), max_size=5), loss=st.sampled_from(["last", "all"]))
@settings(max_examples=15, deadline=None)
def test_many_are_as_each_alone(template, merges, many, loss):
    r = renderer(template, merges)
    loss = "last" if template == "thinking" else loss
    for made, messages in zip(r.samples(many, loss), many, strict=True):
        cut = r.segments(messages, last_only=loss == "last")
        ids = [i for segment in cut for i in r.tokenizer(segment.text, add_special_tokens=False)["input_ids"]]
        assert made.ids.tolist() == ids
        assert np.array_equal(made.weights, r.sample(messages, loss).weights)


def test_how_they_are_grouped_does_not_matter(monkeypatch):
    r = renderer("chatml", True)
    many = [[Message("user", f"a{i}"), Message("assistant", "b " * i)] for i in range(9)]
    whole = [(s.ids.tolist(), s.weights.tolist()) for s in r.samples(many)]
    for together, characters in ((1, 8_000_000), (4, 8_000_000), (100, 30)):
        monkeypatch.setattr(render, "_TOGETHER", together)
        monkeypatch.setattr(render, "_CHARACTERS", characters)
        assert [(s.ids.tolist(), s.weights.tolist()) for s in r.samples(many)] == whole


def test_names_stay_with_their_conversations(monkeypatch):
    monkeypatch.setattr(render, "_TOGETHER", 2)
    many = [[Message("user", "q"), Message("assistant", str(i))] for i in range(5)]
    made = list(renderer("raw").samples(many, ids=[f"n{i}" for i in range(5)]))
    assert [s.example_id for s in made] == ["n0", "n1", "n2", "n3", "n4"]


def test_the_quick_door_is_used_only_where_it_gives_the_same(monkeypatch):
    good = Renderer(byte_tokenizer())
    list(good.samples([[Message("user", "q"), Message("assistant", "a")]]))
    assert good._quick is True
    other = Renderer(byte_tokenizer())
    monkeypatch.setattr(other, "_encode", lambda texts: [[1] for _ in texts])
    for _ in range(2):
        (made,) = other.samples([[Message("user", "q"), Message("assistant", "a")]])
        assert other._quick is False
        assert made.ids.tolist() == good.sample([Message("user", "q"), Message("assistant", "a")]).ids.tolist()


def test_one_conversation_that_cannot_be_rendered_is_told_as_if_alone():
    r = Renderer(with_special(ALTERNATING))
    many = [
        [Message("user", "hi"), Message("assistant", "no")],
        [Message("user", "a"), Message("user", "b"), Message("assistant", "x")],
    ]
    with pytest.raises(RecipeError, match="Roles must alternate"):
        list(r.samples(many))
    thinking = Renderer(merging(THINKING), "tokenizer")
    turns = [Message("assistant" if i % 2 else "user", c) for i, c in enumerate(("hi", "no", "why", "so"))]
    with pytest.raises(EngineError, match="message 2"):
        list(thinking.samples([turns[:2], turns]))
