"""An objective of the user's own: a function, or an `nn.Module` whose `forward` is one. Its parameters' names decide.

======================================  ===========================================================================
`(logits, targets)`, `weights` besides  logits [S, V] at supervised positions, tokens [S], weights [S]
`(output1, output2, label)`             pooled hidden states [G, H] of both texts of each pair, and their labels
`(model, batch)`                        everything: a `LanguageModel` and a `Batch`; returns `LossSum` or a mean
======================================  ===========================================================================

The first two return one loss per row, a mean, or a sum; which is measured (see `reduction`). They are computed chunk by
chunk and batch by batch, and what is learnt does not depend on how. Of `(model, batch)` nothing is known: a tensor it
returns counts as the mean of its batch. Further parameters are options.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.ops.token_loss import Chunk, FunctionLoss, head_loss
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.code import bind_options, call_users, load_attribute
from tunesmith.training.objectives.inputs import batch_weight, learnt_positions, pair_states, supervised
from tunesmith.training.objectives.reduction import ROWS, Reduction, measure, random_weights
from tunesmith.training.objectives.types import BuiltObjective, LossSum, Objective

Kind = Literal["tokens", "pairs", "batch"]
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "tokens": ("logits", "targets"),
    "pairs": ("output1", "output2", "label"),
    "batch": ("model", "batch"),
}
_SIGNATURES = "(logits, targets), (logits, targets, weights), (output1, output2, label) or (model, batch)"


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What of the base a user's class may ask for by these names, and where it is to live."""

    hidden_size: int
    vocab_size: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class UserLoss:
    """The user's function with its options: call it by keyword with what the engine gives; others are left out."""

    file: Path
    name: str
    kind: Kind
    call: Callable[..., Any]
    takes: tuple[str, ...]
    options: Mapping[str, Any]
    module: nn.Module | None = None

    @property
    def where(self) -> str:
        """For errors."""
        return f"train.objective: {self.file}:{self.name}"

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What it has to be trained."""
        return () if self.module is None else tuple(p for p in self.module.parameters() if p.requires_grad)

    def __call__(self, **given: Any) -> Any:
        arguments = {name: value for name, value in given.items() if name in self.takes}
        return call_users(self.call, self.file, {**arguments, **self.options})

    def follow(self, model: LanguageModel) -> None:
        """Train or evaluate as the model does (dropout)."""
        if self.module is not None and self.module.training != model.model.training:
            self.module.train(model.model.training)


def custom_objective(
    file: Path, name: str, options: Mapping[str, Any], base: BaseFacts, *, seed: int = 0
) -> BuiltObjective:
    """The objective behind `file.py:NAME`.

    A class gets `options` in `__init__` (`hidden_size` and `vocab_size` are filled in where it asks for them and no
    option gives them), and begins with random numbers of `seed`; a function gets them at each call. Raises
    `RecipeError` for a file, name, options or parameters that do not fit, and for a loss whose mean over rows would
    depend on how rows are grouped.
    """
    loss = load_loss(file, name, options, base, seed)
    make = {"tokens": _of_tokens, "pairs": _of_pairs, "batch": _of_batch}[loss.kind]
    with _undisturbed(loss, base.device):
        function = make(loss, base)
    pairs = None if loss.kind == "batch" else loss.kind == "pairs"
    return BuiltObjective(function, f"{file.name}:{name}", pairs, loss.module, file)


def load_loss(file: Path, name: str, options: Mapping[str, Any], base: BaseFacts, seed: int) -> UserLoss:
    """The user's function or module, with its kind and options; it has not been called yet."""
    found = load_attribute(file, name)
    where = f"train.objective: {file}:{name}"
    if inspect.isclass(found):
        if not issubclass(found, nn.Module):
            raise RecipeError(f"{name} is a class, but no torch.nn.Module", where=where, expected="class … (nn.Module)")
        known = {"hidden_size": base.hidden_size, "vocab_size": base.vocab_size}
        arguments = bind_options(found, options, what=name, known=known)
        with torch.random.fork_rng(devices=_cuda(base.device)):
            torch.manual_seed(seed)
            module = call_users(found, file, arguments).to(base.device)
        kind, takes = _kind(module.forward, where)
        bind_options(module.forward, {}, what=f"{name}.forward", given=takes)
        return UserLoss(file, name, kind, module, takes, {}, module)
    if not inspect.isfunction(found):
        raise RecipeError(f"{name} is neither a function nor a class", where=where, expected=_SIGNATURES)
    kind, takes = _kind(found, where)
    return UserLoss(file, name, kind, found, takes, bind_options(found, options, what=name, given=takes))


def _kind(call: Callable[..., Any], where: str) -> tuple[Kind, tuple[str, ...]]:
    """What a function's parameters mean, and which of them the engine fills."""
    names = list(inspect.signature(call).parameters)
    fitting: list[Kind] = [kind for kind, required in _REQUIRED.items() if set(required) <= set(names)]
    if len(fitting) != 1:
        raise RecipeError(
            f"it is not clear what to call it with: its parameters are ({', '.join(names)})",
            where=where,
            expected=f"parameters named {_SIGNATURES}; others are options",
        )
    kind = fitting[0]
    filled = (*_REQUIRED[kind], "weights") if kind == "tokens" else _REQUIRED[kind]
    return kind, tuple(name for name in filled if name in names)


def _of_tokens(loss: UserLoss, base: BaseFacts) -> Objective:
    reduction = _measured(loss, *_random_tokens(loss, base))

    def of_chunk(chunk: Chunk) -> Tensor:
        value = loss(logits=chunk.logits, targets=chunk.targets, weights=chunk.weights)
        return reduction.total(value, chunk.weights)

    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        positions = learnt_positions(batch)
        if reduction.ignores_weights:
            _refuse_weights(loss, batch)
            # A token that several documents share stands in the stream once and weighs as many; here it comes as often.
            positions = positions.repeat_interleave(batch.weights[positions].long())
        loss.follow(model)
        hidden, targets, weights = supervised(model, batch, positions)
        chunked = FunctionLoss(of_chunk, loss.parameters)
        total, _ = head_loss(hidden, *model.head(), targets, weights, model.rule, chunked)
        return LossSum(total, batch_weight(batch))

    return objective


def _of_pairs(loss: UserLoss, base: BaseFacts) -> Objective:
    reduction, shape = _label_shape(loss, base)

    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        loss.follow(model)
        first, second, label = pair_states(model, batch)
        value = loss(output1=first, output2=second, label=label.view(shape))
        return LossSum(reduction.total(value, torch.ones_like(label)), float(len(label)))

    return objective


def _label_shape(loss: UserLoss, base: BaseFacts) -> tuple[Reduction, tuple[int, ...]]:
    """The shape of labels, [G, 1] or [G], that a loss on pairs means, and what it returns.

    Textbook code differs in whether its distances are [G, 1] or [G]; labels of the other shape would silently be
    compared with every pair's distance. The right shape is the one with which many pairs mean what each means alone.
    """
    first, second, labels = _random_pairs(base)
    problems = []
    for shape in ((-1, 1), (-1,)):

        def of_rows(rows: Tensor, weights: Tensor, shape: tuple[int, ...] = shape) -> Tensor:
            result: Tensor = loss(output1=first[rows], output2=second[rows], label=labels[rows].view(shape))
            return result

        try:
            return _measured(loss, of_rows, torch.ones(ROWS, device=base.device)), shape
        except RecipeError as error:
            problems.append(error)
    raise problems[0]


def _of_batch(loss: UserLoss, base: BaseFacts) -> Objective:
    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        loss.follow(model)
        value = loss(model=model, batch=batch)
        if isinstance(value, LossSum):
            return value
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(f"it returns {shape}", where=loss.where, expected="LossSum, or a scalar tensor: a mean")
        weight = batch_weight(batch)
        return LossSum(value.reshape(()) * weight, weight)

    return objective


def _random_tokens(loss: UserLoss, base: BaseFacts) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Random positions, from little to much belief in the target, as a function of rows and weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(ROWS, base.vocab_size, generator=generator)
    targets = torch.randint(0, base.vocab_size, (ROWS,), generator=generator)
    logits[torch.arange(ROWS), targets] += torch.tensor([0.0, 2.0, 5.0, 9.0])
    logits, targets = logits.to(base.device).requires_grad_(), targets.to(base.device)

    def of_rows(rows: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = loss(logits=logits[rows], targets=targets[rows], weights=weights)
        return result

    return of_rows, random_weights(base.device)


def _random_pairs(base: BaseFacts) -> tuple[Tensor, Tensor, Tensor]:
    """Random pairs, from near to far, of both labels."""
    generator = torch.Generator().manual_seed(0)
    first, noise = torch.randn(2, ROWS, base.hidden_size, generator=generator)
    far = torch.tensor([[0.05], [0.3], [0.6], [1.0]])
    second = (1 - far) * first + far * noise
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    return first.to(base.device).requires_grad_(), second.to(base.device).requires_grad_(), labels.to(base.device)


def _measured(loss: UserLoss, of_rows: Callable[[Tensor, Tensor], Tensor], weights: Tensor) -> Reduction:
    found = measure(of_rows, weights)
    if isinstance(found, str):
        raise _not_a_loss(loss, found)
    return found


def _not_a_loss(loss: UserLoss, problem: str) -> RecipeError:
    rows = "position" if loss.kind == "tokens" else "pair"
    return RecipeError(
        f"tried on {ROWS} random {rows}s, it {problem}",
        where=loss.where,
        expected=f"one loss per {rows}, or their mean or sum over the {rows}s it is given",
        fix="return one loss per row; or take (model, batch) and return LossSum, which is used as it is",
    )


def _refuse_weights(loss: UserLoss, batch: Batch) -> None:
    if all(np.isin(row.weights, (0.0, 1.0)).all() for row in batch.rows):
        return
    raise RecipeError(
        "rows carry weights other than 1, and this loss returns a sum or mean without them",
        where=loss.where,
        expected="(logits, targets, weights), or one loss per position",
        fix="multiply by weights, or return one loss per position",
    )


@contextmanager
def _undisturbed(loss: UserLoss, device: torch.device) -> Iterator[None]:
    """Trying a loss leaves no trace: not in random numbers, not in its buffers."""
    with torch.enable_grad(), torch.random.fork_rng(devices=_cuda(device)):
        if loss.module is None:
            yield
            return
        before = copy.deepcopy(loss.module.state_dict())
        loss.module.eval()
        yield
        loss.module.load_state_dict(before)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
