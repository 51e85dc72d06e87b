"""The loop of a search, and its record: every trial is asked for, carried out, written down and told to the sampler.

The record is a log of JSON lines. A search that was interrupted reads it, tells a fresh sampler what came of every
trial, and so asks for the same trials as one that was never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import EngineError, RecipeError, TunesmithError, VerificationError
from tunesmith.recipe.searching import Sampler, Space
from tunesmith.runs import EventLog, read_events
from tunesmith.runs.events import Listener
from tunesmith.search.samplers import Asking, Direction, make_sampler, trials_of

Ended = Literal["trials", "time", "enough"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A search: `trials` None is the sampler's default; no trial begins after `max_seconds` of trials."""

    spaces: Mapping[str, Space]
    sampler: Sampler
    direction: Direction
    trials: int | None = None
    max_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trial gave: its score, what breaks ties (smaller is better), its folder, and facts worth keeping.

    seconds: what it took where that is not the time that has just passed, as parts of it were done before.
    """

    score: float
    tie: float | None = None
    folder: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial as it is recorded; `same_as` is the number of an earlier one with the same values, which was taken."""

    number: int
    values: Mapping[str, Any]
    state: Literal["done", "failed"]
    score: float | None
    seconds: float
    tie: float | None = None
    folder: str | None = None
    error: str | None = None
    exit_code: int | None = None
    same_as: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trials:
    """A search that ended: its trials in order, the best of them, and why no further one was begun."""

    trials: tuple[Trial, ...]
    asked: int
    direction: Direction
    ended: Ended

    @property
    def best(self) -> Trial:
        """The best finished trial; of equal ones that with the smaller tie value, then the first."""
        found = best_of(self.trials, self.direction)
        if found is None:
            raise EngineError(_all_failed(self.trials))
        return found


Measure = Callable[[int, Mapping[str, Any]], Measured]
"""Carries out the trial of a number (from 1) with values by name. A `TunesmithError` is a failed trial."""


def run_trials(
    plan: Plan,
    measure: Measure,
    record: Path,
    *,
    subject: str,
    listener: Listener = lambda event: None,
    enough: Callable[[Trial], bool] = lambda trial: False,
) -> Trials:
    """Carry a search out, or on where it was interrupted.

    Parameters
    ----------
    record: file of JSON lines; its first line says what is searched, each further one is a trial.
    subject: hash of what else decides a trial's result; a record of another subject is refused.
    enough: ends the search after a trial for which it is true.

    Raises `RecipeError` where the record is of another search, `VerificationError` where it is damaged or the sampler
    no longer asks for what it asked, `EngineError` where every trial failed.
    """
    count = trials_of(plan.sampler, plan.spaces, plan.trials)
    sampler = make_sampler(plan.sampler, plan.spaces, seed=plan.seed, direction=plan.direction)
    with EventLog(record, [listener]) as log:
        header = _header(plan, subject, sampler)
        kept = read_trials(record)
        _begin(log, record, header)
        _replay(sampler, kept[:count], record)
        trials, ended = list(kept[:count]), _ended(plan, kept[:count], count, enough)
        while ended is None:
            trials.append(_carry_out(len(trials) + 1, sampler, measure, trials, log, listener))
            ended = _ended(plan, trials, count, enough)
    if ended == "trials" and len(trials) != count:
        raise VerificationError(f"{len(trials)} trials were carried out, {count} were asked for", where=str(record))
    if all(trial.state == "failed" for trial in trials):
        raise _failure(trials, record)
    return Trials(tuple(trials), count, plan.direction, ended)


def best_of(trials: Sequence[Trial], direction: Direction) -> Trial | None:
    """The best finished trial, or None where there is none."""
    sign = -1 if direction == "maximize" else 1
    done = [trial for trial in trials if trial.state == "done" and trial.score is not None]

    def rank(trial: Trial) -> tuple[float, float, int]:
        return sign * (trial.score or 0.0), math.inf if trial.tie is None else trial.tie, trial.number

    return min(done, key=rank, default=None)


def read_trials(record: Path) -> tuple[Trial, ...]:
    """The trials in a record, none where there is no such file. Raises `VerificationError` where it is damaged."""
    trials: list[Trial] = []
    trial: Trial | None
    for event in read_events(record) if record.is_file() else ():
        if event.get("kind") != "trial":
            continue
        try:
            trial = Trial(**{key: value for key, value in event.items() if key not in ("seq", "time", "kind")})
        except TypeError:
            trial = None
        if trial is None or not _well_formed(trial):
            raise VerificationError("this line is no trial", where=str(record), fix="search into a new folder")
        if trial.number != len(trials) + 1:
            raise VerificationError(
                f"trial {trial.number} stands where {len(trials) + 1} should be",
                where=str(record),
                fix="search into a new folder",
            )
        trials.append(trial)
    return tuple(trials)


def _well_formed(trial: Trial) -> bool:
    """Whether a record's line has the types that a trial has."""
    numbers = (trial.score, trial.tie, trial.seconds)
    return (
        isinstance(trial.values, dict)
        and isinstance(trial.facts, dict)
        and all(number is None or isinstance(number, int | float) for number in numbers)
        and trial.seconds is not None
        and (trial.score is not None) == (trial.state == "done")
    )


def _header(plan: Plan, subject: str, sampler: Asking) -> dict[str, Any]:
    """What decides which trials are asked for and what comes of them; not how many, which may be raised later."""
    return {
        "spaces": {name: space.model_dump(mode="json", exclude_defaults=True) for name, space in plan.spaces.items()},
        "sampler": plan.sampler,
        "sampler_version": sampler.version,
        "seed": plan.seed,
        "direction": plan.direction,
        "subject": subject,
    }


def _begin(log: EventLog, record: Path, header: Mapping[str, Any]) -> None:
    """Write the first line, or compare it with the one that is there."""
    first = next(iter(read_events(record)), None)
    if first is None:
        log.write("search", **header)
        return
    changed = [key for key in header if first.get(key) != header[key]]
    if not changed:
        return
    if changed == ["sampler_version"]:
        raise VerificationError(
            f"these trials were asked for by {first['sampler_version']}, which may ask otherwise than "
            f"{header['sampler_version']}",
            where=str(record),
            fix="install that version, or search into a new folder",
        )
    words = {"spaces": "its space", "subject": "its recipe or data", "sampler_version": "the sampler's version"}
    raise RecipeError(
        f"this folder holds another search: {', '.join(words.get(key, key) for key in changed)} changed",
        where=str(record.parent),
        fix="choose another --out, or go back to that search",
    )


def _replay(sampler: Asking, kept: Sequence[Trial], record: Path) -> None:
    for trial in kept:
        if not _alike(asked := sampler.ask(), trial.values):
            raise VerificationError(
                f"trial {trial.number} was of {dict(trial.values)}, and the sampler now asks for {asked}",
                where=str(record),
                fix="search into a new folder",
            )
        sampler.tell(trial.score)


def _carry_out(
    number: int, sampler: Asking, measure: Measure, before: Sequence[Trial], log: EventLog, listener: Listener
) -> Trial:
    values = sampler.ask()
    listener({"kind": "trial_started", "number": number, "values": values})
    began = time.monotonic()
    same = next((trial for trial in before if _alike(trial.values, values) and trial.same_as is None), None)
    if same is not None:
        trial = Trial(
            number, values, same.state, same.score, 0.0, same.tie, same.folder, same.error, same.exit_code, same.number,
            same.facts,
        )  # fmt: skip
    else:
        try:
            found = measure(number, values)
            if not math.isfinite(found.score):
                raise EngineError(f"the score is {found.score}")
        except TunesmithError as error:
            seconds = time.monotonic() - began
            trial = Trial(number, values, "failed", None, seconds, error=str(error), exit_code=error.exit_code)
        else:
            seconds = time.monotonic() - began if found.seconds is None else found.seconds
            trial = Trial(number, values, "done", found.score, seconds, found.tie, found.folder, facts=found.facts)
    log.write("trial", **asdict(trial))
    sampler.tell(trial.score)
    return trial


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether values are the same, their types included: 1 and true are two values."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _ended(plan: Plan, trials: Sequence[Trial], count: int, enough: Callable[[Trial], bool]) -> Ended | None:
    if trials and enough(trials[-1]):
        return "enough"
    if len(trials) >= count:
        return "trials"
    spent = sum(trial.seconds for trial in trials)
    return "time" if trials and plan.max_seconds is not None and spent >= plan.max_seconds else None


def _all_failed(trials: Sequence[Trial]) -> str:
    return f"every trial failed ({len(trials)} of {len(trials)})"


def _failure(trials: Sequence[Trial], record: Path) -> TunesmithError:
    """Every trial failed: their reasons, with the exit code that they share."""
    reasons = list(dict.fromkeys(str(trial.error) for trial in trials))
    listed = "".join(f"\n  - {reason.replace(chr(10), chr(10) + '    ')}" for reason in reasons[:5])
    error = EngineError(f"{_all_failed(trials)}:{listed}", where=str(record))
    codes = {trial.exit_code for trial in trials}
    if len(codes) == 1 and (code := codes.pop()) is not None:
        error.exit_code = code
    return error
