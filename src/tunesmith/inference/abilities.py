"""What can be asked of a model's attention beside a plain pass: to share a beginning, and to take a mask of our own.

All of it is found in the model's class and configuration. What is found possible here is still measured where it could
go wrong in silence (`TorchEngine`).
"""

from __future__ import annotations

from typing import Any

import torch

_OWN_MASKS = ("sdpa", "eager")


def keeps_keys_and_values(model: Any) -> bool:
    """Whether all that a model remembers are keys and values of single tokens.

    Convolutions and linear attention carry a state instead, which padding within a row would change, and which cannot
    be continued by several tokens at once.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def may_share(model: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may share a beginning.

    Padding stands between the beginning and a row's own part. A sliding window counts it, so with windows shorter
    than a row the beginning would be out of reach too early. Of a model that writes its own attention it is not known
    what else depends on the place in the row.
    """
    from transformers import DynamicCache

    if not keeps_keys_and_values(model) or not through_the_registry(model):
        return False
    if not any(DynamicCache(config=model.config).is_sliding):
        return True
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and longest <= window


def may_attend_behind(model: Any, device: torch.device) -> bool:
    """Whether it is worth a try to let rows attend to a beginning in place (`behind_prefix`)."""
    from transformers import DynamicCache

    plain = getattr(model.config, "_attn_implementation", None) == "sdpa" and through_the_registry(model)
    return plain and device.type == "cpu" and not any(DynamicCache(config=model.config).is_sliding)


def takes_a_mask(model: Any) -> bool:
    """Whether the model's attention can be given a mask of our own."""
    return through_the_registry(model) and getattr(model.config, "_attn_implementation", None) in _OWN_MASKS


def through_the_registry(model: Any) -> bool:
    """Whether attention and masks are those of `transformers`' registry rather than the model's own code."""
    return bool(getattr(model, "_supports_attention_backend", False))


def depends_on_the_longest(model: Any) -> bool:
    """Whether a row's result depends on how long other rows of its batch are: rotations that are chosen by the longest
    one (`dynamic` and `longrope`).
    """
    kinds: set[str] = set()
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            kinds.add(kind)
        elif isinstance(kind, dict):
            kinds |= {str(one) for one in kind.values()}
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
