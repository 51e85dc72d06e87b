"""Adapters added to one another: what is exact is, and what cannot be added is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.made import made_source, recipe_of
from tests.models.peft_side import answers, difference, load_plain
from tests.tiny import build, save_base
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.export.adapter import HOWS, Combined, Part, combine, save_plain

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    base = save_base(folder / "bases" / "llama", "llama")
    methods: dict[str, tuple[Path, dict[str, Any]]] = {
        "a": (base, {}),
        "b": (base, {"use_rslora": True, "alpha": 3.0}),
        "wide": (base, {"rank": 8, "target_modules": ["q_proj", "down_proj"], "init": "pissa"}),
        "dora": (base, {"use_dora": True}),
        "head": (base, {"modules_to_save": ["lm_head"]}),
        "other": (save_base(folder / "bases" / "other", "llama", seed=3), {}),
        "qwen": (save_base(folder / "bases" / "qwen3", "qwen3"), {}),
    }
    return {
        name: made_source(folder / name, recipe_of(base, method), seed=number)[0]
        for number, (name, (base, method)) in enumerate(methods.items())
    }


def added_by(sources: dict[str, Any], weights: dict[str, float]) -> dict[str, Tensor]:
    """The weighted sum of what plain `peft` adds to the weights by merging each."""
    before = build("llama").state_dict()
    found = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    for name, weight in weights.items():
        after = load_plain(build("llama"), sources[name].tuned).merge_and_unload().state_dict()
        for key, tensor in after.items():
            found[key] += weight * (tensor - before[key])
    return found


def parts(sources: dict[str, Any], weights: dict[str, float]) -> list[Part]:
    return [Part(name, sources[name], weight) for name, weight in weights.items()]


def saved(source: Any, combined: Combined, folder: Path) -> Path:
    folder.mkdir()
    save_plain(source, combined.adapter, folder, "sum", combined.made)
    return folder


def changes(folder: Path) -> dict[str, Tensor]:
    before = build("llama").state_dict()
    after = load_plain(build("llama"), folder).merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before}


def relative(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    left = sum(float((found[name] - exact[name]).double().square().sum()) for name in exact)
    return (left / sum(float(tensor.double().square().sum()) for tensor in exact.values())) ** 0.5


@pytest.mark.parametrize("name", ["a", "b", "wide"])
@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_one_adapter_of_weight_one_is_itself(name, how, sources, tmp_path):
    combined = combine(parts(sources, {name: 1.0}), how)
    assert combined.distance < 1e-5
    folder = saved(sources[name], combined, tmp_path / "sum")
    before = answers(load_plain(build("llama"), sources[name].tuned))
    assert difference(answers(load_plain(build("llama"), folder)), before) < 1e-5


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 0.7, "b": -0.4, "wide": 2.0}], ids=str)
def test_cat_is_the_exact_sum_whatever_ranks_and_targets(weights, sources, tmp_path):
    combined = combine(parts(sources, weights), "cat")
    assert combined.adapter.rank == sum({"a": 4, "b": 4, "wide": 16}[name] for name in weights)
    folder = saved(sources["a"], combined, tmp_path / "sum")
    assert relative(changes(folder), added_by(sources, weights)) < 1e-5 and combined.distance < 1e-5
    card = (folder / "README.md").read_text()
    assert all(f"{weight:g} x {name}" in card for name, weight in weights.items()) and "How: cat" in card
    assert "rsLoRA's" in card


@pytest.mark.parametrize("how", [how for how in HOWS if how != "cat"])
def test_every_other_way_says_how_far_it_is_from_the_sum(how, sources, tmp_path):
    weights = {"a": 1.0, "b": 0.5, "wide": 1.0}
    combined = combine(parts(sources, weights), how, seed=1)
    folder = saved(sources["a"], combined, tmp_path / "sum")
    assert relative(changes(folder), added_by(sources, weights)) == pytest.approx(combined.distance, rel=1e-3)
    assert combined.distance > 1e-3 and combined.adapter.rank == 16
    assert f"{combined.distance:.2g}" in (folder / "README.md").read_text()


def test_svd_comes_nearer_with_rank_and_chance_is_the_seed_s(sources):
    both = parts(sources, {"a": 1.0, "b": 1.0})
    found = [combine(both, "svd", rank=rank).distance for rank in (1, 3, 8)]
    assert found[0] > found[1] > found[2] and found[2] < 1e-5
    draws = [combine(both, "dare_linear", density=0.5, seed=seed) for seed in (1, 1, 2)]
    path = next(iter(draws[0].adapter.layers))
    assert torch.equal(draws[0].adapter.layers[path].a, draws[1].adapter.layers[path].a)
    assert not torch.equal(draws[0].adapter.layers[path].a, draws[2].adapter.layers[path].a)
    assert combine(both, "magnitude_prune", density=1.0).distance == pytest.approx(combine(both, "linear").distance)


def test_one_adapter_alone_is_thinned_and_cut_as_asked(sources):
    """Of one adapter the peft library makes its `linear`, whatever it is asked for."""
    alone = parts(sources, {"a": 1.0})
    for how in ("ties", "dare_ties", "dare_linear", "magnitude_prune"):
        combined = combine(alone, how, density=0.3)
        assert combined.distance > 0.1
        values = torch.cat([one.a.flatten() for one in combined.adapter.layers.values()])
        assert float((values != 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    cut = combine(alone, "svd", rank=2)
    assert cut.adapter.rank == 2 and cut.distance > 1e-3
    assert combine(alone, "svd", rank=100).adapter.rank == 4


def test_adapters_of_other_bases_are_refused_all_at_once(sources):
    with pytest.raises(VerificationError) as refused:
        combine(parts(sources, {"a": 1.0, "other": 1.0, "b": 1.0, "qwen": 1.0}), "cat")
    assert "other:" in refused.value.what and "qwen:" in refused.value.what and "b:" not in refused.value.what


def test_adapters_that_are_not_plain_are_refused_all_at_once(sources):
    with pytest.raises(EngineError) as refused:
        combine(parts(sources, {"a": 1.0, "dora": 1.0, "head": 1.0}), "cat")
    assert "dora: " in refused.value.what and "head: " in refused.value.what and "trained in full" in refused.value.what
    assert "adapters convert" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ("sum", {}, "no way 'sum'"),
        ("cat", {"rank": 4}, "a rank is for svd only"),
        ("svd", {"rank": 0}, "below 1"),
        ("linear", {"density": 0.5}, "a density is for"),
        ("ties", {"density": 1.5}, "no share of values"),
    ],
)
def test_settings_that_do_not_go_together(how, options, words, sources):
    with pytest.raises(RecipeError, match=words):
        combine(parts(sources, {"a": 1.0, "b": 1.0}), how, **options)


def test_all_that_is_wrong_with_the_settings_is_told_at_once(sources):
    twice = [Part("a", sources["a"]), Part("a", sources["b"], 0.0)]
    with pytest.raises(RecipeError, match=r"given twice: a; a weight is zero or no number: a; a rank is for svd only"):
        combine(twice, "cat", rank=3)
    with pytest.raises(RecipeError, match="no adapter is named"):
        combine([], "cat")
