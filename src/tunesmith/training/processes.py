"""One training in several processes: each takes a share of every step's rows, gradients are summed.

Every process sees the same order of rows and takes its share of each step. Losses and gradients are sums, which are
added up over processes and divided by the step's weight once. So the result is what one process would have computed, up
to the order of additions. Alone, all of this is nothing.

`launch.launch` or `torchrun` starts the processes; `joined` is what they run in.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunesmith.errors import EngineError, ResourceError, TunesmithError
from tunesmith.text.types import Group, Sample

Result = TypeVar("Result")
Row = TypeVar("Row", bound=Sample | Group)
STORE = "TUNESMITH_STORE"
"""Variable that names the file in which processes of one machine find each other; without it, `torchrun`'s are used."""
_PATIENCE = timedelta(days=7)
"""The first process may be evaluating for hours while others wait. That one is dead is seen by who started it."""
_LEAVING_SECONDS = 5.0


class LostError(TunesmithError):
    """Another process of this training has ended. Who started the processes starts them again."""

    exit_code = 75  # "try again", as in sysexits.h


@contextmanager
def joined() -> Iterator[None]:
    """Within this context this process trains together with those that were started with it, if there are any.

    Raises `ResourceError` where there are fewer GPUs than processes. Must begin before a base is loaded: the process
    computes on the GPU of its number.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield
        return
    if STORE in os.environ:
        _end_with_parent()
    number = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if gpus:
        if number >= gpus:
            raise ResourceError(
                f"process {number + 1} has no GPU: this machine has {gpus}",
                where="--nproc",
                fix=f"start at most {gpus} processes",
            )
        torch.cuda.set_device(number)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        init_method=f"file://{os.environ[STORE]}" if STORE in os.environ else "env://",
        rank=int(os.environ["RANK"]),
        world_size=world,
        timeout=_PATIENCE,
    )
    try:
        yield
    except BaseException:
        # Leaving may wait for processes that are gone. Not leaving may abort this one at its end, and hide its error.
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_LEAVING_SECONDS)
        raise
    dist.destroy_process_group()


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def restarts() -> int:
    """How often the processes were started again after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        with _together():
            dist.barrier()


def share(rows: Sequence[Row]) -> Sequence[Row]:
    """This process's rows of a step: the longest first, dealt to and fro so that all get about as many tokens."""
    if count() == 1:
        return rows
    ordered = sorted(rows, key=lambda row: -_tokens(row))
    n, mine = count(), rank()
    return [row for i, row in enumerate(ordered) if (i % n if (i // n) % 2 == 0 else n - 1 - i % n) == mine]


def sum_gradients(gradients: Sequence[Tensor], sums: Sequence[float]) -> list[float]:
    """Add up gradients (`Optimizer.gradients()`) over the processes, in place, and `sums`, which are returned.

    Gradients of sharded parameters are sums already and not among them. All processes end with the same bits.
    """
    if count() == 1:
        return list(sums)
    if any(isinstance(g, nn.Parameter) for g in gradients):
        raise TypeError("gradients are summed, not parameters: pass `optimizer.gradients()`")
    numbers = torch.tensor(list(sums), dtype=torch.float64)
    with _together():
        pending = [dist.all_reduce(tensor, async_op=True) for tensor in (numbers, *gradients)]
        for work in pending:
            work.wait()
    return [float(n) for n in numbers]


def gather(value: Result) -> list[Result]:
    """Every process's `value` (picklable), in their order, in all of them."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _together():
        dist.all_gather_object(values, value)
    return values


def first_only(work: Callable[[], Result]) -> Result:
    """Do `work` in the first process and give its result (picklable) to all; its error is raised in all.

    The others wait. What it raises beside a `TunesmithError` reaches them as an `EngineError`.
    """
    if count() == 1:
        return work()
    said: list[Any] = [None]
    if not first():
        with _together():
            dist.broadcast_object_list(said, src=0)
        result, error = said[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]
    try:
        result = work()
    except Exception as error:
        known = error if isinstance(error, TunesmithError) else EngineError(f"the first process failed: {error}")
        dist.broadcast_object_list([(None, known)], src=0)
        raise
    with _together():
        dist.broadcast_object_list([(result, None)], src=0)
    return result


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers (dropout, noise) of a step in this process.

    A function of its arguments and the process's number: a resumed run needs no random state of every process.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank()}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _end_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when `launch`, which started it, is killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _tokens(row: Sample | Group) -> int:
    return sum(len(s.ids) for s in row.samples) if isinstance(row, Group) else len(row.ids)


@contextmanager
def _together() -> Iterator[None]:
    """What a collective raises where another process is gone, as a `LostError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(
            f"another process of this training has ended: {str(error).splitlines()[0][:200]}",
            fix="run the same command again: it goes on from the last checkpoint",
        ) from error
