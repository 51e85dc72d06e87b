"""Perplexity of running text: how surprised a model is by each token, on the whole.

    perplexity = exp(- mean over tokens of ln p(token | those before it in its window))

The text is cut into windows that do not overlap, each after the tokenizer's beginning token where it has one. Windows
are short, so that it costs little; that makes the number higher than over a long context, before and after alike.
Only perplexities of one tokenizer can be compared.
"""

from __future__ import annotations

import math
from typing import Any

_WINDOW = 256
_MOST_TOKENS = 16_384
_MOST_SURPRISE = 50.0
"""Mean surprise in nats from which on, or where it is not a number at all, nothing is told apart any more."""


def perplexity(model: Any, tokenizer: Any, text: str, context: int) -> tuple[float, int]:
    """Perplexity of `text`, and of how many tokens it is: of the first 16,384 where there are more.

    `context` is the model's, in tokens. The model is left in the mode it was in.
    """
    import torch
    from torch.nn.functional import cross_entropy

    begin = tokenizer.bos_token_id
    head = [begin] if begin is not None else []
    # A token is seldom longer than sixteen characters: no more is tokenised than can be needed.
    ids = tokenizer(text[: 16 * _MOST_TOKENS], add_special_tokens=False)["input_ids"][:_MOST_TOKENS]
    width = max(min(_WINDOW, context) - len(head), 1)
    surprise, counted = 0.0, 0
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for start in range(0, len(ids), width):
                window = torch.tensor([head + ids[start : start + width]], device=device)
                if window.shape[1] < 2:
                    continue
                logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
                surprise += float(cross_entropy(logits, window[0, 1:], reduction="sum"))
                counted += window.shape[1] - 1
    finally:
        model.train(was_training)
    if not counted:
        return math.exp(_MOST_SURPRISE), 0
    mean = surprise / counted
    return math.exp(min(mean, _MOST_SURPRISE) if math.isfinite(mean) else _MOST_SURPRISE), counted
