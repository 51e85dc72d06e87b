"""Letting code that asks for fp32 compute in float64.

Models round inside: `x.to(torch.float32)` in norms, `softmax(x, dtype=torch.float32)`, `positions.float()`. A reference
in float64 must not, and what is to be compared at 1e-9 is the computation and not its rounding. Within `wide()`, such
requests of this thread give float64. Nothing is overwritten: it is torch's own mode for
seeing calls (`torch.overrides.TorchFunctionMode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_CONVERSIONS = {torch.Tensor.to, torch.Tensor.type, torch.softmax, torch.Tensor.softmax, F.softmax, F.log_softmax}


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0].double()
        if func in _CONVERSIONS:
            args = [torch.float64 if arg is torch.float32 else arg for arg in args]
            kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def wide() -> Iterator[None]:
    """Within this, conversions to fp32 are conversions to float64."""
    with _Wide():
        yield
