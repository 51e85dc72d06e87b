"""Exports of the tuned model side by side: what they cost, what they kept, and which of them are worth choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.front_chart import Point, front_chart


@dataclass(frozen=True, slots=True)
class ExportLine:
    """One export as it was verified. None: not measured.

    bytes: of its files; base_bytes: of the base that it needs beside it. read_back: it was not opened by the runtime
    that it is made for, which is not installed, and so its speed is not known.
    decode, prefill: tokens a second; first_token: seconds; peak_memory: bytes of a process.
    value, low, high: of the metric that decides, on the test rows; difference: against the tuned model.
    non_inferior: whether it is surely no worse than `margin` allows. kl: mean, in nats. top1, agreement: shares.
    failed, unsure: names of checks, by outcome.
    """

    name: str
    folder: str
    bytes: int
    base_bytes: int = 0
    read_back: bool = False
    failed: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    margin: float | None = None
    non_inferior: bool | None = None
    kl: float | None = None
    top1: float | None = None
    agreement: float | None = None
    prefill: float | None = None
    decode: float | None = None
    first_token: float | None = None
    peak_memory: int | None = None

    @property
    def total(self) -> int:
        """Bytes that it takes to run it."""
        return self.bytes + self.base_bytes

    @property
    def usable(self) -> bool:
        return not self.failed


@dataclass(frozen=True, slots=True)
class ExportCells:
    """A line of the table, in words; `tone` of its outcome is right, wrong or quiet."""

    number: int
    name: str
    folder: str
    size: str
    beside: str
    speed: str
    first_token: str
    memory: str
    value: str
    interval: str
    difference: str
    difference_interval: str
    kl: str
    top1: str
    agreement: str
    outcome: str
    tone: str


@dataclass(frozen=True, slots=True)
class Exports:
    """The section: a sentence, the table, and pictures where there is something to compare."""

    sentence: str
    metric: str | None
    lines: tuple[ExportCells, ...]
    charts: tuple[Markup, ...]
    has_memory: bool
    read_back: tuple[str, ...]


def exports(lines: Sequence[ExportLine], *, confidence: float, tuned: float | None) -> Exports | None:
    """What the report shows of a run's exports; None where there are none. `tuned`: the tuned model's metric."""
    if not lines:
        return None
    ordered = sorted(lines, key=lambda one: (-one.total, one.name))
    metric = next((one.metric for one in ordered if one.metric is not None), None)
    return Exports(
        _sentence(ordered),
        wording.metric_name(metric) if metric is not None else None,
        tuple(cells(number, one, confidence) for number, one in enumerate(ordered, 1)),
        tuple(charts(ordered, tuned)),
        any(one.peak_memory is not None for one in ordered),
        tuple(one.name for one in ordered if one.read_back),
    )


def _sentence(lines: Sequence[ExportLine]) -> str:
    failed = [one.name for one in lines if not one.usable]
    unsure = [one.name for one in lines if one.usable and one.unsure]
    good = len(lines) - len(failed)
    said = f"{good - len(unsure)} of {len(lines)} exports passed every check"
    if failed:
        said += f"; {wording.listed(failed)} did not, and {'is' if len(failed) == 1 else 'are'} kept aside"
    if unsure:
        said += f"; of {wording.listed(unsure)} not everything is sure"
    said += "."
    smallest = min((one for one in lines if one.usable), key=lambda one: one.total, default=None)
    if smallest is not None and good > 1:
        largest = max((one for one in lines if one.usable), key=lambda one: one.total)
        said += f" The smallest that passed is {smallest.name}, {largest.total / max(1, smallest.total):.1f} times "
        said += f"smaller than {largest.name}."
    return said


def cells(number: int, one: ExportLine, confidence: float) -> ExportCells:
    """A line of the table, in words."""
    outcome, tone = _outcome(one)
    return ExportCells(
        number=number,
        name=one.name,
        folder=one.folder,
        size=megabytes(one.bytes),
        beside=f"and {megabytes(one.base_bytes)} base" if one.base_bytes else "",
        speed=or_dash(one.decode, lambda value: f"{value:,.0f}"),
        first_token=or_dash(one.first_token, wording.duration),
        memory=or_dash(one.peak_memory, megabytes),
        value=wording.percent(one.value) if one.value is not None else "–",
        interval=_between(one.low, one.high, confidence),
        difference=wording.points(one.difference) if one.difference is not None else "–",
        difference_interval=_between(one.difference_low, one.difference_high, confidence),
        kl=or_dash(one.kl, lambda value: f"{value:.2g}"),
        top1=or_dash(one.top1, wording.percent),
        agreement=or_dash(one.agreement, wording.percent),
        outcome=outcome,
        tone=tone,
    )


def _outcome(one: ExportLine) -> tuple[str, str]:
    if one.failed:
        return f"failed: {', '.join(one.failed)}", "wrong"
    if one.non_inferior is None:
        return "not scored on rows", "quiet"
    if one.non_inferior:
        allowed = f"{wording.bare_points(one.margin)} points" if one.margin else "allowed"
        return f"surely loses less than {allowed}", "right"
    return "not worse, as far as these rows tell", "quiet"


def charts(lines: Sequence[ExportLine], tuned: float | None) -> list[Markup]:
    """Quality against size and against speed, of the lines that were scored, if there are at least two."""
    scored = [(n, one) for n, one in enumerate(lines, 1) if one.value is not None]
    if len(scored) < 2:
        return []
    by_size = [_point(n, one, one.total / 1e6) for n, one in scored]
    drawn = [
        front_chart(
            by_size, title="Quality and size", axis="MB with what it needs, less is better",
            tick=lambda value: f"{value:,.4g} MB", smaller=True, tuned=tuned,
        )
    ]  # fmt: skip
    by_speed = [_point(n, one, one.decode) for n, one in scored if one.decode is not None]
    if len(by_speed) > 1:
        drawn.append(
            front_chart(
                by_speed, title="Quality and speed", axis="tokens a second written, more is better",
                tick=lambda value: f"{value:,.4g}", smaller=False, tuned=tuned,
            )
        )  # fmt: skip
    return drawn


def _point(number: int, one: ExportLine, x: float) -> Point:
    assert one.value is not None
    low = one.value if one.low is None else one.low
    high = one.value if one.high is None else one.high
    return Point(number, one.name, x, one.value, low, high, one.usable)


def megabytes(size: float) -> str:
    """Bytes in powers of ten: `13.4 MB`, `1.20 GB`."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def or_dash(value: float | None, form: Callable[[float], str]) -> str:
    """A figure as it is shown, a dash where it is not known."""
    return "–" if value is None else form(value)


def _between(low: float | None, high: float | None, confidence: float) -> str:
    return "" if low is None or high is None else wording.interval(low, high, confidence)
