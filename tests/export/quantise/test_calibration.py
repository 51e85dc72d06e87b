import pytest
import torch
from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

from tests import tiny
from tests.export.quantise import works
from tunesmith.export.quantise.calibration import begin, within
from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.layers import blocks_of, fits, group_size, set_weight, weight_of
from tunesmith.export.quantise.quantising import head_of, whole_layers
from tunesmith.export.types import StepError


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_go_through_the_layers_as_through_the_model(family):
    """Windows, rotations and masks of each layer are those of the model: the states behind the last layer are, too."""
    model = tiny.build(family)
    rows = works.rows(3)
    walk = begin(model, blocks_of(model), rows)
    for _ in walk.blocks:
        walk.step()
    for row, states in zip(rows, walk.states, strict=True):
        hidden = model(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
        trunk = getattr(model, model.base_model_prefix)
        norm = getattr(trunk, "norm", None) or trunk.ln_f
        assert torch.allclose(norm(states), hidden[-1], atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_moments_are_those_of_what_each_layer_reads(family):
    model = tiny.build(family)
    rows = works.rows(4)
    blocks = blocks_of(model)
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in blocks[0].linears}
    handles = [
        module.register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args[0][0].detach()))
        for path, module in blocks[0].linears.items()
    ]
    for row in rows:
        model(torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    _, moments = begin(model, blocks, rows).inputs()
    assert moments.keys() == blocks[0].linears.keys()
    for path, states in seen.items():
        x = torch.cat(states)
        assert torch.allclose(moments[path].hessian, x.t() @ x, rtol=1e-3, atol=1e-3)
        assert torch.allclose(moments[path].size, x.abs().sum(0), rtol=1e-3, atol=1e-3)
        assert moments[path].tokens == len(x) == sum(map(len, rows))


def test_who_reads_the_same_is_told_with_who_gave_it():
    model = tiny.build("llama")
    shared, _ = begin(model, blocks_of(model), works.rows(2)).inputs()
    layer = "model.layers.0"
    assert [tuple(path.rpartition(".")[2] for path in one.paths) for one in shared] == [
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ]
    assert [one.producer for one in shared] == [
        f"{layer}.input_layernorm",
        None,
        f"{layer}.post_attention_layernorm",
        None,
    ]
    assert shared[3].before[0] == f"{layer}.mlp.up_proj"


def test_no_more_rows_are_read_than_tokens_allow():
    assert within([[1] * 4, [], [2] * 4, [3] * 4], 8) == [[1] * 4, [2] * 4]
    assert within([[1] * 9, [2]], 5) == [[1] * 5]
    assert within([], 5) == []


def test_heads_tied_or_not_are_never_cut():
    for family in tiny.FAMILIES:
        model = tiny.build(family)
        paths = {path for block in blocks_of(model) for path in block.linears}
        head = next(path for path, module in model.named_modules() if module is model.get_output_embeddings())
        assert head not in paths
        assert all(fits(model.get_submodule(path)) for path in paths)


def test_a_head_is_known_by_what_it_does_and_not_by_its_name():
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(**sizes))
    assert head_of(model) == "embed_out"
    assert head_of(model) not in whole_layers(model, {})
    assert head_of(tiny.build("llama")) == "lm_head"


def test_groups_fit_every_layer():
    assert group_size(blocks_of(tiny.build("llama"))) == 16  # 32 and 48 inputs
    assert group_size(blocks_of(tiny.build("gpt2"))) == 32  # 32 and 128


def test_a_weight_put_back_is_the_same_whichever_way_it_lies():
    for family, path in (("llama", "model.layers.0.mlp.up_proj"), ("gpt2", "transformer.h.0.mlp.c_fc")):
        module = tiny.build(family).get_submodule(path)
        before = module.weight.clone()
        x = torch.randn(2, 32)
        assert torch.allclose(module(x), x @ weight_of(module).t() + (0 if module.bias is None else module.bias))
        set_weight(module, weight_of(module).clone())
        assert torch.equal(module.weight, before)


def test_a_model_without_layers_to_cut_says_what_works_instead():
    model = tiny.build("llama")
    model.model.layers = torch.nn.ModuleList([*model.model.layers, torch.nn.Identity()])
    with pytest.raises(StepError, match="decoder layers") as told:
        blocks_of(model)
    assert told.value.instead


def test_divergence_is_nothing_for_the_same_model_and_something_for_another():
    model = tiny.build("llama")
    reference = Reference.of(model, works.rows(4))
    assert reference.divergence(model) == pytest.approx(0, abs=1e-6)
    assert reference.agreement(model) == 1
    other = tiny.build("llama", seed=1)
    rows = [torch.tensor([row]) for row in reference.rows]
    expected = [
        torch.nn.functional.kl_div(
            other(row).logits.log_softmax(-1)[0], model(row).logits.log_softmax(-1)[0], log_target=True, reduction="sum"
        )
        for row in rows
    ]
    mean = float(sum(one.detach() for one in expected)) / sum(row.shape[1] for row in rows)
    assert reference.divergence(other) == pytest.approx(mean, rel=1e-4)
    assert reference.agreement(other) < 0.5
