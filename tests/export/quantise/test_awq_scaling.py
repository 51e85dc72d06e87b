import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests import tiny
from tests.export.quantise import works
from tunesmith.export.quantise.awq_scaling import best_scale, scale_block
from tunesmith.export.quantise.calibration import Moments, begin
from tunesmith.export.quantise.gptq_rounding import output_error
from tunesmith.export.quantise.grid import Grid, rtn
from tunesmith.export.quantise.layers import blocks_of

GRID = Grid(4, 16, symmetric=False)


def test_large_inputs_get_finer_weights():
    """The errors of outputs shrink where a few inputs are far larger than the others."""
    made = torch.Generator().manual_seed(0)
    for seed in range(3):
        made.manual_seed(seed)
        x = torch.randn(500, 64, generator=made)
        x[:, ::13] *= 20
        weight = torch.randn(32, 64, generator=made)
        moments = Moments(x.t() @ x, x.abs().sum(0), 500)
        s, alpha = best_scale([weight], moments, GRID)
        plain = output_error(weight, rtn(weight, GRID).values(), moments.hessian)
        scaled = output_error(weight, rtn(weight * s, GRID).values() / s, moments.hessian)
        assert alpha > 0
        assert scaled < 0.7 * plain


def test_without_any_input_nothing_is_scaled():
    s, alpha = best_scale([torch.ones(8, 16)], Moments(torch.zeros(16, 16), torch.zeros(16)), GRID)
    assert alpha == 0
    assert torch.equal(s, torch.ones(16))


def test_heads_that_read_the_same_values_share_a_scale_that_is_no_worse_than_none():
    """What is large in one of two heads and small in the other: the scale that serves each alone serves not both."""
    made = torch.Generator().manual_seed(0)
    for seed in range(4):
        made.manual_seed(seed)
        x = torch.randn(500, 64, generator=made)
        x[:, :16:5] *= 30  # of the first of two heads of 16
        weight = torch.randn(32, 64, generator=made)
        weight[:, :16:5] *= 0.05
        moments = Moments(x.t() @ x, x.abs().sum(0), 500)
        s, _ = best_scale([weight], moments, GRID, (2, 16))
        by_head = s.view(-1, 2, 16)
        assert torch.equal(by_head[:, 0], by_head[:, 1])
        plain = output_error(weight, rtn(weight, GRID).values(), moments.hessian)
        assert output_error(weight, rtn(weight * s, GRID).values() / s, moments.hessian) <= plain


def test_grouped_queries_take_a_scaling_of_their_values_whether_or_not_the_width_of_a_head_is_named():
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    assert getattr(config, "head_dim", None) is None
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    model.model.layers[0].self_attn.v_proj.weight[::5] *= 20
    walk = begin(model, blocks_of(model), works.rows(8))
    done = scale_block(walk, model, GRID, dict.fromkeys(walk.block.linears, 4), torch.float32)
    into = {one.paths[0].rpartition(".")[2]: one.into for one in done}
    assert into["o_proj"] == "model.layers.0.self_attn.v_proj"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scaling_changes_no_answer(family, stored):
    """Norms that multiply by their weight and by one more, grouped queries, gates, norms with a bias: all by trying."""
    model = tiny.build(family).requires_grad_(False)
    if stored == torch.bfloat16:
        model = model.to(stored).to(torch.float32)  # what a file of that type holds
    shake(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.tensor([works.rows(1, 5)[0]])
    expected = model(ids).logits
    blocks = blocks_of(model)
    walk = begin(model, blocks, works.rows(8))
    done = []
    for block in blocks:
        done += scale_block(walk, model, GRID, dict.fromkeys(block.linears, 4), stored)
        walk.step()
    into = [one.into for one in done if one.into is not None]
    assert len(into) >= len(blocks)
    assert float((model(ids).logits - expected).abs().max() / expected.abs().max()) < 1e-4
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    for name in changed:
        if stored == torch.bfloat16 and "norm" in name and "bias" not in name:
            assert torch.equal(model.get_parameter(name).to(stored).float(), model.get_parameter(name))


def test_what_nothing_can_take_is_said_and_left():
    """GPT-2's inner layer is behind a curve, which no division passes through; its norms can take theirs."""
    model = tiny.build("gpt2").requires_grad_(False)
    shake(model)
    blocks = blocks_of(model)
    walk = begin(model, blocks, works.rows(8))
    before = model.transformer.h[0].mlp.c_proj.weight.clone()
    done = {
        one.paths[0]: one for one in scale_block(walk, model, GRID, dict.fromkeys(blocks[0].linears, 4), torch.float32)
    }
    assert done["transformer.h.0.attn.c_attn"].into == "transformer.h.0.ln_1"
    left = done["transformer.h.0.mlp.c_proj"]
    assert (left.into, left.alpha) == (None, 0.0)
    assert left.note
    assert torch.equal(model.transformer.h[0].mlp.c_proj.weight, before)


def shake(model: torch.nn.Module) -> None:
    """Norms that are not all ones, some below zero, and inputs of very different sizes."""
    made = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if p.dim() == 1 and "bias" not in name:
            p.add_((torch.randn(p.shape, generator=made)).to(torch.bfloat16).float())
