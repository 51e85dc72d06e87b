"""The next token of every row of a batch, each by its own settings, and how probable it was.

Order of what is done to logits: penalties and biases, then the form, then temperature and top-p. Log-probabilities are
the model's own, before any of it. Rows that want nothing of the kind are chosen together by one argmax.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tunesmith.inference.grammar import HeldRows
from tunesmith.inference.next_token import draw
from tunesmith.inference.serving.types import NO_TOKEN, Decoding

log = logging.getLogger(__name__)

_BLOCK = 256
"""Random numbers made at once."""


class Draws:
    """Uniform numbers in [0, 1), one for each token of one answer: of the seed and the answer's place alone."""

    def __init__(self, seed: int | None, place: int) -> None:
        start = secrets.randbits(64) if seed is None else seed % 2**64  # OpenAI's seeds may be negative
        self._generator = np.random.default_rng([start, place])
        self._made = self._generator.random(_BLOCK)
        self._at = 0

    def next(self) -> float:
        if self._at == len(self._made):
            self._made, self._at = self._generator.random(_BLOCK), 0
        self._at += 1
        return float(self._made[self._at - 1])


@dataclass(slots=True)
class Chooser:
    """How one answer's tokens are chosen; knows those it has chosen so far."""

    decoding: Decoding
    draws: Draws
    held: HeldRows | None = None
    _counts: dict[int, int] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the most probable one."""
        one = self.decoding
        bent = one.temperature or one.presence_penalty or one.frequency_penalty or one.logit_bias
        return not bent and self.held is None

    def choose(self, logits: Tensor) -> int | None:
        """The next token from logits [V]; None where the form allows no token that the model knows."""
        one = self.decoding
        bent = logits.double() if one.temperature else logits.clone()
        if self._counts and (one.presence_penalty or one.frequency_penalty):
            ids = torch.tensor(list(self._counts))
            times = torch.tensor(list(self._counts.values()), dtype=bent.dtype)
            bent[ids] -= one.presence_penalty + one.frequency_penalty * times
        if one.logit_bias:
            bent[torch.tensor(list(one.logit_bias))] += torch.tensor(list(one.logit_bias.values()), dtype=bent.dtype)
        if self.held is not None:
            bent.masked_fill_(~self.held.allowed([0])[0], float("-inf"))
            if not bent.amax().isfinite():
                return None
        if not one.temperature:
            return int(bent.argmax())
        bent /= one.temperature
        if one.top_p < 1:
            bent = _most_probable(bent, one.top_p)
        return int(draw(bent[None], torch.tensor([self.draws.next()], dtype=torch.float64), 1.0))

    def take(self, token: int, ends: bool) -> None:
        """The token that was chosen; `ends` where it is the one that ends the answer."""
        if self.decoding.presence_penalty or self.decoding.frequency_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self.held is not None and not ends:
            self.held.take([0], [token])


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token; None with the reason why there is none."""

    token: int | None
    why: str = ""


NOT_NUMBERS = "the model's output is not a number (NaN or infinite); its weights or its adapter are damaged"
FAILED = "the next token could not be chosen; the server's log says why"


def choose(logits: Tensor, rows: Sequence[Chooser]) -> list[Chosen]:
    """The next token of each row, from logits [rows, V] on the CPU. A row that fails does not touch the others."""
    sound = logits.amax(-1).isfinite().tolist()  # a NaN wins every maximum
    best = logits.argmax(-1).tolist()
    chosen = []
    for place, (row, fine) in enumerate(zip(rows, sound, strict=True)):
        if not fine:
            chosen.append(Chosen(None, NOT_NUMBERS))
            continue
        try:
            token = best[place] if row.plain else row.choose(logits[place])
        except Exception:  # whatever a row's settings or its form do, the others go on
            log.exception("a token could not be chosen")
            chosen.append(Chosen(None, FAILED))
            continue
        chosen.append(Chosen(token, "" if token is not None else NO_TOKEN))
    return chosen


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's log-probability and the most probable tokens in its place with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """The log-probability of one token in each row of logits [rows, V], and the `top` most probable ones."""
    logs = logits.float().log_softmax(-1)
    own = logs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    if not top:
        return [Scored(one, ()) for one in own]
    best = logs.topk(min(top, logs.shape[1]), -1)
    return [
        Scored(one, tuple(zip(ids, values, strict=True)))
        for one, ids, values in zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _most_probable(logits: Tensor, share: float) -> Tensor:
    """Logits [V] with minus infinity outside the smallest set of most probable tokens that has `share` of all.

    The most probable token is always in it. (Holtzman et al. 2020, arXiv 1904.09751.)
    """
    ordered, ids = logits.softmax(-1).sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= share
    outside[0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(0, ids, outside), float("-inf"))
