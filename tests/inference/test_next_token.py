"""Drawn answers: as probable as they should be, and the same whatever they are batched with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.inference.test_torch_engine import NEW, engine, prompts, stopping_model
from tunesmith.inference import torch_engine
from tunesmith.inference.next_token import draw, streams
from tunesmith.inference.types import Sampling

HOT = Sampling(0.8, seed=7)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, float("-inf"), 2.0]])
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    drawn = draw(logits.expand(20_000, -1), uniform, 0.7)
    shares = torch.bincount(drawn, minlength=5) / 20_000
    wanted = (logits[0] / 0.7).softmax(-1)
    assert shares[3] == 0
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.012)


def test_draws_at_the_edges_are_possible_tokens() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, edges, 1.0).tolist() == [1, 3]
    assert 0 <= int(draw(torch.full((1, 4), float("nan")), edges[:1], 1.0)) < 4


def test_streams_are_of_seed_and_place() -> None:
    whole = streams(Sampling(1.0, 3), range(5), 8)
    assert torch.equal(streams(Sampling(1.0, 3), [3, 4], 8), whole[3:])
    assert torch.equal(streams(Sampling(1.0, 3), range(5), 4), whole[:, :4])
    assert not torch.equal(streams(Sampling(1.0, 4), range(5), 8), whole)
    assert len({float(row[0]) for row in whole}) == 5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_drawn_answers_do_not_depend_on_the_batch(family: str) -> None:
    model = stopping_model(family)
    one = list(engine(model=model, batch_size=1).generate(prompts(), NEW, sampling=HOT))
    many = list(engine(model=model, batch_size=8).generate(prompts(), NEW, sampling=HOT))
    assert one == many
    assert one != list(engine(model=model).generate(prompts(), NEW))
    assert one != list(engine(model=model).generate(prompts(), NEW, sampling=Sampling(0.8, seed=8)))


@pytest.mark.parametrize("skip", [1, 4, 10])
def test_continuing_draws_the_same(skip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    whole = list(engine().generate(prompts(), NEW, sampling=HOT))
    assert list(engine().generate(prompts(), NEW, skip=skip, sampling=HOT)) == whole[skip:]


def test_the_same_prompt_at_two_places_is_answered_anew() -> None:
    asked = prompts("", (20,)) * 6
    assert len({answer.text for answer in engine().generate(asked, NEW, sampling=Sampling(1.5, 0))}) > 3


def test_a_cold_draw_is_the_greedy_answer() -> None:
    model = stopping_model()
    cold = list(engine(model=model).generate(prompts(), NEW, sampling=Sampling(1e-4, 0)))
    assert cold == list(engine(model=model).generate(prompts(), NEW))
