"""Computing decoder layers again in the backward pass instead of keeping what they computed.

A layer that is computed again keeps its input only, and costs one more forward pass of itself (Chen et al. 2016,
arXiv 1604.06174). Results are the same bits: the second pass runs the same operations on the same input, with the
random numbers of the first. It goes through the door `transformers` has for it, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from tunesmith.errors import EngineError
from tunesmith.models.trunk import decoder_layers, draws_chance


@contextmanager
def recompute_layers(model: Any, layers: Collection[int]) -> Iterator[None]:
    """Within this, the decoder layers of these numbers (0 is the lowest) are computed again in the backward pass.

    It holds for a model in training mode, and for the backward pass of every forward pass begun within.

    Parameters
    ----------
    model: the `transformers` model.

    Raises
    ------
    EngineError: there is no such layer, or it has no such door.
    """
    if not layers:
        yield
        return
    there = decoder_layers(getattr(model, model.base_model_prefix))
    if unknown := sorted(set(layers) - set(range(len(there)))):
        raise EngineError(
            f"there is no layer {unknown[0]}", where=type(model).__name__, expected=f"0 to {len(there) - 1}"
        )
    chosen: list[Any] = [there[i] for i in sorted(set(layers))]
    for layer in chosen:
        if not hasattr(layer, "gradient_checkpointing"):
            raise EngineError(
                "the layers of this model cannot be computed again",
                where=type(layer).__name__,
                fix="set train.recompute: off, and a smaller train.micro_batch_tokens",
            )
    # Reading the generator's state cannot be captured on a GPU; on a CPU it costs nothing worth a question.
    preserve = model.device.type != "cuda" or draws_chance(model)
    before = [(layer.gradient_checkpointing, getattr(layer, "_gradient_checkpointing_func", None)) for layer in chosen]
    for layer in chosen:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=preserve)
    try:
        yield
    finally:
        for layer, (was, function) in zip(chosen, before, strict=True):
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = was, function
