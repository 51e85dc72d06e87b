"""Loss against tokens learnt, from what `train.py` printed, and how far more of them would go.

    python examples/pretrain/curve.py work/pretrain/run.log --svg work/pretrain/curve.svg

Reads the events (JSON, one a line; other lines are passed over): a `validation` event belongs to the `train_step` event
of the same step, whose tokens are `tokens_per_second * seconds`. Several logs are one training in stages. Where the
rate of learning stays at its peak for most of the run and falls at the end, points before the fall lie higher than they
would if training had ended there. The power law is therefore fitted to the points at the peak rate alone, and by how
much the fall went below it stands beside it.

    L(D) = E + A D^-a        (form of Hoffmann et al. 2022, arXiv:2203.15556, for one size of model)

For each exponent a on a grid E and A >= 0 are the least-squares ones. Intervals are of 500 resamples of the residuals
by seed. A few points on a single curve tell E badly: read what lies within ten times the tokens, not the limit.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.pipeline.extrapolation import fit_power_law
from tunesmith.verdict.charts import nice_ticks

Float = npt.NDArray[np.float64]
Band = tuple[float, float, float]
EXPONENTS = np.arange(0.02, 1.501, 0.01)
AT_PEAK = 0.995
"""A rate of at least this share of the highest one counts as the peak."""


@dataclass(frozen=True, slots=True)
class Point:
    """The loss in nats per token on held-out text after so many tokens, at this rate of learning."""

    step: int
    tokens: float
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L(D) = limit + scale * D^-exponent, D in tokens."""

    limit: float
    scale: float
    exponent: float

    def at(self, tokens: Float | float) -> Any:
        return self.limit + self.scale * np.asarray(tokens, float) ** -self.exponent


@dataclass(frozen=True, slots=True)
class Fit:
    """The law, its resamples, the root mean square of the residuals, and how many points it rests on."""

    law: PowerLaw
    resampled: tuple[PowerLaw, ...]
    error: float
    points: int

    def predicted(self, tokens: float) -> Band:
        """The loss at so many tokens, with an interval of 95 % (of the curve, not of a single measurement)."""
        low, high = np.quantile([law.at(tokens) for law in self.resampled], (0.025, 0.975))
        return float(self.law.at(tokens)), float(low), float(high)


def read_points(logs: Iterable[Path]) -> list[Point]:
    """Validation losses in order of tokens; tokens of later logs come on top of those of earlier ones."""
    points: list[Point] = []
    before = 0.0
    for path in logs:
        steps: dict[int, tuple[float, float]] = {}
        losses: dict[int, float] = {}
        for event in _events(path):
            # A training that was continued tells some steps again: the later telling holds.
            if event["kind"] == "train_step":
                steps[event["step"]] = (event["tokens_per_second"] * event["seconds"], event["learning_rate"])
            elif event["kind"] == "validation" and event["loss"] is not None:
                losses[event["step"]] = event["loss"]
        points += [
            Point(step, before + steps[step][0], loss, steps[step][1])
            for step, loss in sorted(losses.items())
            if step in steps
        ]
        before += max((tokens for tokens, _ in steps.values()), default=0.0)
    return points


def _events(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if "kind" in event:
                yield event


def at_peak(points: Sequence[Point]) -> list[Point]:
    """The points at the highest rate of learning: warm-up and fall left out.

    Where fewer than five are there (the rate falls from the beginning on), all points.
    """
    peak = max(point.learning_rate for point in points)
    found = [point for point in points if point.learning_rate >= AT_PEAK * peak]
    return found if len(found) >= 5 else list(points)


def fit(points: Sequence[Point], seed: int = 0, resamples: int = 500) -> Fit:
    """The power law through the points. Raises `ValueError` with fewer than five, as three numbers are fitted."""
    if len(points) < 5:
        raise ValueError(f"{len(points)} points, expected at least 5: raise --evaluations of train.py")
    tokens = np.array([point.tokens for point in points])
    losses = np.array([point.loss for point in points])
    (law,) = _laws(tokens, losses[:, None])
    smooth = law.at(tokens)
    # Fitted residuals are too small by the three numbers that were fitted.
    residuals = (losses - smooth) * math.sqrt(len(points) / (len(points) - 3))
    draw = np.random.default_rng(seed)
    drawn = np.stack([smooth + draw.choice(residuals, len(points)) for _ in range(resamples)], axis=1)
    return Fit(law, _laws(tokens, drawn), float(np.sqrt(np.mean((losses - smooth) ** 2))), len(points))


def _laws(tokens: Float, losses: Float) -> tuple[PowerLaw, ...]:
    """The law of every column of `losses` [points, curves]; limit and scale are not below 0."""
    scales, exponents, limits = fit_power_law(tokens, losses, EXPONENTS)
    return tuple(PowerLaw(*map(float, law)) for law in zip(limits, scales, exponents, strict=True))


def summary(points: Sequence[Point], fitted: Fit, seed: int) -> dict[str, Any]:
    """What the page says: the law, the losses it foresees, and what falling rates brought at the end."""
    last = points[-1]
    law = fitted.law
    return {
        "points": [[round(p.tokens), round(p.loss, 4)] for p in points],
        "tokens": round(last.tokens),
        "last_loss": round(last.loss, 4),
        "law": {"limit": round(law.limit, 4), "scale": law.scale, "exponent": round(law.exponent, 3)},
        "law_points": fitted.points,
        "law_error": round(fitted.error, 5),
        "law_at_end": [round(v, 4) for v in fitted.predicted(last.tokens)],
        "below_law_at_end": round(float(law.at(last.tokens)) - last.loss, 4),
        "foreseen": {
            str(times): {
                "tokens": round(times * last.tokens),
                "change": round(float(law.at(times * last.tokens) - law.at(last.tokens)), 4),
                "loss": [round(v, 4) for v in fitted.predicted(times * last.tokens)],
            }
            for times in (2, 5, 10)
        },
        "seed": seed,
    }


# --- picture ---------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 40, 44
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}.grid{stroke:#ddd}"
    ".law{fill:none;stroke:#b45309;stroke-width:2;stroke-dasharray:5 4}.band{fill:#f59e0b;opacity:.18}"
    ".line{fill:none;stroke:#1d4ed8;stroke-width:2}.point{fill:#1d4ed8}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.line{stroke:#93c5fd}.point{fill:#93c5fd}}"
)


def picture(points: Sequence[Point], fitted: Fit, title: str) -> str:
    """An SVG: measured losses, the law with its band up to ten times the tokens, tokens on a logarithmic axis."""
    low, high = math.log10(points[0].tokens), math.log10(10 * points[-1].tokens)
    ahead = np.logspace(low, high, 80)
    bands = [fitted.predicted(tokens) for tokens in ahead.tolist()]
    shown = [*(p.loss for p in points), *(number for band in bands[10:] for number in band)]
    ticks = nice_ticks(min(shown), max(shown), 6)

    def x(tokens: float) -> float:
        return _LEFT + (math.log10(tokens) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        share = (min(max(loss, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def path(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(tokens):.1f},{y(loss):.1f}" for tokens, loss in pairs)

    at = ahead.tolist()
    outline = path(
        [*zip(at, (b[1] for b in bands), strict=True), *zip(at[::-1], (b[2] for b in bands[::-1]), strict=True)]
    )
    parts = [
        f'<text class="title" x="{_LEFT}" y="20">{escape(title)}</text>',
        *(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
            for t in ticks
        ),
        *(
            f'<text x="{x(t):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{_count(t)}</text>'
            for t in _round_counts(low, high)
        ),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "tokens learnt (logarithmic); loss in nats per token of held-out text</text>",
        f'<polygon class="band" points="{outline}"/>',
        f'<polyline class="law" points="{path(zip(at, fitted.law.at(ahead).tolist(), strict=True))}"/>',
        f'<polyline class="line" points="{path((p.tokens, p.loss) for p in points)}"/>',
        *(f'<circle class="point" cx="{x(p.tokens):.1f}" cy="{y(p.loss):.1f}" r="3"/>' for p in points),
    ]
    law = fitted.law
    described = (
        f"{title}: loss {points[0].loss:.2f} after {_count(points[0].tokens)} tokens, {points[-1].loss:.2f} after "
        f"{_count(points[-1].tokens)}; power law {law.limit:.2f} + {law.scale:.3g} D^-{law.exponent:.2f}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(described)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _round_counts(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends (in decimal logarithms), every other one where there are many."""
    found = [f * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for f in (1, 2, 5)]
    found = [count for count in found if low <= math.log10(count) <= high]
    return found if len(found) <= 9 else found[::2]


def _count(number: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", help="what train.py printed, one file a stage")
    parser.add_argument("--svg", type=Path, help="file for the picture")
    parser.add_argument("--title", default="Held-out loss of the small base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    points = read_points(options.logs)
    if len(points) < 5:
        parser.error(f"{len(points)} validation events with their steps in {', '.join(map(str, options.logs))}")
    fitted = fit(at_peak(points), options.seed)
    if options.svg is not None:
        options.svg.write_text(picture(points, fitted, options.title), encoding="utf-8")
    print(json.dumps(summary(points, fitted, options.seed), indent=2))


if __name__ == "__main__":
    main()
