"""Which beginnings are shared: always truly common, never worse than the best found by trying everything."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.training.prefixes import SHORTEST, Family, Ids, common_prefix, find_families


def words(*documents: str) -> list[Ids]:
    return [np.array([ord(c) for c in d], np.int64) for d in documents]


def best_by_trying(documents: list[Ids], shortest: int) -> int:
    """Tokens saved by the best way to divide documents into families, by trying all."""

    def common(members: list[int]) -> int:
        return min((common_prefix(documents[members[0]], documents[m]) for m in members), default=0)

    @cache
    def best(left: int) -> int:
        if not left:
            return 0
        first = left & -left
        rest = left ^ first
        found, others = best(rest), rest
        while others:
            members = [i for i in range(len(documents)) if (others | first) >> i & 1]
            length = common(members)
            if length >= shortest:
                found = max(found, length * (len(members) - 1) + best(rest ^ others))
            others = (others - 1) & rest
        return found

    return best((1 << len(documents)) - 1)


@given(
    documents=st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=7),
    shortest=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_families_are_common_disjoint_and_the_best(documents, shortest):
    ids = words(*documents)
    families = find_families(ids, shortest)
    members = [m for f in families for m in f.members]
    assert len(members) == len(set(members))
    for family in families:
        assert len(family.members) > 1 and list(family.members) == sorted(family.members)
        assert family.length >= shortest
        assert len({documents[m][: family.length] for m in family.members}) == 1
        assert all(len(documents[m]) >= family.length for m in family.members)
    assert sum(f.saved for f in families) == best_by_trying(ids, shortest)
    assert [f.members[0] for f in families] == sorted(f.members[0] for f in families)


def test_a_document_that_is_the_beginning_itself_and_identical_ones():
    assert find_families(words("abcd", "abcdxy", "abcdz"), 1) == [Family(4, (0, 1, 2))]
    assert find_families(words("abc", "abc"), 1) == [Family(3, (0, 1))]
    assert find_families(words("abc"), 1) == [] and find_families([], 1) == []


def test_pairs_within_a_common_system_prompt():
    """Two families of thirteen tokens beat one of three that all share; where that is longer it is the other way."""
    long = ("sssAAAAAAAAAA1", "sssAAAAAAAAAA2", "sssBBBBBBBBBB1", "sssBBBBBBBBBB2")
    assert find_families(words(*long), 1) == [Family(13, (0, 1)), Family(13, (2, 3))]
    short = ("ssssssA1", "ssssssA2", "ssssssB1", "ssssssB2")
    assert find_families(words(*short), 1) == [Family(6, (0, 1, 2, 3))]


def test_what_an_inner_family_leaves_is_still_shared():
    assert find_families(words("aX1", "abcdefgh1", "abcdefgh2", "aY1"), 1) == [Family(1, (0, 3)), Family(8, (1, 2))]


def test_short_beginnings_are_not_shared():
    alike = np.arange(SHORTEST)
    assert find_families([np.r_[alike[1:], i] for i in range(5)]) == []
    assert find_families([np.r_[alike, 100 + i] for i in range(5)]) == [Family(SHORTEST, (0, 1, 2, 3, 4))]


def test_large_ids_sort_as_numbers():
    base = np.arange(20)
    rows = [np.r_[base, last] for last in (70_000, 255, 256, 1, 65_536)]
    assert find_families(rows) == [Family(20, (0, 1, 2, 3, 4))]


@pytest.mark.parametrize("count", [400])
def test_deeply_nested_documents(count):
    nested = [np.arange(n) for n in range(1, count)]
    families = find_families(nested, 1)
    assert sum(f.saved for f in families) > 0.7 * sum(map(len, nested)) - count
