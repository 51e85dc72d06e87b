"""Public benchmarks through lm-eval, asked of a model behind an OpenAI-compatible endpoint.

lm-eval runs in a process of its own, as its command line does: what it was called with is in `command.json`, what it
said in `lm-eval.log`, its results and every row beside them.
"""

from __future__ import annotations

import codecs
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.errors import EngineError, RecipeError
from tunesmith.evaluation.neighbours.lm_eval_results import BenchmarkValue, read_results
from tunesmith.evaluation.neighbours.writing import Dialect
from tunesmith.inference.endpoint import Endpoint
from tunesmith.runs import write_json

_LAST_LINES = 6
_LOG = "lm-eval.log"
_NO_LIKELIHOOD = "Loglikelihood is not supported for chat completions"


@dataclass(frozen=True, slots=True)
class Served:
    """A model behind an endpoint.

    Parameters
    ----------
    url: address up to and with /v1.
    model: its name there.
    dialect: `completions` sends texts, which benchmarks that compare likelihoods need; `chat` sends turns.
    tokenizer: hub id or folder of its tokenizer, which such benchmarks need too.
    key_env: environment variable with the key, if any.
    concurrency: requests under way at once.
    timeout: seconds an answer may take.
    """

    url: str
    model: str
    dialect: Dialect = "completions"
    tokenizer: str | None = None
    key_env: str | None = None
    concurrency: int = 4
    timeout: int = 300


@dataclass(frozen=True, slots=True)
class Asked:
    """Which benchmarks: names of lm-eval's tasks, of each at most `limit` rows, with `shots` examples instead of the
    benchmark's own number; `include` is a folder with further tasks."""

    tasks: Sequence[str]
    limit: int | None = None
    shots: int | None = None
    include: Path | None = None


def command_for(served: Served, asked: Asked, out: Path) -> list[str]:
    """The call of lm-eval."""
    chat = served.dialect == "chat"
    address = served.url.rstrip("/") + ("/chat/completions" if chat else "/completions")
    settings: dict[str, object] = {
        "model": served.model,
        "base_url": address,
        "num_concurrent": served.concurrency,
        "timeout": served.timeout,
        "tokenized_requests": False,
        "tokenizer_backend": "huggingface" if served.tokenizer else "none",
        **({"tokenizer": served.tokenizer} if served.tokenizer else {}),
    }
    return [
        *(sys.executable, "-m", "lm_eval", "run"),
        *("--model", "local-chat-completions" if chat else "local-completions"),
        *("--model_args", json.dumps(settings)),  # as `name=value` lm-eval would read 7 as a number and cut at commas
        *("--tasks", *asked.tasks),
        *("--output_path", str(out), "--log_samples"),
        *(["--apply_chat_template"] if chat else []),
        *(["--limit", str(asked.limit)] if asked.limit is not None else []),
        *(["--num_fewshot", str(asked.shots)] if asked.shots is not None else []),
        *(["--include_path", str(asked.include)] if asked.include is not None else []),
    ]


def run_benchmark(served: Served, asked: Asked, out: Path) -> tuple[BenchmarkValue, ...]:
    """Run the benchmarks and read their results; what lm-eval says goes to stderr and into `out`.

    Raises `RecipeError` where lm-eval is not installed, a key is missing or `out` holds something, `EngineError` with
    the last lines of its log where it fails.
    """
    _refuse(served, asked, out)
    command = command_for(served, asked, out)
    write_json(out / "command.json", {"command": command[1:]})
    code = _run(command, _environment(served), out / _LOG)
    if code != 0:
        raise _failure(code, out / _LOG)
    return read_results(out)


def _refuse(served: Served, asked: Asked, out: Path) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            "lm-eval is not installed",
            where="tunesmith benchmark",
            expected="the extra eval",
            fix="pip install 'tunesmith[eval]'",
        )
    if served.key_env is not None and not os.environ.get(served.key_env):
        raise RecipeError(f"the variable {served.key_env} is not set", where="--key-env", expected="the endpoint's key")
    key = os.environ[served.key_env] if served.key_env is not None else None
    Endpoint(served.url, served.model, key, set_by="--url").check()
    if urlsplit(served.url).query:
        raise RecipeError("an address with a query cannot be asked by lm-eval", where="--url", expected="…/v1")
    if not asked.tasks:
        raise RecipeError("no benchmark is named", expected="names of tasks", fix="`lm-eval ls tasks` lists them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError("this folder holds other things", where=str(out), expected="a new or empty folder")


def _environment(served: Served) -> dict[str, str]:
    """Ours, with the key where lm-eval looks for it; a key of another service is not sent to this one."""
    key = os.environ[served.key_env] if served.key_env is not None else "none"
    return {**os.environ, "OPENAI_API_KEY": key}


def _run(command: Sequence[str], environment: dict[str, str], log: Path) -> int:
    """The exit status; every byte it says goes to stderr at once and into the log."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        try:
            while said := os.read(process.stdout.fileno(), 1 << 14):
                file.write(said)
                sys.stderr.write(decode(said))
                sys.stderr.flush()
            return process.wait()
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


def _failure(code: int, log: Path) -> EngineError:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    fix = "see the log"
    if _NO_LIKELIHOOD in text:
        fix = "this benchmark compares likelihoods: --dialect completions --tokenizer NAME, or another benchmark"
    last = "\n".join(f"    {line[:300]}" for line in lines[-_LAST_LINES:])
    return EngineError(f"lm-eval ended with status {code}:\n{last}", where=str(log), fix=fix)
