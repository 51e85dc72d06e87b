"""Where a run keeps what is rated, what people said, and what came of it.

```
RUN/evaluation/<candidate>.jsonl   the answers                RUN/rating/ratings.jsonl   every rating, as it was given
RUN/evaluation/rating.json         what the ratings say
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.evaluation.rating.pairs import Pair, answers_sha256, read_pairs, stored_candidates
from tunesmith.evaluation.rating.preferences import PEOPLE_FILE
from tunesmith.evaluation.rating.ratings import RATINGS_FILE, RatingLog, read_ratings
from tunesmith.evaluation.rating.summary import RatingSummary, summarise
from tunesmith.runs import RunFolder, write_json
from tunesmith.runs.lock import locked


def choose_candidates(run: RunFolder, names: Sequence[str] = ()) -> tuple[str, str]:
    """The two candidates to compare: those named, else tuned and the best alternative of the run's verdict, else the
    only two there are. Raises `RecipeError` where none of this says which."""
    if names:
        first, second = names
        return first, second
    kept = run.path / "verdict.json"
    best = json.loads(kept.read_text(encoding="utf-8")).get("best_alternative") if kept.is_file() else None
    known = stored_candidates(run.evaluation)
    if best in known and "tuned" in known:
        return "tuned", best
    if len(known) == 2:
        return (known[1], known[0]) if known[1] == "tuned" else (known[0], known[1])
    raise RecipeError(
        "which two candidates shall be compared?" if known else "this run has no stored answers",
        where=str(run.path),
        expected=f"two of {', '.join(known)}" if known else "a run that was evaluated",
        fix="--candidates A B" if known else "tunesmith run RECIPE",
    )


def pairs_of(run: RunFolder, a: str, b: str) -> tuple[Pair, ...]:
    """The stored answers of two candidates of a run side by side."""
    task = run.path / "task.json"
    closing = json.loads(task.read_text(encoding="utf-8")).get("closing", "") if task.is_file() else ""
    return read_pairs(run.evaluation, a, b, closing=closing)


def ratings_path(run: RunFolder) -> Path:
    """The log of ratings of a run, of all its candidates."""
    return run.path / "rating" / RATINGS_FILE


@contextmanager
def rating_log(run: RunFolder) -> Iterator[RatingLog]:
    """The log open for appending. Raises `ResourceError` where another process has it open."""
    path = ratings_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        log = RatingLog(path)
        try:
            yield log
        finally:
            log.close()


def write_summary(run: RunFolder, a: str, b: str, *, confidence: float = 0.95) -> RatingSummary:
    """Sum up the ratings of two candidates and keep it in `evaluation/rating.json`, for the verdict."""
    summary = summarise(pairs_of(run, a, b), read_ratings(ratings_path(run)), a, b, confidence=confidence)
    stored = {**summary.to_dict(), "answers_sha256": answers_sha256(run.evaluation, a, b)}
    write_json(run.evaluation / PEOPLE_FILE, stored)
    return summary
