"""The packed forward pass: verified against the model's own, switched back after use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES, build, ragged_samples
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.ops.packed_attention import ATTENTION
from tunesmith.training.batching import collate


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_hidden_states_are_those_of_each_document(family):
    model = LanguageModel(build(family))
    samples = ragged_samples()
    batch = collate(samples)
    with torch.no_grad(), model.packed():
        hidden = model.hidden(batch.ids, batch.packing)
    start = 0
    for s in samples:
        with torch.no_grad():
            own = model.trunk(input_ids=torch.from_numpy(s.ids)[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden[start : start + len(s.ids)], own, rtol=1e-4, atol=1e-5)
        start += len(s.ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_is_verified(family, dtype):
    model = LanguageModel(build(family).to(dtype))
    model.verify()
    attach_lora(model.model, LoraSettings(4, 8), seed=0)
    model.model.train()
    model.verify()
    assert model.model.training


class _Shifted(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, **kwargs: Any) -> Any:
        if "packing" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"] * 0
        return self.trunk(**kwargs)


def test_a_model_that_treats_positions_otherwise_is_refused():
    model = LanguageModel(build("llama"))
    model.trunk = _Shifted(model.trunk)
    with pytest.raises(EngineError, match=r"LlamaForCausalLM: logits of the packed computation differ"):
        model.verify()


def test_a_model_that_changes_its_logits_is_refused():
    inner = build("llama")
    forward = inner.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out

    inner.forward = scaled
    with pytest.raises(EngineError, match="differ from the model's own"):
        LanguageModel(inner).verify()


def test_an_infinite_logit_is_no_agreement():
    inner = build("llama")
    with torch.no_grad():
        inner.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(EngineError, match="nan"):
        LanguageModel(inner).verify()


def test_the_models_own_attention_comes_back():
    inner = build("llama")
    model, before = LanguageModel(inner), inner.config._attn_implementation
    with model.packed():
        assert inner.config._attn_implementation == ATTENTION
    assert inner.config._attn_implementation == before != ATTENTION
    with pytest.raises(ZeroDivisionError), model.packed():
        raise ZeroDivisionError
    assert inner.config._attn_implementation == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_on_the_head_is_part_of_the_loss(family):
    inner = build(family)
    attached = attach_lora(inner, LoraSettings(4, 8, target_modules=("lm_head",)), seed=0)
    (layer,) = attached.layers.values()
    nn.init.normal_(layer.lora_B, std=0.5)
    model = LanguageModel(inner)
    model.verify()
    batch = collate(ragged_samples())
    with model.packed():
        model.loss_sum(batch.ids, batch.packing, batch.weights).backward()
    assert layer.lora_A.grad is not None and layer.lora_A.grad.any()
    assert layer.lora_B.grad is not None and layer.lora_B.grad.any()


def test_a_stream_without_anything_to_learn_has_loss_zero():
    model = LanguageModel(build("llama"))
    batch = collate(ragged_samples())
    with model.packed():
        loss = model.loss_sum(batch.ids, batch.packing, torch.zeros_like(batch.weights))
    assert loss.item() == 0.0
