"""The loop of a search and its record: as many trials as were asked for, and the same ones after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError, EngineError, RecipeError, VerificationError
from tunesmith.recipe.searching import Space
from tunesmith.search.trials import Measured, Plan, read_trials, run_trials

RATE = Space(type="float", low=1e-6, high=1e-3, log=True)
RANK = Space(type="int", low=8, high=64)
BATCH = Space(type="choice", values=[8, 16, 32])
SPACES = {"rate": RATE, "rank": RANK, "batch": BATCH}
SAMPLERS = ("random", "tpe")


def plan(sampler: Any = "tpe", **more: Any) -> Plan:
    return Plan(**{"spaces": SPACES, "sampler": sampler, "direction": "maximize", "trials": 16, "seed": 3, **more})


def score(number: int, values: Mapping[str, Any]) -> Measured:
    """Best at a rate of 1e-4 and a high rank."""
    return Measured(-((math.log10(values["rate"]) + 4) ** 2) + values["rank"] / 64, tie=0.0, folder=f"trials/{number}")


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_as_many_trials_are_run_as_were_asked_for_and_all_values_are_in_their_space(tmp_path, sampler) -> None:
    found = run_trials(plan(sampler, trials=20), score, tmp_path / "t.jsonl", subject="s")
    assert len(found.trials) == found.asked == 20
    assert found.ended == "trials"
    for trial in found.trials:
        assert 1e-6 <= trial.values["rate"] <= 1e-3
        assert isinstance(trial.values["rank"], int) and 8 <= trial.values["rank"] <= 64
        assert trial.values["batch"] in (8, 16, 32)
    assert found.best.score == max(t.score for t in found.trials if t.score is not None)
    below = sum(trial.values["rate"] < 3e-5 for trial in found.trials)
    assert below >= 4, "drawn by the logarithm, half of the range is below 3e-5"


def test_tpe_comes_nearer_than_chance(tmp_path) -> None:

    def total(sampler: str) -> float:
        """Of the best scores of some searches."""
        searches = [plan(sampler, trials=30, seed=seed) for seed in range(4)]
        found = [run_trials(p, score, tmp_path / f"{sampler}{p.seed}", subject="s").best.score for p in searches]
        return sum(score for score in found if score is not None)

    assert total("tpe") > total("random")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_search_asks_for_the_trials_of_an_uninterrupted_one(tmp_path, sampler) -> None:
    asked: list[int] = []

    def interrupted(number: int, values: Mapping[str, Any]) -> Measured:
        asked.append(number)
        if len(asked) in (4, 12):
            raise Stop
        if number == 6:
            raise DataError("this one fails")
        return score(number, values)

    def uninterrupted(number: int, values: Mapping[str, Any]) -> Measured:
        if number == 6:
            raise DataError("this one fails")
        return score(number, values)

    whole = run_trials(plan(sampler), uninterrupted, tmp_path / "other.jsonl", subject="s")
    record = tmp_path / "cut.jsonl"
    for _ in range(2):
        with pytest.raises(Stop):
            run_trials(plan(sampler), interrupted, record, subject="s")
    again = run_trials(plan(sampler), interrupted, record, subject="s")
    assert [t.values for t in again.trials] == [t.values for t in whole.trials]
    assert [t.state for t in again.trials] == [t.state for t in whole.trials]
    assert sorted(set(asked)) == list(range(1, 17))
    assert len(asked) == 18, "only the two interrupted trials are carried out twice"


def test_a_torn_last_line_is_a_trial_that_was_not_finished(tmp_path) -> None:
    record = tmp_path / "t.jsonl"
    whole = run_trials(plan(trials=6), score, record, subject="s")
    text = record.read_text()
    record.write_text(text[: text.rindex('"score"')])
    again = run_trials(plan(trials=6), score, record, subject="s")
    assert [t.values for t in again.trials] == [t.values for t in whole.trials]


def test_a_failed_trial_counts_and_does_not_end_the_search(tmp_path) -> None:
    def sometimes(number: int, values: Mapping[str, Any]) -> Measured:
        if number % 2:
            raise DataError("no rows", where="rows.csv")
        return score(number, values)

    found = run_trials(plan(trials=7), sometimes, tmp_path / "t.jsonl", subject="s")
    assert len(found.trials) == 7
    assert [t.state for t in found.trials] == ["failed", "done"] * 3 + ["failed"]
    assert found.trials[0].error == "rows.csv: no rows"
    assert found.best.number % 2 == 0


def test_a_score_that_is_no_number_is_a_failure(tmp_path) -> None:
    def nan(number: int, values: Mapping[str, Any]) -> Measured:
        return Measured(math.nan) if number == 1 else score(number, values)

    found = run_trials(plan(trials=3), nan, tmp_path / "t.jsonl", subject="s")
    assert [t.state for t in found.trials] == ["failed", "done", "done"]


def test_where_all_fail_the_search_fails_with_their_reasons_and_exit_code(tmp_path) -> None:
    def never(number: int, values: Mapping[str, Any]) -> Measured:
        raise DataError("no rows")

    record = tmp_path / "t.jsonl"
    with pytest.raises(EngineError, match=r"(?s)every trial failed \(3 of 3\).*no rows") as raised:
        run_trials(plan(trials=3), never, record, subject="s")
    assert raised.value.exit_code == DataError.exit_code
    assert [t.state for t in read_trials(record)] == ["failed"] * 3


def test_an_error_of_ours_is_not_a_failed_trial(tmp_path) -> None:
    def bug(number: int, values: Mapping[str, Any]) -> Measured:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_trials(plan(), bug, tmp_path / "t.jsonl", subject="s")


def test_a_sequential_search_takes_every_combination_once(tmp_path) -> None:
    spaces = {"a": Space(type="choice", values=["x", "y"]), "b": Space(type="int", low=1, high=3, step=1)}
    grid = plan("sequential", spaces=spaces, trials=None)
    found = run_trials(grid, lambda n, v: Measured(float(v["b"])), tmp_path / "t", subject="s")
    assert [(t.values["a"], t.values["b"]) for t in found.trials] == [(a, b) for a in "xy" for b in (1, 2, 3)]
    assert found.best.number == 3, "the first of equal ones"
    with pytest.raises(RecipeError, match="7 trials of 6 combinations"):
        run_trials(replace(grid, trials=7), score, tmp_path / "u", subject="s")
    endless = plan("sequential", spaces={"rate": RATE}, trials=None)
    with pytest.raises(RecipeError, match="has no end"):
        run_trials(endless, score, tmp_path / "v", subject="s")


def test_the_same_values_are_not_tried_twice_and_still_count(tmp_path) -> None:
    asked: list[Any] = []

    def measure(number: int, values: Mapping[str, Any]) -> Measured:
        asked.append(values["batch"])
        return Measured(values["batch"])

    found = run_trials(plan(spaces={"batch": BATCH}, trials=9), measure, tmp_path / "t", subject="s")
    assert len(found.trials) == 9
    assert len(asked) == len(set(asked)) <= 3
    again = [trial for trial in found.trials if trial.same_as is not None]
    assert len(again) == 9 - len(asked)
    first = {t.number: t for t in found.trials}
    assert all(first[t.same_as].values == t.values and first[t.same_as].score == t.score for t in again if t.same_as)


def test_one_and_true_are_two_values(tmp_path) -> None:
    asked: list[Any] = []

    def measure(number: int, values: Mapping[str, Any]) -> Measured:
        asked.append(values["a"])
        return Measured(number)

    grid = plan("sequential", spaces={"a": Space(type="choice", values=[1, True, 1.0])}, trials=None)
    found = run_trials(grid, measure, tmp_path / "t", subject="s")
    assert list(map(repr, asked)) == ["1", "True", "1.0"]
    assert [trial.same_as for trial in found.trials] == [None] * 3


def test_time_that_was_spent_before_counts(tmp_path) -> None:
    found = run_trials(
        plan(trials=9, max_seconds=100), lambda n, v: Measured(n, seconds=40.0), tmp_path / "t", subject="s"
    )
    assert (len(found.trials), found.ended) == (3, "time")


def test_of_equal_scores_the_smaller_tie_value_is_better(tmp_path) -> None:
    found = run_trials(
        plan(trials=5), lambda n, v: Measured(1.0, tie=abs(n - 3.0)), tmp_path / "t", subject="s"
    )  # fmt: skip
    assert found.best.number == 3


def test_less_is_better_where_it_is_minimised(tmp_path) -> None:
    found = run_trials(plan(direction="minimize", trials=5), score, tmp_path / "t", subject="s")
    assert found.best.score == min(t.score for t in found.trials if t.score is not None)


def test_no_trial_begins_after_the_time(tmp_path) -> None:
    found = run_trials(plan(max_seconds=1e-9), score, tmp_path / "t", subject="s")
    assert (len(found.trials), found.asked, found.ended) == (1, 16, "time")


def test_more_trials_go_on_where_fewer_ended(tmp_path) -> None:
    record = tmp_path / "t"
    few = run_trials(plan(trials=4), score, record, subject="s")
    more = run_trials(plan(trials=8), score, record, subject="s")
    assert more.trials[:4] == few.trials
    whole = run_trials(plan(trials=8), score, tmp_path / "u", subject="s")
    assert [t.values for t in more.trials] == [t.values for t in whole.trials]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed"),
        ({"sampler": "random"}, "sampler"),
        ({"spaces": {"rate": RATE}}, "its space"),
        ({"direction": "minimize"}, "direction"),
    ],
)
def test_the_record_of_another_search_is_refused(tmp_path, change, said) -> None:
    record = tmp_path / "t"
    run_trials(plan(trials=2), score, record, subject="s")
    with pytest.raises(RecipeError, match=f"another search: .*{said}"):
        run_trials(replace(plan(trials=2), **change), score, record, subject="s")
    with pytest.raises(RecipeError, match="its recipe or data"):
        run_trials(plan(trials=2), score, record, subject="other")


def test_a_changed_record_and_another_sampler_version_are_refused(tmp_path) -> None:
    record = tmp_path / "t"
    run_trials(plan(trials=3), score, record, subject="s")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for name, change, said in (
        ("values", {1: {"values": {**lines[1]["values"], "rank": 9}}}, "now asks for"),
        ("version", {0: {"sampler_version": "optuna 1.0"}}, "optuna 1.0"),
        ("order", {1: {"number": 5}}, "trial 5 stands where 1 should be"),
        ("shape", {1: {"colour": "red"}}, "this line is no trial"),
        ("score", {1: {"score": "high"}}, "this line is no trial"),
        ("nothing", {1: {"score": None}}, "this line is no trial"),
        ("list", {1: {"values": [1, 2]}}, "this line is no trial"),
    ):
        changed = [{**line, **change.get(place, {})} for place, line in enumerate(lines)]
        other = tmp_path / name
        other.write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(VerificationError, match=said):
            run_trials(plan(trials=3), score, other, subject="s")


def test_a_missing_library_is_an_error_that_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(EngineError, match=r"pip install 'tunesmith\[search\]'"):
        run_trials(plan(), score, Path(tmp_path / "t"), subject="s")
    sequential = plan("sequential", spaces={"batch": BATCH}, trials=None)
    assert len(run_trials(sequential, lambda n, v: Measured(0), tmp_path / "u", subject="s").trials) == 3
