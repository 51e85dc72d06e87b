"""Public benchmarks through lm-eval: the call that is made, and what is read back."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.neighbours.made import make_evidence
from tunesmith.errors import EngineError, RecipeError
from tunesmith.evaluation.neighbours import Options, lm_eval_benchmark, write_as
from tunesmith.evaluation.neighbours.lm_eval_benchmark import Asked, Served, command_for, run_benchmark
from tunesmith.evaluation.neighbours.lm_eval_results import read_results
from tunesmith.evaluation.statistics import wilson

URL = "http://127.0.0.1:9/v1"
HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


def after(command: list[str], option: str) -> list[str]:
    """The values of an option."""
    rest = command[command.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def settings(command: list[str]) -> Any:
    """What lm-eval is told of the model."""
    (text,) = after(command, "--model_args")
    return json.loads(text)


def test_the_call_for_an_endpoint_that_completes_texts(tmp_path: Path) -> None:
    served = Served(URL + "/", "a,b=7", tokenizer="org/tok", concurrency=2, timeout=9)
    command = command_for(served, Asked(["gsm8k", "mmlu"], limit=5, shots=0), tmp_path)
    assert command[:4] == [sys.executable, "-m", "lm_eval", "run"]
    assert after(command, "--model") == ["local-completions"] and after(command, "--tasks") == ["gsm8k", "mmlu"]
    assert settings(command) == {
        **{"model": "a,b=7", "base_url": f"{URL}/completions", "num_concurrent": 2, "timeout": 9},
        **{"tokenized_requests": False, "tokenizer_backend": "huggingface", "tokenizer": "org/tok"},
    }
    assert after(command, "--limit") == ["5"] and after(command, "--num_fewshot") == ["0"]
    assert "--log_samples" in command and "--apply_chat_template" not in command


def test_the_call_for_a_chat_endpoint(tmp_path: Path) -> None:
    command = command_for(Served(URL, "m", "chat"), Asked(["ifeval"], include=tmp_path), tmp_path)
    assert after(command, "--model") == ["local-chat-completions"] and "--apply_chat_template" in command
    assert settings(command)["base_url"] == f"{URL}/chat/completions"
    assert settings(command)["tokenizer_backend"] == "none" and "tokenizer" not in settings(command)
    assert after(command, "--include_path") == [str(tmp_path)] and "--limit" not in command


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if lm-eval were there."""
    monkeypatch.setattr(lm_eval_benchmark.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("served", "asked", "said"),
    [
        (Served("localhost:8000", "m"), Asked(["gsm8k"]), "is no address"),
        (Served("http://me:pw@h/v1", "m"), Asked(["gsm8k"]), "holds a user name or password"),
        (Served("http://example.com/v1", "m", key_env="PATH"), Asked(["gsm8k"]), "sent unencrypted"),
        (Served(URL + "?version=1", "m"), Asked(["gsm8k"]), "with a query"),
        (Served(URL, "m", key_env="NO_SUCH_KEY"), Asked(["gsm8k"]), "NO_SUCH_KEY is not set"),
        (Served(URL, "m"), Asked([]), "no benchmark is named"),
    ],
)
def test_what_cannot_work_is_refused_first(
    tmp_path: Path, installed: None, served: Served, asked: Asked, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        run_benchmark(served, asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_lm_eval_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="lm-eval is not installed"):
        run_benchmark(Served(URL, "m"), Asked(["gsm8k"]), tmp_path / "out")


def _results(folder: Path) -> None:
    folder.mkdir(parents=True)
    metrics = {
        "alias": "t",
        "acc,none": 0.75,
        "acc_stderr,none": 0.2,
        "f1,flexible": 0.5,
        "f1_stderr,flexible": "N/A",
        "whole,none": 0.4,
        "whole_stderr,none": 0.1,
        "bare,none": 0.3,
        "lost,none": float("nan"),
        "bare_stderr,none": "N/A",
    }
    told = {
        "results": {"t": metrics, "group": {"acc,none": 0.6, "acc_stderr,none": 0.05, "alias": "group"}},
        "n-samples": {"t": {"original": 9, "effective": 4}},
        "n-shot": {"t": 5},
    }
    (folder / "results_2026-01-02T00-00-00.json").write_text(json.dumps(told))
    (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps({"results": {"old": {"acc,none": 1.0}}}))
    rows = [
        {"filter": "none", "metrics": ["acc", "whole"], "acc": right, "whole": [1, 2]} for right in (1.0, 1.0, 0.0, 1.0)
    ]
    rows += [{"filter": "flexible", "metrics": ["f1"], "f1": score} for score in (0.0, 0.5, 0.5, 1.0)]
    (folder / "samples_t_2026-01-02T00-00-00.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_results_are_read_with_the_best_interval_there_is(tmp_path: Path) -> None:
    _results(tmp_path / "out/m")
    found = {(v.task, v.metric): v for v in read_results(tmp_path / "out")}
    assert set(found) == {("t", "acc"), ("t", "f1"), ("t", "whole"), ("t", "bare"), ("t", "lost"), ("group", "acc")}
    accuracy = found["t", "acc"]
    assert (accuracy.interval, (accuracy.low, accuracy.high)) == ("Wilson", wilson(3, 4))
    assert (accuracy.n, accuracy.shots, accuracy.filter) == (4, 5, "none")
    f1 = found["t", "f1"]
    assert f1.interval == "bootstrap" and f1.filter == "flexible"
    assert f1.low is not None and f1.high is not None and 0.0 < f1.low < 0.5 < f1.high < 1.0
    whole, bare, group = found["t", "whole"], found["t", "bare"], found["group", "acc"]
    assert whole.interval == group.interval == "standard error"
    assert (group.low, group.high) == (pytest.approx(0.502, abs=1e-3), pytest.approx(0.698, abs=1e-3))
    assert found["t", "lost"].value is None and found["t", "lost"].n == 4
    assert (bare.low, bare.high, bare.interval, group.n) == (None, None, None, None)


@pytest.mark.parametrize("text", ["[]", "{}", '{"results": {"t": 1}}', "no json"])
def test_results_that_cannot_be_understood_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(EngineError, match="left no results"):
        read_results(tmp_path)
    (tmp_path / "results_x.json").write_text(text)
    with pytest.raises(EngineError, match="cannot be understood"):
        read_results(tmp_path)


def test_what_lm_eval_says_is_kept_and_its_failure_told(
    tmp_path: Path, installed: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('Loglikelihood is not supported for chat completions. Sorry'); sys.exit(3)"
    monkeypatch.setattr(lm_eval_benchmark, "command_for", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(EngineError, match="status 3") as caught:
        run_benchmark(Served(URL, "m", "chat"), Asked(["mmlu"]), tmp_path / "out")
    assert "--dialect completions --tokenizer" in str(caught.value) and "Sorry" in str(caught.value)
    assert "Sorry" in (tmp_path / "out/lm-eval.log").read_text() and "Sorry" in capfd.readouterr().err
    with pytest.raises(RecipeError, match="holds other things"):
        run_benchmark(Served(URL, "m", "chat"), Asked(["mmlu"]), tmp_path / "out")


def test_a_key_goes_to_the_endpoint_it_is_for_and_no_other_one_does(
    tmp_path: Path, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; sys.exit({'none': 10, 'mine': 11}.get(os.environ['OPENAI_API_KEY'], 12))"
    monkeypatch.setattr(lm_eval_benchmark, "command_for", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    monkeypatch.setenv("MY_KEY", "mine")
    for key_env, status in ((None, 10), ("MY_KEY", 11)):
        with pytest.raises(EngineError, match=f"status {status}"):
            run_benchmark(Served(URL, "m", key_env=key_env), Asked(["x"]), tmp_path / str(status))


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A stand-in that answers every text with "lost card"."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["max_tokens"] == 40 and asked["stop"] == ["</u>"] and isinstance(asked["prompt"], str)
            told = json.dumps({"choices": [{"index": 0, "text": "lost card"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed (extra eval)")
def test_lm_eval_asks_a_real_endpoint(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_as("lm-eval", make_evidence(tmp_path / "run"), tmp_path / "tasks", Options())
    values = run_benchmark(Served(endpoint, "any"), Asked(["run_tuned"], include=tmp_path / "tasks"), tmp_path / "out")
    found = {value.metric: value for value in values}
    assert found["accuracy"].value == 0.4 and found["accuracy"].interval == "Wilson" and found["accuracy"].n == 5
    assert found["macro_f1"].value == pytest.approx(4 / 7 / 3)
    assert json.loads((tmp_path / "out/command.json").read_text())["command"][:2] == ["-m", "lm_eval"]
