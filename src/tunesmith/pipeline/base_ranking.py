"""Which base to tune first: a rule that looks only at what was measured before tuning.

The rule: of the bases that can be tuned and may be used, the one with the fewest bits per byte comes first. Of what,
the kind of answer decides: a text is foreseen from its question and a few rows with their answers; a label is a name
whose spelling is learnt in a few steps and says nothing, so there the inputs count, which tell how well the base reads
what is asked. `benchmarks/bases.md` says how well that foretells the order of the tuned models, and how other figures
do. A base that is not surely behind the first, or behind by less than a tenth, counts as equal to it: bases so close
were tuned to the same quality there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunesmith.evaluation.statistics import bca_interval, bootstrap, jackknife
from tunesmith.pipeline.base_types import BaseEntry, Figure, Measured, RowBits
from tunesmith.tasks.types import FloatArray

CLOSE = 0.1
"""Share of the first base's bits by which another may be behind and still counts as equal."""
_OF: Mapping[Figure, str] = {
    "shown": "on the answers, measured behind the same examples (as many as fit)",
    "inputs": "on the inputs (an answer that is a label says little)",
}
_FORESEES: Mapping[Figure, str] = {"shown": "the answers", "inputs": "the inputs"}
LEAST_SHARE = 0.5
"""Of the rows that must fit a base's context for it to be ranked: of training, too, it would learn only those."""
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Ranked:
    """One base in its place. `behind`: bits per byte more than the first, with an interval; None for the first."""

    base: str
    place: int
    bits_per_byte: float
    behind: float | None
    low: float | None
    high: float | None

    @property
    def clearly_behind(self) -> bool:
        """Whether the difference to the first is sure, and more than a tenth of its bits."""
        if self.behind is None or self.low is None:
            return False
        return self.low > 0 and self.behind > CLOSE * (self.bits_per_byte - self.behind)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order, on so many common rows, and what is not in it with the reason."""

    rule: str
    rows: int
    ranked: tuple[Ranked, ...]
    left_out: Mapping[str, str]
    conclusion: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        for line, ranked in zip(found["ranked"], self.ranked, strict=True):
            line["clearly_behind"] = ranked.clearly_behind
        return found


def rank(entries: Sequence[BaseEntry], *, confidence: float = 0.95, seed: int = 0) -> Ranking:
    """Put the bases in order. Entries that cannot be ranked are named with the reason."""
    left_out = {entry.base: reason for entry in entries if (reason := why_not_ranked(entry))}
    rest = [(entry, entry.measured) for entry in entries if entry.base not in left_out and entry.measured is not None]
    if not rest:
        return Ranking(
            rule_of("shown"), 0, (), left_out, "None of these bases can be recommended; the reasons stand beside them."
        )
    shared = _common([found.row_bits for _, found in rest])
    if not shared:
        rule = rule_of(rest[0][1].ranked_by)
        return Ranking(
            rule, 0, (), left_out, "These bases cannot be ranked: there is no row that all of them can hold."
        )
    sums = {entry.base: _statistics(found.row_bits, shared) for entry, found in rest}
    values = {base: float(_ratio(one.sum(axis=0))) for base, one in sums.items()}
    order = sorted(values, key=lambda base: (values[base], base))
    first = order[0]
    ranked = [Ranked(first, 1, values[first], None, None, None)]
    for place, base in enumerate(order[1:], 2):
        low, high = _difference(sums[base], sums[first], confidence, seed)
        ranked.append(Ranked(base, place, values[base], values[base] - values[first], low, high))
    conclusion = _conclusion(ranked, {entry.base: found for entry, found in rest})
    return Ranking(rule_of(rest[0][1].ranked_by), len(shared), tuple(ranked), left_out, conclusion)


def rule_of(figure: Figure) -> str:
    """The rule in words."""
    return (
        f"fewest bits per byte {_OF[figure]}, on rows that every ranked base can hold; a base that is not surely "
        "behind the first, or by less than a tenth, counts as equal to it"
    )


def why_not_ranked(entry: BaseEntry) -> str:
    """Why a base is not in the order; nothing where it is."""
    if entry.problem is not None:
        return entry.problem
    licence = entry.licence
    if licence.use is not None and licence.permission == "forbidden":
        return f"its licence ({licence.name}) forbids {licence.use} use"
    found = entry.measured
    if found is None or not found.row_bits:
        return "no row could be measured: none fits its context"
    fitting = 1 - found.rows_too_long / max(1, found.rows)
    if fitting < LEAST_SHARE:
        return (
            f"{found.rows_too_long:,} of {found.rows:,} rows do not fit its context of {found.context:,} tokens, and "
            "would not be learnt"
        )
    if len(found.row_bits) < LEAST_SHARE * found.rows:
        missing = found.rows - len(found.row_bits)
        return (
            f"{missing:,} of {found.rows:,} rows could not be measured: too long, empty, or with characters that its "
            "tokenizer does not know"
        )
    return ""


def _conclusion(ranked: Sequence[Ranked], measured: Mapping[str, Measured]) -> str:
    first = ranked[0]
    best = measured[first.base]
    if len(ranked) == 1:
        return f"{first.base} is the only one of these that can be ranked ({first.bits_per_byte:.3f} bits per byte)."
    what = _FORESEES[best.ranked_by]
    text = f"Begin with {first.base}: it foresees {what} best ({first.bits_per_byte:.3f} bits per byte)."
    close = [one for one in ranked[1:] if not one.clearly_behind]
    if not close:
        return f"{text} Every other one is clearly behind."
    named = ", ".join(one.base for one in close)
    text += f" Not clearly behind: {named}."
    smaller = [one for one in close if measured[one.base].parameters < 0.8 * best.parameters]
    if smaller:
        least = min(smaller, key=lambda one: measured[one.base].parameters)
        times = best.parameters / measured[least.base].parameters
        text += f" Of these, {least.base} is {times:.1f} times smaller: tune both before you pay for the larger one."
    return text


def _common(rows: Sequence[Sequence[RowBits]]) -> tuple[str, ...]:
    """Ids of the rows that all have, in the order of the first."""
    shared = set.intersection(*({row.id for row in one} for one in rows))
    return tuple(row.id for row in rows[0] if row.id in shared)


def _statistics(rows: Sequence[RowBits], ids: Sequence[str]) -> FloatArray:
    """(bits, bytes) of the rows with these ids [n, 2]."""
    by_id = {row.id: row for row in rows}
    return np.array([(by_id[i].bits, by_id[i].bytes) for i in ids], float)


def _difference(a: FloatArray, b: FloatArray, confidence: float, seed: int) -> tuple[float | None, float | None]:
    """Interval of the bits per byte of a minus b on the same rows; none for fewer than two rows."""
    if len(a) < 2:
        return None, None
    both = np.concatenate([a, b], axis=1)
    draws = bootstrap([both], _minus, resamples=_RESAMPLES, seed=seed)[0]
    value = float(_minus(both.sum(axis=0)))
    if np.ptp(draws) == 0:
        return value, value
    return bca_interval(draws, value, jackknife(both, _minus), confidence)


def _ratio(sums: FloatArray) -> FloatArray:
    quotient: FloatArray = sums[..., 0] / sums[..., 1]
    return quotient


def _minus(sums: FloatArray) -> FloatArray:
    """Bits per byte of the first two sums minus that of the last two [...] from [..., 4]."""
    return _ratio(sums[..., :2]) - _ratio(sums[..., 2:])
