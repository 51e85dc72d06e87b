"""The gate: packed, supervised-only, chunked loss and every gradient equal plain padded full-logit computation.

The reference is `transformers` (and `peft`) as they come: one padded batch, all logits, `torch` cross-entropy. Both
sides run in float64. Some architectures round to fp32 inside (`x.float()`); there the test lets `float` mean `double`
on both sides, so that what is compared is the computation and not the rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import FAMILIES, build, ragged_samples
from tunesmith.models.adapter import load_adapter, save_adapter
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.text.types import Sample
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.step import accumulate_gradients

PLAN = TrainingPlan(steps=10, batch_size=8, learning_rate=3e-3, seed=0, micro_batch_tokens=25)
GPT2_LORA = LoraSettings(4, 8, target_modules=("c_attn", "c_proj"), modules_to_save=("ln_f", "lm_head"))


@pytest.fixture(autouse=True)
def float_means_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    softmax = F.softmax

    def double_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return softmax(x, dim, dtype=torch.float64 if dtype is torch.float32 else dtype)

    monkeypatch.setattr(F, "softmax", double_softmax)


def padded_loss(model: Any, samples: Sequence[Sample]) -> torch.Tensor:
    """The loss sum by the plain way: pad, all logits, mask."""
    width = max(len(s.ids) for s in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    seen = torch.zeros_like(ids)
    weights = torch.zeros(len(samples), width, dtype=torch.float64)
    for row, s in enumerate(samples):
        ids[row, : len(s.ids)] = torch.from_numpy(s.ids)
        seen[row, : len(s.ids)] = 1
        weights[row, : len(s.ids)] = torch.from_numpy(s.weights)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def document_loss(model: Any, samples: Sequence[Sample]) -> torch.Tensor:
    """The same, one document at a time: for Gemma 2, whose eager attention yields NaN on windows of padding only."""
    total: torch.Tensor = torch.zeros((), dtype=torch.float64)
    for s in samples:
        ids = torch.from_numpy(s.ids)[None]
        if len(s.ids) > 1:
            losses = F.cross_entropy(model(ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
            total = total + (losses * torch.from_numpy(s.weights[1:])).sum()
    return total


def reference_loss(family: str, model: Any, samples: Sequence[Sample]) -> torch.Tensor:
    return (document_loss if family == "gemma2" else padded_loss)(model, samples)


def relative(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    """Relative L2 error; where the reference is nothing or zero ours must be exactly that."""
    if theirs is None or not theirs.any():
        return 0.0 if ours is None or not ours.any() else float("inf")
    assert ours is not None
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_full_loss_and_gradients_equal_plain_transformers(family: str) -> None:
    model = build(family).double()
    reference = copy.deepcopy(model)
    samples = ragged_samples()
    totals = accumulate_gradients(LanguageModel(model), samples, PLAN)
    expected = reference_loss(family, reference, samples)
    expected.backward()
    assert totals.tokens == sum(len(s.ids) for s in samples if s.supervised)
    assert totals.loss == pytest.approx(expected.item(), rel=1e-9)
    theirs = dict(reference.named_parameters())
    compared = {name: relative(p.grad, theirs[name].grad) for name, p in model.named_parameters()}
    assert len(compared) > 10
    assert max(compared.values()) <= 1e-9, max(compared.items(), key=lambda item: item[1])


def attach_both(family: str, settings: LoraSettings) -> tuple[LanguageModel, Any, Any]:
    """Our model and plain `peft`'s with the same random, non-zero A and B."""
    from peft import LoraConfig, get_peft_model

    ours, theirs = build(family).double(), build(family).double()
    attached = attach_lora(ours, settings, seed=0)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear" if settings.target_modules == "all-linear" else list(settings.target_modules),
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.use_rslora,
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(theirs, config).double()
    generator = torch.Generator().manual_seed(1)
    pairs = match_parameters(attached, theirs)
    with torch.no_grad():
        for mine, other in pairs.values():
            if mine.ndim == 2 and settings.rank in mine.shape:
                mine.copy_(torch.randn(mine.shape, generator=generator, dtype=mine.dtype) * 0.05)
            other.copy_(mine)
    theirs.eval()
    return LanguageModel(ours), theirs, pairs


def match_parameters(attached: Any, peft_model: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Our trainable parameters beside peft's, by module path; together they are all of both."""
    theirs = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    pairs = {}
    for name, layer in attached.layers.items():
        for which in ("lora_A", "lora_B"):
            key = f"base_model.model.{name}.{which}.default.weight"
            pairs[key] = (getattr(layer, which), theirs[key])
    for name, module in attached.saved.items():
        for leaf, parameter in module.named_parameters():
            key = f"base_model.model.{name}.modules_to_save.default.{leaf}"
            pairs[key] = (parameter, theirs[key])
    assert set(pairs) == set(theirs)
    return pairs


LORA_CASES = [(f, LoraSettings(4, 8)) for f in FAMILIES] + [
    ("gpt2", GPT2_LORA),
    ("llama", LoraSettings(3, 8, use_rslora=True, target_modules=("q_proj", "down_proj"))),
    ("qwen3", LoraSettings(4, 4, target_modules=("v_proj",), modules_to_save=("embed_tokens", "lm_head"))),
]


@pytest.mark.parametrize(("family", "settings"), LORA_CASES)
def test_lora_loss_and_gradients_equal_plain_peft(family: str, settings: LoraSettings) -> None:
    model, theirs, pairs = attach_both(family, settings)
    samples = ragged_samples()
    loss = accumulate_gradients(model, samples, PLAN).loss
    expected = reference_loss(family, theirs, samples)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    errors = {name: relative(a.grad, b.grad) for name, (a, b) in pairs.items()}
    assert max(errors.values()) <= 1e-9, max(errors.items(), key=lambda item: item[1])
    assert all(p.grad is None for n, p in model.model.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(("family", "settings"), LORA_CASES)
def test_ten_steps_give_the_losses_of_plain_peft(family: str, settings: LoraSettings) -> None:
    model, theirs, pairs = attach_both(family, settings)
    ours_optimizer = make_optimizer(trainable_parameters(model.model), PLAN)
    theirs_optimizer = torch.optim.AdamW([b for _, b in pairs.values()], lr=PLAN.learning_rate, weight_decay=0.0)
    ours_losses, theirs_losses = [], []
    for step in range(10):
        samples = ragged_samples(seed=step)
        ours_optimizer.zero_grad()
        theirs_optimizer.zero_grad()
        totals = accumulate_gradients(model, samples, PLAN)
        ours_losses.append(totals.read().mean)
        ours_optimizer.clip(0.0, 1 / totals.weight)
        loss = reference_loss(family, theirs, samples) / totals.weight
        loss.backward()
        theirs_losses.append(loss.item())
        ours_optimizer.step()
        theirs_optimizer.step()
    np.testing.assert_allclose(ours_losses, theirs_losses, rtol=1e-6)
    assert ours_losses[-1] != pytest.approx(ours_losses[0], rel=1e-4)


def test_grouping_does_not_change_gradients() -> None:
    samples = ragged_samples()
    gradients = []
    for budget in (10, 25, 1000):
        model = build("llama").double()
        plan = TrainingPlan(steps=1, batch_size=8, learning_rate=1e-3, seed=0, micro_batch_tokens=budget)
        accumulate_gradients(LanguageModel(model), samples, plan)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert relative(gradients[1], gradients[0]) < 1e-12
    assert relative(gradients[2], gradients[0]) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_never_changes_anothers_gradient(family: str) -> None:
    """Bitwise: with all weight on document B, exchanging the words of its neighbours changes nothing."""
    gradients = []
    for neighbour_seed in (1, 2):
        model = build(family)
        mute = [
            Sample(s.ids, np.zeros_like(s.weights), s.example_id) for s in ragged_samples((9, 11), seed=neighbour_seed)
        ]
        document = ragged_samples((10, 12), seed=7)[1]
        language_model = LanguageModel(model)
        from tunesmith.training.batching import collate

        with language_model.packed():
            batch = collate([mute[0], document, mute[1]])
            language_model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(("family", "settings"), LORA_CASES)
def test_saved_adapter_gives_the_same_logits_in_plain_peft(family: str, settings: LoraSettings, tmp_path: Path) -> None:
    from peft import PeftModel

    ours = build(family)
    attached = attach_lora(ours, settings, seed=3)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
        for module in attached.saved.values():
            for parameter in module.parameters():
                parameter.add_(0.05)
    digest = save_adapter(tmp_path / "adapter", attached, base="base", revision=None, conv1d=family == "gpt2")
    ids = torch.arange(3, 33)[None]
    expected = ours(ids).logits
    theirs = PeftModel.from_pretrained(build(family), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert relative(build(family)(ids).logits, expected) > 1e-2  # the adapter does something
    again = build(family)
    reloaded = load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(ids).logits, expected)
    assert digest == save_adapter(tmp_path / "copy", reloaded, base="base", revision=None, conv1d=family == "gpt2")
