"""`tunesmith benchmark`: what is asked for, and the table it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.cli.main import invoke
from tunesmith.evaluation.neighbours import lm_eval_benchmark
from tunesmith.evaluation.neighbours.lm_eval_benchmark import Asked, Served
from tunesmith.evaluation.neighbours.lm_eval_results import BenchmarkValue

VALUES = (
    BenchmarkValue("gsm8k", "exact_match", "strict-match", 0.5, 0.31, 0.69, "Wilson", 20, 5),
    BenchmarkValue("gsm8k", "corpus", "none", 0.25, None, None, None, 20, 5),
    BenchmarkValue("gsm8k", "perplexity", "none", None, None, None, None, 20, 5),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Served, Asked, Path]]:
    made: list[tuple[Served, Asked, Path]] = []

    def run(served: Served, asked: Asked, out: Path) -> tuple[BenchmarkValue, ...]:
        made.append((served, asked, out))
        return VALUES

    monkeypatch.setattr(lm_eval_benchmark, "run_benchmark", run)
    return made


ASKED = ["benchmark", "gsm8k", "ifeval", "--url", "http://h/v1", "--model", "m", "--out", "b"]


def test_options_become_the_endpoint_and_the_benchmarks(calls, capsys):
    more = ["--dialect", "chat", "--limit", "20", "--shots", "5", "--key-env", "K", "--concurrency", "2"]
    assert invoke([*ASKED, *more]) == 0
    served, asked, out = calls[0]
    assert served == Served("http://h/v1", "m", "chat", None, "K", 2, 300)
    assert (tuple(asked.tasks), asked.limit, asked.shots, asked.include) == (("gsm8k", "ifeval"), 20, 5, None)
    assert out == Path("b")
    said = capsys.readouterr().out
    assert "exact_match (strict-match)" in said and "0.31 to 0.69" in said and "not known" in said
    assert "no number" in said
    assert "written: b" in said


def test_json_has_every_value(calls, capsys):
    assert invoke([*ASKED, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "m" and told["values"][0]["interval"] == "Wilson" and told["values"][1]["low"] is None


def test_an_endpoint_and_a_name_are_needed(calls, capsys):
    assert invoke(["benchmark", "--url", "http://h/v1", "--model", "m"]) == 2
    assert invoke(["benchmark", "gsm8k", "--model", "m"]) == 2
    assert not calls
