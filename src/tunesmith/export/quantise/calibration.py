"""What goes into each linear layer when a model reads calibration rows, one decoder layer after the other.

The hidden states of all rows are held, and the second moments of one decoder layer's inputs at a time: memory is bound
by rows and the widest layer, not by depth. After a layer was quantised it is run again, so that the next one is fitted
to what it will really be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.export.quantise.layers import Block, weight_of
from tunesmith.export.types import StepError

TOKENS = 8_192
"""Calibration tokens that are read at most; more change the moments little and cost time."""


@dataclass(slots=True)
class Moments:
    """Of the inputs of one or more linear layers: Σ x xᵀ [in, in], Σ |x| [in], and how many tokens."""

    hessian: Tensor
    size: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        self.hessian.addmm_(flat.t(), flat)
        self.size += flat.abs().sum(0)
        self.tokens += len(flat)


@dataclass(frozen=True, slots=True)
class Shared:
    """Linear layers of a decoder layer that read the same tensor, and the module that gave it, if one did.

    paths: in the order they run. producer: path of the module in the model whose output it is; None where something
    was computed in between. before: linear layers that ran earlier in this decoder layer, the latest first.
    """

    paths: tuple[str, ...]
    producer: str | None
    before: tuple[str, ...]


@dataclass(slots=True)
class _Call:
    """One row's call of a decoder layer, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(slots=True)
class Walk:
    """Calibration rows on their way through a model's decoder layers."""

    blocks: list[Block]
    states: list[Tensor]
    calls: list[list[_Call]]
    place: int = 0
    _began: float = field(default_factory=monotonic)

    @property
    def block(self) -> Block:
        """The decoder layer that the rows are about to enter."""
        return self.blocks[self.place]

    def output(self, row: int = 0) -> Tensor:
        """What the present layer makes of a row, [1, T, H]."""
        return self._run(row)

    @torch.no_grad()
    def inputs(self) -> tuple[list[Shared], dict[str, Moments]]:
        """Which of the present layer's linear layers read the same, and the moments of what each reads."""
        shared = self._shared()
        moments: dict[str, Moments] = {}
        for one in shared:
            width = weight_of(self.block.linears[one.paths[0]]).shape[1]
            held = Moments(torch.zeros(width, width), torch.zeros(width))
            moments |= dict.fromkeys(one.paths, held)

        def hook(held: Moments) -> Callable[..., None]:
            return lambda module, args: held.add(args[0])

        handles = [
            self.block.linears[one.paths[0]].register_forward_pre_hook(hook(moments[one.paths[0]])) for one in shared
        ]
        try:
            for row in range(len(self.states)):
                self._run(row)
        finally:
            for handle in handles:
                handle.remove()
        return shared, moments

    @torch.no_grad()
    def step(self) -> None:
        """Take the rows through the present layer as it now is."""
        self.states = [self._run(row) for row in range(len(self.states))]
        self.place += 1

    def left(self) -> str:
        """How far it is, and how long the rest will take."""
        passed = monotonic() - self._began
        rest = passed / max(1, self.place) * (len(self.blocks) - self.place)
        return f"layer {self.place} of {len(self.blocks)}, about {rest:.0f} s left"

    def _run(self, row: int) -> Tensor:
        call = self.calls[row][self.place]
        with torch.no_grad():
            out = self.block.module(self.states[row], *call.args, **call.kwargs)
        return out if isinstance(out, Tensor) else out[0]

    def _shared(self) -> list[Shared]:
        """Found by watching the first row: who is given the very tensor that another is, or that a module returned."""
        names = {id(module): path for path, module in self.block.linears.items()}
        read: dict[int, list[str]] = {}
        gave: dict[int, str] = {}
        ran: list[str] = []
        earlier: dict[int, tuple[str, ...]] = {}
        kept: list[Any] = []  # so that no tensor's identity is used twice

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            path = names.get(id(module))
            if path is not None and args:
                kept.append(args[0])
                read.setdefault(id(args[0]), []).append(path)
                earlier.setdefault(id(args[0]), tuple(reversed(ran)))
                ran.append(path)

        def after(path: str) -> Callable[..., None]:
            def note(module: nn.Module, args: Any, out: Any) -> None:
                if isinstance(out, Tensor):
                    kept.append(out)
                    gave.setdefault(id(out), path)

            return note

        inner = [(f"{self.block.path}.{n}", m) for n, m in self.block.module.named_modules() if n]
        handles = [module.register_forward_pre_hook(before) for module in self.block.linears.values()]
        handles += [module.register_forward_hook(after(path)) for path, module in inner]
        try:
            self._run(0)
        finally:
            for handle in handles:
                handle.remove()
        return [Shared(tuple(dict.fromkeys(paths)), gave.get(key), earlier[key]) for key, paths in read.items()]


@torch.no_grad()
def begin(model: Any, blocks: list[Block], rows: Sequence[Sequence[int]], tokens: int = TOKENS) -> Walk:
    """Rows of token ids as they enter the first decoder layer. As many rows are read as `tokens` allow, one at least.

    Raises `StepError` where the layers are not called one after the other, each once and with hidden states first.
    """
    states: list[Tensor] = []
    calls: list[list[_Call]] = []
    device = next(model.parameters()).device
    for ids in within(rows, tokens):
        seen: list[tuple[Tensor, _Call]] = []
        with _watching(blocks, seen):
            model(torch.tensor([list(ids)], device=device), use_cache=False)
        if len(seen) != len(blocks):
            raise StepError(
                "calibrating",
                f"{len(blocks)} decoder layers were called {len(seen)} times",
                "export with --to onnx, which needs no calibration",
            )
        states.append(seen[0][0])
        calls.append([call for _, call in seen])
    return Walk(blocks, states, calls)


def within(rows: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The first rows that have no more than so many tokens together; a row that is longer alone is cut."""
    chosen: list[Sequence[int]] = []
    left = tokens
    for row in rows:
        if not row:
            continue
        if len(row) > left:
            if not chosen:
                chosen.append(row[:left])
            break
        chosen.append(row)
        left -= len(row)
    return chosen


@contextmanager
def _watching(blocks: list[Block], seen: list[tuple[Tensor, _Call]]) -> Iterator[None]:
    """Within this, what every decoder layer is called with is appended to `seen`."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = dict(kwargs)
        states = args[0] if args else others.pop("hidden_states", None)
        if not isinstance(states, Tensor):
            raise StepError("calibrating", "a decoder layer is not given hidden states first", "export with --to onnx")
        seen.append((states, _Call(args[1:], others)))

    handles = [block.module.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
