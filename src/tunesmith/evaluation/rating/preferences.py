"""What people and judges preferred, as the verdict can read it from a run's folder of evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import VerificationError
from tunesmith.evaluation.rating.pairs import answers_sha256
from tunesmith.evaluation.rating.win_rate import WinRate

Source = Literal["people", "judge"]
PEOPLE_FILE, JUDGE_FILE = "rating.json", "judge.json"


@dataclass(frozen=True, slots=True)
class Preference:
    """Candidate `a` against `b` by one source.

    counts: whether a decision may rest on it; `why` says why not, or on what it rests. agreement: the coefficient that
    stands behind it (see `Agreement.to_dict`), None where none was measured.
    """

    source: Source
    a: str
    b: str
    win_rate: WinRate | None
    counts: bool
    why: str
    agreement: Mapping[str, Any] | None

    @property
    def surely_better(self) -> bool | None:
        """Whether `a` is surely preferred (True), `b` is (False), or neither (None). None where it does not count."""
        if not self.counts or self.win_rate is None:
            return None
        if self.win_rate.low > 0.5:
            return True
        return False if self.win_rate.high < 0.5 else None


def read_preferences(evaluation: Path) -> tuple[Preference, ...]:
    """The results of `tunesmith rate` and `tunesmith judge` in a run's `evaluation` folder, people first.

    A result about answers that have changed since is given with `counts` False. Raises `VerificationError` for a file
    that holds something else.
    """
    found = []
    sources: tuple[tuple[Source, str], ...] = (("people", PEOPLE_FILE), ("judge", JUDGE_FILE))
    for source, name in sources:
        path = evaluation / name
        if path.is_file():
            found.append(_read(source, path))
    return tuple(found)


def preference_from(source: Source, kept: Mapping[str, Any]) -> Preference:
    """A preference from what `rating.json` or `judge.json` holds. Raises `KeyError` or `TypeError` for other things."""
    rate = kept["win_rate"]
    known = {f.name for f in fields(WinRate)}
    return Preference(
        source=source,
        a=kept["a"],
        b=kept["b"],
        win_rate=WinRate(**{key: value for key, value in rate.items() if key in known}) if rate else None,
        counts=bool(kept["counts"]),
        why=str(kept["why"]),
        agreement=kept["agreement"],
    )


def _read(source: Source, path: Path) -> Preference:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        preference = preference_from(source, kept)
        stored = kept["answers_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        command = "rate RUN --summary" if source == "people" else "judge RUN"
        raise VerificationError(
            "this file does not hold a preference", where=str(path), fix=f"tunesmith {command} writes it anew"
        ) from problem
    if stored != answers_sha256(path.parent, preference.a, preference.b):
        return replace(preference, counts=False, why="the answers have changed since")
    return preference
