"""Needed arithmetic: every term against a count by hand, and against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import VOCABULARY, build
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.quantized import quantize_base
from tunesmith.training.flops import needed_flops

WIDTH, INNER, HEADS, SIZE, LAYERS = 32, 48, 4, 8, 2
PER_LAYER = WIDTH * SIZE * (2 * HEADS + 2 * 2) + 3 * WIDTH * INNER
DOCUMENTS, SUPERVISED = (5, 12, 1), 7
TOKENS = sum(DOCUMENTS)
ATTENTION = LAYERS * HEADS * SIZE * sum(n * (n + 1) / 2 for n in DOCUMENTS)


def test_full_tuning_takes_six_operations_per_weight() -> None:
    model = build("llama").requires_grad_(True)
    expected = 6 * (LAYERS * PER_LAYER * TOKENS + WIDTH * VOCABULARY * SUPERVISED) + 12 * ATTENTION
    assert needed_flops(model, DOCUMENTS, SUPERVISED) == pytest.approx(expected)


def test_adapters_take_four_and_six_for_their_own() -> None:
    model = build("llama")
    attach_lora(model, LoraSettings(4, 8), seed=0)
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = 4 * (LAYERS * PER_LAYER * TOKENS + WIDTH * VOCABULARY * SUPERVISED) + 12 * ATTENTION + 6 * own * TOKENS
    assert needed_flops(model, DOCUMENTS, SUPERVISED) == pytest.approx(expected)


def test_quantised_weights_count_as_weights() -> None:
    plain, quantised = build("llama"), build("llama")
    quantize_base(quantised, "nf4")
    for model in (plain, quantised):
        attach_lora(model, LoraSettings(4, 8), seed=0)
    assert needed_flops(quantised, DOCUMENTS, SUPERVISED) == needed_flops(plain, DOCUMENTS, SUPERVISED)


def test_layers_below_the_lowest_adapter_have_no_backward_pass() -> None:
    model = build("llama")
    attach_lora(model, LoraSettings(4, 8, last_layers=1), seed=0)
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = (2 + 4) * PER_LAYER * TOKENS + 4 * WIDTH * VOCABULARY * SUPERVISED + 6 * own * TOKENS
    assert needed_flops(model, DOCUMENTS, SUPERVISED) == pytest.approx(weights + (4 + 12) * ATTENTION / LAYERS)


def test_windows_shorten_attention() -> None:
    model = build("gemma3").requires_grad_(True)  # a window of 4 in the first of two layers
    long, short = needed_flops(model, [20], 0), needed_flops(model, [10, 10], 0)
    full = lambda n: n * (n + 1) / 2  # noqa: E731
    window = lambda n: sum(min(i + 1, 4) for i in range(n))  # noqa: E731
    assert long - short == 12 * 4 * 8 * (full(20) + window(20) - 2 * full(10) - 2 * window(10))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2"])
def test_torch_counts_the_same_products(family: str) -> None:
    model = build(family).requires_grad_(True)
    ids = torch.arange(11)[None] + 5
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        # The embeddings' gradient keeps the lowest layer's input in the backward pass.
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_pair = 12 * config.num_hidden_layers * config.num_attention_heads * size
    unmasked = per_pair * (11 * 11 - 11 * 12 / 2)  # torch's own attention computes masked pairs too
    assert needed_flops(model, [11], 11) + unmasked == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_only_active_experts_count() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Parameter(torch.zeros(8, 32, 16))

    model = build("llama")
    before = needed_flops(model, [10], 0)
    model.model.layers[0].mlp.experts = Experts()
    model.config.num_local_experts, model.config.num_experts_per_tok = 8, 2
    model.model.layers[0].mlp.experts.requires_grad_(False)
    assert needed_flops(model, [10], 0) - before in (10 * 2 * 2 * 32 * 16, 10 * 4 * 2 * 32 * 16)
