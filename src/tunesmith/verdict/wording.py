"""How numbers and names are written for people: in the verdict, in the terminal and in the report alike."""

from __future__ import annotations

from collections.abc import Sequence

_NAMES = {"zero_shot": "zero-shot", "few_shot": "few-shot"}
WAYS = ("free", "grammar", "scored")
"""Names of the ways of giving an answer, as they follow a candidate's (`evaluate.decoding`)."""
_METRICS = {
    "macro_f1": "macro F1",
    "entity_f1": "entity F1",
    "valid_json": "valid JSON",
    "exact_match": "exact match",
    "normalised_match": "normalised match",
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "chrf": "chrF",
    "bleu": "BLEU",
    "micro_f1": "micro F1",
    "token_f1": "token F1",
    "argument_f1": "argument F1",
    "r2": "R²",
    "mae_score": "score of the mean absolute error",
    "pass_at_1": "pass@1",
    "valid_sql": "valid SQL",
    "valid_python": "valid Python",
}


def candidate_name(candidate: str) -> str:
    """`few_shot` → `few-shot`, `trivial_tfidf` → `trivial (tfidf)`, `few_shot_scored` → `few-shot (scored)`."""
    base, way = split_way(candidate)
    kind, _, detail = base.partition("_")
    if kind in {"trivial", "remote", "tuned"} and detail:
        return f"{kind} ({detail.replace('_', ' ')}{f', {way}' if way else ''})"
    name = _NAMES.get(base, base.replace("_", "-"))
    return f"{name} ({way})" if way else name


def split_way(candidate: str) -> tuple[str, str | None]:
    """The candidate and the further way in which it was asked: `few_shot_scored` → (`few_shot`, `scored`)."""
    base, _, way = candidate.rpartition("_")
    return (base, way) if base and way in WAYS else (candidate, None)


def metric_name(metric: str) -> str:
    """`entity_f1` → `entity F1`."""
    return _METRICS.get(metric, metric.replace("_", " "))


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal: 0.861 → `86.1 %`."""
    return f"{_tenths(value):.1f} %"


def points(difference: float) -> str:
    """A difference of fractions in signed percentage points: 0.112 → `+11.2 points`."""
    tenths = _tenths(difference)
    sign = "+" if tenths > 0 else ""
    return f"{sign}{tenths:.1f} points"


def bare_points(value: float) -> str:
    """Points without sign or unit, for the ends of an interval: -0.031 → `-3.1`."""
    return f"{_tenths(value):.1f}"


def interval(low: float, high: float, confidence: float) -> str:
    """`95 % CI 8.9 to 13.6`, in percentage points."""
    return f"{level(confidence)} CI {bare_points(low)} to {bare_points(high)}"


def capitalised(text: str) -> str:
    """The first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]


def level(confidence: float) -> str:
    """0.95 → `95 %`."""
    return f"{100 * confidence:g} %"


def count(number: int) -> str:
    """12345 → `12,345`."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """12345 → `12,345`; above a million `32.9 million`."""
    for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return count(number)


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b and c`; of many the first ones and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def money(value: float, currency: str) -> str:
    """`240.00 USD`, `0.0117 USD`, `below 0.0001 USD`."""
    return f"{amount(value)} {currency}"


def amount(value: float) -> str:
    """A sum of money with as many decimals as it needs to be readable."""
    if value == 0:
        return "0"
    if value < 0.0001:
        return "below 0.0001"
    return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def short_amount(value: float) -> str:
    """For axes: 0.01, 250, `10k`, `2.5M`."""
    for size, name in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{value / (1000 if name == 'k' else size):g}{name}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes in GiB: `1.12 GiB`."""
    return f"{value / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """A length of time in the unit that fits: 12 ms, 3.2 s, 4.1 min, 2.3 h."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.00995 else f"{1000 * seconds:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def p_value(p: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def time_to(months: float) -> str:
    """A number of months for people: `under a month`, `4 months`, `3 years`, `over 100 years`."""
    if months < 1:
        return "under a month"
    if months < 24:
        return _plural(round(months), "month")
    if months <= 1200:
        return _plural(round(months / 12), "year")
    return "over 100 years"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tenths(fraction: float) -> float:
    """Percent rounded to one decimal, without a negative zero."""
    return round(100 * fraction, 1) + 0.0
