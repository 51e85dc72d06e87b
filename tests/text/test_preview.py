"""What `check` shows of samples."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.text.preview import length_facts, preview
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample


def sample(length: int, learnt: int = 1) -> Sample:
    weights = np.zeros(length, np.float32)
    weights[length - learnt :] = 1
    return Sample(np.ones(length, np.int64), weights, f"row {length}")


def test_tokens_with_their_weights():
    renderer = Renderer(byte_tokenizer(), "raw")
    made = renderer.sample([Message("user", "a→"), Message("assistant", "b")], example_id="x")
    (shown,) = preview(renderer, [made])
    assert shown.example_id == "x" and shown.ends_turn
    assert shown.tokens[0][0] == "a"
    assert shown.tokens[-2:] == (("b", 1.0), ("</s>", 1.0))


def test_lengths_and_what_padding_would_waste():
    facts = length_facts([sample(2), sample(4), sample(6, learnt=3)], max_length=4, batch=2)
    assert facts.lengths == (2, 4, 6)
    assert (facts.tokens, facts.supervised, facts.longest, facts.mean) == (12, 5, 6, 4.0)
    assert facts.too_long == ("row 6",)
    assert facts.padding_share == pytest.approx(1 - 12 / 14)  # (2 | 4) padded to 4, 6 alone


def test_no_samples():
    facts = length_facts([], max_length=4)
    assert (facts.tokens, facts.longest, facts.mean, facts.padding_share) == (0, 0, 0.0, 0.0)
