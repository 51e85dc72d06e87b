"""`--auto`: what is tried, what is chosen and by which rows, and what is left on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import Said
from tunesmith.cli.main import invoke
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.export import writers
from tunesmith.export.types import StepError
from tunesmith.models.artifact import PRECISIONS, Target, read_artifact
from tunesmith.pipeline.exporting import auto, flow, verify
from tunesmith.pipeline.exporting.auto import Auto, export_auto
from tunesmith.pipeline.exporting.bench import Wishes
from tunesmith.pipeline.exporting.candidates import candidates
from tunesmith.pipeline.exporting.choosing import (
    Limits,
    Outcome,
    choose,
    judge,
    nearest,
    note_of,
    outcome_from_dict,
    outcome_to_dict,
)
from tunesmith.pipeline.exporting.measure import Speed
from tunesmith.pipeline.exporting.records import export_lines, tried_exports
from tunesmith.runs import RunFolder, read_events

MERGED, FP32, FP16, ADAPTER = (
    Target("merged", "own"), Target("merged", "fp32"), Target("merged", "fp16"), Target("adapter", "own"),
)  # fmt: skip
NEVER = Target("openvino", "int8")
TARGETS = (MERGED, FP16, NEVER)
SPEEDS = {"merged": 100.0, "merged-fp32": 50.0, "merged-fp16": 300.0, "adapter": 80.0}
LIMITS = Limits(0.02, "as --max-loss allows")


def outcome(
    name: Target, value: float, size: int, speed: float | None, *, width: float = 0.005, tuned: float = 0.8,
    latency: float = 0.1, failed: tuple[str, ...] = (), base: int = 0, agreement: float = 0.9,
) -> Outcome:  # fmt: skip
    """An outcome as it is kept; the interval of the difference reaches `width` to both sides."""
    difference = value - tuned
    scores = {
        "metric": "accuracy", "value": value, "low": value - 0.03, "high": value + 0.03, "n": 200, "margin": 0.01,
        "difference": difference, "difference_low": difference - width, "difference_high": difference + width,
        "non_inferior": None, "latency_p50": latency, "differing": 0 if agreement == 1.0 else 9,
    }  # fmt: skip
    checks = [{"name": check, "status": "failed", "text": "", "value": None, "bound": None} for check in failed]
    numbers = {"mean_kl": 0.01, "top1_agreement": 0.9, "answer_agreement": agreement, "scores": scores}
    facts = {"base_bytes": base, **({"speed": {"decode": speed}} if speed is not None else {})}
    record = {
        "artifact": str(name), "checks": checks, "adapter": None, "numbers": numbers, "folder": "/x", "bytes": size,
        "facts": facts,
    }  # fmt: skip
    return Outcome(name, f"key-{name}", 1.0, json.loads(json.dumps(record)))


BEST = outcome(MERGED, 0.80, 60_000_000, 20.0, width=0.0, agreement=1.0)
FAST = outcome(FP16, 0.795, 30_000_000, 90.0)
LOSSY = outcome(Target("onnx", "int4"), 0.70, 10_000_000, 200.0)
BEATEN = outcome(FP32, 0.79, 40_000_000, 30.0)
BROKEN = outcome(Target("gguf", "q4_0"), 0.81, 9_000_000, 300.0, failed=("logits",))
ABSENT = Outcome(NEVER, "key", 0.1, None, "converting: no such layer", "onnx")
ALL = (BEST, FAST, LOSSY, BEATEN, BROKEN, ABSENT)


def test_the_front_is_what_no_other_beats_in_quality_size_and_speed():
    judged = {one.outcome.name: one for one in judge(ALL, LIMITS)}
    assert {name for name, one in judged.items() if one.front} == {"merged", "merged-fp16", "onnx-int4"}
    assert {name for name, one in judged.items() if one.allowed} == {"merged", "merged-fp16", "merged-fp32"}
    twins = judge((FAST, replace(FAST, target=FP32)), LIMITS)
    assert all(one.front for one in twins)
    unknown = outcome(Target("gguf", "q8_0"), 0.80, 60_000_000, None, agreement=1.0)
    assert not judge((BEST, unknown), LIMITS)[1].front


def test_the_fastest_or_the_smallest_of_those_allowed():
    judged = judge(ALL, LIMITS)
    assert choose(judged, "speed").outcome is FAST and choose(judged, "size").outcome is FAST  # type: ignore[union-attr]
    assert choose(judge((BEST, BEATEN), LIMITS), "speed").outcome is BEATEN  # type: ignore[union-attr]
    assert choose(judge((LOSSY, BROKEN, ABSENT), LIMITS), "size") is None
    silent = outcome(Target("gguf", "q8_0"), 0.80, 5_000_000, None)
    judged = judge((BEST, silent), LIMITS)
    assert choose(judged, "speed").outcome is BEST and choose(judged, "size").outcome is silent  # type: ignore[union-attr]
    beside = outcome(ADAPTER, 0.80, 1_000_000, 10.0, base=99_000_000)
    assert choose(judge((BEST, beside), LIMITS), "size").outcome is BEST  # type: ignore[union-attr]


def test_the_loss_that_is_not_shown_to_be_small_is_not_allowed_unless_one_says_so():
    few = outcome(FP16, 0.795, 30_000_000, 90.0, width=0.05)
    (one,) = judge((few,), LIMITS)
    assert not one.allowed and "200 rows cannot show a loss below 2.0 points (about " in one.missed[0]
    assert judge((few,), replace(LIMITS, accept_unsure=True))[0].allowed
    assert judge((LOSSY,), replace(LIMITS, accept_unsure=True))[0].missed == (
        "loses 10.0 points, 2.0 are allowed",
    )  # fmt: skip
    # No loss at all is allowed: only the very same answers are surely none.
    assert [one.allowed for one in judge((BEST, FAST), replace(LIMITS, max_loss=0.0))] == [True, False]


def test_limits_of_size_and_latency_and_what_is_nearest():
    slow = outcome(FP32, 0.80, 12_000_000, 30.0, latency=0.3)
    silent = outcome(Target("gguf", "q8_0"), 0.80, 12_000_000, None)
    limits = replace(LIMITS, max_bytes=10_000_000, max_latency=0.2)
    judged = judge((BEST, FAST, slow, silent), limits)
    assert not any(one.allowed for one in judged)
    assert judged[2].missed == ("12.0 MB, at most 10.0 MB wanted", "300 ms to an answer, at most 200 ms wanted")
    assert "latency could not be measured" in judged[3].missed[1] and judged[3].excess == math.inf
    near = nearest(judged, "speed")
    assert near is not None and near.outcome is FAST  # it misses one limit, and the size by less than BEST
    assert nearest(judge((BROKEN, ABSENT), LIMITS), "speed") is None


def test_every_outcome_says_why_and_is_read_back():
    judged = judge(ALL, LIMITS)
    chosen = choose(judged, "speed")
    notes = [note_of(one, chosen, "speed") for one in judged]
    assert notes == [
        "allowed; slower than merged-fp16", "chosen", "loses 10.0 points, 2.0 are allowed",
        "allowed; slower than merged-fp16", "failed: logits", "not made: converting: no such layer",
    ]  # fmt: skip
    assert note_of(judged[0], chosen, "size") == "allowed; larger than merged-fp16"
    assert [outcome_from_dict(json.loads(json.dumps(outcome_to_dict(one)))) for one in ALL] == list(ALL)


def test_what_is_tried():
    usual = candidates()
    assert MERGED in usual and Target("onnx", "int4") in usual and len(set(usual)) == len(usual)
    assert not {"gptq", "awq", "fp8", "onnx-multi"} & {one.kind for one in usual}
    assert candidates(["onnx", "gguf-q8_0", "onnx-int4"]) == (
        *(Target("onnx", one) for one in PRECISIONS["onnx"]), Target("gguf", "q8_0"),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="'onx', 'gguf-int3' are no formats"):
        candidates(["onx", "gguf-int3"])
    with pytest.raises(RecipeError, match="fp8 is not made for cpu"):
        candidates(["fp8"])
    with pytest.raises(RecipeError, match="'tpu' is no device"):
        candidates(device="tpu")
    with pytest.raises(RecipeError, match="npu cannot be measured here"):
        candidates(device="npu")


def test_a_gpu_that_is_not_here_measures_nothing(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match="no CUDA device"):
        candidates(device="cuda")


class Bench:
    """Writers and models that really work, with stated speeds; knows what was written, and who answered which rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.spoilt: str | None = None
        self.speeds = dict(SPEEDS)
        real_score = verify.score

        def writer_of(kind: Any) -> Any:
            def write(work: Any) -> Any:
                self.written.append(str(work.target))
                if work.target == NEVER:
                    raise StepError("converting", "no such layer", "--to merged")
                return writers.writer_of(kind)(work)

            return write

        def score(name: str, engine: Any, rows: Any, *more: Any) -> Any:
            self.asked.append((name, rows.part))
            return real_score(name, Mute(engine) if rows.part == self.spoilt else engine, rows, *more)

        def measure(folder: Path, adapter: str | None) -> Speed:
            speed = self.speeds[str(read_artifact(folder).target)]
            return Speed(10 * speed, speed, 0.1, 64, 32, 1, 10**8)

        monkeypatch.setattr(flow, "writer_of", writer_of)
        monkeypatch.setattr(verify, "score", score)
        monkeypatch.setattr(flow, "measure_artifact", measure)


class Mute:
    """An engine that says something else."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.context, self.count_tokens = engine, engine.context, engine.count_tokens

    def generate(self, *given: Any, **more: Any) -> Iterator[Any]:
        return (replace(one, text="nothing") for one in self.engine.generate(*given, **more))


@pytest.fixture
def bench(monkeypatch) -> Bench:
    return Bench(monkeypatch)


def names(found: Auto, **of: bool) -> list[str]:
    return [one.outcome.name for one in found.judged if all(getattr(one, key) is value for key, value in of.items())]


def exports_left(run: RunFolder) -> list[str]:
    root = run.path / "export"
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/[!.]*")) if root.is_dir() else []


def test_the_best_is_kept_and_only_it_ever_meets_a_test_row(tuned, bench):
    heard: list[dict[str, Any]] = []
    before = len(list(read_events(tuned.events_file)))
    found = export_auto(tuned, TARGETS, Wishes(max_loss=0.5), listener=heard.append)
    assert found.problem is None and found.chosen is not None and found.chosen.outcome.name == "merged-fp16"
    assert names(found) == [str(one) for one in TARGETS] and names(found, allowed=False) == ["openvino-int8"]
    assert found.notes["openvino-int8"] == "not made: converting: no such layer"
    # Chosen on validation rows; one export met the test rows, after the choice.
    assert bench.asked == [("merged", "validation"), ("merged-fp16", "validation"), ("merged-fp16", "test")]
    events = list(read_events(tuned.events_file))[before:]
    chosen_at = [event["kind"] for event in events].index("export_chosen")
    of_test = [place for place, event in enumerate(events) if "test rows" in event.get("text", "")]
    assert of_test and min(of_test) > chosen_at and events[chosen_at]["chosen"] == "merged-fp16"
    # What is left is the chosen one, whole, with what the test rows say.
    assert exports_left(tuned) == ["auto/merged-fp16"] and found.path == tuned.path / "export" / "auto" / "merged-fp16"
    artifact = read_artifact(found.path)
    assert artifact.facts["speed"]["peak_memory"] == 10**8
    said = json.loads((found.path / "verification.json").read_text())["verification"][0]
    assert found.confirmed is not None and said == json.loads(json.dumps(found.confirmed.to_dict()))
    assert said["numbers"]["scores"]["n"] == 40
    card = (found.path / "README.md").read_text()
    assert card.count("## Verification") == 1 and "40 test rows" in card and "validation" not in card
    assert [one.name for one in export_lines(tuned)] == ["merged-fp16"]
    shown = tried_exports(tuned)
    assert shown is not None and [one.name for one in shown.exports if one.chosen] == ["merged-fp16"]
    report = tuned.report.read_text()
    assert 'id="tried"' in report and '<a href="#tried">' in report and "converting: no such layer" in report
    lines = [event["text"] for event in heard if event["kind"] == "note"]
    assert any(line.startswith("1 of 3 tried: merged ") and line.endswith(" left") for line in lines)
    assert sum("opening the tuned model" in line for line in lines) == 2


def test_what_was_tried_is_not_tried_again(tuned, bench):
    first = export_auto(tuned, (MERGED, FP16), Wishes(max_loss=0.5))
    bench.asked.clear(), bench.written.clear()
    again = export_auto(tuned, (MERGED, FP16), Wishes(max_loss=0.5))
    assert bench.asked == [] and bench.written == []
    assert again.path == first.path and again.confirmed == first.confirmed
    # Among others one is best whose files were removed: it alone is made again; what was chosen earlier stays.
    other = export_auto(tuned, (MERGED, NEVER), Wishes(max_loss=0.5))
    assert other.chosen is not None and other.chosen.outcome.name == "merged"
    assert bench.written == ["openvino-int8", "merged"]  # what could not be made may be possible now
    assert exports_left(tuned) == ["auto/merged", "auto/merged-fp16"]


@pytest.mark.slow
def test_an_export_or_a_record_that_was_damaged_is_made_again(tuned, bench):
    first = export_auto(tuned, (MERGED,), Wishes(max_loss=0.5))
    assert first.path is not None
    (first.path / "README.md").write_text("mine")
    file = tuned.evaluation / "exports" / "auto.json"
    file.write_text(file.read_text().replace('"numbers"', '"figures"'))
    again = export_auto(tuned, (MERGED,), Wishes(max_loss=0.5))
    assert bench.written == ["merged", "merged"] and again.path == first.path
    assert "mine" not in (read_artifact(first.path).folder / "README.md").read_text()
    assert (first.path.with_name("merged.before") / "README.md").read_text() == "mine"


def test_an_interruption_loses_only_the_format_it_met(tuned, bench, monkeypatch):
    real = bench.speeds

    class Ends(dict):
        def __getitem__(self, name: str) -> float:
            if name == "merged-fp16":
                raise KeyboardInterrupt
            return real[name]

    bench.speeds = Ends()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        export_auto(tuned, (MERGED, FP16), Wishes(max_loss=0.5))
    assert exports_left(tuned) == ["auto/merged"]
    bench.speeds = real
    bench.written.clear()
    found = export_auto(tuned, (MERGED, FP16), Wishes(max_loss=0.5))
    assert bench.written == ["merged-fp16"] and found.chosen is not None and not list(tuned.path.rglob("*.tmp"))


def test_the_test_rows_can_refuse_the_choice_and_never_make_another(tuned, bench, tmp_path):
    bench.spoilt = "test"
    found = export_auto(tuned, (FP16,), Wishes(max_loss=0.01, accept_unsure=True), out=tmp_path / "best")
    assert found.problem is not None and found.problem.exit_code == 5 and "task: " in found.problem.what
    assert found.path is None and found.confirmed is None
    assert [asked for asked in bench.asked if asked[1] == "test"] == [("merged-fp16", "test")]
    assert not (tmp_path / "best").exists() and (tmp_path / "best.failed" / "artifact.json").is_file()
    assert "do not confirm it" in tuned.report.read_text()


def test_an_export_that_loses_too_much_is_an_outcome_with_its_speed(tuned, bench):
    bench.spoilt = "validation"
    found = export_auto(tuned, (FP16,), Wishes(max_loss=0.0), keep_all=True)
    assert (
        found.chosen is None and found.problem is not None and "the nearest is merged-fp16: loses" in found.problem.what
    )
    assert "raise the limit" in str(found.problem.fix) and not any(part == "test" for _, part in bench.asked)
    assert exports_left(tuned) == ["auto/merged-fp16.failed"]
    assert found.judged[0].outcome.line is not None and found.judged[0].outcome.line.decode == SPEEDS["merged-fp16"]
    assert "None of them is within the limits" in tuned.report.read_text()


def test_a_run_without_validation_rows_cannot_choose(tuned, bench, monkeypatch):
    monkeypatch.setattr(auto, "frozen_rows", lambda folder, recipe, part: f"the run has no {part} rows")
    with pytest.raises(RecipeError, match="nothing can choose between exports: the run has no validation rows"):
        export_auto(tuned, (MERGED,), Wishes())
    assert bench.written == [] and exports_left(tuned) == []


@pytest.fixture
def command(capsys):
    def run(*arguments: str | Path) -> Said:
        code = invoke(["export", *map(str, arguments)])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


def test_the_command_prints_the_table_and_the_folder(tuned, bench, command, tmp_path):
    said = command(
        tuned.path, "--auto", "--kinds", "merged-own,merged-fp16", "--max-loss", "50", "--out", tmp_path / "b"
    )
    assert said.code == 0 and said.out.strip() == str(tmp_path / "b")
    assert "chosen" in said.err and "slower than merged-fp16" in said.err and "On the test rows" in said.err
    assert read_artifact(tmp_path / "b").target == FP16 and exports_left(tuned) == []
    again = command(tuned.path, "--auto", "--out", tmp_path / "b", "--json")
    assert again.code == 2 and "exists already" in again.error["what"]


def test_nothing_allowed_ends_with_5_and_the_table(tuned, bench, command):
    asked = (tuned.path, "--auto", "--kinds", "merged-own", "--max-size", "0.001")
    said = command(*asked, "--json")
    assert said.code == 5 and "the nearest is merged" in said.error["what"] and said.json["nearest"] == "merged"
    assert [one["name"] for one in said.json["outcomes"]] == ["merged"] and said.json["path"] is None
    said = command(*asked)
    assert said.code == 5 and "at most 0.0 MB wanted" in said.err and "error" in said.err and said.out == ""
    assert bench.written == ["merged"]


def test_options_that_do_not_go_together(tuned, bench, command):
    said = command(tuned.path, "--auto", "--to", "onnx", "--bits", "4", "--json")
    assert said.code == 2 and "--to, --bits say what --auto is to find out" in said.error["what"]
    said = command(tuned.path, "--to", "merged", "--kinds", "onnx", "--max-size", "3", "--json")
    assert said.code == 2 and "--kinds, --max-size go with --auto only" in said.error["what"]
    said = command(tuned.path, "--auto", "--for", "glory", "--json")
    assert said.code == 2 and said.error["expected"] == "speed or size"
    assert bench.written == []


@pytest.mark.slow
def test_peak_memory_is_the_exports_own_and_not_that_of_the_process_that_measures(tuned):
    held = bytearray(1 << 30)
    held[::4096] = b"1" * len(held[::4096])
    found = export_auto(tuned, (MERGED,), Wishes(max_loss=0.5))
    line = found.judged[0].outcome.line
    assert line is not None and 5e7 < (line.peak_memory or 0) < 0.9 * len(held)
