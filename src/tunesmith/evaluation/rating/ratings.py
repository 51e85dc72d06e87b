"""What people said, one line per rating, on the disk before the next pair is shown."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.runs import EventLog, read_events
from tunesmith.runs.atomic import flush, resource_error

TIE, BOTH_BAD = "tie", "both_bad"
RATINGS_FILE = "ratings.jsonl"
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's choice for one pair.

    pair: the pair's key, row: its id. choice: the name of the better candidate, `tie` or `both_bad`. left: the
    candidate that was shown on the left. seconds: from when the pair was shown until the choice.
    """

    rater: str
    pair: str
    row: str
    choice: str
    left: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How pairs are given to raters: see `plan.Plan`. rows: how many pairs at most; None for all."""

    seed: int = 0
    overlap: int = 30
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Ratings:
    """A log as it stands: the last choice of every rater for every pair, and the settings used last."""

    latest: Mapping[tuple[str, str], Rating]
    settings: Settings | None

    def of(self, keys: Iterable[str]) -> dict[str, dict[str, Rating]]:
        """By pair and rater, for these pairs alone: ratings of answers that were given since are not among them."""
        found: dict[str, dict[str, Rating]] = {key: {} for key in keys}
        for (rater, key), rating in self.latest.items():
            if key in found:
                found[key][rater] = rating
        return found


def rater_name(text: str) -> str:
    """A rater's name as it is kept: composed, single spaces. Raises `RecipeError` for one that is none."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise RecipeError(
            "this cannot be a rater's name", where="name", expected=f"1 to {_LONGEST_NAME} printable characters"
        )
    return name


def read_ratings(path: Path) -> Ratings:
    """What a log holds, nothing where there is none. Raises `VerificationError` naming a line that is no rating."""
    latest: dict[tuple[str, str], Rating] = {}
    settings = None
    for number, event in enumerate(read_events(path) if path.is_file() else (), 1):
        try:
            if event["kind"] == "rating":
                rating = Rating(**{f.name: event[f.name] for f in fields(Rating)})
                latest[rating.rater, rating.pair] = rating
            elif event["kind"] == "settings":
                settings = Settings(**{f.name: event[f.name] for f in fields(Settings)})
        except KeyError as problem:
            raise VerificationError(
                "this line is no rating", where=f"{path}, line {number}", fix="remove the line"
            ) from problem
    return Ratings(latest, settings)


class RatingLog:
    """The log, open for appending, safe to be used by several threads; one process may have it open."""

    def __init__(self, path: Path) -> None:
        self._log = EventLog(path)
        self._lock = threading.Lock()

    def append(self, rating: Rating) -> None:
        """Keep a rating. It is on the disk when this returns. Raises `ResourceError` where it is not."""
        self._write("rating", asdict(rating))

    def begin(self, settings: Settings) -> None:
        """Remember how pairs are given out."""
        self._write("settings", asdict(settings))

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        with self._lock:
            self._log.write(kind, **values)
            try:
                flush(self._log.path)
            except OSError as error:
                raise resource_error(self._log.path, error) from error


def consensus(ratings: Sequence[Rating], a: str, b: str) -> str:
    """What most raters of a pair said: `a`, `b` or `tie`. Both bad is a tie, and so is a divided vote."""
    for_a = sum(rating.choice == a for rating in ratings)
    for_b = sum(rating.choice == b for rating in ratings)
    ties = len(ratings) - for_a - for_b
    if for_a > max(for_b, ties):
        return "a"
    return "b" if for_b > max(for_a, ties) else "tie"
