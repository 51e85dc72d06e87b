"""The decoder layers of a `transformers` model: where training begins in them, and running only a part of them.

Layers below the lowest trained one compute the same for a document each time. `states_entering` gets what they give,
`skipping` runs the model without them on what they gave before. Neither patches anything: for the time of one forward
pass, other modules stand in the model's list of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tunesmith.errors import EngineError

_AFTER_LAYERS = frozenset({"norm", "ln_f", "final_norm", "final_layer_norm", "final_layernorm"})
"""What `transformers` calls the one module of a trunk that comes after its layers."""
_CHANCES = ("drop", "jitter")
"""What the names of attributes contain that say how much of a module's input is dropped or shaken in training."""


class TrunkStates(Protocol):
    """Something that remembers the hidden states of documents entering decoder layer `first_layer`."""

    @property
    def first_layer(self) -> int: ...

    def states(self, document: npt.NDArray[np.int64], begin: int = 0) -> Tensor | None:
        """States [L - begin, H] of a document's ids [L] from a place on, on the CPU; None for an unknown document."""
        ...


def decoder_layers(trunk: nn.Module) -> nn.ModuleList:
    """The list of decoder layers. Raises `EngineError` where there is none, or more than one."""
    count = getattr(getattr(trunk, "config", None), "num_hidden_layers", None)
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise EngineError(f"no single list of {count} decoder layers was found", where=type(trunk).__name__)
    return lists[0]


def frozen_layers(model: Any, trunk: nn.Module) -> int:
    """How many of the lowest layers, and the embeddings below them, training leaves as they are.

    Whatever is trained and is neither in a layer, nor behind them, nor the head counts as below them.
    """
    layers = decoder_layers(trunk)
    lowest = len(layers)
    behind: set[int] = set()
    for index, layer in enumerate(layers):
        if any(p.requires_grad for p in layer.parameters()):
            lowest = min(lowest, index)
        behind.update(map(id, layer.parameters()))
    below = set(map(id, trunk.parameters()))
    for name, module in trunk.named_modules():
        if name.rpartition(".")[2] in _AFTER_LAYERS:
            behind.update(map(id, module.parameters()))
    head = model.get_output_embeddings()
    behind.update(id(p) for p in head.parameters() if id(p) not in below)
    return 0 if any(p.requires_grad and id(p) not in behind for p in model.parameters()) else lowest


def draws_chance(module: nn.Module, below: int | None = None) -> bool:
    """Whether a forward pass in training draws random numbers: some dropout in `module` is not zero.

    `below`: of a trunk, only what comes before this decoder layer is asked.
    """
    later = decoder_layers(module)[below:] if below is not None else ()
    skipped = {inner for layer in later for inner in layer.modules()}
    return any(_drops(inner) for inner in module.modules() if inner not in skipped)


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p > 0
    chances = (value for name, value in vars(module).items() if any(part in name for part in _CHANCES))
    return any(isinstance(p, float) and p > 0 for p in chances)


@contextmanager
def skipping(layers: nn.ModuleList, states: Tensor, first: int) -> Iterator[None]:
    """Within this, a forward pass begins at layer `first` (at least 1) with `states` [1, T, H]."""
    with _replaced(layers, {i: _Given(layers[i], states) for i in range(first)}):
        yield


@contextmanager
def states_entering(layers: nn.ModuleList, first: int) -> Iterator[list[Tensor]]:
    """Within this, a forward pass ends before layer `first` (at least 1) and appends the states [1, T, H] so far."""
    seen: list[Tensor] = []
    handle = layers[first - 1].register_forward_hook(lambda module, args, out: seen.append(_tensor(out)))
    try:
        with _replaced(layers, {i: _Given(layers[i], None) for i in range(first, len(layers))}):
            yield seen
    finally:
        handle.remove()


class _Given(nn.Module):
    """Stands for a layer: gives `states`, or without them what it is given. Other attributes are the layer's."""

    def __init__(self, layer: nn.Module, states: Tensor | None) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not registered: its parameters stay where they are
        self.states = states

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.states is None else self.states


@contextmanager
def _replaced(layers: nn.ModuleList, others: dict[int, nn.Module]) -> Iterator[None]:
    before = {index: layers[index] for index in others}
    try:
        for index, other in others.items():
            layers[index] = other
        yield
    finally:
        for index, layer in before.items():
            layers[index] = layer


def _tensor(out: Any) -> Tensor:
    """A layer's hidden states: what it returns, or the first of it."""
    states: Tensor = out if isinstance(out, Tensor) else out[0]
    return states
