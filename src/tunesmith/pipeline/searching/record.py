"""The record of a search, read back for the report and the page."""

from __future__ import annotations

from pathlib import Path

from tunesmith.recipe.schema import Space
from tunesmith.runs import read_events
from tunesmith.search.trials import best_of, read_trials
from tunesmith.verdict.report_search import SearchData, SearchTrial, value_text

RECORD = "trials.jsonl"
SCORED_BY = "scored_by"
"""Among a trial's facts: the metric that is its score, or `validation_loss`."""


def trials_shown(folder: Path) -> SearchData | None:
    """What a report shows of the search in a run's folder; None where nothing was searched, or every trial failed."""
    record = folder / RECORD
    trials = read_trials(record)
    if not trials:
        return None
    header = next(iter(read_events(record)))
    best = best_of(trials, header["direction"])
    if best is None:
        return None
    spaces = {key: Space.model_validate(plain) for key, plain in header["spaces"].items()}
    return SearchData(
        score_name=str(best.facts[SCORED_BY]),
        lower_is_better=header["direction"] == "minimize",
        sampler=header["sampler"],
        seed=header["seed"],
        trials=tuple(
            SearchTrial(
                trial.number, trial.values, trial.score, trial.facts.get("validation_loss"), trial.seconds,
                trial.error, trial.same_as,
            )
            for trial in trials
        ),
        best=best.number,
        log=frozenset(key for key, space in spaces.items() if space.log),
        choices={key: [value_text(v) for v in space.values] for key, space in spaces.items() if space.values},
    )  # fmt: skip
