"""The packed forward pass: verified against the model's own, switched back after use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import FAMILIES, build, ragged_samples
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.trunk import decoder_layers, draws_chance
from tunesmith.ops.packed_attention import ATTENTION
from tunesmith.text.types import Sample
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
        model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous).backward()
    assert layer.lora_A.grad is not None and layer.lora_A.grad.any()
    assert layer.lora_B.grad is not None and layer.lora_B.grad.any()


def test_a_stream_without_anything_to_learn_has_loss_zero():
    model = LanguageModel(build("llama"))
    batch = collate(ragged_samples())
    with model.packed():
        loss = model.loss_sum(batch.ids, batch.packing, torch.zeros_like(batch.weights), batch.previous)
    assert loss.item() == 0.0


def shared_rows(seed: int = 0) -> list[Sample]:
    """Two prefixes and loners: ragged suffixes, some of one token, one none; all, nothing or some of it supervised."""
    rng = np.random.default_rng(seed)
    rows = []
    for length, suffixes in ((20, (3, 1, 7, 0, 12, 12)), (17, (1, 5, 9))):
        beginning = rng.integers(3, 300, length)
        for suffix in suffixes:
            ids = np.r_[beginning, rng.integers(3, 300, suffix)]
            rows.append(Sample(ids, (rng.random(len(ids)) < 0.6).astype(np.float32)))
    rows[1].weights[:] = 1
    rows[2].weights[:] = 0
    for row in rows:
        row.weights[0] = 0
    return rows + ragged_samples()


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where architectures round to fp32 inside, they round to fp64, so that what is compared is the computation."""
    to, softmax = Tensor.to, F.softmax

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(Tensor, "to", lambda t, *a, **k: to(t, *map(wide, a), **{n: wide(v) for n, v in k.items()}))
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: softmax(x, dim, dtype=wide(dtype)))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def same(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], allowed: float) -> None:
    """Relative L2 error of every gradient; where the reference is zero, ours is exactly that."""
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, expected in theirs.items():
        mine = ours[name]
        if expected is None or not expected.any():
            assert mine is None or not mine.any(), name
        else:
            assert mine is not None and (mine - expected).norm() <= allowed * expected.norm(), name


def loss_of(model: LanguageModel, rows: Sequence[Sample], share_prefixes: bool) -> Tensor:
    """Loss sum with gradients of all parameters; checks that sharing took place, or not."""
    batch = collate(rows, share_prefixes=share_prefixes)
    assert len(batch.packing.prefixes) == (2 if share_prefixes else 0)
    with model.packed():
        loss = model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous)
        loss.backward()
    return loss.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefixes_give_the_loss_and_gradients_of_plain_documents(family, exact):
    """The gate: shared, unshared, and `transformers` alone on one document at a time; windows of 4, prefixes of 20."""
    inner = build(family).double()
    plain, unshared = copy.deepcopy(inner), copy.deepcopy(inner)
    rows = shared_rows()
    loss = loss_of(LanguageModel(inner), rows, share_prefixes=True)
    other = loss_of(LanguageModel(unshared), rows, share_prefixes=False)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        if len(row.ids) > 1:
            ids = torch.from_numpy(row.ids)
            losses = F.cross_entropy(plain(ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none")
            total = total + (losses * torch.from_numpy(row.weights[1:])).sum()
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-9) == pytest.approx(other.item(), rel=1e-9)
    same(gradients(inner), gradients(plain), 1e-9)
    same(gradients(inner), gradients(unshared), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefixes_in_fp32(family):
    inner = build(family)
    unshared = copy.deepcopy(inner)
    loss = loss_of(LanguageModel(inner), shared_rows(), share_prefixes=True)
    other = loss_of(LanguageModel(unshared), shared_rows(), share_prefixes=False)
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    same(gradients(inner), gradients(unshared), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_words_in_one_document_leave_those_beside_it_bitwise_alone(family):
    model = LanguageModel(build(family))
    rows = shared_rows()
    changed = [Sample(r.ids.copy(), r.weights) for r in rows]
    changed[4].ids[20:] = (changed[4].ids[20:] + 50) % 290 + 3
    states = []
    for some in (rows, changed):
        batch = collate(some, share_prefixes=True)
        with torch.no_grad(), model.packed():
            hidden = model.hidden(batch.ids, batch.packing)
        states.append([hidden[places] for places in batch.documents])
    for index, (before, after) in enumerate(zip(*states, strict=True)):
        assert torch.equal(before, after) == (index != 4), index
    assert torch.equal(states[0][4][:20], states[1][4][:20])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pooled_states_are_the_means_of_plain_documents(family, exact):
    inner = build(family).double()
    plain = copy.deepcopy(inner)
    rows = shared_rows()
    batch = collate(rows, share_prefixes=True)
    model = LanguageModel(inner)
    direction = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with model.packed():
        pooled = model.pooled(batch)
        (pooled * direction).sum().backward()
    trunk = LanguageModel(plain).trunk
    means = [trunk(torch.from_numpy(r.ids)[None], use_cache=False).last_hidden_state[0].mean(0) for r in rows]
    expected = torch.stack(means)
    (expected * direction).sum().backward()
    torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-10)
    same(gradients(inner), gradients(plain), 1e-9)


def test_a_model_whose_attention_forgets_prefixes_is_refused(monkeypatch):
    from tunesmith.ops import prefix_attention

    monkeypatch.setattr(prefix_attention, "_prefix_part", lambda *_: None)
    with pytest.raises(EngineError, match="logits of the packed computation differ"):
        LanguageModel(build("llama")).verify()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_kept_for_frozen_layers_below_the_lowest_trained_one(family):
    inner = build(family)
    model = LanguageModel(inner)
    last = 1
    inner.requires_grad_(False)
    layers = decoder_layers(model.trunk)
    layers[last].requires_grad_(True)
    assert model.frozen_layers == last
    batch = collate(ragged_samples())
    kept: list[Tensor] = []
    counts: list[int] = []
    entered: list[Tensor] = []
    layers[last].register_forward_pre_hook(lambda _, args: (counts.append(len(kept)), entered.append(args[0]))[0])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), model.packed():
        loss = model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous)
    assert counts == [0] and len(kept) > 5 and not entered[0].requires_grad
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in inner.parameters())


def test_what_is_frozen():
    inner = build("llama")
    model = LanguageModel(inner)
    assert model.frozen_layers == 0
    inner.requires_grad_(False)
    assert model.frozen_layers == 2
    inner.model.norm.requires_grad_(True)
    assert model.frozen_layers == 2
    inner.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    assert model.frozen_layers == 1
    inner.model.embed_tokens.weight.requires_grad_(True)
    assert model.frozen_layers == 0
    untied = build("qwen3").requires_grad_(False)
    untied.lm_head.weight.requires_grad_(True)
    assert LanguageModel(untied).frozen_layers == 2
    tied = build("llama").requires_grad_(False)
    tied.lm_head.weight.requires_grad_(True)  # these are the embeddings
    assert LanguageModel(tied).frozen_layers == 0
    untied.register_parameter("soft_prompt", nn.Parameter(torch.zeros(3)))
    assert LanguageModel(untied).frozen_layers == 0


def test_where_layers_cannot_be_told_it_is_said():
    inner = build("llama")
    inner.model.others = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(EngineError, match="no single list of 2 decoder layers"):
        decoder_layers(inner.model)


def test_dropout_is_seen_where_it_is():
    assert not any(LanguageModel(build(family)).draws_chance for family in FAMILIES)
    for family, change in (("llama", _attention_dropout), ("gpt2", _residual_dropout)):
        model = LanguageModel(build(family))
        change(decoder_layers(model.trunk)[1])
        assert model.draws_chance and draws_chance(model.trunk) and not draws_chance(model.trunk, below=1)
    inner = build("llama")
    attach_lora(inner, LoraSettings(4, 8, dropout=0.1), seed=0)
    assert LanguageModel(inner).draws_chance


def _attention_dropout(layer: Any) -> None:
    layer.self_attn.attention_dropout = 0.1


def _residual_dropout(layer: Any) -> None:
    layer.attn.resid_dropout.p = 0.1
