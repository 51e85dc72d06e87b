"""The n-gram yardstick of the base: proper probabilities, and those of a slow model written from the formulas."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"
VOCABULARY, BOS = 11, 0
Document = tuple[int, ...]


@pytest.fixture
def ngram(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import ngram

    return ngram


def corpus(seed: int = 0, documents: int = 50) -> list[Document]:
    """Documents of 0 to 29 tokens after the begin mark, each following a little from the one before."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(documents):
        ids = [BOS]
        for _ in range(int(draw.integers(0, 30))):
            follows = ids[-1] % (VOCABULARY - 1) + 1
            ids.append(int(follows if draw.random() < 0.5 else 1 + draw.zipf(1.6) % (VOCABULARY - 2)))
        made.append(tuple(ids))
    return made


def packed(documents: list[Document]) -> tuple[Any, Any]:
    ids = np.array([i for document in documents for i in document], np.uint16)
    return ids, np.cumsum([0, *map(len, documents)])


def measured(ngram: Any, training: list[Document], queries: list[Document], **options: Any) -> Any:
    ids, offsets = packed(training)
    arrays = [np.array(query, np.uint16) for query in queries]
    return ngram.measure(ids, offsets, arrays, vocabulary=VOCABULARY, bos=BOS, **options)


class Slow:
    """Modified Kneser-Ney as it is written in Chen and Goodman 1998, with dictionaries and a recursion."""

    def __init__(self, documents: list[Document], order: int) -> None:
        raw: Counter[Document] = Counter()
        for document in documents:
            for n in range(1, order + 1):
                raw.update(document[i : i + n] for i in range(len(document) - n + 1))
        before: defaultdict[Document, set[int]] = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.counts: dict[Document, int] = {}
        for gram, count in raw.items():
            longest_or_first = len(gram) == order or gram[0] == BOS
            self.counts[gram] = count if longest_or_first else len(before[gram])
        del self.counts[(BOS,)]
        self.followers: defaultdict[Document, list[int]] = defaultdict(list)
        for gram, count in self.counts.items():
            self.followers[gram[:-1]].append(count)
        self.discounts = {n: self._discounts(n) for n in range(1, order + 1)}
        self.order = order

    def _discounts(self, n: int) -> tuple[float, float, float]:
        seen = Counter(count for gram, count in self.counts.items() if len(gram) == n)
        n1, n2, n3, n4 = (seen[k] for k in (1, 2, 3, 4))
        if not n1 * n2 * n3 * n4:
            return (0.5, 1.0, 1.5)
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else (0.5, 1.0, 1.5)

    def discount(self, n: int, count: int) -> float:
        return self.discounts[n][min(count, 3) - 1] if count else 0.0

    def chance(self, context: Document, token: int) -> float:
        n = len(context) + 1
        shorter = self.chance(context[1:], token) if context else 1 / (VOCABULARY - 1)
        followers = self.followers[context]
        if not followers:
            return shorter
        count = self.counts.get((*context, token), 0)
        saved = sum(self.discount(n, follower) for follower in followers)
        return (count - self.discount(n, count) + saved * shorter) / sum(followers)

    def bits(self, document: Document) -> list[float]:
        starts = [max(0, i - self.order + 1) for i in range(1, len(document))]
        return [-math.log2(self.chance(document[s:i], document[i])) for i, s in enumerate(starts, 1)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fast_model_is_the_slow_one(ngram: Any, order: int, seed: int) -> None:
    training, queries = corpus(seed), corpus(seed + 100, 20)
    slow = Slow(training, order)
    expected = [bit for query in queries for bit in slow.bits(query)]
    found = measured(ngram, training, queries, order=order)
    np.testing.assert_allclose(found.bits, expected, rtol=1e-12)
    np.testing.assert_allclose([one.discounts for one in found.orders], list(slow.discounts.values()))
    assert [one.ngrams for one in found.orders] == [
        sum(len(gram) == n for gram in slow.counts) for n in range(1, order + 1)
    ]
    assert any(one.estimated for one in found.orders) == (order > 1)


@pytest.mark.parametrize("context", [(), (1,), (2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (9, 1, 9, 1, 9)])
def test_probabilities_sum_to_one(ngram: Any, context: Document) -> None:
    queries = [(BOS, *context, token) for token in range(1, VOCABULARY)]
    bits = measured(ngram, corpus(), queries).bits.reshape(len(queries), len(context) + 1)
    chances = 2.0 ** -bits[:, -1]
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    assert (chances > 0).all()
    assert chances.max() > 2 / VOCABULARY  # it did learn something
    assert np.ptp(bits[:, :-1], axis=0).max(initial=0) == 0  # the same context is the same everywhere


@pytest.mark.parametrize("bucket", [1, 37, 10**7])
def test_buckets_change_memory_only(ngram: Any, bucket: int) -> None:
    queries = corpus(7, 10)
    whole = measured(ngram, corpus(), queries)
    cut = measured(ngram, corpus(), queries, bucket=bucket)
    np.testing.assert_array_equal(cut.bits, whole.bits)
    assert cut.orders == whole.orders


def test_no_ngram_crosses_a_document(ngram: Any) -> None:
    apart = [(BOS, 1, 2), (BOS, 3, 4)] * 5
    joined = [(BOS, 1, 2, 3, 4)] * 5
    surprise = [float(measured(ngram, training, [(BOS, 1, 2, 3)]).bits[-1]) for training in (apart, joined)]
    assert surprise[0] > 2 > surprise[1]


def test_a_long_document_is_counted_to_its_end(ngram: Any) -> None:
    training = [(BOS, *(1, 2, 3) * 200, 4, 5, 6, 7)]
    assert float(measured(ngram, training, [(BOS, 4, 5, 6, 7)]).bits[-1]) < 1


def test_what_was_measured_is_not_counted(ngram: Any) -> None:
    queries = corpus(3, 5)
    alone = measured(ngram, corpus(), queries[:1]).bits
    np.testing.assert_array_equal(measured(ngram, corpus(), queries).bits[: len(alone)], alone)


@pytest.mark.parametrize("documents", [[(1, 2)], [(BOS, 1, BOS, 2)], [()]])
def test_documents_begin_with_the_begin_mark_alone(ngram: Any, documents: list[Document]) -> None:
    with pytest.raises(ValueError, match="must begin with the token 0"):
        measured(ngram, [(BOS, 1)], documents)
    with pytest.raises(ValueError, match="must begin with the token 0"):
        measured(ngram, documents, [(BOS, 1)])


def test_an_order_of_nothing_is_refused(ngram: Any) -> None:
    with pytest.raises(ValueError, match="order is 0"):
        measured(ngram, corpus(), [(BOS, 1)], order=0)
