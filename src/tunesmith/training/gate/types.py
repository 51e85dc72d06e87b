"""What a check is, and running many of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tunesmith.training.gate.compare import Comparison, room_used

Run = Callable[[torch.Generator, torch.device, torch.dtype], Comparison]
EXACT = (torch.float64, torch.float32)
EVERY = (*EXACT, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Check:
    """A fast path beside its plain float64 reference.

    Attributes
    ----------
    name, group: what is compared, and what kind of thing that is.
    run: computes both on random input drawn from the generator (of the CPU, so that devices see the same numbers).
    dtypes, devices: the types in which, and the kinds of device on which the fast path exists.
    """

    name: str
    group: str
    run: Run
    dtypes: tuple[torch.dtype, ...] = EXACT
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found in one type on one device.

    worst_tensor: the result (`NAME`) or gradient (`d NAME`) with the least room; error, allowed: its relative L2 error
    and the largest that is right; tensors: how many were compared.
    """

    check: str
    group: str
    device: str
    dtype: str
    worst_tensor: str
    error: float
    allowed: float
    tensors: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed

    @property
    def room_used(self) -> float:
        """Error as a share of what is allowed."""
        return room_used(Comparison(self.worst_tensor, self.error, self.allowed, self.tensors))

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {**asdict(self), "holds": self.holds}


def run_gate(
    device: torch.device,
    dtypes: Iterable[torch.dtype],
    checks: Iterable[Check],
    *,
    seed: int = 0,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Outcome, ...]:
    """Every check in each of `dtypes`, on `device`, as far as its fast path exists there.

    A check draws its input from its own name and `seed`: which others run beside it does not change it. `told` hears
    each outcome as it is there.
    """
    wanted = tuple(dtypes)
    outcomes = []
    for check in checks:
        for dtype in wanted:
            if dtype not in check.dtypes or device.type not in check.devices:
                continue
            outcome = _run(check, device, dtype, seed)
            outcomes.append(outcome)
            told(outcome)
    return tuple(outcomes)


def _run(check: Check, device: torch.device, dtype: torch.dtype, seed: int) -> Outcome:
    digest = hashlib.sha256(f"{check.group}/{check.name}/{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    began = time.perf_counter()
    found = check.run(generator, device, dtype)
    return Outcome(
        check=check.name,
        group=check.group,
        device=device.type,
        dtype=dtype_name(dtype),
        worst_tensor=found.worst_tensor,
        error=found.error,
        allowed=found.allowed,
        tensors=found.tensors,
        seconds=time.perf_counter() - began,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """As recipes write it: fp64, fp32, bf16, fp16."""
    return {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
