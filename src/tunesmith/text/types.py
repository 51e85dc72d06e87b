"""A sample: what the engine computes on, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """One document of token ids.

    `ids` [T] int64. `weights` [T] float32: the weight with which *predicting token t from those before it* counts in
    the loss; `weights[0]` is 0, as nothing comes before it.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    example_id: str = ""

    @property
    def supervised(self) -> int:
        """How many tokens are learnt."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that are learnt together, such as the two texts of a pair; they are never divided."""

    samples: tuple[Sample, ...]
    label: float | None = None
    example_id: str = ""

    @property
    def supervised(self) -> int:
        """How many tokens are learnt, over all documents."""
        return sum(s.supervised for s in self.samples)
