"""A run as tasks and results of lm-eval: what is written, and that a score there is the score here."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluation.neighbours.made import INTENTS, STOP, make_evidence, prompt_of
from tunesmith.errors import RecipeError
from tunesmith.evaluation.neighbours import Options, write_as
from tunesmith.evaluation.neighbours.lm_eval_files import function_of
from tunesmith.evaluation.neighbours.lm_eval_results import read_results
from tunesmith.evaluation.neighbours.lm_eval_task import RunTask

CASES: dict[str, tuple[list[tuple[str, str]], list[str], dict[str, Any]]] = {
    "classification": (INTENTS, ["lost card", "Limit.", "limit", "no idea", "other"], {}),
    "multi_label": (
        [("a", "red; blue"), ("b", "red"), ("c", "none")],
        ["blue; red", "red; green", "none"],
        {"labels": ["red", "blue"]},
    ),
    "extraction": (
        [("a", '["flour", "eggs"]'), ("b", '["salt"]')],
        ['Sure: ["eggs", "milk"]', "salt"],
        {"answer_form": "list"},
    ),
    "question_answering": ([("a", '["Paris", "the city"]'), ("b", "two words")], ["paris!", "two"], {}),
    "summarisation": ([("a long text of words", "a text"), ("more words here", "words")], ["a long text", "x"], {}),
    "maths": ([("1 + 1", "2"), ("2 + 3", "5")], ["it is 2", "#### 6"], {}),
    "translation": (
        [("Hund", "the dog barks at night"), ("Katze", "a cat")],
        ["the dog barks at the night", "cat"],
        {},
    ),
}


def _functions(folder: Path, name: str) -> dict[str, Any]:
    """The task's YAML with references to functions as texts."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"function {loader.construct_scalar(node)}")
    loaded: dict[str, Any] = yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    return loaded


def test_a_task_asks_what_the_candidate_was_asked(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "my run")
    made = write_as("lm-eval", evidence, tmp_path / "out", Options())
    config = _functions(tmp_path / "out", "my_run_few_shot")
    assert (config["task"], config["num_fewshot"], config["output_type"]) == ("my_run_few_shot", 0, "generate_until")
    assert config["generation_kwargs"] == {"until": [STOP], "max_gen_toks": 40, "do_sample": False, "temperature": 0.0}
    rows = [json.loads(line) for line in (tmp_path / "out/rows/few_shot.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt_of(q, "\n<u>shown</u>\n<a>so") for q, _ in INTENTS]
    assert [(row["question"], row["expected"]) for row in rows] == INTENTS
    assert not (tmp_path / "out/my_run_trivial_majority.yaml").exists() and "trivial_majority" in made.notes[0]
    assert "--include_path" in made.use and made.use.endswith("my_run_tuned")


@pytest.mark.parametrize("task_type", CASES)
def test_scores_there_are_scores_here(tmp_path: Path, task_type: str) -> None:
    rows, texts, spec = CASES[task_type]
    evidence = make_evidence(tmp_path / "run", task_type, rows, {"tuned": texts}, spec)
    write_as("lm-eval", evidence, tmp_path / "out", Options())
    task = RunTask(tmp_path / "out")
    config = _functions(tmp_path / "out", "run_tuned")
    documents = [json.loads(line) for line in (tmp_path / "out/rows/tuned.jsonl").read_text().splitlines()]
    found = [task.scores(document, [text]) for document, text in zip(documents, texts, strict=True)]
    (shown,) = evidence.candidates
    assert {value.metric for value in shown.values} == {metric["metric"] for metric in config["metric_list"]}
    assert len({value.value for value in shown.values}) > 1 or task_type == "maths"  # not all right, not all wrong
    module = (tmp_path / "out/tunesmith_rows.py").read_text()
    for value, metric in zip(shown.values, config["metric_list"], strict=True):
        parts = [one[value.metric] for one in found]
        if metric["aggregation"] == "mean":
            assert sum(parts) / len(parts) == pytest.approx(value.value)
        else:
            assert metric["aggregation"] == f"function tunesmith_rows.{function_of(value.metric)}"
            assert f"{function_of(value.metric)} = _task.aggregation({value.metric!r})" in module
            assert task.aggregation(value.metric)(parts) == pytest.approx(value.value)


def test_a_task_is_written_only_where_a_text_was_completed_freely(tmp_path: Path) -> None:
    right = [right for _, right in INTENTS]
    evidence = make_evidence(
        tmp_path / "run", answers=dict.fromkeys(("tuned", "tuned_scored", "remote_big", "zero_shot"), right)
    )
    scored = [
        replace(shown, facts={"decoding": "scored"}) if shown.name == "tuned_scored" else shown
        for shown in evidence.candidates
    ]
    made = write_as("lm-eval", replace(evidence, candidates=tuple(scored)), tmp_path / "out", Options())
    assert {path.name for path in (tmp_path / "out").glob("*.yaml")} == {"run_tuned.yaml", "run_zero_shot.yaml"}
    assert made.notes[0].startswith("remote_big, tuned_scored: ")
    assert {path.name for path in (tmp_path / "out/results").iterdir()} == {
        *("tuned", "tuned_scored", "remote_big", "zero_shot")
    }


def test_a_run_of_any_name_makes_files_that_can_be_read(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / 'a"""\n\\N #b')
    write_as("lm-eval", evidence, tmp_path / "out", Options())
    compile((tmp_path / "out/tunesmith_rows.py").read_text(), "tunesmith_rows.py", "exec")
    assert _functions(tmp_path / "out", "a_N_b_tuned")["tag"] == "a_N_b"


def test_the_written_module_is_python_and_names_no_metric_twice(tmp_path: Path) -> None:
    assert len({function_of(name) for name in ("pass@1", "pass_1", "f1.a", "f1_a")}) == 4
    evidence = make_evidence(tmp_path / "run")
    write_as("lm-eval", evidence, tmp_path / "out", Options())
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "out/tunesmith_rows.py")}
    exec(compile((tmp_path / "out/tunesmith_rows.py").read_text(), "tunesmith_rows.py", "exec"), namespace)
    assert namespace["prompt"]({"prompt": "p"}) == "p"
    assert namespace["aggregate_macro_f1"]([[1, 0, 0, 2, 0, 0]]) == 1.0


def test_results_are_those_of_the_run_with_its_intervals(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run")
    write_as("lm-eval", evidence, tmp_path / "out", Options())
    values = {(v.task, v.metric): v for v in read_results(tmp_path / "out/results/few_shot")}
    told = {v.metric: v for v in next(s for s in evidence.candidates if s.name == "few_shot").values}
    assert values["run_few_shot", "accuracy"].value == told["accuracy"].value == 0.4
    assert values["run_few_shot", "accuracy_low"].value == told["accuracy"].low
    (samples,) = (tmp_path / "out/results/few_shot").glob("samples_run_few_shot_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["filtered_resps"] == ["lost card"] and first["resps"] == [["lost card"]]
    assert first["accuracy"] == 1.0 and first["metrics"] == ["accuracy", "macro_f1"]
    assert first["arguments"]["gen_args_0"]["arg_0"] == first["doc"]["prompt"]


def test_evidence_replaces_evidence_and_nothing_else(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path / "run")
    first = write_as("lm-eval", evidence, tmp_path / "out", Options())
    assert len(write_as("lm-eval", evidence, tmp_path / "out", Options()).files) == len(first.files)
    with pytest.raises(RecipeError, match="holds other things"):  # MLflow's records, say, are more than one run's
        write_as("inspect", evidence, tmp_path / "out", Options())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RecipeError, match="holds other things"):
        write_as("inspect", evidence, tmp_path / "file", Options())
    assert (tmp_path / "file").read_text() == "precious"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(RecipeError, match="holds other things"):
        write_as("lm-eval", evidence, tmp_path / "mine", Options())
    assert (tmp_path / "mine/notes.txt").read_text() == "precious"
    with pytest.raises(RecipeError, match="is not written for 'helm'"):
        write_as("helm", evidence, tmp_path / "out", Options())


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (extra eval)")
def test_lm_eval_runs_a_written_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, texts, spec = CASES["extraction"]
    evidence = make_evidence(tmp_path / "run", "extraction", rows, {"tuned": texts}, spec)
    write_as("lm-eval", evidence, tmp_path / "out", Options())
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    lm_eval: Any = importlib.import_module("lm_eval")
    instance: Any = importlib.import_module("lm_eval.api.model")
    tasks: Any = importlib.import_module("lm_eval.tasks")
    answers = {answer.prompt: answer.answer for answer in evidence.candidates[0].answers}

    class Recorded(instance.LM):  # type: ignore[misc]
        def generate_until(self, requests: Any) -> list[str]:
            assert {r.args[1]["max_gen_toks"] for r in requests} == {40}
            return [answers[request.args[0]] for request in requests]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    manager = tasks.TaskManager(include_path=str(tmp_path / "out"), include_defaults=False)
    told = lm_eval.simple_evaluate(model=Recorded(), tasks=["run_tuned"], task_manager=manager, bootstrap_iters=0)
    found = told["results"]["run_tuned"]
    for value in evidence.candidates[0].values:
        assert found[f"{value.metric},none"] == pytest.approx(value.value)
    assert "tunesmith" in sys.modules
