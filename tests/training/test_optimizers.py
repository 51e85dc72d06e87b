"""Optimisers equal their plain references, resume with the same bits, and use the memory they say."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.tiny import build
from tests.training.small import PLAN
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.training.optimizers import (
    InBackward,
    Optimizer,
    adamw8,
    grad_norm_and_clip,
    make_optimizer,
    set_learning_rate,
    why_not_in_backward,
)
from tunesmith.training.optimizers import flat as flat_module
from tunesmith.training.optimizers.adamw8 import boundaries, decode, encode
from tunesmith.training.optimizers.optimizer import square_sum

FORMS = pytest.mark.parametrize("flat", [True, False], ids=["flat", "own"])


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, nn.Parameter]:
    """Matrices, vectors and both halves of an adapter, of sizes that need padding in a buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (13, 7),
        "layers.0.norm.weight": (7,),
        "layers.0.q.lora_A": (3, 7),
        "layers.0.q.lora_B": (5, 3),
        "layers.1.up.weight": (11, 7),
        "layers.1.up.bias": (11,),
    }
    return {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in shapes.items()}


def add_gradients(params: Mapping[str, nn.Parameter], seed: int, size: float = 1.0) -> None:
    """Gradients through autograd, as a backward pass adds them."""
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for p in params.values():
        loss = loss + (p.float() * torch.randn(p.shape, generator=generator) * size).sum()
    loss.backward()


def step(optimizer: Optimizer, params: Mapping[str, nn.Parameter], seed: int, norm: float = 1.0) -> float:
    """One step as the loop does it: two streams, division by a weight, clipping."""
    add_gradients(params, 2 * seed)
    add_gradients(params, 2 * seed + 1)
    value = grad_norm_and_clip(optimizer, norm, 1 / 40)
    optimizer.step()
    optimizer.zero_grad()
    return value


@FORMS
@pytest.mark.parametrize("norm", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_equals_torch_over_100_steps(flat, norm, dtype):
    plan = replace(PLAN, weight_decay=0.1, lora_plus_ratio=4.0, betas=(0.8, 0.95))
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = make_optimizer(ours, plan, flat=flat)
    groups = [
        {"params": [p], "weight_decay": 0.1 if p.ndim == 2 else 0.0, "ratio": 4.0 if n.endswith("lora_B") else 1.0}
        for n, p in theirs.items()
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=plan.betas, eps=plan.epsilon)
    for i in range(100):
        rate = 1e-2 * (1 - i / 100)
        set_learning_rate(optimizer, rate)
        said = step(optimizer, ours, i, norm)
        add_gradients(theirs, 2 * i)
        add_gradients(theirs, 2 * i + 1)
        for p in theirs.values():
            p.grad.div_(40)
        wanted = torch.nn.utils.clip_grad_norm_(list(theirs.values()), norm or math.inf)
        assert said == pytest.approx(float(wanted), rel=1e-5)
        for group in reference.param_groups:
            group["lr"] = rate * group["ratio"]
        reference.step()
        reference.zero_grad()
    start = parameters(dtype)
    for name, p in ours.items():
        assert (p - start[name]).abs().max() > 0.05, name
        torch.testing.assert_close(p, theirs[name], rtol=0, atol=1e-7 if dtype == torch.float64 else 3e-6, msg=name)
    far = max(float((p - theirs[n]).detach().norm() / theirs[n].detach().norm()) for n, p in ours.items())
    assert far <= 1e-7 if dtype == torch.float64 else far <= 1e-6


def test_flat_parameters_and_gradients_are_views_that_are_aligned_and_padded_with_zeros():
    params = parameters()
    before = {n: p.detach().clone() for n, p in params.items()}
    optimizer = make_optimizer(params, PLAN)
    (buffer,) = optimizer.buffers
    assert buffer.values.numel() > sum(p.numel() for p in params.values())
    for name, p in params.items():
        assert torch.equal(p, before[name])
        assert p.data_ptr() % 4 == 0 and (p.data_ptr() - buffer.values.data_ptr()) % 64 == 0
    assert len(optimizer.cells) == 2  # matrices and vectors
    step(optimizer, params, 0)
    covered = torch.zeros_like(buffer.values, dtype=torch.bool)
    for p, start in zip(buffer._parameters, buffer.starts, strict=True):
        covered[start : start + p.numel()] = True
    assert not buffer.values[~covered].any() and buffer.values[covered].all()
    assert [t.data_ptr() for t in optimizer.gradients()] == [buffer.gradients.data_ptr()]


def test_a_lost_view_is_an_error_not_a_lost_update():
    params = parameters()
    optimizer = make_optimizer(params, PLAN, flat=True)
    for p in params.values():
        p.grad = None
    add_gradients(params, 0)
    with pytest.raises(RuntimeError, match="zero_grad"):
        optimizer.clip(1.0)
    optimizer.zero_grad()
    params["embed.weight"].data = params["embed.weight"].detach().clone()
    with pytest.raises(RuntimeError, match="move the model"):
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_an_empty_share_is_no_trouble(kind):
    """As a process has of a tensor with fewer rows than there are processes."""
    params = {"w": nn.Parameter(torch.empty(0, 7)), "b": nn.Parameter(torch.ones(2))}
    optimizer = make_optimizer(params, replace(PLAN, optimizer=kind), flat=False)
    assert step(optimizer, params, 0) > 0 and params["w"].shape == (0, 7)


@FORMS
def test_tied_parameters_are_updated_once(flat):
    tied, alone = parameters(), parameters()
    optimizer = make_optimizer({**tied, "head.weight": tied["embed.weight"]}, PLAN, flat=flat)
    reference = make_optimizer(alone, PLAN, flat=flat)
    for i in range(3):
        step(optimizer, tied, i)
        step(reference, alone, i)
    assert all(torch.equal(tied[n], alone[n]) for n in tied)


@FORMS
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bitwise(flat, kind, dtype):
    plan = replace(PLAN, optimizer=kind)
    shapes = {"layers.0.w": (96, 80), "layers.0.b": (96,), "embed": (50, 100)}

    def fresh() -> dict[str, nn.Parameter]:
        torch.manual_seed(3)
        return {n: nn.Parameter(torch.randn(s).to(dtype)) for n, s in shapes.items()}

    straight = fresh()
    optimizer = make_optimizer(straight, plan, flat=flat)
    for i in range(6):
        step(optimizer, straight, i)
        if i == 2:
            file = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "p": {n: p.detach() for n, p in straight.items()}}, file)
            file.seek(0)
            kept = torch.load(file, weights_only=True)
    resumed = fresh()
    optimizer = make_optimizer(resumed, plan, flat=flat)
    with torch.no_grad():
        for n, p in resumed.items():
            p.copy_(kept["p"][n])
    optimizer.load_state_dict(kept["optimizer"])
    for i in range(3, 6):
        step(optimizer, resumed, i)
    assert all(torch.equal(straight[n], resumed[n]) for n in straight)


def test_a_checkpoint_of_other_parameters_is_refused():
    optimizer = make_optimizer(parameters(), PLAN)
    state = optimizer.state_dict()
    del state["state"]["embed.weight"]
    with pytest.raises(ResourceError, match=r"no optimiser state of embed\.weight"):
        make_optimizer(parameters(), PLAN).load_state_dict(state)
    muon = make_optimizer(parameters(), replace(PLAN, optimizer="muon")).state_dict()
    with pytest.raises(ResourceError, match="another form"):
        make_optimizer(parameters(), PLAN).load_state_dict(muon)


@FORMS
def test_half_precision_keeps_masters_and_sums_gradients_in_float32(flat):
    """Updates far below what bfloat16 holds must add up, and small gradients must not vanish beside a large sum."""
    p = nn.Parameter(torch.ones(64, 2, dtype=torch.bfloat16))
    optimizer = make_optimizer({"layers.0.w": p}, replace(PLAN, weight_decay=0.0), flat=flat)
    set_learning_rate(optimizer, 1e-4)
    for _ in range(100):
        (p.float() * 1.0).sum().backward()
        for _ in range(64):
            (p.float() * 2.0**-10).sum().backward()
        assert p.grad.dtype == torch.float32 and float(p.grad[0, 0]) == 1 + 64 * 2.0**-10
        optimizer.step()
        optimizer.zero_grad()
    assert p.dtype == torch.bfloat16
    # 100 times 1e-4: each alone is lost on a bfloat16 of 1
    assert float(p.detach()[0, 0]) == pytest.approx(0.99, abs=2e-3)


@FORMS
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "muon"])
def test_gradients_that_are_not_finite_change_nothing(flat, kind):
    torch.manual_seed(0)
    params = {"layers.0.w": nn.Parameter(torch.randn(80, 64)), "b": nn.Parameter(torch.randn(9))}
    optimizer = make_optimizer(params, replace(PLAN, optimizer=kind), flat=flat)
    step(optimizer, params, 0)
    before = {n: p.detach().clone() for n, p in params.items()}
    state = {n: {k: t.clone() for k, t in s.items()} for n, s in optimizer.state_dict()["state"].items()}
    add_gradients(params, 1)
    params["layers.0.w"].grad[3, 3] = math.inf
    assert math.isinf(grad_norm_and_clip(optimizer, 1.0, 0.5))
    optimizer.step()
    optimizer.zero_grad()
    assert all(torch.equal(p, before[n]) for n, p in params.items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[n][k], t) for n, s in state.items() for k, t in s.items())
    step(optimizer, params, 2)
    assert all(not torch.equal(p, before[n]) and p.isfinite().all() for n, p in params.items())


def test_lora_plus_ratio_survives_the_schedule():
    model = build("llama")
    attach_lora(model, LoraSettings(4, 8), seed=0)
    params = trainable_parameters(model)
    optimizer = make_optimizer(params, replace(PLAN, lora_plus_ratio=16.0, weight_decay=0.0))
    before = {n: p.detach().clone() for n, p in params.items()}
    set_learning_rate(optimizer, 1e-5)
    add_gradients(params, 0)
    optimizer.step()
    moved = {n: float((p - before[n]).detach().abs().median()) for n, p in params.items()}
    assert {round(m * 1e5) for n, m in moved.items() if n.endswith("lora_A")} == {1}
    assert {round(m * 1e5) for n, m in moved.items() if n.endswith("lora_B")} == {16}


def test_own_gradients_that_are_missing_leave_parameters_alone():
    params = parameters()
    optimizer = make_optimizer(params, PLAN, flat=False)
    before = params["embed.weight"].detach().clone()
    add_gradients({n: p for n, p in params.items() if n != "embed.weight"}, 0)
    assert grad_norm_and_clip(optimizer, 0.0, 1.0) > 0
    optimizer.step()
    assert torch.equal(params["embed.weight"], before)
    optimizer.zero_grad()
    assert len(optimizer.gradients()) == len(params) and all(not g.any() for g in optimizer.gradients())


def test_the_form_is_chosen_by_size(monkeypatch):
    assert make_optimizer(parameters(), PLAN).buffers
    assert not make_optimizer(parameters(), replace(PLAN, optimizer_in_backward=True)).buffers
    monkeypatch.setattr(flat_module, "LARGEST", 100)
    assert not make_optimizer(parameters(), PLAN).buffers


def test_mixed_types_get_a_buffer_each():
    params = {**parameters(), "half": nn.Parameter(torch.randn(5, dtype=torch.bfloat16))}
    optimizer = make_optimizer(params, PLAN)
    assert sorted(str(b.values.dtype) for b in optimizer.buffers) == ["torch.float32"] * 2
    assert {b._held.dtype for b in optimizer.buffers} == {torch.float32, torch.bfloat16}
    assert step(optimizer, params, 0) > 0


def test_an_integer_parameter_is_refused():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RecipeError, match=r"int8 and cannot be trained"):
        make_optimizer({"w": weight}, PLAN)


def test_norms_of_many_values_are_exact():
    values = torch.full((20_000_001,), 1e-3)
    exact = values.numel() * float(values[0].double()) ** 2
    assert float(square_sum(values)) == pytest.approx(exact, rel=2e-5)
    odd = torch.randn(5, 3).t()
    assert float(square_sum(odd)) == pytest.approx(float(odd.double().square().sum()), rel=1e-6)


def test_no_copy_of_all_gradients_is_made():
    """The norm and the update of one large tensor allocate a small part of its size."""
    p = nn.Parameter(torch.randn(1 << 20))
    optimizer = make_optimizer({"w": p}, PLAN, flat=True)
    (p * p.detach()).sum().backward()
    with torch.profiler.profile(profile_memory=True) as seen:
        optimizer.clip(1.0, 0.1)
        optimizer.step()
        optimizer.zero_grad()
    largest = max(e.cpu_memory_usage for e in seen.events())
    assert largest < p.numel() * 4 / 100


def test_block_quantisation_keeps_seven_decades():
    torch.manual_seed(0)
    exponents = torch.rand(64, 256) * 7 - 7
    values = torch.randn(64, 256).sign() * 10**exponents
    for signed, x in ((True, values), (False, values.abs())):
        codes, scale = encode(x, signed=signed)
        assert codes.dtype == torch.uint8
        back = decode(codes, scale, signed=signed)
        off = (back - x).abs()
        assert bool((off <= 0.009 * scale[:, None]).all())  # at most half an interval of the top decade
        large = x.abs() > 0.1 * scale[:, None]
        assert float((off / x.abs())[large].max()) < (0.08 if signed else 0.04)
        small = x.abs() > 1e-5 * scale[:, None]
        assert float((off / x.abs())[small].median()) < 0.06
    zero = torch.zeros(1, 256)
    assert not decode(*encode(zero, signed=True), signed=True).any()
    tiny = torch.full((1, 256), 1e-30)
    tiny[0, 0] = 1.0
    assert bool((decode(*encode(tiny, signed=False), signed=False) > 0).all())  # never divided by nothing


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_a_search_in_the_table(signed):
    """Also at the ends of the intervals and one float beside them."""
    ends = boundaries(signed)
    beside = [torch.nextafter(ends, ends.new_tensor(towards)) for towards in (-2.0, 2.0)]
    values = torch.cat([ends, *beside, torch.randn(3000), 10 ** (-9 * torch.rand(3000))]).clamp(-1, 1)
    values = torch.nn.functional.pad(values if signed else values.abs(), (0, -len(values) % 255)).view(-1, 255)
    values = torch.nn.functional.pad(values, (0, 1), value=1.0)  # so that each block's scale is one
    codes, scale = encode(values, signed=signed)
    assert bool((scale == 1).all()) and len(codes.unique()) > 240
    assert torch.equal(codes.long(), torch.bucketize(values, ends))


def test_8_bit_states_take_a_quarter_and_small_tensors_keep_float32():
    params = {"w": nn.Parameter(torch.zeros(512, 256)), "b": nn.Parameter(torch.zeros(512))}
    eight = make_optimizer(params, replace(PLAN, optimizer="adamw_8bit"), flat=False)
    n, small = 512 * 256, 512
    assert eight.state_bytes() == 2 * n + 2 * 4 * n // 256 + 2 * 4 * small + 2 * 4
    full = make_optimizer(params, PLAN, flat=False)
    assert eight.state_bytes() < 0.27 * full.state_bytes()


@pytest.mark.parametrize("numel", [4096, 5000, 3 * 2048 + 777])
@pytest.mark.parametrize(("decades", "allowed"), [(1, 0.06), (4, 0.12)])
def test_8_bit_updates_are_close_to_adamw(numel, decades, allowed, monkeypatch):
    """Over 60 steps of a noisy gradient whose sizes differ by so many decades within each block."""
    monkeypatch.setitem(adamw8._CHUNK, "cpu", 2048)
    torch.manual_seed(1)
    sizes = 10 ** (torch.rand(numel) * decades - decades)
    ours, theirs = nn.Parameter(torch.zeros(numel)), nn.Parameter(torch.zeros(numel))
    eight = make_optimizer({"w": ours}, replace(PLAN, optimizer="adamw_8bit"))
    full = make_optimizer({"w": theirs}, PLAN)
    for _ in range(60):
        g = (torch.randn(numel) * 0.5 + 1) * sizes
        ours.grad.copy_(g)
        theirs.grad.copy_(g)
        eight.step()
        full.step()
    assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < allowed
    assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().mean()) < 2  # none runs away


def language_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def curve(kind: str, steps: int = 40) -> list[float]:
    """Losses of full tuning on a small language: each token follows from the one before it."""
    model = build("llama").train()
    generator = torch.Generator().manual_seed(5)
    following = torch.randperm(300, generator=generator)
    plan = replace(PLAN, optimizer=kind, weight_decay=0.01, learning_rate=5e-3)
    optimizer = make_optimizer(trainable_parameters(model), plan)
    losses = []
    for _ in range(steps):
        rows = [torch.randint(0, 300, (8,), generator=generator)]
        for _ in range(15):
            rows.append(following[rows[-1]])
        loss = language_loss(model, torch.stack(rows, dim=1))
        loss.backward()
        grad_norm_and_clip(optimizer, 1.0, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def test_loss_curves_of_8_bit_and_float32_are_close():
    full, eight = curve("adamw"), curve("adamw_8bit")
    assert full[-1] < 0.75 * full[0]
    assert max(abs(a - b) / a for a, b in zip(full, eight, strict=True)) < 0.02


def test_updates_in_the_backward_pass_equal_those_after_it():
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (4, 12))
    plan = replace(PLAN, max_grad_norm=0.0)
    after, within = build("gemma2").train(), build("gemma2").train()
    plain = make_optimizer(trainable_parameters(after), plan, flat=False)
    hooked = make_optimizer(trainable_parameters(within), plan, flat=False)
    norms = []
    with InBackward(hooked) as updates:
        for i in range(5):
            for optimizer in (plain, hooked):
                set_learning_rate(optimizer, 1e-3 / (i + 1))
            (44 * language_loss(after, ids)).backward()
            norm = grad_norm_and_clip(plain, 0.0, 1 / 44)
            plain.step()
            plain.zero_grad()
            updates.prepare(1 / 44)
            (44 * language_loss(within, ids)).backward()
            norms.append((norm, updates.grad_norm()))
            assert all(p.grad is None for p in within.parameters())
    assert all(a == pytest.approx(b, rel=1e-9) and a > 0 for a, b in norms)
    for (name, a), b in zip(after.named_parameters(), within.parameters(), strict=True):
        assert torch.equal(a, b), name
    language_loss(within, ids).backward()  # the hooks are gone
    assert all(p.grad is not None for p in within.parameters())


def test_updates_in_the_backward_pass_never_hold_all_gradients():
    """Of eight equal layers, at most two gradients exist at a time."""
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    optimizer = make_optimizer(dict(layers.named_parameters()), replace(PLAN, max_grad_norm=0.0), flat=False)
    held = []

    def watch(_: torch.Tensor) -> None:
        held.append(sum(p.grad is not None for p in layers.parameters()))

    with InBackward(optimizer) as updates:
        for p in layers.parameters():
            p.register_post_accumulate_grad_hook(watch)
        updates.prepare(1.0)
        layers(torch.randn(3, 64)).square().sum().backward()
    assert len(held) == 8 and max(held) <= 1


def test_a_second_backward_pass_in_a_step_is_refused():
    p = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer({"w": p}, PLAN, flat=False)
    with InBackward(optimizer) as updates:
        updates.prepare(1.0)
        p.sum().backward()
        assert updates.grad_norm() == pytest.approx(math.sqrt(3))
        with pytest.raises(RuntimeError, match="without `prepare`"):
            p.sum().backward()
    with pytest.raises(ValueError, match="flat"):
        InBackward(make_optimizer({"w": p}, PLAN, flat=True))


def test_reasons_against_updates_in_the_backward_pass():
    free = replace(PLAN, max_grad_norm=0.0)
    assert why_not_in_backward(free) is None
    assert "max_grad_norm" in str(why_not_in_backward(PLAN))
    assert "3 streams" in str(why_not_in_backward(free, streams=3))
    assert "processes" in str(why_not_in_backward(free, processes=2))
    assert "fp16" in str(why_not_in_backward(replace(free, precision="fp16")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_cuda_updates_equal_those_of_the_cpu(kind):
    shapes = {"layers.0.w": (96, 80), "layers.0.b": (96,)}
    torch.manual_seed(0)
    start = {n: torch.randn(s) for n, s in shapes.items()}
    ended = {}
    for device in ("cpu", "cuda"):
        params = {n: nn.Parameter(t.to(device)) for n, t in start.items()}
        optimizer = make_optimizer(params, replace(PLAN, optimizer=kind))
        for i in range(10):
            generator = torch.Generator().manual_seed(i)
            for p in params.values():
                p.grad.copy_(torch.randn(p.shape, generator=generator))
            optimizer.clip(1.0, 0.5)
            optimizer.step()
            optimizer.zero_grad()
        ended[device] = {n: p.detach().cpu() for n, p in params.items()}
    for n in shapes:
        moved = (ended["cpu"][n] - start[n]).norm()
        assert float((ended["cpu"][n] - ended["cuda"][n]).norm() / moved) < (1e-4 if kind == "adamw" else 0.02)
