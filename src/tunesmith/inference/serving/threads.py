"""How many threads a model's steps take. A step of a small model is over before threads have found each other: one is
then faster than all, by a factor of two and more beside a busy event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ALL = torch.get_num_threads()
"""As many as the process was started with; setting a number in one thread is what new threads begin with."""
SMALL_SECONDS = 0.03
"""A step longer than this has enough to do for every thread."""
_TRIES = 5


def best_threads(step: Callable[[], object], all_threads: int = ALL) -> int:
    """One thread, or all of them: with which a step is faster, the quickest of a few tries counts.

    Leaves the calling thread with `all_threads`.
    """
    if all_threads < 2:
        return all_threads
    with_all = _quickest(step, all_threads)
    if with_all > SMALL_SECONDS:
        return all_threads
    alone = _quickest(step, 1)
    torch.set_num_threads(all_threads)
    return 1 if alone < with_all else all_threads


def _quickest(step: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    step()
    return min(_seconds(step) for _ in range(_TRIES))


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
