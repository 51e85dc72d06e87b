"""Weights divided among processes, or layers among devices, train as whole ones do."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import build, ragged_samples
from tests.training.small import PLAN
from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.trunk import decoder_layers
from tunesmith.text.types import Sample
from tunesmith.training import processes
from tunesmith.training.batching import micro_batches
from tunesmith.training.launch import launch
from tunesmith.training.objectives import Objective, cross_entropy
from tunesmith.training.optimizers import Optimizer, grad_norm_and_clip, make_optimizer
from tunesmith.training.placement import moved, plan_layers, spread
from tunesmith.training.sharding import ShardedModel, full_tensors, load_full_tensors, shard

PROJECT = Path(__file__).resolve().parents[2]
CASES = (("llama", "full", "adamw"), ("qwen3", "lora", "adamw"), ("gemma2", "full", "adamw_8bit"))
ROWS = ragged_samples((9, 3, 7, 12, 12, 20, 5, 9, 14, 6, 2), seed=1)
STEPS = (ROWS[:5], ROWS[5:6], ROWS[6:], ROWS[:3], ROWS[3:])  # the second leaves one process without rows


def tunable(family: str, method: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    model = build(family).to(dtype).train()
    if method == "lora":
        attach_lora(model, LoraSettings(5, 8), seed=0)  # of a rank that does not divide evenly
    return LanguageModel(model)


def step(model: LanguageModel, optimizer: Optimizer, rows: list[Sample], objective: Objective) -> tuple[float, float]:
    """Loss and gradient norm of one optimiser step, as the loop takes it."""
    total, weight = 0.0, 0.0
    batches = micro_batches(processes.share(rows), 12, model.device)
    with model.packed():
        for batch in model.in_step(batches) if isinstance(model, ShardedModel) else batches:
            said = objective(model, batch)
            said.loss.backward()
            total, weight = total + float(said.loss.detach()), weight + said.weight
    total, weight = processes.sum_gradients(optimizer.gradients(), [total, weight])
    norm = grad_norm_and_clip(optimizer, 0.5, 1 / weight)
    optimizer.step()
    optimizer.zero_grad()
    return total / weight, norm


def whole(family: str, method: str, kind: str) -> dict[str, Any]:
    """What a training in one process ends with."""
    model = tunable(family, method)
    parameters = trainable_parameters(model.model)
    optimizer = make_optimizer(parameters, replace(PLAN, optimizer=kind))
    facts = [step(model, optimizer, rows, cross_entropy) for rows in STEPS]
    return {"facts": facts, "weights": {n: p.detach().clone() for n, p in parameters.items()}, **answers(model)}


def answers(model: LanguageModel) -> dict[str, Tensor]:
    """Greedy tokens after a prompt."""
    model.model.eval()
    ids = torch.arange(5, 12, device=model.device)[None]
    with torch.no_grad():
        said = model.model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
    model.model.train()
    return {"answer": said.cpu()}


def divided(family: str, method: str, kind: str) -> dict[str, Any]:
    """The same in several processes that hold a share each; interrupted after the third step and gone on with."""
    file = io.BytesIO()  # of this process: states are those of its shares
    ended: list[dict[str, Any]] = []
    for begin in (0, 3):
        model = shard(tunable(family, method))
        model.verify()
        parameters = trainable_parameters(model.model)
        optimizer = make_optimizer(parameters, replace(PLAN, optimizer=kind))
        if begin:
            file.seek(0)
            kept = torch.load(file, weights_only=True)
            tensors = processes.first_only(lambda kept=kept: kept["weights"])
            load_full_tensors(parameters, tensors)
            optimizer.load_state_dict(kept["optimizer"])
        facts = []
        for number, rows in enumerate(STEPS[begin:], begin):
            if number == 3 and not begin:
                torch.save({"weights": full_tensors(parameters), "optimizer": optimizer.state_dict()}, file)
            facts.append(step(model, optimizer, rows, model.objective(cross_entropy)))
        with torch.no_grad():
            said = model.inside(lambda model=model: answers(model))
        shares = sum(p.to_local().numel() for p in parameters.values())
        ended.append({"facts": facts, "weights": full_tensors(parameters), "shares": shares, **said})
    straight, resumed = ended
    assert straight["facts"][3:] == resumed["facts"]
    assert all(torch.equal(resumed["weights"][n], w) for n, w in straight["weights"].items())
    return straight


def divided_in_bfloat16() -> dict[str, Any]:
    """Full tuning of float32 shares that are used in bfloat16, and kept in the CPU's memory."""
    model = shard(tunable("llama", "full", torch.float32), compute=torch.bfloat16, cpu_offload=True)
    parameters = trainable_parameters(model.model)
    optimizer = make_optimizer(parameters, PLAN)
    seen: set[str] = set()
    hook = model.model.get_input_embeddings().register_forward_hook(lambda *call: seen.add(str(call[2].dtype)))
    facts = [step(model, optimizer, rows, model.objective(cross_entropy)) for rows in STEPS]
    hook.remove()
    held = {str(t.dtype) for p in parameters.values() for t in (p, *optimizer.gradients())}
    return {"facts": facts, "used": sorted(seen), "held": sorted(held), "weights": full_tensors(parameters)}


PROGRAM = """
import sys
from pathlib import Path
import torch
from tests.training import test_sharding
from tunesmith.training import processes

torch.set_num_threads(1)
with processes.joined():
    ended = [test_sharding.divided(*case) for case in test_sharding.CASES]
    ended.append(test_sharding.divided_in_bfloat16())
    torch.save(ended, Path(sys.argv[1]) / f"{processes.rank()}.pt")
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two processes ended with, per case."""
    return in_two_processes(tmp_path_factory.mktemp("sharded"), "")


def in_two_processes(folder: Path, gpus: str) -> list[list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{PROJECT / 'src'}{os.pathsep}{PROJECT}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        told: list[str] = []
        assert launch([sys.executable, "-c", PROGRAM, str(folder)], 2, 0, told.append) == 0, told
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_divided_weights_train_as_whole_ones(sharded, number):
    alone = whole(*CASES[number])
    first, second = (ended[number] for ended in sharded)
    exact = CASES[number][2] == "adamw"  # blocks of 8-bit states begin elsewhere in shares
    for ended in (first, second):
        for ours, theirs in zip(ended["facts"], alone["facts"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9 if exact else 1e-3)
        assert torch.equal(ended["answer"], alone["answer"])
    assert set(first["weights"]) == set(alone["weights"]) and not second["weights"]
    for name, weight in alone["weights"].items():
        error = float((first["weights"][name] - weight).norm() / weight.norm())
        assert error <= (1e-9 if exact else 1e-2), name
    total = sum(w.numel() for w in alone["weights"].values())
    assert first["shares"] + second["shares"] == total
    assert abs(first["shares"] - second["shares"]) < 0.15 * total


@pytest.mark.slow
def test_divided_weights_can_be_used_in_bfloat16(sharded):
    model = tunable("llama", "full", torch.float32)
    parameters = trainable_parameters(model.model)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = make_optimizer(parameters, PLAN)
    alone = [step(model, optimizer, rows, cross_entropy) for rows in STEPS]
    ended = sharded[0][-1]
    assert ended["used"] == ["torch.bfloat16"] and ended["held"] == ["torch.float32"]
    for ours, theirs in zip(ended["facts"], alone, strict=True):
        assert ours == pytest.approx(theirs, rel=0.05) and ours != theirs
    moved_there = torch.cat([(ended["weights"][n] - w).flatten() for n, w in start.items()])
    moved_here = torch.cat([(parameters[n].detach() - w).flatten() for n, w in start.items()])
    assert float(torch.cosine_similarity(moved_there, moved_here, dim=0)) > 0.9


def test_one_process_alone_cannot_divide():
    with pytest.raises(ResourceError, match="one process only"):
        shard(tunable("llama", "full"))


def test_tensors_of_one_process_are_whole():
    parameters = {"w": nn.Parameter(torch.randn(3, 2))}
    kept = full_tensors(parameters)
    assert torch.equal(kept["w"], parameters["w"]) and kept["w"].data_ptr() != parameters["w"].data_ptr()
    load_full_tensors(parameters, {"w": torch.ones(3, 2)})
    assert bool((parameters["w"] == 1).all())


def test_layers_fill_devices_evenly_and_in_order():
    assert plan_layers([10] * 6, 0, [100, 100]) == (0, 0, 0, 1, 1, 1)
    assert plan_layers([10] * 6, 20, [100, 100]) == (0, 0, 1, 1, 1, 1)  # the first holds embeddings and head too
    assert plan_layers([10] * 6, 0, [100, 50]) == (0, 0, 0, 0, 1, 1)
    assert plan_layers([10, 30, 10, 10], 0, [40, 40, 40]) == (0, 1, 2, 2)
    assert plan_layers([10] * 3, 5, [40]) == (0, 0, 0)
    with pytest.raises(ResourceError, match=r"0\.1 GiB, the devices have 0\.0 \+ 0\.0"):
        plan_layers([10 << 20] * 6, 0, [20 << 20, 30 << 20])
    with pytest.raises(ResourceError):
        plan_layers([10], 50, [40, 100])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_layers_on_two_devices_compute_the_same(family):
    """Both are the CPU, so what is proved is that placing and moving change nothing."""
    plain, parted = (LanguageModel(build(family).train()) for _ in range(2))
    assert spread(parted, ["cpu", "cpu"], [1 << 19, 1 << 18])[-1] == 1
    gradients = []
    for model in (plain, parted):
        with model.packed():
            for batch in micro_batches(ROWS, 40):
                cross_entropy(model, batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.model.named_parameters()})
    assert all(torch.equal(gradients[1][n], g) for n, g in gradients[0].items())


def test_a_layer_elsewhere_has_everything_brought_to_it(monkeypatch):
    """Computed on the device without data: every tensor of the call is there, and the result goes back."""
    model = LanguageModel(build("llama"))
    spread(model, ["cpu", "meta"], [1 << 18, 100_000])
    layers = decoder_layers(model.trunk)
    assert {p.device.type for p in layers[1].parameters()} == {"meta"}
    others = [p for n, p in model.model.named_parameters() if ".layers.1." not in n]
    assert {p.device.type for p in others} == {"cpu"} and model.device.type == "cpu"
    assert model.model.get_output_embeddings().weight is model.model.get_input_embeddings().weight
    seen: list[set[str]] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append({t.device.type for t in every_tensor((args, kwargs))})

    layers[1].register_forward_pre_hook(watch, with_kwargs=True)
    monkeypatch.setattr(layers[1].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
    with model.packed(), pytest.raises(NotImplementedError, match="meta"):
        for batch in micro_batches(ROWS, 400):
            model.hidden(batch.ids, batch.packing)
    assert seen == [{"meta"}]


def every_tensor(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in every_tensor(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in every_tensor(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for name in value.__dataclass_fields__ for t in every_tensor(getattr(value, name))]
    return []


class Pair(NamedTuple):
    left: Tensor
    right: int


@dataclass(frozen=True)
class Holder:
    tensors: tuple[Tensor, ...]
    name: str


def test_tensors_in_collections_are_moved_and_nothing_is_copied_in_vain():
    t = torch.ones(2)
    value = {"a": [t, Pair(t, 3)], "b": Holder((t,), "x"), "c": None, "d": "text"}
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert moved(value, cpu) is value
    there = moved(value, meta)
    assert there["a"][1].left.is_meta and there["a"][1].right == 3 and isinstance(there["a"][1], Pair)
    assert there["b"].tensors[0].is_meta and there["b"].name == "x" and there["c"] is None
    assert len(every_tensor(there)) == 3 and not value["a"][0].is_meta


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_weights_divided_among_gpus_train_as_whole_ones(tmp_path):
    first, second = in_two_processes(tmp_path, "0,1")
    for number, case in enumerate(CASES):
        alone = whole(*case)
        for ended in (first[number], second[number]):
            for ours, theirs in zip(ended["facts"], alone["facts"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-6 if case[2] == "adamw" else 1e-3)
    assert first[-1]["used"] == ["torch.bfloat16"] and first[-1]["held"] == ["torch.float32"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_on_two_gpus_give_the_gradients_of_one():
    one, two = (LanguageModel(build("qwen3").train()) for _ in range(2))
    one.model.cuda()
    assert spread(two, ["cuda:0", "cuda:1"], [1 << 19, 1 << 19])[-1] == 1
    gradients = []
    for model in (one, two):
        with model.packed():
            for batch in micro_batches(ROWS, 40, model.device):
                cross_entropy(model, batch).loss.backward()
        gradients.append({n: p.grad.cpu() for n, p in model.model.named_parameters()})
    for name, g in gradients[0].items():
        assert float((gradients[1][name] - g).norm()) <= 1e-5 * float(g.norm()), name
