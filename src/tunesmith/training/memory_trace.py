"""What one forward and backward pass allocates, from shapes alone.

The real code (model, attention, adapters, objective, our autograd functions) runs on tensors without numbers
(`torch`'s fake tensors), and every memory block an operation makes is counted from its birth to its death. So the
figures hold for any architecture and for whatever the layers look like inside, cost no memory and no arithmetic, and
are those of the allocator itself: compared with it block by block they agreed to within 6 %. What is not seen is inside
kernels: their scratch space, and holes in the heap (see `memory_model`).

Our own compiled kernels write into tensors that torch has made; here they are called and do nothing. Where some other
operation cannot run without numbers (it asks for a value), the real model runs on two short cuts of the same documents,
and what they take is extrapolated as a straight line.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import trainable_parameters
from tunesmith.ops import pointwise_native
from tunesmith.text.types import Group, Sample
from tunesmith.training.batching import Batch, collate
from tunesmith.training.objectives import BuiltObjective, Objective
from tunesmith.training.optimizers import make_optimizer
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.precision import precision
from tunesmith.training.recompute import recompute_layers

_CUTS = (256, 512)
"""Tokens of the two short streams that a real model runs on where shapes are not enough."""


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Bytes that one micro-batch allocates above weights, gradients that are there already and optimiser.

    saved: kept from the forward for the backward pass. peak: held at once at most.
    """

    saved: int
    peak: int


@dataclass(frozen=True, slots=True)
class Answering:
    """Validation rows answered at once: how many prompts, and tokens of the longest, of an answer, and of what all
    prompts begin with (no more than the longest has)."""

    prompts: int
    prompt_tokens: int
    answer_tokens: int
    shared_tokens: int = 0


class Shapes:
    """A model, and the optimiser of its training, without numbers.

    Attributes
    ----------
    source: the model. model: a copy of it whose parameters and buffers take no memory; may be changed at will.
    """

    def __init__(self, model: Any) -> None:
        self.source = model
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        memo: dict[int, Any] = {id(t): self.mode.from_tensor(t) for t in _tensors_of(model)}
        with self.mode:
            self.model = copy.deepcopy(model, memo)
        for parameter in self.model.parameters():
            parameter.grad = None

    def change(self, attach: Callable[[Any], object]) -> None:
        """Let `attach` put adapters on the copy, or freeze a part. Raises `RuntimeError` if it needs numbers."""
        with self.mode:
            attach(self.model)

    def optimizer_bytes(self, plan: TrainingPlan, own: Mapping[str, nn.Parameter] | None = None) -> tuple[int, int]:
        """Bytes of the optimiser's state, and of gradients that are there for the whole training.

        `own`: parameters that the objective trains beside the model's. From here on the copy is one whose optimiser
        has been made; those of the objective are left alone.
        """
        with self.mode:
            flat = False if plan.optimizer_in_backward else None
            beside = {name: nn.Parameter(torch.empty_like(p)) for name, p in (own or {}).items()}
            optimizer = make_optimizer(trainable_parameters(self.model) | beside, plan, flat=flat)
        return optimizer.state_bytes(), sum(buffer.gradients.nbytes for buffer in optimizer.buffers)

    def step(
        self,
        batch: Batch,
        objective: Objective,
        plan: TrainingPlan,
        *,
        recompute: Collection[int] = (),
        gradients_there: bool = False,
    ) -> PassMemory:
        """The forward and backward pass over `batch`. Raises `RuntimeError` where shapes are not enough.

        gradients_there: whether an earlier micro-batch of the step has left gradients, which are then added to.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        parameters += own_parameters(objective).values()
        before = [p.grad for p in parameters]
        dropping = [p.register_post_accumulate_grad_hook(_drop) for p in parameters if plan.optimizer_in_backward]
        if gradients_there and not dropping:
            with self.mode:
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs = zip(parameters, before, strict=True)
        added = sum(p.grad.nbytes for p, old in pairs if old is None and p.grad is not None)
        try:
            taken = _run(LanguageModel(self.model), batch, objective, plan, recompute, self.mode)
        finally:
            for handle in dropping:
                handle.remove()
            for parameter, old in zip(parameters, before, strict=True):
                parameter.grad = old
        return replace(taken, peak=taken.peak + added)

    def answering(self, answers: Answering) -> int:
        """Bytes held at most while validation rows are answered: reading the prompts, or the last token of answers.

        Reading is run as the engine runs it: what all prompts begin with once, then the rest of all of them. At the
        last token the cache has all tokens, and one layer's part of it is there twice, as it is copied to grow.
        """
        ledger = Ledger(self.mode)
        ledger.ignore(_tensors_of(self.model))
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        own = max(1, answers.prompt_tokens - answers.shared_tokens)
        try:
            with torch.no_grad(), _idle_kernels(), ledger:
                cache = None
                if answers.shared_tokens:
                    ids = torch.zeros(1, answers.shared_tokens, dtype=torch.long, device=device)
                    cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
                    cache.batch_repeat_interleave(answers.prompts)
                ids = torch.zeros(answers.prompts, own, dtype=torch.long, device=device)
                seen = torch.ones(answers.prompts, answers.shared_tokens + own, dtype=torch.long, device=device)
                out = self.model(
                    input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                kept = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
                read: int = sum(t.nbytes for t in kept)
        finally:
            self.model.train(was_training)
        tokens = answers.shared_tokens + own
        # Without padding no mask is made; with it there is one, as truth values and as numbers.
        mask = 5 * answers.prompts * own * tokens if answers.prompts > 1 else 0
        grown = read * (tokens + answers.answer_tokens) / tokens
        last: int = round(grown * (1 + 2 / len(kept)))
        return max(ledger.peak + mask, last)


def measured_step(
    model: LanguageModel, batch: Batch, objective: Objective, plan: TrainingPlan, recompute: Collection[int] = ()
) -> PassMemory:
    """As `Shapes.step`, by running the real model on two short cuts of the batch's documents.

    What is kept for the backward pass grows with the tokens; what comes on top of it is taken as it was.
    """
    parameters = [p for p in model.model.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    points = []
    try:
        for tokens in _CUTS:
            short = _cut(batch, min(1.0, tokens / batch.tokens), model.device)
            for parameter in parameters:
                parameter.grad = None
            points.append((short.tokens, _run(model, short, objective, plan, recompute, None)))
    finally:
        for parameter, old in zip(parameters, before, strict=True):
            parameter.grad = old
    (few, small), (many, large) = points
    share = (batch.tokens - few) / (many - few) if many > few else 0.0
    saved = round(small.saved + share * (large.saved - small.saved))
    return PassMemory(saved, saved + max(small.peak - small.saved, large.peak - large.saved))


def _run(
    model: LanguageModel,
    batch: Batch,
    objective: Objective,
    plan: TrainingPlan,
    recompute: Collection[int],
    mode: FakeTensorMode | None,
) -> PassMemory:
    ledger = Ledger(mode)
    ledger.ignore(_tensors_of(model.model))
    was_training = model.model.training
    model.model.train()
    # Dropout draws from the generators; the training that follows must not notice.
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(model.packed())
            stack.enter_context(recompute_layers(model.model, recompute))
            if mode is not None:
                stack.enter_context(_idle_kernels())
            stack.enter_context(ledger)
            with precision(model.device, plan):
                said = objective(model, batch)
            saved = ledger.held
            said.loss.backward()  # type: ignore[no-untyped-call]
    finally:
        model.model.train(was_training)
    return PassMemory(saved, ledger.peak)


def own_parameters(objective: Objective) -> dict[str, nn.Parameter]:
    """What an objective trains beside the model."""
    return objective.parameters() if isinstance(objective, BuiltObjective) else {}


def _drop(parameter: Tensor) -> None:
    """An update within the backward pass ends with its gradient."""
    parameter.grad = None


class _Idle:
    """In place of a compiled library: every function is there, does nothing and reports success."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 0


@contextmanager
def _idle_kernels() -> Iterator[None]:
    """Within this, the functions of our compiled library do nothing: fake tensors have no memory they could work on."""
    there = pointwise_native.library
    if there() is None:
        yield
        return
    pointwise_native.library = lambda: _Idle()  # type: ignore[assignment, return-value]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield
    finally:
        pointwise_native.library = there


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this, every storage that an operation makes is counted while it lives.

    Operations on fake tensors make fake ones; others (on ids, weights, places in the stream) are done, as the code asks
    for their values.

    Attributes
    ----------
    held: bytes alive now. peak: bytes alive at most.
    """

    def __init__(self, mode: FakeTensorMode | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode, self.held, self.peak = mode, 0, 0
        self._known: dict[int, Any] = {}

    def ignore(self, tensors: Collection[Tensor]) -> None:
        """Do not count these and their gradients: they were there before."""
        for tensor in tensors:
            self._note(tensor, counted=False)
            if tensor.grad is not None:
                self._note(tensor.grad, counted=False)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.mode is not None and any(isinstance(t, FakeTensor) for t in _flat((*args, *(kwargs or {}).values()))):
            with self.mode:
                out = func(*map(self._fake, args), **{key: self._fake(value) for key, value in (kwargs or {}).items()})
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in _flat((out,)):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return out

    def _fake(self, value: Any) -> Any:
        """An operation's argument with fake tensors in place of real ones."""
        if isinstance(value, Tensor):
            return value if isinstance(value, FakeTensor) or self.mode is None else self.mode.from_tensor(value)
        return [self._fake(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _note(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.held += size
        self.peak = max(self.peak, self.held)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.held -= size


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Arguments or results of an operation, lists among them opened."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that modules hold as plain attributes."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *held]


def _cut(batch: Batch, share: float, device: torch.device) -> Batch:
    """A batch of the same documents, each cut to its first tokens."""
    rows = [_first(row, max(2, round(share * len(row.ids)))) for row in batch.rows]
    if not batch.groups:
        return collate(rows, device)
    labels: list[float | None] = [None] * len(batch.groups) if batch.labels is None else batch.labels.tolist()
    pairs = zip(batch.groups, labels, strict=True)
    return collate([Group(tuple(rows[i] for i in places), label) for places, label in pairs], device)


def _first(row: Sample, tokens: int) -> Sample:
    """The first tokens of a document; at least one of them is learnt, so that all of the objective runs."""
    weights = row.weights[:tokens].copy()
    if row.supervised and not weights.any():
        weights[-1] = row.weights.max()
    return Sample(row.ids[:tokens], weights, row.example_id)


@contextmanager
def only_trained(model: Any, parameters: Collection[str]) -> Iterator[None]:
    """Within this, only these of the model's trained parameters are."""
    others = [p for name, p in model.named_parameters() if p.requires_grad and name not in parameters]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
