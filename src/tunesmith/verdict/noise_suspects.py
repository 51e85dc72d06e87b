"""Test rows whose label may be wrong: the tuned model is sure of another one.

With probabilities of labels, a row is suspected where another label reaches the mean probability that rows of that
label get (the threshold of confident learning: Northcutt, Jiang and Chuang 2021, arXiv 1911.00068, section 3.1) and
leads the given one by as much as data checks ask for; probabilities are divided by the temperature that calibration
found. Without probabilities, where the tuned model and two alternatives or more give the same other answer, out of
three labels or more. A model that gets fewer than seven in ten right has no right to doubt anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

from tunesmith.data.quality.noise import MIN_ACCURACY, MIN_LEAD
from tunesmith.evaluation.calibration import Calibration, tempered
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.recipe.schema import Decoding
from tunesmith.verdict.costs import is_tuned

FEWEST_AGREEING = 2
"""Alternatives that must give the tuned model's answer where there are no probabilities."""
FEWEST_ROWS = 30
"""Test rows from which on a model's doubts are heard."""
_RIGHT = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class NoiseSuspect:
    """A test row whose expected answer looks wrong.

    given: what the row expects. likely: what the model is sure of. row: as the model answered it.
    lead: by how much `likely` is more probable than `given`, after temperature scaling; None without probabilities.
    agreeing: other candidates that answer `likely`.
    """

    id: str
    given: str
    likely: str
    row: ScoredAnswer
    lead: float | None
    agreeing: tuple[str, ...]


def noise_suspects(
    evaluations: Sequence[Evaluation],
    metric: str,
    *,
    tuned: str = "tuned",
    calibration: Sequence[Calibration] = (),
    limit: int = 20,
) -> tuple[NoiseSuspect, ...]:
    """The surest suspicions first, at most `limit`; for tasks whose answers are labels.

    `evaluations` are of all candidates on the same rows, `metric` is 1 for a right row; the candidate asked is the
    tuned model, or a way of asking it (`tuned_scored`) that gave probabilities.
    """
    asked = [e for e in evaluations if is_tuned(e.candidate, tuned) and len(e.rows) >= FEWEST_ROWS]
    knowing = next((e for e in asked if all(row.probabilities for row in e.rows)), None)
    chosen = knowing or next((e for e in asked if e.candidate == tuned), None)
    if chosen is None or fmean(row.scores[metric] >= _RIGHT for row in chosen.rows) < MIN_ACCURACY:
        return ()
    others = _alternatives(evaluations, tuned)
    said = {e.candidate: {row.id: row.parsed for row in e.rows} for e in others}
    if knowing is not None:
        temperature = next((c.temperature for c in calibration if c.candidate == knowing.candidate), None)
        found = _by_probability(knowing, metric, temperature or 1.0, said)
    else:
        found = _by_agreement(chosen, metric, said)
    found.sort(key=lambda suspect: (-(suspect.lead or 0.0), -len(suspect.agreeing), suspect.id))
    return tuple(found[:limit])


def _alternatives(evaluations: Sequence[Evaluation], tuned: str) -> list[Evaluation]:
    """The candidates beside tuned, each once: another way of asking one, such as `few_shot_grammar`, is no witness."""
    names = {e.candidate for e in evaluations}
    ways = {f"{name}_{way}" for name in names for way in get_args(Decoding)}
    return [e for e in evaluations if not is_tuned(e.candidate, tuned) and e.candidate not in ways]


Said = Mapping[str, Mapping[str, object]]
"""What every alternative answered, by row."""


def _by_probability(evaluation: Evaluation, metric: str, temperature: float, said: Said) -> list[NoiseSuspect]:
    believed = [tempered(row.probabilities or {}, temperature) for row in evaluation.rows]
    given = [_given(row, probabilities) for row, probabilities in zip(evaluation.rows, believed, strict=True)]
    usual: dict[str, list[float]] = {}
    for label, probabilities in zip(given, believed, strict=True):
        if label is not None:
            usual.setdefault(label, []).append(probabilities[label])
    found = []
    for row, label, probabilities in zip(evaluation.rows, given, believed, strict=True):
        if label is None or row.scores[metric] >= _RIGHT:
            continue
        likely = max(probabilities, key=lambda name: (probabilities[name], name))
        lead = probabilities[likely] - probabilities[label]
        if lead >= MIN_LEAD and likely in usual and probabilities[likely] >= fmean(usual[likely]):
            found.append(NoiseSuspect(row.id, label, likely, row, lead, _agreeing(row, likely, said)))
    return found


def _given(row: ScoredAnswer, probabilities: Mapping[str, float]) -> str | None:
    """The label a row expects, as the probabilities spell it."""
    label = row.expected.strip()
    if label in probabilities:
        return label
    return next((name for name in probabilities if name.casefold() == label.casefold()), None)


def _by_agreement(evaluation: Evaluation, metric: str, said: Said) -> list[NoiseSuspect]:
    answers = Counter(row.expected.strip() for row in evaluation.rows)
    if len(answers) < 3 or 2 * len(answers) > len(evaluation.rows):  # two labels, or texts: agreement says nothing
        return []
    found = []
    for row in evaluation.rows:
        if row.scores[metric] >= _RIGHT or not isinstance(row.parsed, str):
            continue
        agreeing = _agreeing(row, row.parsed, said)
        if len(agreeing) >= FEWEST_AGREEING:
            found.append(NoiseSuspect(row.id, row.expected.strip(), row.parsed, row, None, agreeing))
    return found


def _agreeing(row: ScoredAnswer, likely: str, said: Said) -> tuple[str, ...]:
    return tuple(name for name, answers in said.items() if answers.get(row.id) == likely)
