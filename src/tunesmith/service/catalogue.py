"""Which model a name in a request means: a tuned one, a deployment, a registered one, or a base behind an alias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tunesmith.inference.serving.types import ModelRef
from tunesmith.service.store.nouns import Model


@dataclass(frozen=True, slots=True)
class Resolved:
    """`shown` is the name that answers carry (the asked one, or the snapshot behind an alias); `record` is None for a
    base.
    """

    shown: str
    ref: ModelRef
    record: Model | None = None


class Catalogue(Protocol):
    """All that can be asked, by name."""

    def resolve(self, name: str) -> Resolved:
        """Raises `ApiError` 404 `model_not_found`, which lists what exists."""
        ...

    def base_of(self, name: str) -> str:
        """The local base that a job on `name` is trained on: `embedded:NAME`, a folder, a hub id."""
        ...

    def names(self) -> tuple[Model, ...]:
        """Every model, bases by their aliases included."""
        ...
