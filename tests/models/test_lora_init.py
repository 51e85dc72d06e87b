"""First values of A and B: as PEFT's, the base answers as before, and what is saved fits the original base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.models.peft_side import IDS, answers, difference, load_plain, shake
from tests.tiny import build
from tunesmith.errors import RecipeError
from tunesmith.models.adapter import load_adapter, save_adapter
from tunesmith.models.lora import LoraLinear, LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.lora_init import from_weight

STARTS = [
    {"init": "pissa"},
    {"init": "olora"},
    {"init": "pissa", "use_rslora": True},
    {"init": "pissa", "use_dora": True},
    {"init": "olora", "rank_pattern": {"c_fc|up_proj": 2}, "alpha_pattern": {r"1\..*": 3.0}, "use_rslora": True},
]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_start_and_remaining_weight_are_those_of_peft(init):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base, twin = nn.Linear(24, 40), nn.Linear(24, 40)
    twin.load_state_dict(base.state_dict())
    original = base.weight.detach().clone()
    ours = LoraLinear(base, LoraSettings(6, 9.0, init=init))
    config = LoraConfig(r=6, lora_alpha=9, init_lora_weights=init, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(twin), config).base_model.model[0]
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    torch.testing.assert_close(ours.lora_B @ ours.lora_A, b @ a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.lora_A.abs(), a.abs(), rtol=1e-4, atol=1e-5)  # up to the sign of each direction
    rest = ours.merged_weight - ours.scaling * ours.lora_B @ ours.lora_A
    torch.testing.assert_close(rest, theirs.base_layer.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.merged_weight, original, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.weight, original) and (rest - original).norm() > 0.1 * original.norm()


@pytest.mark.parametrize("tokens", [3, 60])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_learns_as_if_the_start_were_taken_out_of_the_weight(init, tokens):
    """The papers' form: the frozen weight is `W - s B₀ A₀`. Decoding and training go other ways through the layer."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40).double()
    layer = LoraLinear(base, LoraSettings(6, 9.0, init=init)).train()
    a0, b0 = (t.detach().clone() for t in (layer.lora_A, layer.lora_B))
    shake(layer)
    a, b = (t.detach().clone().requires_grad_() for t in (layer.lora_A, layer.lora_B))
    mine, theirs = (torch.randn(tokens, 24, dtype=torch.float64).requires_grad_() for _ in range(2))
    theirs.data.copy_(mine.data)
    layer(mine).sin().sum().backward()
    frozen = base.weight.detach() - layer.scaling * b0 @ a0
    (theirs @ (frozen + layer.scaling * b @ a).T + base.bias.detach()).sin().sum().backward()
    for ours, expected in ((mine, theirs), (layer.lora_A, a), (layer.lora_B, b)):
        assert difference(ours.grad, expected.grad) < 1e-12


def test_pissa_takes_the_largest_directions():
    weight = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = from_weight("pissa", weight, 6, 1.5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(1.5 * b @ a)[:6], values[:6])
    torch.testing.assert_close(torch.linalg.matrix_norm(weight - 1.5 * b @ a), values[6:].norm())


def test_olora_has_orthonormal_directions():
    weight = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, b = from_weight("olora", weight, 6, 1.5)
    torch.testing.assert_close(b.T @ b, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_signs_do_not_depend_on_the_library(init, monkeypatch):
    """Another LAPACK may flip directions; the start must be the same."""
    weight = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = from_weight(init, weight, 4, 2.0)
    flips = torch.where(torch.arange(20) % 2 == 0, -1.0, 1.0).double()
    svd, qr = torch.linalg.svd, torch.linalg.qr

    def flipped_svd(w, full_matrices):
        u, s, v = svd(w, full_matrices=full_matrices)
        return u * flips, s, v * flips[:, None]

    def flipped_qr(w):
        q, r = qr(w)
        return q * flips, r * flips[:, None]

    monkeypatch.setattr(torch.linalg, "svd", flipped_svd)
    monkeypatch.setattr(torch.linalg, "qr", flipped_qr)
    again = from_weight(init, weight, 4, 2.0)
    assert torch.equal(again[0], a) and torch.equal(again[1], b)


def test_gaussian_has_the_standard_deviation_of_peft():
    layer = LoraLinear(nn.Linear(4000, 40), LoraSettings(8, 16.0, init="gaussian"))
    assert not layer.lora_B.any()
    assert float(layer.lora_A.detach().std()) == pytest.approx(1 / 8, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_saved_it_is_plain_lora_of_the_original_base(family, start, tmp_path):
    """By plain `peft`, by us, and again after a second round of saving."""
    model = build(family)
    original = answers(model)
    attached = attach_lora(model, LoraSettings(4, 8.0, **start), seed=1)
    assert difference(answers(model), original) < 1e-5
    shake(model)
    tuned = answers(model)
    assert difference(tuned, original) > 0.05
    with attached.switched_off():
        assert difference(answers(model), original) < 1e-5
    save_adapter(tmp_path / "a", attached, base="", revision=None, conv1d=family == "gpt2")
    assert difference(answers(load_plain(build(family), tmp_path / "a")), tuned) < 1e-5
    fresh = build(family)
    loaded = load_adapter(fresh, tmp_path / "a")
    assert difference(answers(fresh), tuned) < 1e-5
    assert {layer.lora_A.shape[0] for layer in loaded.layers.values()} <= {4, 8}
    save_adapter(tmp_path / "b", loaded, base="", revision=None, conv1d=family == "gpt2")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_checkpoint_needs_only_what_was_trained(init):
    """The start comes back from weights and seed, bit for bit."""
    settings = LoraSettings(4, 8.0, init=init)
    first = build("llama")
    attach_lora(first, settings, seed=3)
    shake(first)
    checkpoint = {name: p.detach().clone() for name, p in trainable_parameters(first).items()}
    assert {name.rpartition(".")[2] for name in checkpoint} == {"lora_A", "lora_B"}
    second = build("llama")
    attached = attach_lora(second, settings, seed=3)
    with torch.no_grad():
        for name, p in trainable_parameters(second).items():
            p.copy_(checkpoint[name])
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert all(layer.initial_a is not None for layer in attached.layers.values())


def test_an_adapted_head_that_is_the_embeddings_leaves_these_alone():
    model = build("llama")
    embeddings = model.model.embed_tokens.weight.detach().clone()
    original = answers(model)
    attach_lora(model, LoraSettings(4, 8.0, init="pissa", target_modules=("lm_head",)), seed=0)
    assert torch.equal(model.model.embed_tokens.weight, embeddings)
    assert difference(answers(model), original) < 1e-5


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ("q_proj", "lm_head")}], ids=str)
def test_in_half_precision_what_is_saved_is_what_was_trained(options, tmp_path):
    """Not so if the start were taken out of the weights: the rest would be rounded once more."""
    model = build("llama").bfloat16()
    attached = attach_lora(model, LoraSettings(4, 8.0, init="pissa", **options), seed=1)
    shake(model)
    save_adapter(tmp_path / "a", attached, base="", revision=None, conv1d=False)
    again = build("llama").bfloat16()
    load_adapter(again, tmp_path / "a")
    assert difference(answers(again), answers(model)) < 1e-3


def test_in_half_precision_the_base_keeps_its_answers_up_to_rounding():
    base = nn.Linear(64, 48).bfloat16()
    x = torch.randn(100, 64).bfloat16()
    with torch.no_grad():
        expected = base(x).float()
        layer = LoraLinear(base, LoraSettings(8, 16.0, init="pissa"))
        assert layer.lora_A.dtype == torch.float32 and layer.base.weight.dtype == torch.bfloat16
        assert difference(layer(x).float(), expected) < 1e-2


class Quantised(nn.Module):
    """What a layer on quantised weights must have."""

    bias = None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("codes", layer.weight.detach())

    def dequantized(self) -> torch.Tensor:
        return self.codes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.codes.t()


def test_weights_that_cannot_follow_are_refused():
    model = build("llama")
    model.set_submodule("model.layers.0.mlp.up_proj", Quantised(model.model.layers[0].mlp.up_proj))
    with pytest.raises(RecipeError, match=r"method\.init: init pissa begins with the main directions"):
        attach_lora(model, LoraSettings(4, 8.0, init="pissa"), seed=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"dropout": 0.3}, {"use_dora": True, "dropout": 0.3}])
def test_a_layer_on_quantised_weights_computes_as_one_on_plain_ones(options):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=False)
    layers = [LoraLinear(base, LoraSettings(4, 8.0, **options)) for base in (Quantised(plain), plain)]
    with torch.no_grad():
        layers[0].lora_A.copy_(layers[1].lora_A)
    for layer in layers:
        shake(layer)
    results = []
    for layer in layers:
        layer.train()
        torch.manual_seed(2)
        x = torch.randn(50, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        layer(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters() if p.requires_grad), layer.merged_weight])
    assert len(results[0]) == 4 + bool(options.get("use_dora"))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_conv1d_is_initialised_by_its_weight_as_it_is_used():
    layer = Conv1D(40, 24)
    x = torch.randn(9, 24)
    expected = layer(x).detach()
    adapted = LoraLinear(layer, LoraSettings(4, 8.0, init="olora"))
    assert adapted.lora_A.shape == (4, 24) and adapted.lora_B.shape == (40, 4)
    torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-5)


def test_what_peft_saved_without_conversion_is_read_as_peft_reads_it(tmp_path: Path):
    from tests.models.peft_side import plain_adapter

    tuned = plain_adapter(
        build("llama"), tmp_path / "p", r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=["q_proj"]
    )
    model = build("llama")
    load_adapter(model, tmp_path / "p")
    assert difference(answers(model), answers(tuned)) < 1e-4
