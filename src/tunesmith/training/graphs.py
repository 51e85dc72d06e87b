"""Micro-batches as graphs: forward and backward pass captured once for each shape, and replayed with other numbers.

A small model on a GPU waits for the host, which launches a few thousand kernels a micro-batch; a graph is one launch.
Kernels and addresses in it are fixed. So batches are laid out in fixed shapes (`fixed_shapes`), read from tensors that
stay, and gradients are added to the optimiser's buffers, which stay as well.

A shape is computed the ordinary way the first `warm_ups` times, then captured. Its first replay is compared with the
ordinary computation of the same batch, another than the one it was captured on: loss, and every gradient. Where they
differ, or where something cannot be captured, all goes on the ordinary way, and `tell` hears why. Either way the batch
is computed in its fixed shape, so that what was captured when decides no bit.

What knows of CUDA is `CudaGraphs`; all else is the same for any `GraphDevice`, and checked on some without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.training.batching import Batch
from tunesmith.training.fixed_shapes import FixedInputs, Shape
from tunesmith.training.memory_model import Row, row_tokens
from tunesmith.training.objectives import BuiltObjective, LossSum, Objective, cross_entropy
from tunesmith.training.objectives.inputs import batch_weight
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.precision import precision
from tunesmith.training.sharding import ShardedModel

MOST = 32
"""Graphs kept. What is in other shapes is computed the ordinary way."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2
"""Relative, between a replay and the ordinary computation: attention adds up gradients in any order."""
_NOISE = 1e-2
"""Gradients smaller than this share of the largest are measured against that: one that is zero by mathematics (as of a
bias on all keys) is nothing but rounding."""
Work = Callable[[], None]


class GraphDevice(Protocol):
    """What can capture work."""

    def warm(self, work: Work) -> None:
        """Do it the ordinary way, where it will be captured."""
        ...

    def capture(self, work: Work) -> Work:
        """Capture it without doing it; what is returned does it, with what is in memory then."""
        ...


class CudaGraphs:
    """Capture on one CUDA device: a stream of its own, and a pool of memory that all graphs share.

    They may share it, in any order of replays, because nothing in it outlives a replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def warm(self, work: Work) -> None:
        now = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            work()
        now.wait_stream(self._stream)

    def capture(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile (sensors do).
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class Uncaptured:
    """Captures nothing and does the work again instead: fixed shapes where there are no graphs, to be checked."""

    def warm(self, work: Work) -> None:
        work()

    def capture(self, work: Work) -> Work:
        return work


def make_graphs(
    model: LanguageModel,
    plan: TrainingPlan,
    objective: Objective,
    rows: Sequence[Row],
    tell: Callable[[dict[str, Any]], None],
) -> MicroBatchGraphs | None:
    """Graphs for a training whose plan asks for them, or None; where they are not possible, `tell` hears why."""
    if not plan.cuda_graphs:
        return None
    reason = why_not(model, plan, objective)
    device = None if reason else graph_device(model.device)
    if device is None:
        tell(not_used(reason or f"there are none on {model.device.type}"))
        return None
    return MicroBatchGraphs(model, plan, max(map(row_tokens, rows)), device, tell)


def graph_device(device: torch.device) -> GraphDevice | None:
    """What captures on this device, or None."""
    return CudaGraphs(device) if device.type == "cuda" else None


def why_not(model: LanguageModel, plan: TrainingPlan, objective: Objective) -> str | None:
    """Why no micro-batch of this training can be captured, or None. See `acceleration.why_no_graphs` for the recipe."""
    function = objective.function if isinstance(objective, BuiltObjective) else objective
    reasons = {
        "only plain cross-entropy is captured": function is not cross_entropy,
        "noise on the embeddings is drawn on the host": bool(plan.neftune_alpha),
        "dropout draws other numbers each time": model.draws_chance,
        "each tensor is updated within the backward pass": plan.optimizer_in_backward,
        "weights are divided": isinstance(model, ShardedModel),
        "the layers lie on several devices": len({p.device for p in model.model.parameters()}) > 1,
        "common beginnings are computed once": plan.share_prefixes,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(slots=True)
class _Bucket:
    """What is kept for a shape: its inputs, the work on them, how often it was done, and its graph."""

    inputs: FixedInputs
    work: Work
    uses: int = 0
    replay: Work | None = None


class MicroBatchGraphs:
    """Adds the gradients of micro-batches to `.grad`, by replaying graphs where there are some.

    Attributes
    ----------
    refused: why nothing is captured any more, or None. replays: micro-batches that were replayed.
    """

    def __init__(
        self,
        model: LanguageModel,
        plan: TrainingPlan,
        longest: int,
        device: GraphDevice,
        tell: Callable[[dict[str, Any]], None],
        *,
        most: int = MOST,
        warm_ups: int = 2,
    ) -> None:
        self._model, self._plan, self._longest, self._device, self._tell = model, plan, longest, device, tell
        self._most, self._warm_ups = most, max(1, warm_ups)
        self._buckets: dict[Shape, _Bucket] = {}
        self._parameters = tuple(trainable_parameters(model.model).values())
        self._places: tuple[int, ...] = ()
        self._loss = torch.zeros((), dtype=torch.float64, device=model.device)
        self._scale = torch.ones((), device=model.device)
        self.refused: str | None = None
        self.replays = 0

    @property
    def captured(self) -> int:
        """Graphs there are."""
        return sum(bucket.replay is not None for bucket in self._buckets.values())

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes that were computed since the last `release`."""
        return tuple(self._buckets)

    def accumulate(self, batch: Batch, budget: int, scale: float = 1.0) -> LossSum:
        """Add the gradients of a batch (on the CPU) times `scale`; returns its loss, which the next call overwrites.

        budget: tokens up to which batches are filled. Needs the `packed` context.
        """
        if batch.packing.prefixes or batch.groups:
            raise EngineError("a batch of shared prefixes or pairs has no fixed shape", where="train.cuda_graphs")
        self._check_gradients()
        shape = Shape.of(batch, budget, self._longest)
        bucket = self._buckets.get(shape)
        if bucket is None:
            bucket = self._buckets[shape] = self._bucket(shape)
        self._scale.fill_(scale)
        first = self._due(bucket) and self._capture(bucket)  # while the inputs hold another batch
        bucket.inputs.fill(batch)
        if first:
            self._compare(bucket)
        if bucket.replay is None:
            self._device.warm(bucket.work)
        else:
            bucket.replay()
            self.replays += 1
        bucket.uses += 1
        return LossSum(self._loss, batch_weight(batch))

    def release(self) -> None:
        """Give up all graphs and their memory; shapes are warmed up and captured anew."""
        self._buckets.clear()

    def _bucket(self, shape: Shape) -> _Bucket:
        inputs = FixedInputs(shape, self._model.device)

        def work() -> None:
            with precision(self._model.device, self._plan):
                loss = self._model.loss_at(inputs.ids, inputs.packing, inputs.places, inputs.targets, inputs.weights)
            (loss * self._scale).backward()  # type: ignore[no-untyped-call]
            self._loss.copy_(loss.detach())

        return _Bucket(inputs, work)

    def _due(self, bucket: _Bucket) -> bool:
        unknown = bucket.replay is None and self.refused is None
        return unknown and bucket.uses >= self._warm_ups and self.captured < self._most

    def _capture(self, bucket: _Bucket) -> bool:
        """Whether a graph was captured. Work that waits for the device, or asks it something, cannot be."""
        try:
            bucket.replay = self._device.capture(bucket.work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no narrower class for what a capture does not permit
            self._refuse(f"this model's computation cannot be captured: {str(error).splitlines()[0][:200]}")
            return False
        return True

    def _compare(self, bucket: _Bucket) -> None:
        """Replay a new graph beside the ordinary computation, and drop it if they differ. `.grad` is then as before."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        ordinary = self._alone(lambda: self._device.warm(bucket.work), gradients)
        replayed = self._alone(bucket.replay, gradients)
        for gradient, kept in zip(gradients, before, strict=True):
            gradient.copy_(kept)
        sizes = [float(plain.double().norm()) for plain in ordinary]
        least = _NOISE * max(sizes[1:])
        for name, mine, plain, size in zip(("the loss", *self._names()), replayed, ordinary, sizes, strict=True):
            error = float((mine.double() - plain.double()).norm()) / max(size, least if mine.ndim else 0.0, 1e-30)
            if not error <= self._allowed():
                bucket.replay = None
                self._refuse(f"replayed, {name} differs by {error:.1e} from the ordinary computation")
                return

    def _alone(self, compute: Work | None, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The loss and the gradients of a computation by itself."""
        assert compute is not None
        for gradient in gradients:
            gradient.zero_()
        self._loss.zero_()
        compute()
        return [self._loss.clone(), *(gradient.clone() for gradient in gradients)]

    def _names(self) -> list[str]:
        return [name for name, p in trainable_parameters(self._model.model).items() if p.grad is not None]

    def _allowed(self) -> float:
        narrow = self._plan.precision != "fp32" or self._model.model.dtype in (torch.bfloat16, torch.float16)
        return _HALF_TOLERANCE if narrow else _TOLERANCE[self._model.model.dtype]

    def _check_gradients(self) -> None:
        """Graphs add to gradients where these were at the capture: they must be there, and stay."""
        if any(p.grad is None for p in self._parameters):
            raise EngineError("graphs need gradients that stay in memory", where="train.cuda_graphs")
        places = tuple(p.grad.data_ptr() for p in self._parameters if p.grad is not None)
        if places != self._places:
            self.release()
            self._places = places

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        for bucket in self._buckets.values():
            bucket.replay = None
        self._tell(not_used(reason))


def not_used(reason: str) -> dict[str, Any]:
    """The warning that micro-batches are computed without graphs."""
    return {"kind": "warning", "text": f"CUDA graphs are not used: {reason}", "code": "cuda_graphs", "count": 1}
