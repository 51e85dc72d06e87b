"""The nouns of a diagnosis: what is known beside the curves, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is wrong with a training, for a person who has not seen many.

    `seen` says it in numbers, `why` what causes it, `remedy` what to do. `changes` are recipe settings by dotted key
    that do it (`tunesmith run RECIPE --set key=value`), empty where only rows can be mended. `steps`: where it is seen.
    An error means that the tuned model is of no use, a warning that it is worse than it could be.
    """

    code: str
    severity: Severity
    title: str
    seen: str
    why: str
    remedy: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """`changes` as the command line takes them after `--set`."""
        return tuple(f"{key}={_written(value)}" for key, value in self.changes.items())

    def record(self) -> dict[str, Any]:
        """All of it as plain values, `overrides` included."""
        return {
            **asdict(self),
            "changes": dict(self.changes),
            "steps": list(self.steps),
            "overrides": list(self.overrides),
        }


@dataclass(frozen=True, slots=True)
class Separation:
    """How well words tell two things apart, on rows held out: `score` 0-1, its standard `error`, and `chance`."""

    score: float
    error: float
    chance: float

    def above(self, level: float, errors: float = 3.0) -> bool:
        """Whether the score is surely (by so many standard errors) above a level."""
        return self.score - errors * self.error > level


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite:
    """A step at which loss or gradient was no number; `rows` of it whose own loss is none, at finite weights."""

    step: int
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """What is known of a training beside its curves; None is "not known", and signs that need it stay silent.

    Rows
    ----
    rows: learnt. rows_available: in the file, where `data.max_rows` left some out.
    labels: how often each answer occurs among the training rows, where answers repeat (a closed set).
    prior_loss: nats per learnt token of a model that knows those frequencies and nothing of the input.
    answers_from_words: whether words of a prompt tell its answer (naive Bayes, held-out rows).
    validation_shift, test_shift: whether words tell training rows from those (area under the curve; chance is 0.5).
    split_method: the recipe's, where validation was split off the training file.
    answer_supervised: share of the answers' tokens that are learnt; answer_weight: their share of the loss.
    end_learnt: share of rows in which a token that ends the turn is learnt. chat_template: its name or file name.

    Settings
    --------
    usual_learning_rate: what `auto` would have taken. trainable, parameters: counts of weights.
    metric: what chooses the best checkpoint; zero_shot: its value for the base, where measured.
    """

    rows: int
    steps: int
    epochs: float
    learning_rate: float
    method: str
    rows_available: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    prior_loss: float | None = None
    answers_from_words: Separation | None = None
    validation_shift: Separation | None = None
    test_shift: Separation | None = None
    split_method: str | None = None
    answer_supervised: float | None = None
    answer_weight: float | None = None
    end_learnt: float | None = None
    chat_template: str | None = None
    usual_learning_rate: float | None = None
    rank: int | None = None
    trainable: int | None = None
    parameters: int | None = None
    metric: str | None = None
    zero_shot: float | None = None
    not_finite: NotFinite | None = None

    @property
    def top_label(self) -> tuple[str, float] | None:
        """The most frequent answer and its share of the training rows."""
        if not self.labels:
            return None
        label = max(self.labels, key=lambda name: (self.labels[name], name))
        return label, self.labels[label] / sum(self.labels.values())


def _written(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
