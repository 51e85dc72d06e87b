"""An export as recipes, rows and evaluations, that the rest of the house can use as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service.moving.hosted import (
    COMPLETION,
    COUNTRIES,
    CSV,
    EVAL,
    KEY,
    RUN,
    TUNED,
    Account,
    chat_rows,
    checkpoint,
    events,
    hosted,
    job,
)
from tunesmith.cli.main import invoke
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import load_recipe
from tunesmith.service.moving.asking import Asker
from tunesmith.service.moving.bringing import Moved, bring
from tunesmith.service.moving.exported import read_export
from tunesmith.service.moving.page import overview, render_overview
from tunesmith.service.moving.pulling import pull

JOB = "jobs/tone-abc123"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pulled")
    with hosted(Account()) as url:
        pull(Asker(url, KEY), folder)
    return folder


@pytest.fixture(scope="module")
def moved(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    return bring(export, tmp_path_factory.mktemp("out"), "embedded:tiny")


def test_a_job_is_a_recipe_with_its_rows_and_settings(moved: Moved) -> None:
    folder = moved.out / JOB
    assert (folder / "train.jsonl").read_bytes() == chat_rows(20)
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.data.train == str(folder / "train.jsonl") and recipe.data.test == str(folder / "validation.jsonl")
    assert recipe.data.format == "chat" and recipe.base.model == "embedded:tiny"
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed) == (3, 2, 42)
    assert recipe.train.select_by == "last" and recipe.name == "tone-abc123"
    assert "ftjob-abc123 of 2025-10-09, which tuned gpt-4.1-nano-2025-04-14" in (folder / "recipe.yaml").read_text()
    assert not (folder / "twin.yaml").exists(), "the validation file proves it"


def test_everything_that_was_told_stays_beside(moved: Moved) -> None:
    original = moved.out / JOB / "original"
    assert json.loads((original / "job.json").read_text()) == job()
    assert json.loads((original / "events.json").read_text()) == events()
    assert [one["step_number"] for one in json.loads((original / "checkpoints.json").read_text())] == [10, 20]
    assert (original / "results.csv").read_bytes() == CSV, "decoded from base64"


def test_the_table_says_what_it_was_what_it_is_and_what_it_cost(moved: Moved) -> None:
    (one,) = moved.jobs
    assert (one.model, one.tuned, one.method, one.status) == (
        "gpt-4.1-nano-2025-04-14",
        TUNED,
        "supervised",
        "succeeded",
    )
    assert one.settings == {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 2.0}
    assert (one.rows, one.held_out, one.steps, one.checkpoints) == (20, 10, 30, 2)
    assert one.losses == {"train_loss": pytest.approx(1 / 30), "full_valid_loss": 0.33}
    assert one.here["base"] == "embedded:tiny" and one.here["learning_rate"] > 0 and one.here["total_steps"] == 30
    assert (one.cost.dollars, one.cost.how) == (3.0, "2,000,000 tokens at $1.5 a million")
    assert one.notes == ()
    page = render_overview(moved)
    for part in ("What it cost there", TUNED, "$3.00", f"{JOB}/recipe.yaml", "Exact-1: 9 of 12"):
        assert part in page, part
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert json.loads(json.dumps(overview(moved)))["dollars"] == 3.0


def test_an_eval_is_an_evaluation(moved: Moved) -> None:
    (one,) = moved.evals
    folder = moved.out / one.folder
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.goal.metric == "exact" and recipe.task.metrics["exact"].formula == "1 if answer == expected else 0"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "messages": [
            {"role": "system", "content": "Answer with a name."},
            {"role": "user", "content": "Capital of Land 0?"},
            {"role": "assistant", "content": "Town 0"},
        ]
    }
    assert one.rows == len(rows) == 12 and one.metrics == ("exact",)
    assert one.notes == ("Polite: no metric; a model judges: `tunesmith judge` does that, once it agrees with people",)
    assert one.results == ({"model": "gpt-4o-mini", "status": "completed", "passed": {"Exact-1": [9, 12]}},)


def test_its_metric_counts_as_the_grader_did(moved: Moved) -> None:
    """The recipe is measured for real: an answer counts when it is the item's, to the letter."""
    from tunesmith.data import load_examples
    from tunesmith.tasks import fit_task

    recipe = load_recipe(moved.out / moved.evals[0].folder / "recipe.yaml")
    examples = load_examples(recipe.data, recipe.data.train, task_type="generation").examples
    task = fit_task(recipe.task, "generation", examples)
    metric = task.metrics["exact"]
    said = ["Town 0", "town 0", "Town 1 is it", "Town 3"]
    expected = [task.target(example) for example in examples[:4]]
    scored = metric.item(metric.statistics([task.parse(text) for text in said], expected))
    assert scored.tolist() == [1, 0, 0, 1]


def test_stored_completions_are_rows(moved: Moved) -> None:
    row = json.loads((moved.out / "completions" / "rows.jsonl").read_text())
    assert row == {"messages": [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]}


def test_a_second_time_nothing_is_touched_and_the_page_stays_whole(moved: Moved) -> None:
    recipe = moved.out / JOB / "recipe.yaml"
    text = recipe.read_text() + "# mine\n"
    recipe.write_text(text)
    again = bring(moved.source, moved.out, "embedded:tiny")
    assert recipe.read_text() == text and set(again.kept) == {JOB, moved.evals[0].folder, "completions"}
    assert again.jobs == moved.jobs and again.evals == moved.evals


def saved(folder: Path, **objects: Any) -> Path:
    """An export somebody made by hand."""
    for name, value in objects.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def page(*items: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(items), "has_more": False}


def test_an_export_made_by_hand(tmp_path: Path) -> None:
    """Pages as the API answers, newest first, names of one's own, files under the names they were uploaded by."""
    listed = page({"object": "file", "id": "file-train", "filename": "train set.jsonl", "purpose": "fine-tune"})
    folder = saved(
        tmp_path / "mine",
        my_jobs_json=page(job(validation_file=None, result_files=[]), job("ftjob-second", training_file="file-gone")),
        events_of_the_first_json=page(*events()[::-1]),
        checkpoints_json=page(checkpoint(20), checkpoint(10)),
        files_json=listed,
    )
    (folder / "train set.jsonl").write_bytes(b"\xef\xbb\xbf" + chat_rows(20))
    found = read_export(folder)
    first, second = found.jobs
    assert first.events == tuple(events()) and second.events == ()
    assert first.training == folder / "train set.jsonl" and second.training is None
    moved = bring(folder, tmp_path / "out", "embedded:tiny")
    assert [one.recipe for one in moved.jobs] == [True, False]
    assert moved.jobs[1].notes == (
        "the result file is not in the export",
        "the training file file-gone is not in the export",
        "the validation file file-valid is not in the export",
    )
    twin = load_recipe(moved.out / moved.jobs[0].folder / "twin.yaml")
    assert twin.data.split.test == 0.2 and moved.jobs[0].twin


def test_azures_job_too(tmp_path: Path) -> None:
    """-1 is no number, ids are hexadecimal, events are Azure's, results are plain."""
    id = "ftjob-900fcfc7ea1d4360a9f0cb1697b4eaa6"
    told = job(
        id,
        model="gpt-4o-2024-08-06",
        fine_tuned_model="gpt-4o-2024-08-06.ft-0e208cf33a6a466994aff31a08aba678",
        hyperparameters={"n_epochs": -1, "batch_size": -1, "learning_rate_multiplier": 1},
        method=None,
        validation_file=None,
        result_files=["file-results"],
        suffix="clippy",
        user_provided_suffix=None,
        organization_id=None,
        error=None,
    )
    folder = saved(tmp_path / "az", job_json=told)
    (folder / "file-train.jsonl").write_bytes(chat_rows(20))
    (folder / "file-results.csv").write_bytes(CSV)
    (one,) = bring(folder, tmp_path / "out", "embedded:tiny").jobs
    assert one.settings == {"learning_rate_multiplier": 1} and one.recipe and one.name.startswith("clippy-")
    assert one.cost.dollars == pytest.approx(50.0), "2 million tokens of gpt-4o at 25 dollars"
    assert (tmp_path / "out" / one.folder / "original" / "results.csv").read_bytes() == CSV


@pytest.mark.parametrize(
    ("changes", "dollars", "how"),
    [
        ({"model": "gpt-4.1-mini-2025-04-14"}, 10.0, "2,000,000 tokens at $5 a million"),
        ({"model": "ft:gpt-4.1-2025-04-14:acme:x:abcdefgh"}, 50.0, "2,000,000 tokens at $25 a million"),
        ({"model": "gpt-4o-mini-2024-07-18"}, None, "no list price of gpt-4o-mini is known here"),
        ({"trained_tokens": None}, None, "the job does not say how many tokens were trained"),
        (
            {"model": "o4-mini-2025-04-16", "method": {"type": "reinforcement"}, "finished_at": 1_760_007_201},
            200.0,
            "at most: 2.00 hours from start to end at $100, pauses included",
        ),
    ],
)
def test_what_it_cost_there(changes: dict[str, Any], dollars: float | None, how: str) -> None:
    from tunesmith.service.moving.prices import cost_there

    cost = cost_there(job(**changes), started=1_760_000_001)
    assert cost.dollars == (pytest.approx(dollars) if dollars is not None else None) and cost.how == how


def test_a_job_of_another_method_keeps_its_rows(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "Hi"}]},
        "preferred_output": [{"role": "assistant", "content": "Hello."}],
        "non_preferred_output": [{"role": "assistant", "content": "What?"}],
    }
    folder = saved(tmp_path / "dpo", job_json=job(method={"type": "dpo", "dpo": {}}, validation_file=None))
    (folder / "file-train.jsonl").write_text(f"{json.dumps(row)}\n" * 10)
    (one,) = bring(folder, tmp_path / "out", "embedded:tiny").jobs
    assert not one.recipe and one.method == "dpo" and (tmp_path / "out" / one.folder / "train.jsonl").is_file()
    assert any("jobs of the method dpo are not trained here" in note for note in one.notes)


def test_broken_rows_are_told_with_their_lines(tmp_path: Path) -> None:
    folder = saved(tmp_path / "broken", job_json=job(validation_file=None, status="failed"))
    (folder / "file-train.jsonl").write_bytes(chat_rows(11) + b'{"messages": [{"role": "user"}]}\n')
    (one,) = bring(folder, tmp_path / "out", "embedded:tiny").jobs
    assert not one.recipe and any("12" in note for note in one.notes)


@pytest.mark.parametrize(
    "name",
    ["x\nbase:\n  model: evil", "../../escape", "a" * 500, "", "ünï cödé", "con\0trol"],
)
def test_what_a_name_says_is_never_a_path_or_a_setting(tmp_path: Path, name: str) -> None:
    told = job(user_provided_suffix=name, fine_tuned_model=name, validation_file=None)
    folder = saved(tmp_path / "in", job_json=told, eval_json={**EVAL, "name": name}, run_json={**RUN})
    (folder / "file-train.jsonl").write_bytes(chat_rows(12))
    (folder / "file-items.jsonl").write_text("".join(json.dumps({"item": one}) + "\n" for one in COUNTRIES))
    moved = bring(folder, tmp_path / "out", "embedded:tiny")
    assert load_recipe(moved.out / moved.jobs[0].folder / "recipe.yaml").base.model == "embedded:tiny"
    assert load_recipe(moved.out / moved.evals[0].folder / "recipe.yaml").base.model == "embedded:tiny"
    assert moved.evals[0].rows == 12, "items of a file that a run names"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_an_eval_whose_way_of_asking_is_unknown_keeps_its_items(tmp_path: Path) -> None:
    content = [{"item": {"question": f"Q{i}", "answer": f"A{i}"}} for i in range(10)]
    run = {**RUN, "data_source": {"type": "jsonl", "source": {"type": "file_content", "content": content}}}
    told = {**EVAL, "testing_criteria": [{**EVAL["testing_criteria"][0], "reference": "{{item.answer}}"}]}
    folder = saved(tmp_path / "in", eval_json=told, run_json=run)
    (one,) = bring(folder, tmp_path / "out", "embedded:tiny").evals
    recipe = load_recipe(tmp_path / "out" / one.folder / "recipe.yaml")
    assert recipe.data.format == "openai_evals" and one.rows == 10
    assert "does not say how the model was asked" in one.notes[0]


def test_nothing_to_bring(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        bring(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"no fine-tuning job, eval or stored completion \(broken.json is no JSON"):
        bring(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_does_not_exist(export: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="embedded:nothing"):
        bring(export, tmp_path / "out", "embedded:nothing")


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "brought"
    with hosted(Account(evals=None)) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert invoke(["import", "openai"]) == 2
        assert invoke(["import", "openai", "--pull", "--out", str(out)]) == 2
        assert "OPENAI_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert invoke(["import", "openai", "--pull", "--out", str(out), "--base", "embedded:tiny"]) == 0
    told = capsys.readouterr()
    assert "1 job, 3 files" in told.out and "$3.00 there" in told.out and "evals: 404" in told.err
    assert (
        (out / "overview.html").is_file() and (out / JOB / "recipe.yaml").is_file() and KEY not in told.out + told.err
    )
    assert (
        invoke(["import", "openai", str(out / "export"), "--out", str(out), "--base", "embedded:tiny", "--json"]) == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again["kept"] == [JOB, "completions"] and again["jobs"][0]["cost"]["dollars"] == 3.0
    assert COMPLETION["id"] not in again


@pytest.mark.parametrize("wrong", ["x", -1, 3.5, [1], {"a": 1}, True, 10**30])
def test_objects_changed_by_hand_are_left_out_and_named(tmp_path: Path, wrong: Any) -> None:
    """Each field in turn: nothing breaks, and what is left out is told."""
    whole = job(validation_file=None, result_files=[])
    changed = [
        {**whole, "id": f"ftjob-{name.replace('_', '')}", name: wrong} for name in whole if name not in ("object", "id")
    ]
    runs = [
        {**RUN, "id": f"evalrun_{name.replace('_', '')}", name: wrong} for name in RUN if name not in ("object", "id")
    ]
    folder = saved(tmp_path / "in", jobs_json=[whole, *changed], runs_json=runs, eval_json=EVAL)
    (folder / "file-train.jsonl").write_bytes(chat_rows(12))
    moved = bring(folder, tmp_path / "out", "embedded:tiny")
    assert len(moved.jobs) + sum("ftjob-" in one for one in moved.problems) == 1 + len(changed)
    assert moved.problems and all("is left out" in one for one in moved.problems)
    assert any(one.id == "ftjob-abc123" and one.recipe for one in moved.jobs)
    assert "What moved" in render_overview(moved)
