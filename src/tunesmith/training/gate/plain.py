"""A training step by `transformers` as it comes: a padded batch, all logits, torch's cross-entropy.

Documents are padded on the right, where no token before can see it, so no mask is needed. It is the float64 reference
of a model step. Adapters are added by hooks as the formula of LoRA says (or DoRA), from tensors of their own; nothing
of our engine is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.text.types import Sample
from tunesmith.training.gate.wide import wide


@dataclass(frozen=True, slots=True)
class PlainAdapter:
    """`a` [r, in], `b` [out, r], `scaling`, and with DoRA the magnitudes [out]."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    def tensors(self, path: str) -> dict[str, Tensor]:
        """By the names our layers have in a model."""
        named = {f"{path}.lora_A": self.a, f"{path}.lora_B": self.b}
        return named if self.magnitude is None else {**named, f"{path}.magnitude": self.magnitude}

    def to(self, dtype: torch.dtype) -> PlainAdapter:
        """New leaves that learn."""
        moved = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (self.a, self.b, self.magnitude)]
        a, b, magnitude = moved
        assert a is not None and b is not None
        return PlainAdapter(a, b, self.scaling, magnitude)


def plain_step(
    model: Any, samples: Sequence[Sample], learnt: Mapping[str, Tensor], autocast: torch.dtype | None = None
) -> dict[str, Tensor | None]:
    """`loss`, and `d NAME` for each tensor of `learnt`, summed over the documents.

    A model in float64 computes everything in float64. autocast: the type of matrix products, if another.
    """
    device: torch.device = model.device
    precise: AbstractContextManager[Any] = nullcontext()
    if model.dtype == torch.float64:
        precise = wide()
    elif autocast is not None:
        precise = torch.autocast(device.type, dtype=autocast)
    ids, weights = (t.to(device) for t in _padded(samples))
    with precise:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        logits = (logits if logits.dtype == torch.float64 else logits.float()).flatten(0, 1)
        losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten().to(losses)).sum()
        found = torch.autograd.grad(loss, list(learnt.values()), allow_unused=True)
    gradients = {f"d {name}": gradient for name, gradient in zip(learnt, found, strict=True)}
    return {"loss": loss.detach(), **gradients}


def _padded(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Ids and loss weights [documents, longest, at least 2]; padding is token 0 with weight 0."""
    width = max(2, *(len(sample.ids) for sample in samples))
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    weights = torch.zeros(len(samples), width)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.from_numpy(sample.ids)
        weights[row, : len(sample.ids)] = torch.from_numpy(sample.weights)
    return ids, weights


@contextmanager
def with_adapters(model: nn.Module, adapters: Mapping[str, PlainAdapter]) -> Iterator[None]:
    """Within this, the layers at the paths of `adapters` answer adapted."""
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda layer, args, out, one=one: _adapted(layer, args, out, one)
        )
        for path, one in adapters.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapted(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor, one: PlainAdapter) -> Tensor:
    """`y + s (x Aᵀ) Bᵀ`; with DoRA its part without bias rescaled by `m / n`, where n counts as a constant."""
    x = args[0].to(one.a.dtype)
    update = F.linear(F.linear(x, one.a), one.b) * one.scaling
    if one.magnitude is None:
        return out + update.to(out.dtype)
    weight: Any = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    bias: Any = layer.bias
    merged = weight.to(one.a.dtype) + one.scaling * (one.b @ one.a)
    norms = torch.linalg.vector_norm(merged, dim=1).detach()
    linear = out if bias is None else out - bias
    rescaled: Tensor = ((linear.to(one.a.dtype) + update) * (one.magnitude / norms)).to(out.dtype)
    return rescaled if bias is None else rescaled + bias
