"""One run of `planner.py`, in a process of its own.

    python benchmarks/_planner_job.py JOB      # JOB is a `Job` as JSON; `planner.py` starts it

A job is carried out twice: once as `check` does it, which measures the machine and keeps what it found, and once as a
training, which predicts from shapes and from what was kept, trains, and tells what it took.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _training_work import TokenRow, make_rows

LONG = (600, 1000)
"""Tokens of a long row."""
ANSWER_TOKENS = 24
"""Tokens generated for each validation row that is answered."""


@dataclass(frozen=True)
class Job:
    """A training. `data`: short (ragged chat rows) or long; `limit`: of memory, as the recipe has it."""

    model: str
    method: str
    data: str
    rows_per_step: int
    steps: int
    limit: str = "auto"
    calibrate: bool = False
    evaluations: int = 2
    validation_rows: int = 16


def main() -> None:
    """Do the job given on the command line; its result is the last line of the output."""
    print(json.dumps(carry_out(Job(**json.loads(sys.argv[1])))))


def carry_out(job: Job) -> dict[str, Any]:
    """Measure for later, or predict and train."""
    from tunesmith.errors import ResourceError
    from tunesmith.inference.torch_engine import TorchEngine
    from tunesmith.models.forward import LanguageModel
    from tunesmith.models.fused_layers import use_fused_layers
    from tunesmith.models.load import load_base
    from tunesmith.models.methods import attach
    from tunesmith.recipe.schema import Base
    from tunesmith.text.render import Renderer
    from tunesmith.training.calibration import calibrate
    from tunesmith.training.memory_trace import Answering
    from tunesmith.training.plan import TrainingPlan
    from tunesmith.training.planner import plan_memory
    from tunesmith.training.resources import memory_limit

    base = load_base(Base(model=job.model))
    attach(base, method_of(job.method, base.model.config.num_hidden_layers), 0)
    use_fused_layers(base.model)
    model = LanguageModel(base.model)
    vocabulary = base.model.config.vocab_size
    rows = samples(job, job.rows_per_step * job.steps, vocabulary, seed=0)
    validation = samples(job, job.validation_rows, vocabulary, seed=1)
    plan = TrainingPlan(
        steps=job.steps,
        batch_size=job.rows_per_step,
        learning_rate=1e-4,
        seed=0,
        evaluate_every=-(-job.steps // job.evaluations) if job.evaluations else 0,
        checkpoint_seconds=math.inf,
    )
    engine = TorchEngine(base.model, Renderer(base.tokenizer, "plain"), base.context)
    prompts = [[_message(row)] for row in validation]

    def answer() -> int:
        return sum(1 for _ in engine.generate(prompts, ANSWER_TOKENS))

    longest = max(engine.count_tokens(prompt) for prompt in prompts)
    answers = Answering(len(prompts), longest, ANSWER_TOKENS) if job.evaluations else None
    began = time.perf_counter()
    try:
        memory = plan_memory(model, rows, plan, memory_limit(job.limit), answers=answers)
    except ResourceError as error:
        return {"refused": str(error), "planning_seconds": time.perf_counter() - began, "steps_done": 0}
    planned = time.perf_counter() - began
    plan = memory.apply(plan)
    if job.calibrate:
        return asdict(calibrate(model, rows, plan, answer=answer, fresh=True))
    seconds = predict_time(model, rows, validation, plan)
    facts = {"memory": asdict(memory), "time": seconds, "planning_seconds": planned}
    return {**facts, **train(model, rows, validation, plan, answer)}


def predict_time(model: Any, rows: Sequence[Any], validation: Sequence[Any], plan: Any) -> dict[str, Any]:
    """Seconds of the training, from what was measured before."""
    from tunesmith.training.calibration import forecast_time, known_calibration

    calibration = known_calibration(model, rows, plan)
    assert calibration is not None, "run the job with calibrate first"
    seconds = forecast_time(
        calibration,
        rows,
        plan,
        validation_tokens=sum(len(row.ids) for row in validation),
        answered_rows=len(validation),
    )
    return asdict(seconds)


def train(model: Any, rows: Sequence[Any], validation: Sequence[Any], plan: Any, answer: Any) -> dict[str, Any]:
    """The training by the loop, and what it took."""
    from tunesmith.training import loop

    answering = 0.0
    events: list[Mapping[str, Any]] = []

    def score() -> Mapping[str, float]:
        nonlocal answering
        began = time.perf_counter()
        answer()
        answering += time.perf_counter() - began
        return {}

    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = loop.train(
            model,
            rows,
            plan,
            Path(folder),
            validation=validation if plan.evaluate_every else (),
            score=score if plan.evaluate_every else None,
            listener=events.append,
        )
    return {
        "peak_bytes": result.peak_memory_bytes,
        "steps_done": result.steps,
        "tokens": result.tokens,
        "training_seconds": result.seconds,
        "answering_seconds": answering,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "first_loss": next(e["loss"] for e in events if e["kind"] == "train_step"),
    }


def method_of(name: str, layers: int) -> Any:
    """The recipe's method: lora, full, qlora, or last_layers (LoRA in the upper third)."""
    from tunesmith.recipe.schema import Method

    if name == "last_layers":
        return Method(type="lora", last_layers=max(1, layers // 3))
    if name == "qlora":
        return Method(type="lora", quantize="nf4")
    return Method(type=name)  # type: ignore[arg-type]


def samples(job: Job, count: int, vocabulary: int, seed: int) -> list[Any]:
    """Rows as the engine takes them."""
    from tunesmith.text.types import Sample

    rows = make_rows("chat", count, vocabulary, seed) if job.data == "short" else _long_rows(count, vocabulary, seed)
    return [
        Sample(r.ids, (np.arange(len(r.ids)) >= r.answer_at).astype(np.float32), str(i)) for i, r in enumerate(rows)
    ]


def _long_rows(count: int, vocabulary: int, seed: int) -> list[TokenRow]:
    """Rows of 600 to 1,000 tokens, the second half learnt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*LONG, count)
    return [TokenRow(rng.integers(2, vocabulary, n).astype(np.int64), int(n) // 2) for n in lengths]


def _message(row: Any) -> Any:
    """A prompt of about half as many words as the row has tokens."""
    from tunesmith.data.types import Message

    return Message("user", " ".join(["word"] * (len(row.ids) // 2)))


if __name__ == "__main__":
    main()
