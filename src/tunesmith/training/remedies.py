"""What would make a training fit that does not, and what it would need then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.lora import LoraLinear
from tunesmith.models.trunk import decoder_layers
from tunesmith.training.batching import collate
from tunesmith.training.memory_model import MemoryModel, Row, row_tokens, trained_bytes
from tunesmith.training.memory_trace import only_trained

_NF4_BYTES = 4.127 / 8
"""Bytes of a weight in NF4 with double quantisation (arXiv 2305.14314)."""
_RANKS = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of the recipe. `need_bytes`: the peak with it. `price`: what it costs beside quality, or nothing."""

    change: str
    need_bytes: int
    fits: bool
    price: str = ""


def remedies(
    memory: MemoryModel, limit: int, micro_batch_tokens: int, layers: Sequence[int], recompute: bool
) -> list[Remedy]:
    """Changes that need less than the smallest plan does, in the order of how little they take from the result.

    layers: those that could be computed again; recompute: whether they may be.
    """
    again = tuple(layers) if recompute else ()
    least = memory.forecast(micro_batch_tokens, again).peak_bytes
    found = [
        *_fewer_answers(memory, micro_batch_tokens, again, limit),
        *([] if recompute else [("train.recompute: auto", memory.forecast(micro_batch_tokens, layers).peak_bytes, "")]),
        *_as_adapter(memory, least),
        *_smaller_rank(memory, least, limit),
        *_quantized(memory, least),
        *_last_third(memory, micro_batch_tokens, again),
        *_shorter_rows(memory, limit, again),
        *_smaller_base(memory, least, limit),
    ]
    return [Remedy(change, need, need <= limit, price) for change, need, price in found if need < least]


_Found = list[tuple[str, int, str]]


def _fewer_answers(memory: MemoryModel, micro_batch_tokens: int, again: Sequence[int], limit: int) -> _Found:
    """The largest number of answers at once that fits, else one, where answering takes more than learning does."""
    if memory.answers is None or memory.answering_fewer(0).forecast(micro_batch_tokens, again) == memory.forecast(
        micro_batch_tokens, again
    ):
        return []
    prompts = memory.answers.prompts
    need = 0
    while prompts > 1:
        prompts //= 2
        need = memory.answering_fewer(prompts).forecast(micro_batch_tokens, again).peak_bytes
        if need <= limit:
            break
    return [(f"evaluate.batch_size: {prompts}", need, "")] if need else []


def _as_adapter(memory: MemoryModel, least: int) -> _Found:
    """Full tuning as LoRA: no gradients and no optimiser state of the weights."""
    if any(isinstance(m, LoraLinear) for m in memory.model.model.modules()):
        return []
    trained = trained_bytes(memory.model.model)
    if 2 * trained < memory.static["weights"]:
        return []
    saved = memory.static["optimizer"] + memory.static["gradients"] + memory.static["saving"]
    return [("method: lora", least - saved, "")]


def _smaller_rank(memory: MemoryModel, least: int, limit: int) -> _Found:
    """The largest smaller rank that fits, else the smallest: parameters, gradients and state shrink with the rank."""
    adapters = [m for m in memory.model.model.modules() if isinstance(m, LoraLinear)]
    rank = max((len(m.lora_A) for m in adapters), default=0)
    held = sum(m.lora_A.nbytes + m.lora_B.nbytes for m in adapters)
    held += sum(memory.static[part] for part in ("optimizer", "gradients", "saving")) if held else 0
    needs = [(smaller, round(least - held * (1 - smaller / rank))) for smaller in _RANKS if smaller < rank]
    chosen = next((pair for pair in needs if pair[1] <= limit), needs[-1] if needs else None)
    return [(f"method.rank: {chosen[0]}", chosen[1], "")] if chosen else []


def _quantized(memory: MemoryModel, least: int) -> _Found:
    """NF4 for the weights of linear layers other than the head, and LoRA on them."""
    model = memory.model.model
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    saved = sum(m.weight.nbytes - _NF4_BYTES * m.weight.numel() for m in layers if m.weight.is_floating_point())
    if not saved:
        return []
    need = _as_adapter(memory, least)
    return [("method: qlora", round((need[0][1] if need else least) - saved), "")]


def _last_third(memory: MemoryModel, micro_batch_tokens: int, again: Sequence[int]) -> _Found:
    """Training the upper third of the layers only: nothing below is kept for a backward pass."""
    shapes = memory.shapes.model
    layers = decoder_layers(getattr(shapes, shapes.base_model_prefix))
    first = len(layers) - max(1, len(layers) // 3)
    if first <= memory.model.frozen_layers:
        return []
    inside = {id(p) for layer in layers[first:] for p in layer.parameters()}
    kept = [name for name, p in shapes.named_parameters() if p.requires_grad and id(p) in inside]
    if not kept:
        return []
    before = sum(p.numel() for p in shapes.parameters() if p.requires_grad)
    batch, others = memory.heaviest(micro_batch_tokens)[0]
    with only_trained(shapes, kept):
        share = sum(p.numel() for p in shapes.parameters() if p.requires_grad) / before
        taken = memory.shapes.step(
            batch,
            memory.objective,
            memory.plan,
            recompute=[i for i in again if i >= first],
            gradients_there=others,
        )
    trained = sum(memory.static[part] for part in ("optimizer", "gradients", "saving"))
    need = memory.total(taken.peak) - (1 - share) * trained
    return [(f"method.last_layers: {len(layers) - first}", round(need), "")]


def _shorter_rows(memory: MemoryModel, limit: int, again: Sequence[int]) -> _Found:
    """The longest rows that would fit one at a time, and how many rows are longer."""
    hardest: dict[int, Row] = {}
    for row in sorted(memory.rows, key=lambda row: row.supervised):
        hardest[row_tokens(row)] = row
    lengths = sorted(hardest)[:-1]  # the longest is known not to fit
    low, high = 0, len(lengths)
    needs: dict[int, int] = {}
    while low < high:
        middle = (low + high) // 2
        needs[middle] = _alone(memory, hardest[lengths[middle]], again)
        low, high = (middle + 1, high) if needs[middle] <= limit else (low, middle)
    if not low:
        return []
    longer = sum(row_tokens(row) > lengths[low - 1] for row in memory.rows)
    left_out = f"; leaves out {longer} of {len(memory.rows)} rows"
    return [(f"train.max_length: {lengths[low - 1]}", needs[low - 1], left_out)]


def _alone(memory: MemoryModel, row: Row, again: Sequence[int]) -> int:
    """The peak where one row is the heaviest micro-batch."""
    batch = collate([row], memory.model.device)
    taken = memory.measure(batch, again, gradients_there=memory.plan.batch_size > 1)
    return memory.total(taken.peak)


def _smaller_base(memory: MemoryModel, least: int, limit: int) -> _Found:
    """All but the process shrinks about as the base does."""
    process = memory.static["process"]
    if limit <= process:
        return []
    share = (limit - process) / (least - process)
    size = share * sum(p.numel() for p in memory.model.model.parameters())
    return [(f"a base of at most about {_shown(size)} parameters", limit, "")]


def _shown(count: float) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.2g} million"
