"""Tunesmith from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.pipeline.conftest import answers, make_project, tone_rows
from tunesmith import Recipe, Result, TunesmithError, run
from tunesmith.data.types import Message
from tunesmith.errors import RecipeError

SMALL: dict[str, Any] = {
    "data": {"train": "rows.csv", "split": {"test": 30}},
    "method": {"rank": 16},
    "train": {"max_steps": 80, "batch_size": 8, "learning_rate": 2e-2, "evaluations": 2, "select_by": "loss"},
    "baselines": ["trivial", "zero_shot"],
    "evaluate": {"bootstrap": 200, "latency_rows": 1},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory, base) -> Result:
    folder = make_project(tmp_path_factory.mktemp("api"), base)
    heard: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = run(Recipe(**SMALL, base=str(base)), out="run", listener=heard.append)
    assert {e["kind"] for e in heard} >= {"stage_started", "train_started", "train_step", "validation", "progress"}
    return made


def test_the_result_has_all_that_the_command_line_prints(result):
    assert result.verdict is not None and result.verdict.reason and result.verdict.metric == "accuracy"
    assert result.training is not None and result.training["steps"] == 80
    assert result.report is not None and result.report.is_file()
    told = result.to_dict()
    assert told["run"] == str(result.folder.path) and Path(told["run"]).is_absolute()
    assert told["verdict"]["decision"] == result.verdict.decision


def test_the_comparison_as_a_table(result):
    table = result.comparison.to_pandas()
    assert list(table.columns) == ["candidate", "metric", "value", "low", "high", "n"]
    assert set(table.candidate) >= {"trivial_majority", "trivial_tfidf_lr", "zero_shot", "tuned", "tuned_scored"}
    assert table.to_dict("records") == result.comparison_rows
    assert result.comparison.value("tuned").n == 30


def test_the_model_answers_as_it_was_evaluated(result):
    rows = answers(result.folder.path)
    for row in rows[:5]:
        question = row["prompt"].split("### User\n")[1].split("\n\n")[0]
        assert question in {phrase for phrase, _ in tone_rows()}
        assert result.model.answer(question) == (row["parsed"] or row["answer"].strip())
        assert result.model.chat([Message("user", question)]) == result.model.answer(question)
    assert any(row["parsed"] for row in rows), "a model that never names a label shows nothing here"
    assert result.model is result.model


def test_the_base_is_asked_in_the_same_way(result):
    question = tone_rows()[0][0]
    assert isinstance(result.base.answer(question), str)
    assert result.base.answer(question) != result.model.answer(question)


def test_a_conversation_may_go_on(result):
    question = tone_rows()[0][0]
    first = result.model.chat([Message("user", question)])
    second = result.model.chat([Message("user", question), Message("assistant", first), Message("user", "and now?")])
    assert isinstance(second, str)


def test_what_cannot_be_asked_is_told(result):
    with pytest.raises(RecipeError, match="longer than the model's context"):
        result.model.answer("long " * 200)
    with pytest.raises(RecipeError, match="no template"):
        result.model.answer({"phrase": "gladly"})


def test_a_finished_run_is_read(result, base, monkeypatch):
    monkeypatch.chdir(result.folder.path.parent)
    heard: list[dict[str, Any]] = []
    again = run(Recipe(**SMALL, base=str(base)), out="run", listener=heard.append)
    assert heard == [] and again.to_dict() == result.to_dict()


def test_relative_paths_count_from_the_working_directory_for_good(result, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the run is opened from elsewhere
    from tunesmith.pipeline import load_run

    again = load_run(result.folder)
    assert again.to_dict() == result.to_dict()
    assert again.recipe.data.train == str(result.folder.path.parent / "rows.csv")
    assert isinstance(again.model.answer("gladly"), str)


def test_export_writes_models_that_answer_the_same(result, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    merged = result.export("merged", tmp_path / "merged").path
    ids = torch.tensor([result.model.engine.renderer.prompt_ids([Message("user", "gladly")])])
    ours = result.model.engine.model(ids).logits
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, ours, rtol=1e-3, atol=1e-3)
    adapter = result.export("adapter", tmp_path / "adapter").path
    assert (adapter / "adapter_config.json").is_file()
    with pytest.raises(RecipeError, match="exists already"):
        result.export("adapter", tmp_path / "adapter")


def test_check_from_python(project, base):
    report = tunesmith.check(Recipe(**SMALL, base=str(base)))
    assert report.exit_code == 0 and len(report.preview) == 3 and report.to_dict()["findings"]


def test_errors_are_of_one_family(project):
    with pytest.raises(TunesmithError) as caught:
        run(Recipe(data="missing.csv", base="nowhere"))
    assert caught.value.exit_code == 3 and "missing.csv" in str(caught.value)


def test_a_template_is_filled_by_column(project, base):
    data = {"train": "rows.csv", "template": '"{phrase}" → "{tone}"', "split": {"test": 30}}
    raw = {"model": str(base), "chat_template": "raw"}
    made = run(Recipe(**{**SMALL, "data": data, "baselines": []}, base=raw), through="train")
    assert made.verdict is None and made.comparison is None and made.report is None
    model = made.model
    asked: list[str] = []
    original = model.engine.generate

    def listen(prompts: Any, limit: int, skip: int = 0) -> Any:
        asked.append(model.engine.renderer.prompt_text(prompts[0]))
        return original(prompts, limit, skip)

    model.engine.generate = listen  # type: ignore[method-assign]
    texts = {model.answer("dear me"), model.answer({"phrase": "dear me"}), model.chat([Message("user", "dear me")])}
    assert len(texts) == 1 and len(set(asked)) == 1 and asked[0].endswith('"dear me" → "')
    assert not next(iter(texts)).endswith('"')
    with pytest.raises(RecipeError, match="missing phrase"):
        model.answer({"tone": "warm"})
