"""Translation: BLEU and chrF as sacrebleu computes them, from sums of each row's statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import references
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.metrics import ratio
from tunesmith.tasks.types import FloatArray, Metric
from tunesmith.tasks.words import is_unspaced, words

ORDERS = 4
"""Longest n-grams of words in BLEU."""
CHARACTER_ORDERS = 6
"""Longest n-grams of characters in chrF."""
BETA = 2
"""Weight of recall in chrF."""


@dataclass(frozen=True)
class Translation(TextTask):
    """A translation per input. A JSON list of texts holds several references; the first is learnt.

    `tokenizer` is sacrebleu's for BLEU: `13a`, or `char` where the target language puts no spaces between words.
    """

    tokenizer: str = "13a"
    name: ClassVar[str] = "translation"
    default_instruction: ClassVar[str] = "Translate the text."
    answer_wording: ClassVar[str] = "Reply with the translation only."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """chrF decides, being steadier on few rows; BLEU beside it. Both as fractions: 0.305 is 30.5."""
        return (ChrF(), Bleu(self.tokenizer))

    @property
    def signatures(self) -> Mapping[str, str]:
        """What was computed, in sacrebleu's words (Post 2018, arXiv:1804.08771)."""
        import sacrebleu

        version = f"version:{sacrebleu.__version__}"
        return {
            "bleu": f"case:mixed|eff:no|tok:{self.tokenizer}|smooth:exp|{version}",
            "chrf": f"case:mixed|eff:yes|nc:{CHARACTER_ORDERS}|nw:0|space:no|{version}",
        }

    def target(self, example: Example) -> list[str]:
        """All references."""
        return list(references(example.expected)) or [""]

    def reply(self, expected: str) -> str:
        """The first reference."""
        return next(iter(references(expected)), expected)

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the length of the first reference."""
        count = len(words(self.target(example)[0]))
        return {"length": "up to 10 words" if count <= 10 else "11 to 25 words" if count <= 25 else "over 25 words"}


def tokenizer_for(targets: Sequence[str]) -> str:
    """`char` where most of the target texts are in a script without spaces, else `13a`."""
    unspaced = sum(is_unspaced(text) for text in targets)
    return "char" if 2 * unspaced > len(targets) else "13a"


@dataclass(frozen=True)
class Bleu:
    """Corpus BLEU (Papineni et al. 2002), smoothed as sacrebleu does by default.

    Statistics per item: matching n-grams of orders 1-4, n-grams of orders 1-4, length, reference length.
    """

    tokenizer: str = "13a"
    name = "bleu"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 10]; an unreadable answer is an empty one."""
        pairs = zip(parsed, expected, strict=True)
        rows = [_bleu_counts(answer or "", tuple(target), self.tokenizer) for answer, target in pairs]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * ORDERS + 2)

    def finish(self, sums: FloatArray) -> FloatArray:
        """BLEU as a fraction [...] from sums [..., 10]."""
        return _bleu(sums, effective=False)

    def item(self, statistics: FloatArray) -> FloatArray:
        """BLEU of each answer, over the orders it is long enough for [n]."""
        return _bleu(statistics, effective=True)


@lru_cache(maxsize=65_536)
def _bleu_counts(answer: str, target: tuple[str, ...], tokenizer: str) -> tuple[int, ...]:
    score = _sacrebleu(tokenizer).sentence_score(answer, list(target))
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


@lru_cache(maxsize=4)
def _sacrebleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)


def _bleu(sums: FloatArray, *, effective: bool) -> FloatArray:
    """exp of the mean log precision, times the brevity penalty exp(1 - r/c) where an answer is too short.

    An order without a match counts 1/2 of one match, the next such order 1/4, and so on; without any match BLEU is 0,
    and (unless `effective`) where there are no n-grams of the longest order.
    """
    counts, totals = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    length, wanted = sums[..., -2], sums[..., -1]
    logs = np.zeros(sums.shape[:-1])
    orders = np.zeros(sums.shape[:-1])
    halvings = np.ones(sums.shape[:-1])
    for order in range(ORDERS):
        there, matched = totals[..., order] > 0, counts[..., order] > 0
        halvings = np.where(there & ~matched, 2 * halvings, halvings)
        hits = np.where(matched, counts[..., order], 1 / halvings)
        logs += np.where(there, np.log(hits / np.where(there, totals[..., order], 1.0)), 0.0)
        orders += there
    enough = (counts.sum(axis=-1) > 0) & ((orders == ORDERS) | effective)
    penalty = np.where(length < wanted, np.exp(1 - wanted / np.maximum(length, 1e-9)), 1.0)
    score: FloatArray = np.where(enough, penalty * np.exp(logs / np.maximum(orders, 1)), 0.0)
    return score


@dataclass(frozen=True)
class ChrF:
    """chrF2 (Popović 2015, doi:10.18653/v1/W15-3049): F-score of character n-grams, white space left out.

    Of several references the one with the best score counts. Statistics per item [18]: for each order 1-6 the
    n-grams of answer and reference and those in common.
    """

    name = "chrf"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 18]; an unreadable answer is an empty one."""
        rows = [_chrf_counts(answer or "", tuple(target)) for answer, target in zip(parsed, expected, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 3 * CHARACTER_ORDERS)

    def finish(self, sums: FloatArray) -> FloatArray:
        """chrF as a fraction [...] from sums [..., 18]: precision and recall are means over the orders there are."""
        said, wanted, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        there = (said > 0) & (wanted > 0)
        orders = there.sum(axis=-1).astype(np.float64)
        precision = ratio(np.where(there, ratio(shared, said), 0.0).sum(axis=-1), orders)
        recall = ratio(np.where(there, ratio(shared, wanted), 0.0).sum(axis=-1), orders)
        return ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)

    def item(self, statistics: FloatArray) -> FloatArray:
        """chrF of each answer [n]."""
        return self.finish(statistics)


@lru_cache(maxsize=65_536)
def _chrf_counts(answer: str, target: tuple[str, ...]) -> tuple[int, ...]:
    said = _character_ngrams(answer)
    found = []
    for reference in target:
        wanted = _character_ngrams(reference)
        counts: list[int] = []
        for a, b in zip(said, wanted, strict=True):
            counts += (a.total() if b else 0, b.total(), (a & b).total())
        found.append(tuple(counts))
    scores = ChrF().finish(np.array(found, dtype=np.float64))
    return found[int(scores.argmax())]


def _character_ngrams(text: str) -> list[Counter[str]]:
    bare = "".join(text.split())
    return [
        Counter(bare[i : i + order] for i in range(len(bare) - order + 1)) for order in range(1, CHARACTER_ORDERS + 1)
    ]
