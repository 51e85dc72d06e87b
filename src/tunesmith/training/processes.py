"""One training in several processes (torchrun): each takes a share of every step's rows, gradients are summed.

Losses are divided by the weight of the *whole* step, which every process knows, as all see the same order of rows. So
the sum over processes is what one process would have computed, up to the order of additions. Without torchrun all of
this is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from tunesmith.text.types import Sample


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that writes files."""
    return count() == 1 or dist.get_rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


def share(rows: Sequence[Sample]) -> Sequence[Sample]:
    """This process's rows of a step: the longest first, dealt to and fro so that all get about as many tokens."""
    if count() == 1:
        return rows
    ordered = sorted(rows, key=lambda s: -len(s.ids))
    n, rank = count(), dist.get_rank()
    return [s for i, s in enumerate(ordered) if (i % n if (i // n) % 2 == 0 else n - 1 - i % n) == rank]


def sum_gradients(parameters: Sequence[torch.nn.Parameter], loss: float, tokens: int) -> tuple[float, int]:
    """Sum gradients, loss and tokens over the processes, in one message."""
    if count() == 1:
        return loss, tokens
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in parameters if p.grad is not None]
    facts = torch.tensor([loss, float(tokens)], dtype=grads[0].dtype, device=grads[0].device)
    flat = torch.cat([*(g.flatten() for g in grads), facts])
    dist.all_reduce(flat)
    parts = torch.split(flat, [*(g.numel() for g in grads), 2])
    for grad, part in zip(grads, parts[:-1], strict=True):
        grad.copy_(part.view_as(grad))
    return float(parts[-1][0]), round(float(parts[-1][1]))
