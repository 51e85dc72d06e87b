"""The search that chose a run's settings: its trials in a table, their scores against each setting, the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.charts import Series, line_chart, nice_ticks

_PANEL = 200
_MOST_ROWS = 200
"""Trials in the table; those with the best scores are kept where there are more."""


@dataclass(frozen=True, slots=True)
class SearchTrial:
    """One trial: its settings by dotted key, and its score on validation rows; None where it failed.

    same_as: the number of an earlier trial with the same settings, whose score this is.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    loss: float | None
    seconds: float
    error: str | None = None
    same_as: int | None = None


@dataclass(frozen=True, slots=True)
class SearchData:
    """A finished search.

    score_name: a metric of the task, or `validation_loss`.
    log: the settings whose range was drawn by the logarithm.
    choices: of settings without an order, their values as they are shown.
    """

    score_name: str
    lower_is_better: bool
    sampler: str
    seed: int
    trials: tuple[SearchTrial, ...]
    best: int
    log: frozenset[str] = frozenset()
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialLine:
    """A row of the table, all cells as text."""

    number: int
    values: tuple[str, ...]
    score: str
    loss: str
    time: str
    note: str
    best: bool


@dataclass(frozen=True, slots=True)
class Searched:
    """What the section shows."""

    sentence: str
    keys: tuple[str, ...]
    score: str
    lines: tuple[TrialLine, ...]
    charts: tuple[Markup, ...]
    more: int


def searched(data: SearchData | None) -> Searched | None:
    """The section of a search; None without one."""
    if data is None:
        return None
    keys = tuple(dict.fromkeys(key for trial in data.trials for key in trial.values))
    ranked = sorted(data.trials, key=lambda trial: _rank(trial, data))
    shown = sorted(ranked[:_MOST_ROWS], key=lambda trial: trial.number)
    return Searched(
        sentence=_sentence(data, keys),
        keys=keys,
        score=_score_name(data),
        lines=tuple(_line(trial, keys, data) for trial in shown),
        charts=tuple(chart for chart in (_progress(data), *(_by_setting(data, key) for key in keys)) if chart),
        more=len(data.trials) - len(shown),
    )


def _rank(trial: SearchTrial, data: SearchData) -> tuple[float, int]:
    if trial.score is None:
        return math.inf, trial.number
    return (trial.score if data.lower_is_better else -trial.score), trial.number


def _sentence(data: SearchData, keys: Sequence[str]) -> str:
    best = next(trial for trial in data.trials if trial.number == data.best)
    failed = sum(trial.score is None for trial in data.trials)
    said = ", ".join(f"{key} {value_text(best.values[key])}" for key in keys)
    how = {"tpe": "TPE", "random": "random draws", "sequential": "every combination in turn"}.get(data.sampler)
    tries = f"{wording.count(len(data.trials))} trial{'s' if len(data.trials) != 1 else ''}"
    lost = f" ({failed} failed)" if failed else ""
    return (
        f"{tries}{lost} by {how or data.sampler}, seed {data.seed}; validation rows chose trial {data.best}: {said}. "
        "The best of many scores is luck in part: what to expect is said by the comparison on test rows, which no "
        "trial answered."
    )


def _line(trial: SearchTrial, keys: Sequence[str], data: SearchData) -> TrialLine:
    note = f"as trial {trial.same_as}" if trial.same_as is not None else (trial.error or "").splitlines()[:1]
    return TrialLine(
        number=trial.number,
        values=tuple(value_text(trial.values.get(key)) for key in keys),
        score="failed" if trial.score is None else _score_text(trial.score, data),
        loss="–" if trial.loss is None else f"{trial.loss:.4f}",
        time=wording.duration(trial.seconds) if trial.same_as is None else "–",
        note=note if isinstance(note, str) else "".join(note),
        best=trial.number == data.best,
    )


def _score_name(data: SearchData) -> str:
    return "validation loss" if data.score_name == "validation_loss" else wording.metric_name(data.score_name)


def _score_text(value: float, data: SearchData) -> str:
    return f"{value:.4f}" if data.lower_is_better else wording.percent(value)


def _progress(data: SearchData) -> Markup:
    """Each trial's score, and the best so far, by number."""
    choose = min if data.lower_is_better else max
    scored = [(float(trial.number), trial.score) for trial in data.trials if trial.score is not None]
    if len(scored) < 2:
        return Markup("")
    best, so_far = scored[0][1], []
    for number, score in scored:
        best = choose(best, score)
        so_far.append((number, best))
    return line_chart(
        [Series("this trial", tuple(scored), "faint", dots=True), Series("best so far", tuple(so_far), "tuned")],
        title=f"{wording.capitalised(_score_name(data))} on validation rows",
        x_label="trial",
        number=lambda value: _score_text(value, data),
    )


def _by_setting(data: SearchData, key: str) -> Markup:
    """Scores against one setting: a point for each trial, the chosen one marked."""
    points = [(trial, trial.score) for trial in data.trials if trial.score is not None and key in trial.values]
    if len({value_text(trial.values[key]) for trial, _ in points}) < 2:
        return Markup("")
    scores = [score for _, score in points]
    y_ticks = nice_ticks(min(scores), max(scores))
    low, high = min(y_ticks[0], *scores), max(y_ticks[-1], *scores)
    place, ticks = _axis_of(data, key, [trial.values[key] for trial, _ in points])

    def y(score: float) -> float:
        return _PANEL * (1 - (score - low) / (high - low))

    parts = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
            '<text class="tick" x="-8" y="{1:.1f}" text-anchor="end">{2}</text>'
        ).format(y(tick), y(tick) + 4, _score_text(tick, data))
        for tick in y_ticks
    ]
    parts += [
        Markup('<text class="tick" x="{0:.2f}%" y="{1}" text-anchor="{2}">{3}</text>').format(
            at, _PANEL + 18, "start" if at < 4 else "end" if at > 96 else "middle", label
        )
        for at, label in ticks
    ]
    # The chosen one last, so that nothing lies over it.
    for trial, score in sorted(points, key=lambda point: point[0].number == data.best):
        chosen = trial.number == data.best
        title = f"trial {trial.number}: {value_text(trial.values[key])}, {_score_text(score, data)}"
        parts.append(
            Markup('<circle class="point {0}" cx="{1:.2f}%" cy="{2:.1f}" r="{3}"><title>{4}</title></circle>').format(
                "tuned" if chosen else "other", place(trial.values[key]), y(score), 6 if chosen else 4, title
            )
        )
    described = "; ".join(
        f"{value_text(trial.values[key])} gave {_score_text(score, data)}" for trial, score in points[:20]
    )
    return Markup(
        '<figure class="lchart"><figcaption>{title} <small>by {key}{log}</small></figcaption>'
        '<svg width="100%" height="{height}" role="img" aria-label="{title} by {key}: {described}">{parts}</svg>'
        '<p class="legend"><span class="key"><i class="swatch dot tuned"></i>chosen</span>'
        '<span class="key"><i class="swatch dot"></i>other trials</span></p></figure>'
    ).format(
        title=wording.capitalised(_score_name(data)),
        key=key,
        log=", logarithmic" if key in data.log else "",
        height=_PANEL + 24,
        described=described,
        parts=Markup("").join(parts),
    )


def _axis_of(data: SearchData, key: str, values: Sequence[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """Where a value of a setting lies on the axis in per cent, and the axis' labels with their places."""
    names = list(data.choices.get(key, ()))
    if names or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = names or list(dict.fromkeys(value_text(value) for value in values))
        places = {name: 100 * (i + 0.5) / len(names) for i, name in enumerate(names)}
        return (lambda value: places[value_text(value)]), [(at, name) for name, at in places.items()]
    log = key in data.log
    numbers = [math.log10(value) if log else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    margin = 3.0
    """Per cent left free at both ends, so that no point is cut."""

    def place(value: Any) -> float:
        number = math.log10(value) if log else float(value)
        return margin + (100 - 2 * margin) * (number - low) / (high - low)

    if log:
        powers = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
        shown = powers if len(powers) > 1 else [10**low, 10**high]
    else:
        shown = [tick for tick in nice_ticks(low, high, 4) if low <= tick <= high] or [low, high]
    return place, [(place(value), f"{value:.2g}" if log else f"{value:g}") for value in shown]


def value_text(value: Any) -> str:
    """A value of a setting as it is shown: short, and as a recipe writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
