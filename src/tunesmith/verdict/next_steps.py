"""What to try next, the largest expected gain first.

Every step comes from something that was measured, and says what. Its `gain` is in the deciding metric (a fraction):
`about` where it was measured or extrapolated, `at_most` where it is all that the cause can account for: the loss on the
rows that show it. Of a metric that is no mean over rows, such as macro-F1, the mean of the rows' scores stands for it.
Causes overlap, so gains do not add up. A step without a number has evidence, but none that says how much; such steps
stand last, in the order in which they are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.recipe.schema import CLOSED_FORMS, ONE_LABEL, Decoding
from tunesmith.verdict import wording
from tunesmith.verdict.costs import is_tuned
from tunesmith.verdict.noise_suspects import noise_suspects
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.vetoes import FEWEST_SLICE_ROWS

Bound = Literal["about", "at_most"]

SMALLEST_GAIN = 0.002
"""Gains under this are no reason to do anything."""
MANY_OF_THE_ERRORS = 0.1
"""Share of the wrong answers from which on two labels that are confused are worth a step of their own."""
FEWEST_CONFUSED = 5
SUSPECTS_RIGHT = 0.6
"""Share of doubted labels that are wrong indeed, where a few per cent are (`benchmarks/data_findings.py`)."""
STILL_RISING = 0.2
"""Last share of a training in which its best step must lie for more steps to be promising."""
MUCH_FORGOTTEN = 0.25
"""Rise of the perplexity of general text from which on it is worth a word."""
_CLEAR = 2.0
"""Standard errors by which a way of answering must be better to be proposed: it is chosen on these same rows."""
_RIGHT = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class NextStep:
    """One thing to do.

    code: names the kind of step. action: what to do. reason: what was measured that speaks for it.
    gain: of the deciding metric, as a fraction; None where nothing says how much. bound: what `gain` is.
    settings: recipe settings by dotted key that do it; empty where rows or people are needed.
    """

    code: str
    action: str
    reason: str
    gain: float | None = None
    bound: Bound = "at_most"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """The gain in words: `about +3.1 points`, `at most +2.0 points`, or `not known`."""
        if self.gain is None:
            return "not known"
        return f"{self.bound.replace('_', ' ')} {wording.points(self.gain)}"


def next_steps(data: ReportData, *, limit: int = 8) -> tuple[NextStep, ...]:
    """The steps that what was measured speaks for, at most `limit`; none where nothing was tuned.

    A step whose gain would be under `SMALLEST_GAIN` is left out.
    """
    tuned = next((e for e in data.evaluations if e.candidate == data.tuned_name), None)
    if tuned is None or not tuned.rows:
        return ()
    case = _Case(data, tuned, data.verdict.metric)
    found = [step for look in _LOOKS for step in look(case) if step.gain is None or step.gain >= SMALLEST_GAIN]
    known = sorted((step for step in found if step.gain is not None), key=lambda step: -(step.gain or 0.0))
    return tuple([*known, *(step for step in found if step.gain is None)][:limit])


@dataclass(frozen=True)
class _Case:
    """What the questions are put to: the tuned model's answers, beside all that is known of the run."""

    data: ReportData
    tuned: Evaluation
    metric: str

    @property
    def n(self) -> int:
        return len(self.tuned.rows)

    def score(self, row: ScoredAnswer) -> float:
        return row.scores[self.metric]

    def mean(self, rows: list[ScoredAnswer]) -> float:
        return fmean(map(self.score, rows)) if rows else 0.0

    def value(self, evaluation: Evaluation) -> float | None:
        """The deciding metric of a candidate."""
        return next((m.value for m in evaluation.metrics if m.metric == self.metric), None)

    def surely_better(self, other: Evaluation) -> bool:
        """Whether the mean score of another's rows is higher by two standard errors of the paired differences."""
        scores = {row.id: self.score(row) for row in other.rows}
        gains = [scores[row.id] - self.score(row) for row in self.tuned.rows if row.id in scores]
        return len(gains) > 1 and fmean(gains) > _CLEAR * stdev(gains) / len(gains) ** 0.5

    def loss(self, rows: Sequence[ScoredAnswer]) -> float:
        """What the mean over all rows would gain if these were right."""
        return sum(1 - self.score(row) for row in rows) / self.n

    def if_as_good(self, rows: list[ScoredAnswer]) -> float:
        """The gain if these rows were answered as well as the others."""
        chosen = {row.id for row in rows}
        others = [row for row in self.tuned.rows if row.id not in chosen]
        return max(0.0, self.mean(others) - self.mean(rows)) * len(rows) / self.n if others and rows else 0.0


def _better_way(case: _Case) -> Iterator[NextStep]:
    """A further way of asking the tuned model that measured better than the one that decides."""
    ways = [e for e in case.data.evaluations if is_tuned(e.candidate, case.data.tuned_name) and e is not case.tuned]
    values = {e.candidate: value for e in ways if (value := case.value(e)) is not None}
    own = case.value(case.tuned)
    if own is None or not values:
        return
    best = max(values, key=lambda name: values[name])
    way = best.removeprefix(f"{case.data.tuned_name}_")
    if way in get_args(Decoding) and case.surely_better(next(e for e in ways if e.candidate == best)):
        yield NextStep(
            "better_way",
            f"Let the tuned model answer by the way {way}.",
            f"On the test rows it reaches {wording.percent(values[best])} so, {wording.percent(own)} as it was asked.",
            values[best] - own,
            "about",
            {"evaluate.decoding": [way]},
        )


def _unreadable(case: _Case) -> Iterator[NextStep]:
    rows = [row for row in case.tuned.rows if row.parsed is None and row.stopped]
    if not rows:
        return
    share = f"{wording.count(len(rows))} of {wording.count(case.n)} answers could not be read"
    names = {e.candidate for e in case.data.evaluations}
    tried = {f"{case.data.tuned_name}_grammar", f"{case.data.tuned_name}_scored"} & names
    if case.data.task in CLOSED_FORMS and not tried:
        yield NextStep(
            "decode_by_grammar",
            "Let answers be given in the task's form only.",
            f"{share}; under a grammar every answer can be.",
            case.if_as_good(rows),
            settings={"evaluate.decoding": ["grammar", "free"]},
        )
    else:
        yield NextStep(
            "teach_the_form",
            "Look at these answers, and add rows that show the form of the answer in such cases.",
            f"{share}.",
            case.if_as_good(rows),
        )


def _cut(case: _Case) -> Iterator[NextStep]:
    rows = [row for row in case.tuned.rows if not row.stopped]
    if rows:
        yield NextStep(
            "longer_answers",
            "Allow longer answers (evaluate.max_new_tokens), or see why they do not end: a template whose answers end "
            "in no token that is learnt makes a model go on for ever.",
            f"{wording.count(len(rows))} of {wording.count(case.n)} answers were cut at the token limit.",
            case.if_as_good(rows),
        )


def _more_rows(case: _Case) -> Iterator[NextStep]:
    train = case.data.split_sizes.get("train", 0)
    rows = case.data.more_rows
    if rows is None:
        if case.data.training is not None and train:
            yield NextStep(
                "measure_learning_curve",
                "Measure a learning curve before collecting rows: it says what twice as many would bring.",
                f"The model has learnt from {wording.count(train)} rows; whether more would help was not measured.",
                settings={"data.learning_curve": True},
            )
        return
    spread = f"between {wording.bare_points(rows.gain_low)} and {wording.bare_points(rows.gain_high)} points"
    yield NextStep(
        "more_rows",
        f"Collect training rows up to {wording.count(rows.rows)} in all (there are {wording.count(train)}).",
        f"The learning curve, continued, gains {spread}.",
        rows.gain,
        "about",
    )


def _label_noise(case: _Case) -> Iterator[NextStep]:
    doubted = [finding for finding in case.data.findings if finding.code == "label_noise"]
    total = case.data.split_sizes.get("train", 0) + case.data.split_sizes.get("validation", 0) + case.n
    count = sum(finding.count for finding in doubted)
    if count and total:
        # A label learnt wrong costs about one row answered wrong, and that what wrong rows cost here.
        wrong = [row for row in case.tuned.rows if case.score(row) < _RIGHT]
        cost = case.loss(wrong) * case.n / len(wrong) if wrong else 0.0
        yield NextStep(
            "mend_labels",
            "Look at the rows whose label looks wrong, and correct them.",
            f"{wording.count(count)} of {wording.count(total)} labels look wrong to a classifier that never saw them; "
            f"about {SUSPECTS_RIGHT:.0%} of such doubts are right.",
            SUSPECTS_RIGHT * count / total * cost,
        )
    if case.data.task not in ONE_LABEL:
        return
    suspects = noise_suspects(
        case.data.evaluations, case.metric, tuned=case.data.tuned_name, calibration=case.data.calibration, limit=case.n
    )
    if len(suspects) > 1:
        yield NextStep(
            "check_test_labels",
            "Check the labels of the test rows that the tuned model doubts: where it is right, the score is too low.",
            f"In {len(suspects)} of {wording.count(case.n)} test rows it is sure of another label.",
            case.loss([suspect.row for suspect in suspects]),
        )


def _worst_slice(case: _Case) -> Iterator[NextStep]:
    """The slice that would gain most if it were answered as well as the other rows."""
    by_id = {row.id: row for row in case.tuned.rows}
    best: tuple[float, str, list[ScoredAnswer]] | None = None
    for name, ids in case.data.slices.items():
        rows = [by_id[i] for i in ids if i in by_id]
        if FEWEST_SLICE_ROWS <= len(rows) < case.n:
            gain = case.if_as_good(rows)
            if best is None or gain > best[0]:
                best = gain, name, rows
    if best is not None:
        gain, name, rows = best
        metric = wording.metric_name(case.metric)
        yield NextStep(
            "worst_slice",
            f"Add training rows like those of “{name}”, and look at what is said to them.",
            f"Its {wording.count(len(rows))} test rows have a mean {metric} of {wording.percent(case.mean(rows))}, "
            f"all rows {wording.percent(case.mean(list(case.tuned.rows)))}: no slice costs more.",
            gain,
        )


def _confused(case: _Case) -> Iterator[NextStep]:
    """The two labels that are most often taken for each other."""
    if case.data.task not in ONE_LABEL:
        return
    wrong = [row for row in case.tuned.rows if case.score(row) < _RIGHT]
    pairs: dict[tuple[str, str], list[ScoredAnswer]] = {}
    for row in wrong:
        expected, answered = row.expected.strip(), str(row.parsed)
        if row.parsed is not None and answered != expected:  # a metric of the user's own may ask for more than a label
            first, second = sorted((expected, answered))
            pairs.setdefault((first, second), []).append(row)
    if not pairs:
        return
    (a, b), rows = min(pairs.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    if len(rows) >= FEWEST_CONFUSED and len(rows) >= MANY_OF_THE_ERRORS * len(wrong):
        yield NextStep(
            "confused_labels",
            f"Say in the instruction what tells “{a}” from “{b}”, add rows at their border, or merge the two.",
            f"{len(rows)} of {wording.count(len(wrong))} wrong answers take one for the other.",
            case.loss(rows),
        )


def _rows_left_out(case: _Case) -> Iterator[NextStep]:
    train = case.data.split_sizes.get("train", 0)
    for finding in case.data.findings:
        if finding.code == "row_too_long" and train:
            yield NextStep(
                "rows_too_long",
                "Shorten the rows that are too long, or take a base with a longer context.",
                f"{wording.count(finding.count)} of {wording.count(train)} training rows were left out.",
            )
        if finding.code == "end_not_learnt":
            yield NextStep("end_not_learnt", _sentence(finding.fix), _sentence(finding.message))


def _training(case: _Case) -> Iterator[NextStep]:
    """What the training itself showed: its diagnoses, or a best step at the very end."""
    training = case.data.training
    if training is None:
        return
    for diagnosis in training.get("diagnoses", ()):
        yield NextStep(
            f"training_{diagnosis['code']}",
            _sentence(diagnosis["remedy"]),
            _sentence(diagnosis["seen"]),
            settings=diagnosis.get("changes", {}),
        )
    if not training.get("diagnoses"):
        yield from _still_rising(case)


def _still_rising(case: _Case) -> Iterator[NextStep]:
    """More steps, by what the last part of the training still brought on validation rows."""
    values = [
        (int(event["step"]), float(event["metrics"][case.metric]))
        for event in case.data.history
        if event["kind"] == "validation" and event["step"] and case.metric in (event.get("metrics") or {})
    ]
    if len(values) < 4:
        return
    last = values[-1][0]
    best_step, best = max(values, key=lambda reading: reading[1])
    before = max(value for step, value in values if step <= (1 - STILL_RISING) * last or step == values[0][0])
    if best_step > (1 - STILL_RISING) * last and best > before:
        yield NextStep(
            "train_longer",
            "Train longer (train.epochs): the best step was among the last ones.",
            f"On validation rows the last {STILL_RISING:.0%} of the steps still brought "
            f"{wording.points(best - before)} of {wording.metric_name(case.metric)}.",
            best - before,
        )


def _forgot(case: _Case) -> Iterator[NextStep]:
    """General text or general instructions that became worse."""
    forgetting = case.data.forgetting
    if forgetting is None:
        return
    rise = forgetting.perplexity_after / forgetting.perplexity_before - 1
    skill = forgetting.skill
    lost = skill is not None and skill.high < 0
    if rise > MUCH_FORGOTTEN or lost:
        seen = f"The perplexity of general text changed by {rise:+.0%}"
        if skill is not None:
            seen += f", the score on general instructions by {wording.points(skill.difference)}"
        yield NextStep(
            "forgetting",
            "Mix general rows into the training rows, or tune less (train.learning_rate, train.epochs, method.rank).",
            f"{seen}; this costs nothing in the deciding metric, but in all else that is asked of the model.",
        )


def _cannot_tell(case: _Case) -> Iterator[NextStep]:
    if case.data.verdict.decision == "cannot_tell" and case.data.verdict.rows_needed is not None:
        yield NextStep(
            "more_test_rows",
            f"Add test rows up to {wording.count(case.data.verdict.rows_needed)} in all and decide again.",
            f"{wording.count(case.n)} test rows do not decide; this gains certainty, not quality.",
        )


def _larger_base(case: _Case) -> Iterator[NextStep]:
    target, value = case.data.goal.target, case.value(case.tuned)
    if target is not None and value is not None and value < target:
        yield NextStep(
            "larger_base",
            "Compare larger bases on these rows: tunesmith bases RECIPE BASE …",
            f"Tuned reaches {wording.percent(value)}, {wording.bare_points(target - value)} points under the target.",
        )


def _sentence(text: str) -> str:
    text = wording.capitalised(text.strip())
    return text if text.endswith((".", "!", "?")) else f"{text}."


_LOOKS = (
    _cannot_tell,
    _better_way,
    _unreadable,
    _cut,
    _more_rows,
    _label_noise,
    _worst_slice,
    _confused,
    _training,
    _rows_left_out,
    _forgot,
    _larger_base,
)
