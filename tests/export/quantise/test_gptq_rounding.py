import pytest
import torch

from tunesmith.export.quantise.gptq_rounding import NotPositiveError, gptq, output_error
from tunesmith.export.quantise.grid import Grid, rtn

SHAPES = [(16, 32, 16), (8, 64, 64), (24, 40, 16), (3, 200, 32), (5, 300, 256)]
ORDERS = ["stored", "activity", "activity-in-groups"]


def layer(out: int, inputs: int, seed: int, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of inputs that go together and differ in size."""
    made = torch.Generator().manual_seed(seed)
    causes = max(1, inputs // 4)
    x = torch.randn(tokens, causes, generator=made) @ torch.randn(causes, inputs, generator=made)
    x = (x + 0.3 * torch.randn(tokens, inputs, generator=made)) * torch.linspace(0.1, 3, inputs)
    return torch.randn(out, inputs, generator=made), x.t() @ x


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("out", "inputs", "group"), SHAPES)
def test_outputs_are_nearer_than_when_every_weight_is(out, inputs, group, order, bits):
    for seed in range(3):
        weight, hessian = layer(out, inputs, seed)
        plain = output_error(weight, rtn(weight, Grid(bits, group)).values(), hessian)
        fitted = output_error(weight, gptq(weight, hessian, Grid(bits, group), order=order).values(), hessian)
        assert fitted < 0.8 * plain


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "inputs", "group"), SHAPES)
def test_inputs_that_say_nothing_of_each_other_leave_the_nearest(out, inputs, group, symmetric, order):
    weight, _ = layer(out, inputs, 0)
    grid = Grid(4, group, symmetric)
    fitted, plain = gptq(weight, torch.eye(inputs), grid, order=order), rtn(weight, grid)
    for name in ("codes", "scales", "zeros", "groups"):
        assert torch.equal(getattr(fitted, name), getattr(plain, name))


def test_it_finds_what_the_best_of_all_codes_nearly_is():
    """Of a single output with three inputs, all 4096 choices are tried on the grid that was taken."""
    for seed in range(5):
        weight, hessian = layer(1, 3, seed)
        found = gptq(weight, hessian, Grid(4, 3), order="activity-in-groups")
        scale, zero = found.scales.float(), found.zeros.float()
        every = torch.cartesian_prod(*[torch.arange(16.0)] * 3)
        wrong = weight - (every - zero) * scale
        best = float(((wrong @ hessian) * wrong).sum(1).min())
        plain = output_error(weight, rtn(weight, Grid(4, 3)).values(), hessian)
        ours = output_error(weight, found.values(), hessian)
        assert best <= ours <= plain * 1.001


def test_only_the_order_of_activity_makes_groups_that_are_no_runs():
    weight, hessian = layer(8, 64, 0)
    groups = {order: gptq(weight, hessian, Grid(4, 16), order=order).groups for order in ORDERS}
    runs = torch.arange(64) // 16
    assert torch.equal(groups["stored"], runs)
    assert torch.equal(groups["activity-in-groups"], runs)
    assert not torch.equal(groups["activity"], runs)
    assert groups["activity"].bincount().tolist() == [16, 16, 16, 16]


def test_inputs_that_were_never_seen_are_rounded_to_the_nearest():
    weight, hessian = layer(8, 32, 0)
    hessian[5], hessian[:, 5] = 0, 0
    found = gptq(weight, hessian, Grid(4, 32), order="activity-in-groups")
    assert torch.equal(found.codes[:, 5], rtn(weight, Grid(4, 32)).codes[:, 5])


def test_fewer_tokens_than_inputs_are_enough():
    weight, hessian = layer(8, 64, 0, tokens=5)
    found = gptq(weight, hessian, Grid(4, 16)).values()
    assert output_error(weight, found, hessian) < output_error(weight, rtn(weight, Grid(4, 16)).values(), hessian)


def test_moments_that_are_no_numbers_are_told():
    weight, hessian = layer(8, 32, 0)
    hessian[0, 0] = torch.nan
    with pytest.raises(NotPositiveError):
        gptq(weight, hessian, Grid(4, 16))
