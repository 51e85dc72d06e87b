"""A search from its trials to the verdict: chosen by validation rows only, every trial kept, resumed where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import edit, tone_rows, write_csv
from tests.pipeline.test_pairs import TRAIN as PAIRS
from tests.pipeline.test_pairs import write_pairs
from tunesmith.cli.search import _print
from tunesmith.errors import DataError, RecipeError, ResourceError
from tunesmith.pipeline.searching.flow import Found, search_recipe
from tunesmith.recipe import Recipe, load_recipe, parse_recipe
from tunesmith.runs import RunFolder
from tunesmith.runs.lock import locked

VALUES = "values: [2, 4, 8]"


def recipe(project: Path, *overrides: str) -> Recipe:
    return load_recipe(project / "recipe.yaml", overrides)


def search(project: Path, *overrides: str, out: str = "found", **more: Any) -> Found:
    return search_recipe(recipe(project, *overrides), out=project / out, **{"trials_only": True, **more})


def told(found: Found) -> list[tuple[Any, ...]]:
    """What decides which trial is best."""
    return [(t.number, dict(t.values), t.state, t.score, t.tie) for t in found.trials.trials]


def test_the_best_of_the_trials_goes_on_to_the_verdict_without_training_again(searching, tunesmith) -> None:
    said = tunesmith("search", "recipe.yaml", "--out", "found", "--json")
    assert said.code == 0, said.err
    printed, folder = said.json, searching / "found"
    assert (len(printed["trials"]), printed["asked"], printed["ended"]) == (3, 3, "trials")
    assert [trial["folder"] for trial in printed["trials"]] == ["trials/001", "trials/002", "trials/003"]
    best = printed["trials"][printed["best"] - 1]
    ranked = sorted(printed["trials"], key=lambda trial: (-trial["score"], trial["tie"], trial["number"]))
    assert best == ranked[0]
    training = [json.loads((folder / p / "training.json").read_text()) for p in ("", best["folder"])]
    assert training[0] == training[1]
    assert printed["run"]["verdict"]["decision"]
    kept = load_recipe(folder / "recipe.yaml")
    assert (kept.train.learning_rate, kept.method.rank) == tuple(best["values"].values())
    assert kept.search is None
    assert load_recipe(folder / "best.yaml").method.rank == kept.method.rank
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == "train_started" for event in log) == 1, "the trial's own training, taken over"

    report, page = (folder / "report.html").read_text(), (folder / "search.html").read_text()
    for shown in (report, page):
        assert "How its settings were found" in shown
        assert shown.count("</i>chosen") == 2, "a picture for each setting"
        assert all(f'<th scope="row">{trial["number"]}' in shown for trial in printed["trials"])

    weights = folder / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    again = tunesmith("search", "recipe.yaml", "--out", "found", "--json")
    assert again.code == 0
    assert again.json["trials"] == printed["trials"]
    assert weights.stat().st_mtime_ns == before
    more = tunesmith("search", "recipe.yaml", "--out", "found", "--set", "search.trials=4", "--json")
    assert more.code == 2
    assert "was run here already" in more.error["what"]
    page_before = (folder / "search.html").read_text()
    fewer = tunesmith("search", "recipe.yaml", "--out", "found", "--set", "search.trials=1", "--json")
    assert fewer.code == 2
    assert "a search of 1 may choose another" in fewer.error["what"]
    assert (folder / "search.html").read_text() == page_before


def test_no_test_row_is_answered_before_the_choice(searching) -> None:
    """Other test rows, all with wrong answers: the trials and the choice stay what they were."""
    rows = tone_rows()
    write_csv(searching / "rows.csv", rows[:60])
    tests = rows[60:]
    wrong = {"cold": "warm", "warm": "neutral", "neutral": "cold"}
    found = {}
    for name, test in (("right", tests), ("poisoned", [(text, wrong[tone]) for text, tone in tests])):
        write_csv(searching / f"{name}.csv", test)
        found[name] = search(searching, f"data.test={name}.csv", "data.split.test=0", out=name)
        assert not list((searching / name).rglob("evaluation"))
    assert told(found["right"]) == told(found["poisoned"])
    assert found["right"].best.number == found["poisoned"].best.number
    assert len({trial.tie for trial in found["right"].trials.trials}) == 3, "the trials do differ"


def test_an_interrupted_search_goes_on_with_the_trial_it_was_in(searching) -> None:
    whole = search(searching, out="whole")

    def interrupt(event: dict[str, Any]) -> None:
        if event["kind"] == "train_started" and event["trial"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(searching, out="cut", listener=interrupt)
    first = searching / "cut/trials/001/adapter/adapter_model.safetensors"
    before = first.stat().st_mtime_ns
    said: list[str] = []
    again = search(searching, out="cut", listener=lambda event: said.append(str(event.get("text"))))
    assert told(again) == told(whole)
    ranked = [
        sorted(whole.trials.trials[:n], key=lambda t: (-(t.score or 0), t.tie, t.number))[0].number for n in (2, 3)
    ]
    marked = [any(line.startswith(f"trial {n}: ") and "best so far" in line for line in said) for n in (2, 3)]
    assert marked == [ranked[0] == 2, ranked[1] == 3], "the trials before the interruption count"
    assert first.stat().st_mtime_ns == before
    more = search(searching, "search.trials=4", out="cut")
    assert told(more)[:3] == told(whole)
    assert len(more.trials.trials) == 4


def test_a_failed_trial_is_kept_with_its_error_and_the_search_goes_on(searching, capsys) -> None:
    edit(
        searching,
        "method.rank: {type: choice, " + VALUES,
        "method.target_modules: {type: choice, values: [[q_proj], [nowhere]]",
    )
    edit(searching, "trials: 3", "trials: 4")
    edit(searching, "    train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}\n", "")
    edit(searching, "sampler: random", "sampler: random\n  seed: 1")
    found = search(searching)
    states = {str(t.values["method.target_modules"]): t.state for t in found.trials.trials}
    assert states == {"['q_proj']": "done", "['nowhere']": "failed"}
    assert len(found.trials.trials) == 4
    failed = next(t for t in found.trials.trials if t.state == "failed")
    assert "nowhere" in str(failed.error)
    assert found.best.values == {"method.target_modules": ["q_proj"]}
    assert "failed" in (found.folder / "search.html").read_text()
    _print(found)
    assert "['q_proj']" in capsys.readouterr().out


def test_where_every_trial_fails_the_command_does(searching, tunesmith) -> None:
    edit(
        searching, "method.rank: {type: choice, " + VALUES, "method.target_modules: {type: choice, values: [[nowhere]]"
    )
    said = tunesmith("search", "recipe.yaml", "--out", "found", "--set", "search.trials=2", "--json")
    assert said.code != 0
    assert "every trial failed (2 of 2)" in said.error["what"]


def test_the_loss_is_compared_where_the_recipe_says_so(searching) -> None:
    found = search(searching, "train.select_by=loss", "search.trials=2")
    assert (found.score_name, found.trials.direction) == ("validation_loss", "minimize")
    assert found.best.score == min(t.score for t in found.trials.trials if t.score is not None)


def test_pairs_of_texts_are_compared_by_their_loss_and_have_no_verdict(project, base) -> None:
    write_pairs(project / "pairs.csv", 40)
    given = {
        "name": "pairs",
        "data": {"train": "pairs.csv", "columns": {"prompt": "left", "second": "right", "answer": "apart"}},
        "base": str(base),
        "train": {**PAIRS, "max_steps": 2, "evaluations": 1},
        "search": {"space": {"train.learning_rate": {"type": "choice", "values": [1e-3, 1e-2]}}, "trials": 2},
    }
    with pytest.raises(RecipeError, match="--trials-only"):
        search_recipe(parse_recipe(given), out=project / "found")
    found = search_recipe(parse_recipe(given), out=project / "found", trials_only=True)
    assert found.score_name == "validation_loss"
    assert [trial.state for trial in found.trials.trials] == ["done", "done"]


def test_ctrl_c_says_how_the_search_goes_on(searching, tunesmith, monkeypatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.pipeline.searching.flow.run", interrupted)
    said = tunesmith("search", "recipe.yaml", "--out", "found")
    assert said.code == 130
    assert f"the same command continues it: {searching / 'found'}" in said.err


def test_two_searches_in_one_folder_are_refused(searching) -> None:
    trials = RunFolder.create_at(searching / "found").path / "trials"
    trials.mkdir()
    with locked(trials / ".lock"), pytest.raises(ResourceError, match="another process"):
        search(searching)
    assert not (searching / "found/trials.jsonl").exists()


def test_the_data_is_looked_at_before_any_trial(searching) -> None:
    with pytest.raises(DataError, match="no validation rows"):
        search(searching, "data.split.validation=0")
    with pytest.raises(RecipeError, match="never measured"):
        search(searching, "train.evaluations=0")
    with pytest.raises(DataError):
        search(searching, "data.train=missing.csv")
    edit(searching, "    train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}\n", "")
    with pytest.raises(RecipeError, match="4 trials of 3 combinations"):
        search(searching, "search.sampler=sequential", "search.trials=4")
    assert not (searching / "found").exists()


def test_a_run_refuses_a_recipe_that_searches_and_names_the_command(searching, tunesmith) -> None:
    for command in ("run", "train", "baselines", "evaluate"):
        said = tunesmith(command, "recipe.yaml", "--json")
        assert said.code == 2
        assert "tunesmith search RECIPE" in said.error["fix"]


def test_a_recipe_without_a_search_is_refused_with_an_example(project, tunesmith) -> None:
    said = tunesmith("search", "recipe.yaml", "--json")
    assert said.code == 2
    assert "type: float" in said.error["expected"]


def test_another_recipe_and_a_plain_run_in_the_folder_are_refused(searching) -> None:
    search(searching)
    with pytest.raises(RecipeError, match="another search: its recipe or data"):
        search(searching, "train.weight_decay=0.1")
    with pytest.raises(RecipeError, match="another search: its space"):
        search(searching, "search.space={train.weight_decay: {type: choice, values: [0, 0.1]}}")
