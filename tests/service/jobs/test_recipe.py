"""What a job becomes: settings, which rows are learnt and tested, and a real training on a small base."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.service.jobs.made import a_job, chat_rows, completion_rows, write
from tests.tiny import build, byte_tokenizer
from tunesmith.data import infer_task, load_examples
from tunesmith.recipe import dump_recipe, parse_recipe
from tunesmith.recipe.schema import Recipe, Task
from tunesmith.service.jobs.bases import parameters_of
from tunesmith.service.jobs.events import Translator
from tunesmith.service.jobs.recipe import (
    data_section,
    evidence_on,
    recipe_of,
    settled,
    twin_recipe_of,
)
from tunesmith.service.jobs.rules import validate_job
from tunesmith.service.store.nouns import Job
from tunesmith.tasks import fit_task

BASE = "embedded:base"


def a_settled_job(training: Path, validation: Path | None = None, base: str = BASE, **asked: Any) -> Job:
    numbers = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"} | asked
    job = a_job(hyperparameters=numbers, base=base, validation_file="file-valid" if validation else None)
    checked = validate_job(job, training, validation)
    assert not checked.faults
    return replace(job, **settled(job, checked, parameters_of(base)))


@cache
def tiny_base(folder: Path) -> str:
    model = build("llama")
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_number_is_settled_and_readable(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "t.jsonl", chat_rows(10)), write(tmp_path / "v.jsonl", chat_rows(4, 50))
    job = a_settled_job(train, valid)
    assert job.hyperparameters == {"n_epochs": 10, "batch_size": 1, "learning_rate_multiplier": 1.0}
    assert job.method == {"type": "supervised", "supervised": {"hyperparameters": job.hyperparameters}}
    assert job.rows == "chat"
    resolved = dict(job.resolved)
    assert resolved["total_steps"] == 100 and resolved["steps_per_epoch"] == 10
    assert (resolved["training_rows"], resolved["validation_rows"]) == (10, 4)
    assert (resolved["base"], resolved["method"], resolved["rank"], resolved["alpha"]) == (BASE, "lora", 16, 32)
    assert 0 < resolved["learning_rate"] < 1
    assert set(resolved["reasons"]) == {*job.hyperparameters, "learning_rate"}
    json.dumps(resolved)


def test_a_folder_is_shown_by_its_name_only(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "our-base")
    job = a_settled_job(write(tmp_path / "t.jsonl", chat_rows(10)), base=base)
    assert job.resolved["base"] == "our-base"
    assert str(tmp_path) not in json.dumps(job.resolved)


def test_hosted_semantics(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "t.jsonl", chat_rows(12)), write(tmp_path / "v.jsonl", chat_rows(4, 50))
    job = a_settled_job(train, valid, n_epochs=4, batch_size=3)
    recipe = recipe_of(job, train, valid, BASE)
    spec = recipe.train
    assert (spec.epochs, spec.batch_size, spec.seed) == (4.0, 3, job.seed)
    assert spec.learning_rate == job.resolved["learning_rate"]
    assert (spec.select_by, spec.patience, spec.eval_rows, spec.loss) == ("last", 0, 0, "assistant")
    assert (spec.evaluations, spec.watch_every, spec.log_every, spec.keep_epochs) == (4, 10, 1, 3)
    assert recipe.goal.when_reached == "train"
    assert recipe.task.instruction == ""
    assert parse_recipe(recipe.model_dump()) == recipe, "it is one that a user could have written"
    assert dump_recipe(recipe)


def test_validation_rows_are_the_test_and_choose_nothing(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "t.jsonl", chat_rows(12)), write(tmp_path / "v.jsonl", chat_rows(4, 50))
    recipe = recipe_of(a_settled_job(train, valid), train, valid, BASE)
    assert (recipe.data.validation, recipe.data.test) == (None, str(valid))
    assert (recipe.data.split.validation, recipe.data.split.test) == (0, 0)
    assert recipe.train.loss_on == "test"
    for several in (recipe.evaluate.few_shot_k, recipe.evaluate.retrieval_k, recipe.evaluate.few_shot_choice):
        assert len(several) == 1, "with one there is nothing to choose"
    assert recipe.evaluate.instructions == []


def test_a_validation_file_of_training_rows_is_no_test(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", chat_rows(12))
    half = write(tmp_path / "h.jsonl", chat_rows(4, 10))
    assert evidence_on(train, train, "chat").twin
    assert "2 of the 4 validation rows are training rows" in evidence_on(train, half, "chat").reason
    assert not evidence_on(train, write(tmp_path / "v.jsonl", chat_rows(4, 11)), "chat").twin
    recipe = recipe_of(a_settled_job(train, train), train, train, BASE)
    assert (recipe.data.validation, recipe.data.test) == (str(train), None)
    assert recipe.train.loss_on == "validation"


def test_without_a_validation_file_every_row_is_learnt_and_a_twin_is_tested(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", chat_rows(20))
    job = a_settled_job(train)
    recipe, twin = recipe_of(job, train, None, BASE), twin_recipe_of(job, train, BASE)
    assert (recipe.data.validation, recipe.data.test, recipe.data.split.test) == (None, None, 0)
    assert (recipe.train.evaluations, recipe.train.watch_every) == (0, 0)
    assert (twin.data.split.validation, twin.data.split.test) == (0, 0.2)
    for name in ("epochs", "batch_size", "learning_rate", "seed", "loss", "select_by"):
        assert getattr(recipe.train, name) == getattr(twin.train, name)
    assert evidence_on(train, None, "chat").twin


def test_prompts_and_completions_are_learnt_as_plain_text(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", completion_rows(20))
    recipe = recipe_of(a_settled_job(train), train, None, BASE)
    assert recipe.base.chat_template == "raw"
    assert recipe.task.type == "classification"
    examples = load_examples(recipe.data, train).examples
    assert [m.content for m in examples[0].messages] == ["letter 0 about a ball\n\n###\n\n", " baseball"]


def test_a_task_that_would_learn_other_answers_is_not_taken(tmp_path: Path) -> None:
    """Lists of summaries are several references elsewhere; in a job they are what is to be said."""
    rows = []
    for n in range(30):
        summaries = [f"A clever animal in tale {n} tricks a vain bird out of food.", f"Flattery wins a meal in {n}."]
        asked = f"Summarise the long story number {n} about a fox, a crow and a cheese."
        answer = {"role": "assistant", "content": json.dumps(summaries)}
        rows.append({"messages": [{"role": "user", "content": asked}, answer]})
    train = write(tmp_path / "t.jsonl", rows)
    recipe = recipe_of(a_settled_job(train), train, None, BASE)
    examples = load_examples(data_section("chat", train), train).examples
    task = fit_task(Task(type=recipe.task.type, instruction=""), recipe.task.type, examples)
    assert all(task.reply(one.expected) == one.expected for one in examples)
    assert infer_task(examples) != recipe.task.type, "else this test shows nothing"


def test_an_unsettled_job_is_a_mistake(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", chat_rows(12))
    with pytest.raises(ValueError, match="not settled"):
        recipe_of(a_job(rows="chat"), train, None, BASE)
    with pytest.raises(ValueError, match="not been looked at"):
        recipe_of(a_job(), train, None, BASE)


@pytest.mark.parametrize("validated", [True, False])
def test_a_training_tells_every_step_and_keeps_the_last_three_epochs(tmp_path: Path, validated: bool) -> None:
    from tunesmith.pipeline import run
    from tunesmith.training.checkpoint import kept_weights

    base = tiny_base(tmp_path / "base")
    train = write(tmp_path / "t.jsonl", chat_rows(10))
    valid = write(tmp_path / "v.jsonl", chat_rows(12, 50)) if validated else None
    job = a_settled_job(train, valid, base=base, n_epochs=4, batch_size=2)
    translator = Translator(steps_per_epoch=job.resolved["steps_per_epoch"] if validated else None)
    drafts = []
    result = run(
        recipe_of(job, train, valid, base),
        out=tmp_path / "run",
        through="train",
        listener=lambda event: drafts.extend(translator.hear(event)),
    )
    steps = [draft.data for draft in drafts if draft.type == "metrics"]
    assert [data["step"] for data in steps] == list(range(1, 21))
    assert all(0 <= data["train_mean_token_accuracy"] <= 1 and data["train_loss"] > 0 for data in steps)
    watched = [data["step"] for data in steps if "valid_loss" in data]
    full = [data["step"] for data in steps if "full_valid_loss" in data]
    assert full == ([5, 10, 15, 20] if validated else [])
    assert watched == [], "steps 10 and 20 end an epoch, where the whole file is measured"
    assert sorted(kept_weights(tmp_path / "run" / "checkpoints")) == [10, 15, 20]
    assert result.training is not None and result.training["best_step"] is None
    messages = [draft.message for draft in drafts if draft.type == "metrics"]
    assert messages[-1].startswith("Step 20/20: training loss=")
    assert ("full validation loss=" in messages[-1]) == validated


def test_a_row_that_is_too_long_is_left_out_and_told(tmp_path: Path) -> None:
    from tunesmith.pipeline import run

    base = tiny_base(tmp_path / "base")
    rows = chat_rows(11)
    rows[4]["messages"][1]["content"] = "very long " * 100
    train, valid = write(tmp_path / "t.jsonl", rows), write(tmp_path / "v.jsonl", chat_rows(4, 50))
    job = a_settled_job(train, valid, base=base, n_epochs=2, batch_size=1)
    translator, drafts = Translator(steps_per_epoch=job.resolved["steps_per_epoch"]), []
    run(
        recipe_of(job, train, valid, base),
        out=tmp_path / "run",
        through="train",
        listener=lambda event: drafts.extend(translator.hear(event)),
    )
    steps = [draft.data for draft in drafts if draft.type == "metrics"]
    assert [data["step"] for data in steps] == list(range(1, 21)), "two epochs of the ten rows that fit"
    assert [data["step"] for data in steps if "full_valid_loss" in data] == [10, 20]
    warnings = [draft.message for draft in drafts if draft.level == "warn"]
    assert any("longer" in text and "5" in text for text in warnings), warnings


def _quick(recipe: Recipe) -> Recipe:
    """Short answers, few resamples: what is measured does not matter here."""
    evaluate = recipe.evaluate.model_copy(update={"max_new_tokens": 4, "bootstrap": 100, "latency_rows": 1})
    return recipe.model_copy(update={"evaluate": evaluate})


def test_the_evidence_is_the_rest_of_the_same_run(tmp_path: Path) -> None:
    """Trained once; then measured on the validation rows, of which nothing was chosen."""
    from tunesmith.pipeline import run

    base = tiny_base(tmp_path / "base")
    train, valid = write(tmp_path / "t.jsonl", chat_rows(12)), write(tmp_path / "v.jsonl", chat_rows(5, 500))
    job = a_settled_job(train, valid, base=base, n_epochs=1, batch_size=4)
    recipe = _quick(recipe_of(job, train, valid, base))
    run(recipe, out=tmp_path / "run", through="train")
    trained = (tmp_path / "run" / "training.json").stat().st_mtime_ns
    kinds: list[str] = []
    result = run(recipe, out=tmp_path / "run", listener=lambda event: kinds.append(event["kind"]))
    assert (tmp_path / "run" / "training.json").stat().st_mtime_ns == trained
    assert "train_step" not in kinds
    assert result.verdict is not None and result.report is not None
    assert result.comparison is not None
    assert {"tuned", "zero_shot", "few_shot", "retrieval"} <= {one.candidate for one in result.comparison.values}
    assert {value.n for value in result.comparison.values} == {5}
    assert not list((tmp_path / "run" / "evaluation").glob("validation/*")), "no validation rows were asked"


def test_a_twin_is_measured_on_a_fifth(tmp_path: Path) -> None:
    from tunesmith.pipeline import run

    base = tiny_base(tmp_path / "base")
    train = write(tmp_path / "t.jsonl", completion_rows(20))
    job = a_settled_job(train, base=base, n_epochs=1, batch_size=8)
    result = run(_quick(twin_recipe_of(job, train, base)), out=tmp_path / "twin", through="evaluate")
    assert result.comparison is not None
    assert {value.n for value in result.comparison.values} == {4}
