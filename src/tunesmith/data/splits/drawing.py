"""Drawing parts from groups: the first of a seeded order, of each label in proportion, or the latest.

Shares are divided by largest remainders, and at least one group of each label stays for training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tunesmith.data.splits.groups import Group


def rows_in(groups: Sequence[Group]) -> int:
    """Rows of all groups."""
    return sum(len(group.places) for group in groups)


def can_stratify(groups: Sequence[Group], wanted: int) -> bool:
    """Whether so many rows can be taken while one group of every label stays."""
    return sum(rows_in(members) - max(len(g.places) for g in members) for members in _by_stratum(groups)) >= wanted


def draw(groups: Sequence[Group], total: int, *, leave_one: bool = True) -> tuple[list[Group], list[Group]]:
    """About `total` rows in whole groups, first come first taken within each stratum, and the groups that stay.

    A group that would go over its stratum's share is passed over, so fewer rows may be taken, never more.
    """
    if total == 0:
        return [], list(groups)
    strata = _by_stratum(groups)
    candidates = [members[:-1] if leave_one else members for members in strata]
    sizes, limits = [rows_in(members) for members in strata], [rows_in(members) for members in candidates]
    taken: list[Group] = []
    for members, quota in zip(candidates, _apportion(sizes, limits, total), strict=True):
        left = quota
        for group in members:
            if len(group.places) <= left:
                taken.append(group)
                left -= len(group.places)
    chosen = {id(group) for group in taken}
    return taken, [group for group in groups if id(group) not in chosen]


def draw_first(groups: Sequence[Group], total: int) -> tuple[list[Group], list[Group]]:
    """The first groups, as they come, until they hold `total` rows or more; the last group stays in any case."""
    taken, rows = 0, 0
    while rows < total and taken < len(groups) - 1:
        rows += len(groups[taken].places)
        taken += 1
    return list(groups[:taken]), list(groups[taken:])


def _by_stratum(groups: Sequence[Group]) -> list[list[Group]]:
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        strata[group.stratum].append(group)
    return [members for _, members in sorted(strata.items())]


def _apportion(sizes: Sequence[int], limits: Sequence[int], total: int) -> list[int]:
    """`total` divided in proportion to `sizes` by largest remainders, no share above its limit."""
    whole = sum(sizes)
    shares = [total * size / whole for size in sizes]
    quotas = [min(limit, int(share)) for share, limit in zip(shares, limits, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (int(shares[i]) - shares[i], i))
    left = min(total, sum(limits)) - sum(quotas)
    while left > 0:
        for i in by_remainder:
            if left and quotas[i] < limits[i]:
                quotas[i] += 1
                left -= 1
    return quotas
