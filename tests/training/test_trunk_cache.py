"""The states of frozen layers on disk: the same training, and noticed when anything they depend on changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.test_forward import exact, gradients, same, shared_rows
from tests.tiny import FAMILIES, build
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.trunk import decoder_layers
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import collate, micro_batches
from tunesmith.training.trunk_cache import TrunkCache, estimate_bytes, trunk_cache

__all__ = ["exact"]  # a fixture


def tuned_at_the_end(family: str = "llama", dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model of which the last of two layers is trained."""
    inner = build(family).to(dtype).requires_grad_(False)
    model = LanguageModel(inner)
    decoder_layers(model.trunk)[1].requires_grad_(True)
    return model


def build_calls(calls: list[tuple[int, int]]) -> dict[str, Any]:
    return {"base": "abc", "token_budget": 60, "progress": lambda done, total: calls.append((done, total))}


def loss_of(model: LanguageModel, rows: list[Sample], budget: int = 1000, share: bool = True) -> float:
    total = 0.0
    for p in model.model.parameters():
        p.grad = None
    with model.packed():
        for batch in micro_batches(rows, budget, share_prefixes=share):
            loss = model.loss_sum(batch.ids, batch.packing, batch.weights, batch.previous)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
    return total


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [True, False])
def test_loss_and_gradients_are_those_of_the_whole_model(family, share, tmp_path):
    model = tuned_at_the_end(family)
    live = LanguageModel(copy.deepcopy(model.model))
    rows = shared_rows()
    model.use_trunk_cache(trunk_cache(model, rows, tmp_path / "trunk", base="abc", token_budget=60))
    ran = watch_first_layer(model)
    for budget in (40, 1000):
        assert loss_of(model, rows, budget, share) == pytest.approx(loss_of(live, rows, budget, share), rel=1e-9)
        trained = {n for n, p in model.model.named_parameters() if p.requires_grad}
        ours, theirs = ({n: g for n, g in gradients(m.model).items() if n in trained} for m in (model, live))
        if len(trained) <= 10:  # `same` wants to have compared something
            ours, theirs = ({**g, **dict.fromkeys(map(str, range(10)))} for g in (ours, theirs))
        assert all(g is not None for n, g in theirs.items() if n in trained)
        same(ours, theirs, 1e-9)
    assert not ran


def watch_first_layer(model: LanguageModel) -> list[Tensor]:
    """What the first layer is given, whenever it is computed."""
    ran: list[Tensor] = []
    decoder_layers(model.trunk)[0].register_forward_pre_hook(lambda _, args: ran.append(args[0]))
    return ran


def test_layers_and_hooks_are_as_before(tmp_path):
    model = tuned_at_the_end()
    layers = decoder_layers(model.trunk)
    before = list(layers), list(model.model.named_parameters()), dict(layers[0]._forward_hooks)
    model.use_trunk_cache(trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc"))
    loss_of(model, shared_rows())
    assert before[0] == list(layers) and before[2] == dict(layers[0]._forward_hooks)
    assert [n for n, _ in before[1]] == [n for n, _ in model.model.named_parameters()]


def test_documents_that_are_not_known_are_computed(tmp_path):
    model = tuned_at_the_end()
    live = LanguageModel(copy.deepcopy(model.model))
    model.use_trunk_cache(trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc"))
    ran = watch_first_layer(model)
    others = shared_rows(seed=1)
    assert loss_of(model, others) == loss_of(live, others) and len(ran) == 1
    mixed = [*shared_rows()[:3], others[0]]
    assert loss_of(model, mixed) == loss_of(live, mixed) and len(ran) == 2
    model.verify()
    model.use_trunk_cache(None)
    assert loss_of(model, shared_rows()) == loss_of(live, shared_rows()) and len(ran) > 2


def test_states_of_a_part_of_a_document(tmp_path):
    model = tuned_at_the_end()
    cache = trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc")
    for row in shared_rows():
        if not row.supervised:
            continue
        batch = collate([row])
        with torch.no_grad(), model.packed():
            expected = model.states_entering(1, batch.ids, batch.packing)
        for begin in {0, min(3, len(row.ids)), min(20, len(row.ids)), len(row.ids)}:
            found = cache.states(row.ids, begin)
            assert found is not None and found.shape == (len(row.ids) - begin, 32)
            torch.testing.assert_close(found, expected[begin:], rtol=1e-6, atol=1e-6)
    assert cache.states(np.array([1, 2, 3])) is None


def test_a_finished_cache_is_used_again_whatever_the_order_of_rows(tmp_path):
    model, calls = tuned_at_the_end(), []
    rows = shared_rows()
    first = trunk_cache(model, rows, tmp_path / "trunk", **build_calls(calls))
    learnt = [r for r in rows if r.supervised]
    assert calls[-1] == (len(learnt), len(learnt)) and calls == sorted(calls)
    calls.clear()
    again = trunk_cache(model, rows[::-1] + rows[:2], tmp_path / "trunk", **build_calls(calls))
    assert calls == [] and torch.equal(first.stored, again.stored) and first.places == again.places
    assert [p.name for p in tmp_path.iterdir()] == ["trunk"]


def other_words(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    rows[0].ids[3] += 1


def one_row_more(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    rows.append(Sample(np.arange(5, 9), np.ones(4, np.float32)))


def other_base(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    options["base"] = "xyz"


def other_weights_under_the_same_name(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    with torch.no_grad():
        decoder_layers(model.trunk)[0].mlp.down_proj.weight.mul_(1.5)  # type: ignore[union-attr, operator]


def other_products(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    options["autocast"] = torch.bfloat16


def other_numbers(model: LanguageModel, rows: list[Sample], options: dict[str, Any]) -> None:
    model.model.double()


@pytest.mark.parametrize(
    "change",
    [other_words, one_row_more, other_base, other_weights_under_the_same_name, other_products, other_numbers],
)
def test_what_changed_is_noticed(change, tmp_path):
    model, calls, rows = tuned_at_the_end(dtype=torch.float32), [], shared_rows()
    options = build_calls(calls)
    trunk_cache(model, rows, tmp_path / "trunk", **options)
    calls.clear()
    change(model, rows, options)
    cache = trunk_cache(model, rows, tmp_path / "trunk", **options)
    assert calls
    batch = collate([rows[0]])
    with torch.no_grad(), model.packed(), torch.autocast("cpu", torch.bfloat16, "autocast" in options):
        expected = model.states_entering(1, batch.ids, batch.packing)
    found = cache.states(rows[0].ids)
    assert found is not None and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_half_written_or_damaged_ones_are_computed_again(tmp_path):
    model, calls, rows = tuned_at_the_end(), [], shared_rows()
    folder = tmp_path / "trunk"
    trunk_cache(model, rows, folder, **build_calls(calls))
    calls.clear()
    (folder / "states").write_bytes((folder / "states").read_bytes()[:-8])
    trunk_cache(model, rows, folder, **build_calls(calls))
    assert calls
    calls.clear()
    (folder / "cache.json").unlink()
    trunk_cache(model, rows, folder, **build_calls(calls))
    assert calls and json.loads((folder / "cache.json").read_text())["key"]["base"] == "abc"


def test_an_interrupted_one_is_not_there(tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trunk_cache(tuned_at_the_end(), shared_rows(), tmp_path / "trunk", base="abc", token_budget=60, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_and_type_on_disk(dtype, tmp_path):
    model, rows = tuned_at_the_end(dtype=dtype), shared_rows()
    cache = trunk_cache(model, rows, tmp_path / "trunk", base="abc", token_budget=60)
    size = estimate_bytes(rows, 32, dtype, token_budget=60)
    assert cache.stored.dtype == dtype and (tmp_path / "trunk" / "states").stat().st_size == cache.bytes <= size
    unique = sum(len(r.ids) for r in rows if r.supervised)
    assert size < 0.8 * unique * 32 * dtype.itemsize  # beginnings are stored once per stream
    assert size <= 1.1 * cache.bytes


def test_pairs_are_kept_whether_supervised_or_not(tmp_path):
    silent = [Sample(r.ids, np.zeros_like(r.weights)) for r in shared_rows()]
    pairs = [Group((silent[0], silent[6]), 1.0, "pair")]
    cache = trunk_cache(tuned_at_the_end(), pairs, tmp_path / "trunk", base="abc")
    assert len(cache.places) == 2 and cache.states(silent[6].ids) is not None


def test_adapters_in_the_last_layer(tmp_path):
    """LoRA on the last layer only, fp32: a step with and without cache moves it alike."""
    gradients_of = []
    for cached in (False, True):
        inner = build("qwen3")
        attach_lora(inner, LoraSettings(4, 8, target_modules=tuple(last_layer_targets())), seed=0)
        model = LanguageModel(inner)
        for name, p in inner.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
        if cached:
            model.use_trunk_cache(trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc"))
        loss_of(model, shared_rows())
        gradients_of.append(gradients(inner))
    same(gradients_of[1], gradients_of[0], 1e-5)


def last_layer_targets() -> list[str]:
    return [f"model.layers.1.self_attn.{n}_proj" for n in "qkvo"] + ["model.layers.1.mlp.down_proj"]


def test_what_cannot_be_kept_is_refused(tmp_path):
    whole = LanguageModel(build("llama"))
    with pytest.raises(EngineError, match="0 layers are frozen"):
        trunk_cache(whole, shared_rows(), tmp_path / "trunk", base="abc")
    model = tuned_at_the_end("gpt2")
    cache = trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc")
    with pytest.raises(EngineError, match="0 layers are frozen"):
        LanguageModel(build("gpt2")).use_trunk_cache(cache)
    with pytest.raises(EngineError, match="layer 2 cannot be kept"):
        model.use_trunk_cache(TrunkCache(2, cache.stored, cache.places))
    model.trunk.drop.p = 0.1  # type: ignore[union-attr, assignment]
    with pytest.raises(EngineError, match="dropout"):
        trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc")


def test_a_model_that_does_not_run_from_a_layer_on_is_refused(tmp_path):
    model = tuned_at_the_end()
    layer = decoder_layers(model.trunk)[0]
    memory: list[Tensor] = []
    layer.register_forward_hook(lambda _, args, out: memory.append(out))
    norm = model.model.model.norm
    norm.register_forward_hook(lambda _, args, out: out + (memory.pop() if memory else 0))
    with pytest.raises(EngineError, match="run from layer 1 on"):
        trunk_cache(model, shared_rows(), tmp_path / "trunk", base="abc")
