"""Which of several exports is kept: what is allowed, what no other beats, the best of it, and what came nearest.

Everything here is decided by numbers of validation rows; test rows are never seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.loss import decide
from tunesmith.pipeline.exporting.records import line_of
from tunesmith.verdict import wording
from tunesmith.verdict.report_exports import ExportLine, megabytes

Wish = Literal["speed", "size"]
_TASK = "task"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an export may lose and cost. None: no limit.

    max_loss: of the deciding metric (0-1); margin_of: who says so. max_bytes: with the base that it needs.
    max_latency: seconds to a whole answer, the median of rows asked alone. accept_unsure: also take what measured
    within `max_loss` where there are too few rows to be sure of it. confidence, power: of the tests.
    """

    max_loss: float
    margin_of: str
    max_bytes: int | None = None
    max_latency: float | None = None
    accept_unsure: bool = False
    confidence: float = 0.95
    power: float = 0.8


@dataclass(frozen=True)
class Outcome:
    """What came of one format.

    key: hash of all that decides it. seconds: that it took. record: as `records.record_of` has it; None where it could
    not be made, and then `trouble` says why and `instead` what works.
    """

    target: Target
    key: str
    seconds: float
    record: Mapping[str, Any] | None = None
    trouble: str | None = None
    instead: str | None = None

    @property
    def name(self) -> str:
        return str(self.target)

    @cached_property
    def line(self) -> ExportLine | None:
        """Its figures; None where it could not be made."""
        return line_of(self.record) if self.record is not None else None

    @property
    def broken(self) -> tuple[str, ...]:
        """Checks that failed, whatever loss is allowed."""
        return tuple(name for name in self.line.failed if name != _TASK) if self.line is not None else ()

    @property
    def sound(self) -> bool:
        """Whether it is the tuned model, however much was lost on the way."""
        return self.line is not None and not self.broken and self.line.value is not None

    @property
    def latency(self) -> float | None:
        """Median seconds to an answer; None where it was not measured in its own runtime."""
        if self.record is None or self.line is None or self.line.decode is None:
            return None
        scores = self.record["numbers"].get("scores")
        return float(scores["latency_p50"]) if scores is not None else None


@dataclass(frozen=True, slots=True)
class Judged:
    """An outcome beside the others.

    front: no other sound one is as good in quality, size and speed and better in one. missed: limits that it misses,
    in words; none, and sound: it is allowed. excess: by how much, as a share of the limit, the worst of them.
    """

    outcome: Outcome
    front: bool
    missed: tuple[str, ...]
    excess: float

    @property
    def allowed(self) -> bool:
        return self.outcome.sound and not self.missed


def judge(outcomes: Sequence[Outcome], limits: Limits) -> tuple[Judged, ...]:
    """Every outcome with its place on the front and the limits that it misses."""
    sound = [one for one in outcomes if one.sound]
    found = []
    for one in outcomes:
        missed = _missed(one, limits) if one.sound else ()
        front = one.sound and not any(_beats(other, one) for other in sound)
        found.append(Judged(one, front, tuple(text for text, _ in missed), max((by for _, by in missed), default=0.0)))
    return tuple(found)


def choose(judged: Sequence[Judged], wish: Wish) -> Judged | None:
    """The fastest of those allowed, or the smallest; None where none is allowed."""
    allowed = [one for one in judged if one.allowed]
    return max(allowed, key=lambda one: _rank(one, wish), default=None)


def nearest(judged: Sequence[Judged], wish: Wish) -> Judged | None:
    """Of those that are the tuned model and miss a limit: the one that misses the fewest, and these by least."""
    sound = [one for one in judged if one.outcome.sound and one.missed]
    return max(sound, key=lambda one: (-len(one.missed), -one.excess, *_rank(one, wish)), default=None)


def note_of(one: Judged, chosen: Judged | None, wish: Wish) -> str:
    """Why it was chosen, or why it was not."""
    outcome = one.outcome
    if outcome.trouble is not None:
        return f"not made: {outcome.trouble}"
    if outcome.broken:
        return f"failed: {', '.join(outcome.broken)}"
    if not outcome.sound:
        return "not scored on rows"
    if one.missed:
        return "; ".join(one.missed)
    if chosen is None or one is chosen:
        return "chosen"
    said = "larger" if wish == "size" else "slower"
    if wish == "speed" and outcome.line is not None and outcome.line.decode is None:
        said = "allowed, but of unknown speed: its runtime is not installed; not"
        return f"{said} {chosen.outcome.name}"
    return f"allowed; {said} than {chosen.outcome.name}"


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """As JSON values."""
    return asdict(outcome)


def outcome_from_dict(kept: Mapping[str, Any]) -> Outcome:
    """What `outcome_to_dict` gave, further entries passed over. Raises `KeyError` or `TypeError` for something else."""
    names = ("key", "seconds", "record", "trouble", "instead")
    return Outcome(Target(**kept["target"]), **{name: kept[name] for name in names})


def _missed(one: Outcome, limits: Limits) -> list[tuple[str, float]]:
    """The limits that a sound outcome misses, in words, and by how much."""
    line = one.line
    assert line is not None
    found = []
    lost = _lost(one, limits)
    if lost is not None:
        found.append(lost)
    if limits.max_bytes is not None and line.total > limits.max_bytes:
        beside = " with its base" if line.base_bytes else ""
        text = f"{megabytes(line.total)}{beside}, at most {megabytes(limits.max_bytes)} wanted"
        found.append((text, line.total / max(1, limits.max_bytes) - 1))
    if limits.max_latency is not None:
        latency = one.latency
        if latency is None:
            found.append(("its latency could not be measured: its runtime is not installed", math.inf))
        elif latency > limits.max_latency:
            text = f"{wording.duration(latency)} to an answer, at most {wording.duration(limits.max_latency)} wanted"
            found.append((text, latency / limits.max_latency - 1))
    return found


def _lost(one: Outcome, limits: Limits) -> tuple[str, float] | None:
    """What is wrong with its loss: more than is allowed, or not surely less."""
    assert one.record is not None
    scores, agreement = one.record["numbers"]["scores"], one.record["numbers"]["answer_agreement"]
    difference, n = float(scores["difference"]), int(scores["n"])
    found = decide(
        difference, float(scores["difference_low"]), n, limits.max_loss, differing=int(scores["differing"]),
        identical=agreement == 1.0, confidence=limits.confidence, power=limits.power,
    )  # fmt: skip
    allowed = wording.bare_points(limits.max_loss)
    if found.status == "failed":
        text = f"loses {wording.bare_points(-difference)} points, {allowed} are allowed"
        return text, (-difference - limits.max_loss) / max(limits.max_loss, 0.01)
    if found.status == "passed" or limits.accept_unsure:
        return None
    text = f"{wording.points(difference)}, but {n} rows cannot show a loss below {allowed} points"
    return text + (f" (about {wording.count(found.rows)} would)" if found.rows else ""), 0.0


def _rank(one: Judged, wish: Wish) -> tuple[float, float, str]:
    line = one.outcome.line
    assert line is not None
    speed, small = _speed(line), -float(line.total)
    return (speed, small, one.outcome.name) if wish == "speed" else (small, speed, one.outcome.name)


def _speed(line: ExportLine) -> float:
    return -math.inf if line.decode is None else line.decode


def _beats(one: Outcome, other: Outcome) -> bool:
    a, b = _objectives(one), _objectives(other)
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def _objectives(one: Outcome) -> tuple[float, float, float]:
    """Quality, smallness, speed; more is better."""
    line = one.line
    assert line is not None and line.value is not None
    return line.value, -float(line.total), _speed(line)
