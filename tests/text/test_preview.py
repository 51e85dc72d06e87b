"""What `check` and `data preview` show of samples."""

from __future__ import annotations

import numpy as np
import pytest

from tests.text.tokenizers import CHATML, with_special
from tests.tiny import byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.text.preview import length_facts, preview
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample

TURNS = [Message("user", "a→"), Message("assistant", "b")]


def sample(length: int, learnt: int = 1) -> Sample:
    weights = np.zeros(length, np.float32)
    weights[length - learnt :] = 1
    return Sample(np.ones(length, np.int64), weights, f"row {length}")


def test_tokens_with_their_weights():
    renderer = Renderer(byte_tokenizer(), "raw")
    made = renderer.sample(TURNS, example_id="x")
    (shown,) = preview(renderer, [made])
    assert shown.example_id == "x" and shown.ends_turn
    assert shown.tokens[0][0] == "a"
    assert shown.tokens[-2:] == (("b", 1.0), ("</s>", 1.0))
    assert shown.ids == tuple(made.ids.tolist())
    assert shown.supervised == made.supervised == 2


def test_special_tokens_are_known_as_such():
    (shown,) = preview(r := Renderer(with_special(CHATML)), [r.sample(TURNS)])
    marked = [text for (text, _), special in zip(shown.tokens, shown.special, strict=True) if special]
    assert marked == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]


def test_where_a_row_becomes_too_long_and_what_that_loses():
    renderer = Renderer(byte_tokenizer(), "raw")
    made = renderer.sample([Message("user", "abc"), Message("assistant", "defg")])
    assert len(made.ids) == 8
    (fits,) = preview(renderer, [made], limit=8)
    assert (fits.cut, fits.lost, fits.beyond) == (None, 0, 0)
    (long,) = preview(renderer, [made], limit=5)
    assert (long.cut, long.lost, long.beyond) == (5, 5, 3)
    (unlimited,) = preview(renderer, [made])
    assert unlimited.cut is None


def test_a_row_that_does_not_learn_to_end():
    renderer = Renderer(byte_tokenizer("{% for m in messages %}{{ m.content }} {% endfor %}"))
    (shown,) = preview(renderer, [renderer.sample(TURNS)])
    assert shown.supervised and not shown.ends_turn


def test_lengths_and_what_padding_would_waste():
    facts = length_facts([sample(2), sample(4), sample(6, learnt=3)], max_length=4, batch=2)
    assert facts.lengths == (2, 4, 6)
    assert (facts.tokens, facts.supervised, facts.longest, facts.mean) == (12, 5, 6, 4.0)
    assert facts.too_long == ("row 6",)
    assert facts.padding_share == pytest.approx(1 - 12 / 14)  # (2 | 4) padded to 4, 6 alone


def test_no_samples():
    facts = length_facts([], max_length=4)
    assert (facts.tokens, facts.longest, facts.mean, facts.padding_share) == (0, 0, 0.0, 0.0)
