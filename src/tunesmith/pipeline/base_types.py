"""What `tunesmith bases` finds out about one base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.models.base_files import BaseFiles
from tunesmith.models.licence import LicenceCheck

Figure = Literal["inputs", "shown"]
"""Bits per byte of inputs, or of answers behind examples."""


@dataclass(frozen=True, slots=True)
class BitsPerByte:
    """Bits per byte over rows, with its interval (none of a single row). `left_out` rows could not be measured."""

    value: float
    low: float | None
    high: float | None
    rows: int
    left_out: int


@dataclass(frozen=True, slots=True)
class RowBits:
    """One row: the bits that foreseeing its text takes, and the text's bytes."""

    id: str
    bits: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Score:
    """The deciding metric over validation rows, 0-1, asked with `k` examples; `way`: how answers were given."""

    value: float
    low: float
    high: float
    rows: int
    k: int
    way: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a base that could be loaded.

    rows: those measured; rows_too_long: of them, those that do not fit the context, question and answer together.
    longest_row: in tokens of this base, of the training rows looked at. tokens_per_byte: of its tokenizer on the rows.
    inputs, answers, shown: bits per byte; `shown` is of answers behind `shots` examples, as many as fit.
    zero_shot, few_shot: None without validation rows.
    tune_memory_bytes: predicted peak; serve_memory_bytes: weights, and one request as long as the
    longest row; None where shapes do not tell. train_tokens_per_second, training_seconds: of the recipe's training,
    here. answer_seconds: median of one request at a time; answer_tokens_per_second: many at once.
    servers: what could serve an adapter on this base. not_servable: for the others, why. seconds: of this measurement.
    ranked_by: the figure by which bases are put in order, of which `row_bits` holds every row.
    """

    architecture: str
    parameters: int
    context: int
    rows: int
    rows_too_long: int
    longest_row: int
    tokens_per_byte: float
    metric: str
    inputs: BitsPerByte | None
    answers: BitsPerByte | None
    shown: BitsPerByte | None
    shots: int
    zero_shot: Score | None
    few_shot: Score | None
    tune_memory_bytes: int
    serve_memory_bytes: int | None
    train_tokens_per_second: float
    training_seconds: float
    answer_seconds: float
    answer_tokens_per_second: float
    servers: tuple[str, ...]
    not_servable: Mapping[str, str]
    seconds: float
    ranked_by: Figure
    row_bits: tuple[RowBits, ...]

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Measured:
        """As it was kept as JSON (`dataclasses.asdict`)."""
        made = dict(kept)
        for name in ("inputs", "answers", "shown"):
            made[name] = None if kept[name] is None else BitsPerByte(**kept[name])
        for name in ("zero_shot", "few_shot"):
            made[name] = None if kept[name] is None else Score(**kept[name])
        made["servers"] = tuple(kept["servers"])
        made["row_bits"] = tuple(RowBits(**row) for row in kept["row_bits"])
        return cls(**made)


@dataclass(frozen=True, slots=True)
class BaseEntry:
    """One base of the comparison. `problem` says why nothing was measured; exactly one of it and `measured` is set.

    `problem_fix` is what to do about the problem, where something is known.
    """

    base: str
    licence: LicenceCheck
    files: BaseFiles
    measured: Measured | None = None
    problem: str | None = None
    problem_fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
