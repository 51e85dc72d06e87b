"""What prompts begin with alike (a system message, few-shot examples), computed once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.behind_prefix import Prefix

SHARED_MINIMUM = 32
"""Shorter common beginnings are not worth a pass of their own."""


class PrefixCache:
    """Keys and values of the beginning that was asked for last; the next window often has the same one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids: list[int] = []
        self._kept: Any = None

    def repeated(self, ids: list[int], rows: int, device: torch.device) -> Any:
        """A key-value cache that begins with `ids` in each of its rows; an empty one where there are none."""
        from transformers import DynamicCache

        if not ids:
            return DynamicCache(config=self._model.config)
        cache = copy.deepcopy(self._computed(ids, device))
        cache.batch_repeat_interleave(rows)
        return cache

    def once(self, ids: list[int], device: torch.device) -> Prefix:
        """The keys and values themselves, for `attention_behind`."""
        return Prefix(tuple((layer.keys, layer.values) for layer in self._computed(ids, device).layers))

    def _computed(self, ids: list[int], device: torch.device) -> Any:
        from transformers import DynamicCache

        if self._kept is None or self._ids != ids:
            made = DynamicCache(config=self._model.config)
            tokens: Tensor = torch.tensor([ids], device=device)
            out = self._model(input_ids=tokens, past_key_values=made, use_cache=True, logits_to_keep=1)
            self._ids, self._kept = ids, out.past_key_values
        return self._kept


def common_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """The longest beginning shared by all prompts, at least one token short of each; empty if short or single."""
    if len(prompts) < 2:
        return []
    shortest = min(len(p) for p in prompts) - 1
    first, last = min(prompts), max(prompts)  # in sorted order, what these two share is shared by all between
    same = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return prompts[0][:same] if same >= SHARED_MINIMUM else []


def window_beginning(whole: list[int], window: Sequence[list[int]]) -> list[int]:
    """What a window of prompts shares: the beginning of the `whole` list, already computed for other windows, unless
    its own is so much longer that another pass is worth it.
    """
    own = common_beginning(window)
    return own if len(own) >= len(whole) + SHARED_MINIMUM else whole
