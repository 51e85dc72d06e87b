"""A verdict that hears people and judges after the run, decided again from what the run has kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import make_project
from tunesmith import Recipe, Result, run
from tunesmith.errors import ResourceError, VerificationError
from tunesmith.evaluation.rating import answers_sha256
from tunesmith.evaluation.rating.win_rate import win_rate
from tunesmith.pipeline import load_run, redecide
from tunesmith.pipeline.deciding import decide_on
from tunesmith.pipeline.evidence import read_evidence
from tunesmith.runs import RunFolder

SMALL: dict[str, Any] = {
    "data": {"train": "rows.csv", "split": {"test": 30}},
    "method": {"rank": 16},
    "train": {"max_steps": 80, "batch_size": 8, "learning_rate": 2e-2, "evaluations": 2, "select_by": "loss"},
    "baselines": ["zero_shot"],
    "evaluate": {"bootstrap": 200, "latency_rows": 1, "max_new_tokens": 8, "decoding": ["free"]},
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, base) -> Result:
    """A run that tuning is worth in: its base never names a label."""
    folder = make_project(tmp_path_factory.mktemp("shipped"), base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = run(Recipe(**SMALL, base=str(base)), out="run")
    assert made.verdict is not None and made.verdict.decision == "ship_tuned", made.verdict
    return made


@pytest.fixture
def copy(shipped, tmp_path) -> RunFolder:
    """A run of one's own, without its base, its rows and its model: deciding again needs none of them."""
    path = Path(shutil.copytree(shipped.folder.path, tmp_path / "copy"))
    shutil.rmtree(path / "adapter")
    return RunFolder.open(path)


def say(folder: RunFolder, wins: int, losses: int, source: str = "rating", counts: bool = True) -> None:
    """What `tunesmith rate` or `judge` would have left: tuned against zero_shot."""
    rate = win_rate(["a"] * wins + ["b"] * losses).to_dict()
    kept = {"a": "tuned", "b": "zero_shot", "win_rate": rate, "counts": counts, "why": "two raters", "agreement": None}
    told = {**kept, "answers_sha256": answers_sha256(folder.evaluation, "tuned", "zero_shot")}
    (folder.evaluation / f"{source}.json").write_text(json.dumps(told))


def test_what_a_run_has_kept_gives_the_same_verdict_again(shipped):
    evidence = read_evidence(shipped.folder)
    assert evidence is not None
    assert decide_on(evidence) == shipped.verdict
    assert [len(one.rows) for one in evidence.evaluations] == [30, 30]
    assert redecide(shipped.folder).to_dict() == load_run(shipped.folder).to_dict()


def test_people_who_prefer_the_alternative_forbid_shipping(copy, tunesmith):
    report = copy.report.read_text()
    say(copy, wins=5, losses=25)
    said = tunesmith("verdict", copy.path, "--json").json
    verdict = said["verdict"]
    assert (verdict["rule"], verdict["decision"], verdict["candidate"]) == ("vetoed", "keep_prompting", "zero_shot")
    assert verdict["vetoes"] == ["People surely prefer zero-shot to tuned: 83.3 % (95 % CI 66.4 to 92.7, n=30)."]
    assert verdict["vetoes"][0] in verdict["reason"]
    assert copy.report.read_text() != report and "surely prefer" in copy.report.read_text()
    assert (copy.summary().verdict or "").startswith("Keep prompting (zero-shot)")
    assert tunesmith("verdict", copy.path, "--json").json == said
    (copy.evaluation / "rating.json").unlink()
    assert tunesmith("verdict", copy.path, "--json").json["verdict"]["decision"] == "ship_tuned"


def test_people_are_only_shown_where_the_recipe_says_so(copy):
    say(copy, wins=5, losses=25)
    recipe = copy.recipe_file.read_text()
    assert "people: veto" in recipe
    copy.recipe_file.write_text(recipe.replace("people: veto", "people: show"))
    verdict = redecide(copy).verdict
    assert verdict is not None and verdict.decision == "ship_tuned"
    assert any("surely prefer zero-shot to tuned" in caveat for caveat in verdict.caveats)


def test_what_does_not_count_forbids_nothing(copy):
    say(copy, wins=5, losses=25, source="judge", counts=False)
    verdict = redecide(copy).verdict
    assert verdict is not None and verdict.decision == "ship_tuned"
    assert any("which does not count: two raters" in caveat for caveat in verdict.caveats)


def test_nothing_is_written_where_nothing_was_said(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*") if path.is_file()}
    redecide(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.path.rglob("*") if path.is_file()} == before


def test_damage_and_another_writer_are_named(copy):
    say(copy, wins=5, losses=25)
    with copy.lock(), pytest.raises(ResourceError, match="is writing"):
        redecide(copy)
    (copy.evaluation / "tuned.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(VerificationError, match="cannot be read"):
        redecide(copy)


@pytest.mark.parametrize(("file", "text"), [("verdict.json", '{"rule": "of_tomorrow"}'), ("decided_from.json", "[")])
def test_files_of_another_version_or_damaged_ones_are_named(copy, tunesmith, file, text):
    (copy.path / file).write_text(text)
    said = tunesmith("verdict", copy.path, "--json")
    assert said.code != 0 and "--new" in said.error["fix"] and str(copy.path) in said.error["where"]
