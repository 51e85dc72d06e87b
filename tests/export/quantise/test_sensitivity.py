from itertools import pairwise

import pytest
import torch

from tests import tiny
from tests.export.quantise import works
from tunesmith.errors import RecipeError
from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.grid import Grid
from tunesmith.export.quantise.layers import blocks_of, group_size
from tunesmith.export.quantise.quantising import by_gptq
from tunesmith.export.quantise.sensitivity import Sensitivity, _first_true, _ladder, plan, plan_bits, split
from tunesmith.export.types import StepError

ROWS = works.rows(32)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_bound_is_held_by_fewer_bytes_than_int8(family):
    """Held when the model is quantised by that plan anew, on rows that it was not fitted to."""
    model = tiny.build(family).requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fitted, measured = split(ROWS)
    bound = 0.5 * cut(tiny.build(family), 4, fitted, measured)
    made = plan(model, ROWS, bound=bound)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    again = cut(tiny.build(family), made.bits, fitted, measured)
    assert again == pytest.approx(made.divergence, abs=1e-6)
    assert again <= bound
    uniform = {b: sum(one.bytes[b] for one in made.sensitivities) for b in (4, 8)}
    assert uniform[4] < made.bytes < uniform[8]
    assert {4, 8} <= set(made.bits.values()) | {4, 8}
    assert len(set(made.bits.values())) > 1


def test_layers_that_servers_fuse_have_one_precision():
    made = plan(tiny.build("llama").requires_grad_(False), ROWS, bound=0.02)
    for layer in range(2):
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            bits = {b for path, b in made.bits.items() if f".{layer}." in path and path.endswith(names)}
            assert len(bits) == 1


def test_a_bound_that_only_the_whole_model_holds_gives_the_whole_model():
    made = plan(tiny.build("llama").requires_grad_(False), ROWS, bound=1e-9)
    assert made.divergence <= 1e-9
    assert set(made.bits.values()) == {16}


def test_a_wide_bound_gives_the_fewest_bits_everywhere():
    made = plan(tiny.build("llama").requires_grad_(False), ROWS, bound=5.0)
    assert set(made.bits.values()) == {4}


def test_what_is_worst_alone_is_ranked_first():
    """Where all layers but one part hardly add anything, that part is found to be what may not be cut."""
    model = tiny.build("llama").requires_grad_(False)
    for path in ("0.self_attn.o_proj", "0.mlp.down_proj", "1.self_attn.o_proj"):
        model.get_submodule(f"model.layers.{path}").weight *= 0.01
    facts = plan(model, ROWS, bound=0.05, method="rtn").facts()
    worst = [path for one in facts["sensitivity"][:2] for path in one["layers"]]
    assert sorted(worst) == [f"model.layers.1.mlp.{name}_proj" for name in ("down", "gate", "up")]
    kls = [max(one["kl"].values()) for one in facts["sensitivity"]]
    assert kls == sorted(kls, reverse=True)
    assert all(one["kl"]["16"] == 0 <= one["kl"]["8"] <= one["kl"]["4"] for one in facts["sensitivity"])


def test_the_step_that_buys_most_per_byte_is_taken_first():
    cheap = Sensitivity(("a",), {4: 0.4, 8: 0.1, 16: 0.0}, {4: 10, 8: 20, 16: 40})
    dear = Sensitivity(("b",), {4: 0.5, 8: 0.1, 16: 0.0}, {4: 1000, 8: 2000, 16: 4000})
    states = _ladder([cheap, dear], (4, 8, 16))
    assert states[0] == (4, 4)
    assert states[1] == (8, 4)
    assert states[-1] == (16, 16)
    assert all(sum(before) < sum(after) for before, after in pairwise(states))


def test_of_steps_that_buy_the_same_the_shorter_is_taken():
    same = Sensitivity(("a",), {4: 0.0, 8: 0.0, 16: 0.0}, {4: 10, 8: 20, 16: 40})
    assert _ladder([same], (4, 8, 16)) == [(4,), (8,), (16,)]


@pytest.mark.parametrize("likely", [0, 7, 12, 20, 39])
@pytest.mark.parametrize("needed", [0, 3, 13, 20, 38, 39])
def test_the_first_place_within_the_bound_is_found_with_few_measurements(likely, needed):
    asked: list[int] = []

    def measure(place: int) -> float:
        asked.append(place)
        return 0.0 if place >= needed else 1.0

    place, value = _first_true(measure, likely, 39, 0.5)
    assert (place, value) == (max(likely, needed), 0.0)
    assert len(asked) == len(set(asked)) <= 11


def test_rows_that_are_measured_on_are_not_fitted_to():
    fitted, measured = split(ROWS)
    assert len(fitted) + len(measured) == len(ROWS)
    assert not {tuple(row) for row in fitted} & {tuple(row) for row in measured}
    assert split([[1, 2], [3]]) == ([[1, 2]], [[1, 2]])


def test_what_cannot_be_planned_is_told():
    model = tiny.build("llama")
    with pytest.raises(StepError, match="no calibration rows"):
        plan(model, [], bound=0.1)
    with pytest.raises(RecipeError, match="bound"):
        plan(model, ROWS, bound=0)
    with pytest.raises(RecipeError, match="5 bits"):
        plan(model, ROWS, bits=(4, 5), bound=0.1)


def test_a_source_is_planned_for_in_a_folder_of_its_own(tmp_path):
    base = works.base(tmp_path / "base", "llama")
    told: list[str] = []
    made = plan_bits(works.Whole(base), ROWS, 0.02, told.append)
    assert made.divergence <= 0.02
    assert any("planning" in line for line in told)


def test_a_writer_that_is_given_a_bound_makes_the_plan(tmp_path):
    base = works.base(tmp_path / "base", "llama")
    done = works.write(works.Whole(base), tmp_path / "out", "gptq", "int4", ROWS, mixed=0.02)
    assert done.facts["plan"]["divergence"] <= 0.02
    assert done.facts["calibration_kl"] == done.facts["plan"]["divergence"], "what was planned is what was written"
    assert done.facts["layers"] == done.facts["plan"]["layers"]
    assert len(done.facts["layers"]) > 1


def cut(model, bits, fitted, measured) -> float:
    """Divergence of a model quantised by GPTQ with these bits, in all layers or by layer."""
    model.requires_grad_(False)
    reference = Reference.of(model, measured)
    blocks = blocks_of(model)
    every = {path: bits if isinstance(bits, int) else bits[path] for block in blocks for path in block.linears}
    group = group_size(blocks)
    by_gptq(model, blocks, every, lambda b: Grid(b, group), fitted, lambda line: None)
    return reference.divergence(model)
