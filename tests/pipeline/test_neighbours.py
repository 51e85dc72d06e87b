"""From a finished run's folder to files of other tools, and the command that does it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.evaluation.neighbours.made import scored
from tunesmith.cli.evidence import TOOLS
from tunesmith.cli.main import invoke
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.neighbours import TARGETS
from tunesmith.evaluation.types import MetricValue
from tunesmith.models.load import EMBEDDED
from tunesmith.pipeline.neighbours import gather, write_evidence
from tunesmith.pipeline.prepare import read_data
from tunesmith.recipe import dump_recipe, parse_recipe
from tunesmith.runs import RunFolder, write_json, write_text
from tunesmith.tasks import asking_conversation, fit_task, task_record
from tunesmith.text.render import Renderer

LABELS = ("card", "limit", "other")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of three candidates whose prompts are those of the embedded base; nothing was trained."""
    from transformers import AutoTokenizer

    rows = "".join(f"question number {i} about it,{LABELS[i % 3]}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    recipe = parse_recipe(
        {
            "data": {"train": str(tmp_path / "rows.csv"), "split": {"near_duplicates": "ignore"}},
            "task": "classification",
            "base": "embedded:base",
            "evaluate": {"max_new_tokens": 8},
        }
    )
    splits = read_data(recipe).splits
    test = splits.test
    task = fit_task(recipe.task, "classification", [*splits.train, *splits.validation, *test])
    renderer = Renderer(AutoTokenizer.from_pretrained(str(EMBEDDED / "base")))
    folder = RunFolder.create_at(tmp_path / "run")
    folder.update_manifest(data={"splits_sha256": dict(splits.hashes)})
    write_text(folder.recipe_file, dump_recipe(recipe))
    write_json(folder.path / "task.json", task_record(task))
    shots = splits.train[:2]
    ways = {"tuned": ((), False), "zero_shot": ((), True), "few_shot": (shots, True), "remote_big": ((), True)}
    folder.evaluation.mkdir()
    for name, (shown, full) in ways.items():
        asked = [asking_conversation(task, e, shown, full=full) for e in test]
        words = ["\n\n".join(f"{turn.role}: {turn.content}" for turn in turns) for turns in asked]
        prompts = words if name == "remote_big" else [renderer.prompt_text(turns) for turns in asked]
        answers = [scored(task, e, prompt, "card") for e, prompt in zip(test, prompts, strict=True)]
        lines = "".join(f"{json.dumps(asdict(answer))}\n" for answer in answers)
        (folder.evaluation / f"{name}.jsonl").write_text(lines)
        (folder.evaluation / f"{name}.timing.json").write_text("{}")
    values = [asdict(MetricValue("tuned", "accuracy", 0.33, 0.2, 0.4, len(test)))]
    write_json(folder.path / "comparison.json", {"metric": "accuracy", "values": values, "candidates": {}})
    return folder


def test_turns_are_those_whose_text_was_sent(run: RunFolder) -> None:
    evidence = gather(run)
    known = {shown.name: shown.conversations for shown in evidence.candidates}
    assert known["few_shot"] is None and known["tuned"] is not None and known["zero_shot"] is not None
    assert known["remote_big"] == known["zero_shot"] != known["tuned"]
    assert known["tuned"][0][-1].content == evidence.questions[evidence.candidates[0].answers[0].id]
    assert "Answer with exactly one of these labels" in known["zero_shot"][0][0].content
    assert evidence.stops == ("<|end|>",) and evidence.longest == 8 and evidence.metric == "accuracy"


def test_the_command_writes_beside_the_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["evidence", str(run.path), "--to", "lm-eval", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(run.path / "evidence/lm-eval") and "run_tuned.yaml" in told["files"]
    assert invoke(["evidence", str(run.path), "--to", "inspect", "--candidate", "few_shot"]) == 0
    said = capsys.readouterr()
    assert "bare questions" in said.err and "next: inspect view" in said.out
    assert invoke(["evidence", str(run.path), "--to", "inspect", "--candidate", "huge"]) == 2
    assert "no stored answers of huge" in capsys.readouterr().err
    assert invoke(["evidence", str(run.path), "--to", "helm"]) == 2
    assert tuple(TARGETS) == TOOLS


def test_evidence_is_refused_where_the_data_are_others_now(run: RunFolder, tmp_path: Path) -> None:
    rows = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(rows.replace("number 3", "number three").replace("number 4", "number four"))
    with pytest.raises(DataError, match="not those that this run was evaluated on"):
        write_evidence(run, "inspect")
    assert not (run.path / "evidence").exists()


def test_evidence_is_refused_where_there_is_none(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did not get as far as its recipe"):
        write_evidence(RunFolder.create_at(tmp_path / "empty"), "inspect")
    (run.evaluation / "few_shot.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match="no scored answer"):
        write_evidence(run, "inspect")
    write_text(run.path / "comparison.json", '{"metric": ')
    with pytest.raises(DataError, match="damaged"):
        write_evidence(run, "inspect")
    (run.path / "comparison.json").unlink()
    for path in run.evaluation.iterdir():
        path.unlink()
    with pytest.raises(RecipeError, match="has no stored answers"):
        write_evidence(run, "inspect")
