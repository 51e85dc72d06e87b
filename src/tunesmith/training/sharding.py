"""A base larger than one device: every process holds a share of each tensor (`train.sharding: fsdp`).

By `torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277): decoder layers gather their weights when
they are computed and give them back; gradients arrive summed and divided into shares; the optimiser sees a share only.

Embeddings, last norm and head form a group of their own, which is there from the beginning of a forward pass to the end
of the backward pass. `LanguageModel` calls the trunk and reads the head's weight itself, so what is wrapped is not the
model but the whole computation: everything that uses weights runs `inside`.

Every gathering is an appointment of all processes. So they compute equally many streams in each step, whatever their
rows (`ShardedModel.in_step`); they evaluate and generate the same rows together; and running out of memory in one
cannot be mended by that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.trunk import decoder_layers
from tunesmith.ops.packing import Packing
from tunesmith.training import processes
from tunesmith.training.batching import Batch
from tunesmith.training.objectives import LossSum, Objective

Result = TypeVar("Result")


def shard(model: LanguageModel, *, compute: torch.dtype | None = None, cpu_offload: bool = False) -> ShardedModel:
    """Divide the model's weights among all processes; layers move to this process's device one at a time.

    Adapters are attached before, parameters for the optimiser are taken after (`trainable_parameters`: shares).

    compute: type in which weights are gathered and used, gradients being summed in float32 (mixed precision of full
    tuning); None uses each as it is stored. cpu_offload: shares, gradients and optimiser states stay in the CPU's
    memory.

    Raises `ResourceError` where this process is alone or `torch` is too old.
    """
    if processes.count() == 1:
        raise ResourceError(
            "there is one process only, so nothing can be divided",
            where="train.sharding",
            fix="start several with --nproc, or set train.sharding: none",
        )
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ResourceError(
            f"torch {torch.__version__} cannot train sharded weights of which a process uses a part only",
            where="train.sharding",
            fix="install torch 2.13, or set train.sharding: none",
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (processes.count(),))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32 if compute else None)
    offload = CPUOffloadPolicy(pin_memory=kind == "cuda") if cpu_offload else OffloadPolicy()
    root = _Whole(model.model)
    for module in (*decoder_layers(model.trunk), root):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
        # Losses are sums, divided by the weight of all processes' rows once: gradients are added, not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    root.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")
    return ShardedModel(model.model, root, device)


class _Whole(nn.Module):
    """The root of the sharded modules: runs a computation while the weights outside of layers are there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return work()


class ShardedModel(LanguageModel):
    """A language model whose weights are divided among processes. All processes call all of its methods together."""

    def __init__(self, model: Any, root: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self._root, self._device = root, device

    @property
    def device(self) -> torch.device:
        """Where it computes; its shares may lie elsewhere."""
        return self._device

    def inside(self, work: Callable[[], Result]) -> Result:
        """Do what uses weights: a forward pass, a loss, an evaluation. Gradients flow from the tensors it returns.

        These are its result, the members of a tuple or the fields of a dataclass.
        """
        results: list[Result] = []

        def run() -> tuple[Tensor, ...]:
            results.append(work())
            return tuple(_tensors(results[0]))

        self._root(run)
        if not torch.is_grad_enabled():
            self._root.reshard()  # type: ignore[operator]
        return results[0]

    def objective(self, objective: Objective) -> Objective:
        """The objective, computed inside."""

        def sharded(model: LanguageModel, batch: Batch) -> LossSum:
            return self.inside(lambda: objective(model, batch))

        return sharded

    def verify(self) -> None:
        """As `LanguageModel.verify`."""
        with torch.no_grad():
            self.inside(super().verify)

    def in_step(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """This process's streams of a step, then as many backward passes of nothing as another one has streams more.

        Each stream must be followed by its backward pass before the next is asked for.
        """
        mine = list(batches)
        missing = max(processes.gather(len(mine))) - len(mine)
        yield from mine
        for _ in range(missing):
            with self.packed():
                self.inside(self._nothing).backward()  # type: ignore[no-untyped-call]

    def _nothing(self) -> Tensor:
        """Zero, by way of all layers: their weights are gathered, and gradients of zero are added to the sums."""
        ids = torch.zeros(1, dtype=torch.long, device=self.device)
        return self.hidden(ids, Packing.of([1], self.device)).sum() * 0.0


def full_tensors(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole parameters on the CPU, in the first process; nothing in others. All processes call it together.

    One tensor is gathered at a time, so devices hold little more than their shares.
    """
    tensors = {}
    for name, parameter in parameters.items():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if processes.first():
            tensors[name] = whole.detach().to("cpu", copy=True)
    return tensors


@torch.no_grad()
def load_full_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors, which every process has, to the parameters' shares, without communication."""
    for name, parameter in parameters.items():
        whole = tensors[name].to(parameter.dtype)
        if isinstance(parameter, DTensor):
            mine = parameter.to_local()
            moved = whole.to(parameter.device_mesh.device_type)
            mine.copy_(
                distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
            )
        else:
            parameter.copy_(whole)


def _tensors(result: object) -> Iterable[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if is_dataclass(result):
        members = [getattr(result, f.name) for f in fields(result)]
    else:
        members = list(result) if isinstance(result, tuple) else []
    return [m for m in members if isinstance(m, Tensor)]
