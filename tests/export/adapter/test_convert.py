"""Adapters as plain LoRA: the same logits where it is exact, the error that is said where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.made import made_run, made_source, recipe_of
from tests.models.peft_side import answers, difference, load_plain, plain_adapter
from tests.tiny import build, save_base
from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.adapter import Converted, save_plain, to_plain_lora
from tunesmith.export.adapter.low_rank import LowRank, best_part, of_matrix
from tunesmith.export.adapter.proving import prove_same
from tunesmith.export.source import open_folders, open_source
from tunesmith.export.types import StepError
from tunesmith.models.servable import servable_file
from tunesmith.recipe import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore")

EXACT: dict[str, tuple[dict[str, Any], int, int]] = {
    "lora": ({}, 4, 0),
    "pissa": ({"init": "pissa"}, 8, 0),
    "rslora": ({"use_rslora": True}, 4, 1),
    "olora, rslora, ranks": ({"init": "olora", "use_rslora": True, "rank_pattern": {"q_proj|c_attn": 2}}, 8, 3),
    "alphas": ({"alpha_pattern": {"down_proj|c_proj": 3.0}}, 4, 1),
    "ranks and alphas": ({"rank_pattern": {"down_proj|c_proj": 6}, "alpha_pattern": {"q_proj|c_attn": 5.0}}, 6, 2),
    "nf4": ({"quantize": "nf4"}, 4, 0),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in ("llama", "qwen3", "gpt2")}


def saved(source: Any, adapter: Converted, folder: Path) -> Path:
    folder.mkdir()
    save_plain(source, adapter, folder, "converted", ["Made of: something"])
    return folder


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_exact_gives_the_same_logits_in_plain_peft(family, name, bases, tmp_path):
    method, rank, changes = EXACT[name]
    source, _ = made_source(tmp_path / "run", recipe_of(bases[family], method))
    before = answers(load_plain(build(family), source.tuned))
    adapter = to_plain_lora(source)
    assert adapter.exact and adapter.error == 0 and adapter.rank == rank and len(adapter.changes) == changes
    folder = saved(source, adapter, tmp_path / "plain")
    assert difference(answers(load_plain(build(family), folder)), before) < 1e-6
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"] and "rank_pattern" not in config and "alpha_pattern" not in config
    names = [f"{path}.lora_A.weight" for path in adapter.layers]
    verdicts = {one.server: one.ok for one in servable_file(config, names, source.config)}
    assert verdicts == {"peft": True, "vllm": family != "gpt2", "gguf": True, "onnx": True}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_is_proved_and_what_is_not_the_same_is_refused(name, dtype, bases, tmp_path):
    """A light adapter: in half precision its whole change is smaller than the rounding of the logits."""
    folder, _ = made_run(tmp_path / "run", recipe_of(bases["llama"], EXACT[name][0], dtype=dtype), std=0.003)
    source = open_source(folder, load_recipe(folder.recipe_file))
    adapter = to_plain_lora(source)
    assert prove_same(source, saved(source, adapter, tmp_path / "plain")) < (0.03 if dtype == "bfloat16" else 1e-5)
    halved = saved(source, replace(adapter, scale=adapter.scale / 2), tmp_path / "halved")
    with pytest.raises(VerificationError, match=r"(logits|changes of weights) of the converted adapter differ"):
        prove_same(source, halved)
    last = sorted(adapter.layers)[-1]
    without = saved(
        source, replace(adapter, layers={p: one for p, one in adapter.layers.items() if p != last}), tmp_path / "less"
    )
    with pytest.raises(VerificationError, match="of the converted adapter differ"):
        prove_same(source, without)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_peft_left_in_is_taken_out(start, bases, tmp_path):
    """As plain `peft` saves them, such adapters belong to a base that lacks what they began with."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    before = answers(plain_adapter(build("qwen3"), tmp_path / "theirs", **options, init_lora_weights=start))
    source = open_folders(str(bases["qwen3"]), tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    verdicts = {
        one.server: one for one in servable_file(config, ["model.layers.0.q_proj.lora_A.weight"], source.config)
    }
    assert verdicts["peft"].ok and not verdicts["vllm"].ok and start in verdicts["gguf"].reasons[-1]
    adapter = to_plain_lora(source)
    assert adapter.exact and adapter.rank == 8 and start in adapter.changes[0]
    assert difference(answers(load_plain(build("qwen3"), saved(source, adapter, tmp_path / "plain"))), before) < 1e-5


def change_of(family: str, folder: Path) -> dict[str, Tensor]:
    """What plain `peft` adds to each weight by merging."""
    before = {name: tensor.clone() for name, tensor in build(family).state_dict().items()}
    after = load_plain(build(family), folder).merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


@pytest.mark.parametrize(
    "method",
    [
        {"use_dora": True},
        {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}},
        {"type": "peft", "peft_type": "LOKR", "peft_options": {"r": 4}},
        {"type": "peft", "peft_type": "OFT", "peft_options": {"oft_block_size": 4, "r": 0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_has_only_a_nearest_lora_says_its_error(family, method, bases, tmp_path):
    if family == "gpt2" and method.get("peft_type") in ("LOHA", "LOKR", "OFT"):
        pytest.skip("peft has these on nn.Linear only")
    source, _ = made_source(tmp_path / "run", recipe_of(bases[family], method))
    with pytest.raises(StepError, match="plain LoRA can only come near it") as refused:
        to_plain_lora(source)
    assert "--rank N or --max-error" in refused.value.instead and "merge it" in refused.value.instead
    found = {}
    truth = change_of(family, source.tuned)
    for rank in (1, 4, 32):
        adapter = to_plain_lora(source, rank=rank)
        assert adapter.rank == rank and not adapter.exact and adapter.worst is not None
        left = whole = 0.0
        for path, layer in adapter.layers.items():
            exact = truth[f"{path}.weight"].t() if family == "gpt2" else truth[f"{path}.weight"]
            left += float((adapter.scale * layer.b @ layer.a - exact).double().square().sum())
            whole += float(exact.double().square().sum())
        assert adapter.layers.keys() == {name.removesuffix(".weight") for name in truth}
        assert adapter.error == pytest.approx((left / whole) ** 0.5, abs=2e-4)
        found[rank] = adapter.error
    assert found[1] > found[4] > found[32] and found[32] < 1e-4 and found[1] > 0.05
    # all of it at full rank is the method itself
    full = saved(source, to_plain_lora(source, rank=32), tmp_path / "full")
    assert difference(answers(load_plain(build(family), full)), answers(load_plain(build(family), source.tuned))) < 1e-4


def test_the_lowest_rank_within_an_error(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], {"use_dora": True}))
    adapter = to_plain_lora(source, max_error=0.3)
    assert adapter.worst is not None and adapter.error <= adapter.worst[1] <= 0.3
    below = to_plain_lora(source, rank=adapter.rank - 1)
    assert below.worst is not None and below.worst[1] > 0.3
    assert to_plain_lora(source, rank=2, max_error=0.3).rank == 2


def test_plain_lora_is_cut_to_a_lower_rank_on_request(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], {"rank": 8}))
    assert to_plain_lora(source, rank=20).rank == 8 and to_plain_lora(source, rank=20).exact
    adapter, whole = to_plain_lora(source, rank=3), to_plain_lora(source)
    assert adapter.rank == 3 and 0 < adapter.error < 1 and "cut from rank 8 to 3" in adapter.changes
    path, worst = adapter.worst or ("", 0.0)
    exact, cut = whole.layers[path], adapter.layers[path]
    assert float((cut.b @ cut.a - exact.b @ exact.a).norm() / (exact.b @ exact.a).norm()) == pytest.approx(
        worst, rel=1e-3
    )
    assert to_plain_lora(source, max_error=0.999).rank == 1


def test_what_no_lora_can_hold_is_refused_with_all_reasons(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], {"modules_to_save": ["lm_head", "model.norm"]}))
    with pytest.raises(StepError, match=r"lm_head, model.norm trained in full") as refused:
        to_plain_lora(source, rank=4)
    assert "merge it" in refused.value.instead
    full, _ = made_source(tmp_path / "full", recipe_of(bases["llama"], {"type": "full"}))
    with pytest.raises(StepError, match="tuned in full"):
        to_plain_lora(full)
    slim, _ = made_source(tmp_path / "slim", recipe_of(bases["qwen3"], {"type": "bottleneck", "bottleneck_size": 8}))
    with pytest.raises(StepError, match="non-linearity"):
        to_plain_lora(slim, rank=4)
    norms, _ = made_source(tmp_path / "norms", recipe_of(bases["llama"], {"type": "peft", "peft_type": "LN_TUNING"}))
    with pytest.raises(StepError, match=r"which is no linear layer|changes no linear layer"):
        to_plain_lora(norms, rank=4)
    for wrong in ({"rank": 0}, {"max_error": 0.0}, {"max_error": 1.5}):
        with pytest.raises(RecipeError):
            to_plain_lora(source, **wrong)


def test_two_thin_matrices_are_as_good_as_the_wide_one():
    torch.manual_seed(0)
    thin = LowRank(torch.randn(6, 30), torch.randn(20, 6))
    wide, values = of_matrix(thin.b @ thin.a, 3, None)
    ours = best_part(thin, 3)
    assert torch.allclose(ours.b @ ours.a, wide.b @ wide.a, atol=1e-4) and len(values) == 20
    padded = thin.padded(9)
    assert padded.rank == 9 and torch.equal(padded.b @ padded.a, thin.b @ thin.a)
