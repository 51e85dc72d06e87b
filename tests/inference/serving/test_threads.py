"""How many threads a model's steps take is measured."""

from __future__ import annotations

import time

import pytest
import torch

from tunesmith.inference.serving.threads import SMALL_SECONDS, best_threads


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def steps(seconds: dict[int, float]):
    tried: list[int] = []

    def step() -> None:
        tried.append(torch.get_num_threads())
        time.sleep(seconds[torch.get_num_threads()])

    return step, tried


@pytest.mark.parametrize(
    ("seconds", "best"), [({1: 0.001, 2: 0.004}, 1), ({1: 0.004, 2: 0.001}, 2)], ids=["alone", "together"]
)
def test_the_faster_number_is_taken(seconds, best):
    step, tried = steps(seconds)
    assert best_threads(step, 2) == best
    assert set(tried) == {1, 2}
    assert torch.get_num_threads() == 2


def test_a_long_step_is_not_tried_alone():
    step, tried = steps({2: SMALL_SECONDS * 1.2})
    assert best_threads(step, 2) == 2
    assert set(tried) == {2}


def test_one_thread_needs_no_measuring():
    assert best_threads(lambda: pytest.fail("nothing to try"), 1) == 1
