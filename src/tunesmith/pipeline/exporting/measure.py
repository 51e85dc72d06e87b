"""How large and how fast an export is: bytes, tokens a second, time to the first token, peak memory.

Speed is that of the raw steps, prompt and then one token after the other, without sampling and without a stop: an
answer's end then does not decide how much is measured. Peak memory is that of a process that does nothing else, which
`measure_artifact` starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.errors import EngineError, TunesmithError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import FloatArray, ProbedEngine, TokenModel, TokenRow
from tunesmith.models.artifact import read_artifact
from tunesmith.training.resources import peak_memory

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 64, 32, 3


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured. Tokens a second of the prompt (`prefill`) and of the answer (`decode`), `first_token` in
    seconds after a prompt of `prompt_tokens`; the best of several rounds, as others only add what else the machine did.
    peak_memory: bytes of the whole process; None where it was not measured.
    """

    prefill: float
    decode: float
    first_token: float
    prompt_tokens: int
    new_tokens: int
    threads: int
    peak_memory: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def speed_of(
    engine: ProbedEngine, *, prompt_tokens: int = PROMPT_TOKENS, new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS
) -> Speed:
    """The speed of an opened engine in this process."""
    model = token_model(engine)
    new_tokens = min(new_tokens, engine.context // 2)
    prompt_tokens = min(prompt_tokens, engine.context - new_tokens)
    draw = np.random.default_rng(0)
    prompt = draw.integers(0, min(model.vocabulary, len(engine.renderer.tokenizer)), prompt_tokens).tolist()
    _one_round(model, prompt, 2)  # whatever is loaded or compiled at first is not measured
    found = [_one_round(model, prompt, new_tokens) for _ in range(rounds)]
    first, rest = min(one[0] for one in found), min(one[1] for one in found)
    return Speed(
        prompt_tokens / first, (new_tokens - 1) / rest, first, prompt_tokens, new_tokens, torch.get_num_threads()
    )


def measure_artifact(folder: Path, adapter: str | None = None, *, timeout: float = 600.0) -> Speed:
    """Speed and peak memory of an export in a fresh process, opening it included in the memory.

    Raises `EngineError` where it cannot be opened there, or takes longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "tunesmith.pipeline.exporting.measure", str(folder), adapter or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as problem:
        raise EngineError(f"measuring took longer than {timeout:g} seconds", where=str(folder)) from problem
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise EngineError(f"it could not be measured in a process of its own: {said}", where=str(folder))
    return Speed(**json.loads(lines[-1]))


def token_model(engine: ProbedEngine) -> TokenModel:
    """The model inside an engine, token by token."""
    if isinstance(engine, TorchEngine):
        return _TorchTokens(engine.model)
    model = getattr(engine, "model", None)
    if model is None or not hasattr(model, "row"):
        raise EngineError(f"{type(engine).__name__} does not show its steps, so its speed cannot be measured")
    found: TokenModel = model
    return found


def _one_round(model: TokenModel, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and of all further ones."""
    row = model.row()
    try:
        start = time.perf_counter()
        token = int(row.next(prompt).argmax())
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = int(row.next([token]).argmax())
        return first - start, time.perf_counter() - first
    finally:
        row.close()


class _TorchTokens:
    """A `transformers` model as `TokenModel`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def row(self) -> TokenRow:
        return _TorchRow(self.model)


class _TorchRow:
    """A row with a cache of its own."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache, self.device = model, None, next(model.parameters()).device

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], keep: int) -> Any:
        out = self.model(
            torch.tensor([list(ids)], device=self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self.cache = out.past_key_values
        return out.logits[0].float().cpu().numpy()

    def append(self, ids: Sequence[int]) -> FloatArray:
        found: FloatArray = self._read(ids, 0)
        return found

    def next(self, ids: Sequence[int]) -> FloatArray:
        found: FloatArray = self._read(ids, 1)[-1]
        return found

    def close(self) -> None:
        self.cache = None


def _main(folder: Path, adapter: str | None) -> None:
    engine = open_artifact(read_artifact(folder, check=False), adapter)
    found = speed_of(engine)
    # Not by `getrusage`: its maximum begins with that of the process which started this one.
    print(json.dumps(replace(found, peak_memory=peak_memory()).to_dict()))


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]), sys.argv[2] or None)
    except TunesmithError as problem:
        sys.exit(problem.what)
