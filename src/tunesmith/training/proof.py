"""Proof that a training did what it says: trained tensors moved, frozen ones did not, what was saved is what is live,
and the tuned model answers otherwise than its base.

Tools have shipped adapters that were never applied and weights that never got a gradient; both end with exit code 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import VerificationError

Fingerprints = Mapping[str, int]
_RELOADED = 1e-4
"""Largest relative difference of logits between the live and the reloaded model: they run the same code in one dtype,
but not always on tensors of the same layout."""
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Before:
    """What is remembered of a model before it is trained: fingerprints of all tensors, and its answers to probes."""

    trained: Fingerprints
    frozen: Fingerprints
    logits: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found after training.

    unmoved: trained tensors that are bit for bit what they were. probe_difference: relative L2 distance of tuned and
    base logits after the probe prompts. reloaded_difference: the same between the live model and the one loaded from
    disk; None where there was no memory for a second model (then `reloaded` says so).
    """

    trained: int
    frozen: int
    unmoved: tuple[str, ...]
    probe_difference: float | None
    reloaded_difference: float | None
    reloaded: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should hear."""
        told = []
        if self.unmoved:
            named = ", ".join(self.unmoved[:_NAMED]) + (", …" if len(self.unmoved) > _NAMED else "")
            told.append(f"{len(self.unmoved)} of {self.trained} trained tensors did not move: {named}")
        if self.probe_difference == 0:
            told.append("the tuned model answers the probe prompts exactly as its base does")
        return tuple(told)

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "unmoved": list(self.unmoved)}


@torch.no_grad()
def before_training(model: Any, probes: Sequence[Sequence[int]]) -> Before:
    """Remember `model` (a `transformers` causal model, adapters attached) and its answers to `probes` (token ids)."""
    trained, frozen = _fingerprints(model)
    return Before(trained, frozen, probe_logits(model, probes))


@torch.no_grad()
def after_training(model: Any, probes: Sequence[Sequence[int]], before: Before, reloaded: Any | str) -> Proof:
    """Compare with what was remembered, and with the model as loaded from disk (or the reason why it was not).

    Raises `VerificationError` where a frozen tensor changed or the reloaded model answers otherwise.
    """
    trained, frozen = _fingerprints(model)
    changed = [name for name, value in frozen.items() if before.frozen.get(name) != value]
    if changed:
        raise VerificationError(
            f"{len(changed)} frozen tensors were changed by the training, such as {changed[0]}",
            expected="only what the method trains changes",
            fix="please report this with the recipe",
        )
    logits = probe_logits(model, probes)
    again = None if isinstance(reloaded, str) else _distance(logits, probe_logits(reloaded, probes))
    if again is not None and not again <= _RELOADED:
        raise VerificationError(
            f"the saved model, loaded again, differs from the trained one by {again:.1e} (relative, of logits)",
            expected=f"at most {_RELOADED:.0e}",
            fix="please report this with the recipe; the checkpoints are intact",
        )
    return Proof(
        trained=len(trained),
        frozen=len(frozen),
        unmoved=tuple(name for name, value in trained.items() if before.trained.get(name) == value),
        probe_difference=_distance(logits, before.logits),
        reloaded_difference=again,
        reloaded=reloaded if isinstance(reloaded, str) else "compared",
    )


@torch.no_grad()
def probe_logits(model: Any, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [V] after each probe, in fp32 on the CPU."""
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    try:
        return [
            model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0, -1].float().cpu()
            for ids in probes
        ]
    finally:
        model.train(was_training)


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float | None:
    if not ours:
        return None
    a, b = (torch.cat([t.double() for t in side]) for side in (ours, theirs))
    if a.shape != b.shape:  # tokens were added: the base has no logits for them
        return None
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _fingerprints(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Of trained and of frozen tensors, buffers among the latter."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, tensor in _tensors(model):
        (trained if tensor.requires_grad else frozen)[name] = _fingerprint(tensor)
    return trained, frozen


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _fingerprint(tensor: Tensor) -> int:
    """The sum of a tensor's bits read as integers, modulo 2^64: one pass over memory; any one changed value shows.

    Half precision is read as fp32: a base in it that is trained in fp32 goes back when it is saved.
    """
    data = tensor.detach()
    data = data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
    data = data.contiguous().flatten().view(torch.uint8)
    if data.numel() % 8 == 0:
        return int(data.view(torch.int64).sum())
    return int(data.sum(dtype=torch.int64))
