"""How far an export's logits are from the tuned model's, in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.inference.types import FloatArray

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parity:
    """Figures over all probes.

    error: largest difference of a logit. scaled: length of all differences as a share of that of the tuned model's
    logits about their mean at each position (relative L2 error). kl: mean over the positions of real rows of the
    Kullback-Leibler divergence of the next token, tuned from export, in nats. top1: share of these positions with the
    same most probable token. kept: share of what tuning changed that arrived, 1 where all did; None where tuning
    changed nothing. finite: whether every logit is a number. width: tokens that the export has logits for, as far as
    the tuned model has; narrower: whether that is fewer.
    """

    error: float
    scaled: float
    kl: float
    top1: float
    kept: float | None
    finite: bool
    width: int
    narrower: bool


def parity(
    tuned: Iterable[FloatArray],
    exported: Callable[[int], FloatArray],
    base: Callable[[int], FloatArray] | None,
    real: int,
) -> Parity:
    """Compare probe by probe; `exported` and `base` give the logits [tokens, vocabulary] of a probe by its place.

    The share that arrived is the projection of (export - base) on (tuned - base), of log-probabilities over all
    positions: rounding errors point anywhere and leave it near 1, an adapter of half the scale gives about 0.5, and
    the base alone 0.
    """
    error = missed = said = divergence = same = along = length = 0.0
    positions = counted = 0
    finite, narrower, narrowest = True, False, 0
    for place, ours in enumerate(tuned):
        theirs = exported(place)
        width = min(ours.shape[1], theirs.shape[1])
        narrower, narrowest = narrower or width < ours.shape[1], min(width, narrowest or width)
        one, other = (np.asarray(x[:, :width], dtype=np.float64) for x in (ours, theirs))
        if not np.isfinite(other).all():
            finite = False
            break
        error = max(error, float(np.abs(one - other).max()))
        missed += float(((one - other) ** 2).sum())
        said += float((_centred(one) ** 2).sum())
        positions += len(one)
        p, q = _log_softmax(one), _log_softmax(other)
        if place < real or not real:
            divergence += float((np.exp(p) * (p - q)).sum())
            same += float((one.argmax(-1) == theirs.argmax(-1)).sum())
            counted += len(one)
        if base is not None:
            before = _log_softmax(np.asarray(base(place)[:, :width], dtype=np.float64))
            narrow = before.shape[1]
            change = _centred(p[:, :narrow] - before)
            along += float((_centred(q[:, :narrow] - before) * change).sum())
            length += float((change * change).sum())
    if not finite:
        inf = float("inf")
        return Parity(inf, inf, inf, 0.0, None, finite=False, width=narrowest, narrower=narrower)
    return Parity(
        error=error,
        scaled=math.sqrt(missed / said) if said else 0.0,
        kl=max(0.0, divergence / counted),
        top1=same / counted,
        kept=along / length if length > _NOTHING * positions else None,
        finite=True,
        width=narrowest,
        narrower=narrower,
    )


_NOTHING = 1e-8
"""Squared change of the log-probabilities of a position, from which on tuning changed something at all."""


def _log_softmax(x: Wide) -> Wide:
    shifted = x - x.max(-1, keepdims=True)
    found: Wide = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _centred(x: Wide) -> Wide:
    found: Wide = x - x.mean(-1, keepdims=True)
    return found
