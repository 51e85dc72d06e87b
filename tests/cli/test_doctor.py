"""`tunesmith doctor`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_base
from tunesmith.cli.main import invoke
from tunesmith.ops import lora_linear
from tunesmith.training.gate import doctor, gate_checks

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Gemma: its layers are not fused, so that its adapters are what `lora_linear` computes."""
    return str(save_base(tmp_path_factory.mktemp("base") / "gemma", "gemma"))


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the gate, which test_gate runs, only the operations on adapters."""
    monkeypatch.setattr(doctor, "gate_checks", lambda: [c for c in gate_checks() if c.name.startswith("LoRA linear")])
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora_linear._MergedLora.backward

    def wrong(*given: Any) -> Any:
        gradients = list(right(*given))
        gradients[4] = gradients[4] * 1.001
        return tuple(gradients)

    monkeypatch.setattr(lora_linear._MergedLora, "backward", staticmethod(wrong))


def test_it_says_what_holds_and_ends_with_zero(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", base]) == 0
    printed = capsys.readouterr()
    words = " ".join(printed.out.split())
    for told in (
        "this machine",
        "fast paths",
        "a cut of your base",
        "threads",
        "checks hold",
        "layers 0, 1 of 2",
        "GFLOP",
    ):
        assert told in words, told
    assert "do not hold" not in words and printed.err == ""


def test_a_wrong_gradient_ends_with_five_and_is_named(
    base: str, wrong_gradient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["doctor", base]) == 5
    words = " ".join(capsys.readouterr().out.split())
    failed = words.partition("these do not hold")[2]
    assert "lora_B" in failed and "LoRA linear, a stream" in failed and "LoRA, random rows" in failed
    assert "checks hold" not in words


def test_json_is_one_object(base: str, wrong_gradient: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", base, "--json"]) == 5
    report = json.loads(capsys.readouterr().out)
    assert report["holds"] is False and report["cut"]["of_layers"] == 2
    wrong = [c for c in report["checks"] if not c["holds"]]
    assert {c["group"] for c in wrong} == {"operation", "your base"}
    assert any(c["worst_tensor"].endswith("lora_B") and c["error"] > 100 * c["allowed"] for c in wrong)
    assert {path["name"] for path in report["fast_paths"]} >= {"fused decoder layers", "attention without padding"}


def test_rows_of_a_file_are_a_step_of_their_own(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\n" + "".join(f"what is {i}?,it is {i}\n" for i in range(20)))
    assert invoke(["doctor", base, "--rows", str(rows), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [c["dtype"] for c in checks if c["check"] == "LoRA, your rows"][:2] == ["fp64", "fp32"]


def test_settings_of_base_and_data_can_be_set_and_no_others(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("phrase,tone\n" + "".join(f"what is {i}?,tone {i % 3}\n" for i in range(20)))
    given = ["--rows", str(rows), "--set", "data.template={phrase} -> {tone}", "--set", "base.chat_template=raw"]
    assert invoke(["doctor", base, *given, "--json"]) == 0
    assert any(c["check"] == "LoRA, your rows" for c in json.loads(capsys.readouterr().out)["checks"])
    assert invoke(["doctor", base, "--set", "train.epochs=3"]) == 2
    assert "train cannot be set here" in capsys.readouterr().err
    assert invoke(["doctor", base, "--set", "base.dtype=float31"]) == 2
    assert "base.dtype" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (None, 2, "there is no folder"),
        ("config.json", 2, "not a model folder"),
        ("model.safetensors", 6, "has no safetensors weights"),
    ],
)
def test_a_base_that_is_none_is_told_at_once(
    tmp_path: Path, spoil: str | None, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    if spoil is not None:
        (save_base(folder) / spoil).unlink()
    capsys.readouterr()
    assert invoke(["doctor", str(folder)]) == code
    printed = capsys.readouterr()
    assert words in printed.err and "Traceback" not in printed.err and printed.out == ""


def test_rows_that_are_missing_end_with_three(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", base, "--rows", "missing.csv"]) == 3
    assert "missing.csv" in capsys.readouterr().err


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", "--help"]) == 0
    assert "Ends with 5" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_whole_of_it_on_the_embedded_base(tmp_path: Path) -> None:
    """In a process of its own, as a user calls it: the whole gate and a cut of seven layers."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.cli", "doctor", "embedded:base", "--json"],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src"), "TUNESMITH_CACHE": str(tmp_path)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["holds"] and len(report["checks"]) > 100
    assert report["cut"]["layers"] == [0, 3, 6]
    assert {c["check"] for c in report["checks"] if c["group"] == "your base"} == {
        "LoRA, random rows",
        "full tuning, random rows",
    }
