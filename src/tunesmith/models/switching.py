"""Asking an adapted model as if it were its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from tunesmith.models.own_weights import OwnWeights


class Switch(Protocol):
    """An adapter in a base; not `enabled` it does nothing."""

    enabled: bool


@contextmanager
def switched_off(layers: Mapping[str, Switch], own: OwnWeights) -> Iterator[None]:
    """Within this context these adapters do nothing, and modules trained in full have their first weights."""
    before = {path: layer.enabled for path, layer in layers.items()}
    with own.switched_off():
        for layer in layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for path, layer in layers.items():
                layer.enabled = before[path]
