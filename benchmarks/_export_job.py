"""One engine of `export.py`, in a process of its own: it opens one export and answers what it is told on stdin.

    python benchmarks/_export_job.py JOB      # JOB is a `Job` as JSON; `export.py` starts it

`round N` reads the prompt N and writes on greedily; `peak` says the memory; `logits FILE` writes those of the texts by
which engines are compared. Every line is answered by one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import read_artifact

DOCS = Path(__file__).resolve().parent.parent / "docs"
_TEXTS, _TEXT_TOKENS = 4, 128


@dataclass(frozen=True)
class Job:
    """What one process measures: the export in `folder` with `adapter`, or with `plain` the folder of a model by
    `transformers`. `prompt` and `new` are counts of tokens."""

    folder: str
    adapter: str | None = None
    plain: bool = False
    prompt: int = 64
    new: int = 64

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Round:
    """Seconds until the first token, and of the `new - 1` further ones; `cpu` of both: what the process computed, which
    on one thread is what they take on an idle machine."""

    first: float
    rest: float
    first_cpu: float
    rest_cpu: float


class Side(Protocol):
    """A model that is timed."""

    def round(self, prompt: list[int], new: int) -> Round: ...

    def logits(self, ids: list[int]) -> Any:
        """float32 [len(ids), vocabulary]."""
        ...


class Generating:
    """A `transformers` model with its own `generate` and cache."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def round(self, prompt: list[int], new: int) -> Round:
        import torch

        watch = _Watch()
        with torch.inference_mode():
            self.model.generate(
                torch.tensor([prompt]), max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True,
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long), streamer=watch,
            )  # fmt: skip
        return _between(watch.times[0], watch.times[1], watch.times[-1])

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


Moment = tuple[float, float]
"""Seconds by the clock, and of computing of this process."""


def _now() -> Moment:
    return time.perf_counter(), time.process_time()


def _between(begin: Moment, first: Moment, last: Moment) -> Round:
    return Round(first[0] - begin[0], last[0] - first[0], first[1] - begin[1], last[1] - first[1])


class _Watch:
    """When `generate` began and gave out each token; it speaks to a watch as to a streamer of text."""

    def __init__(self) -> None:
        self.times: list[Moment] = [_now()]
        self._asked = False

    def put(self, _: Any) -> None:
        if self._asked:
            self.times.append(_now())
        self._asked = True  # the first call shows the prompt

    def end(self) -> None:
        """Nothing is left to write."""


class Stepping:
    """An engine of ours: prompt, then one token after the other by the way it takes for greedy answers."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.model = engine, engine.model

    def round(self, prompt: list[int], new: int) -> Round:
        begin = _now()
        room = len(prompt) + new + 1
        row = self.model.row_of(room) if hasattr(self.model, "row_of") else self.model.row()
        try:
            token = int(row.next(prompt).argmax())
            first = _now()
            if hasattr(row, "write"):
                written = len(row.write([token], new - 1, frozenset()))
            else:
                written = 0
                for written in range(1, new):  # noqa: B007
                    token = int(row.next([token]).argmax())
            if written != new - 1:
                raise EngineError(f"{written} tokens were written of {new - 1}")
            return _between(begin, first, _now())
        finally:
            row.close()

    def logits(self, ids: list[int]) -> Any:
        return self.engine.logits(ids)


def open_side(job: Job) -> Side:
    """The model that a job names."""
    if job.plain:
        import torch
        from transformers import AutoModelForCausalLM

        return Generating(AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32).eval())
    artifact = read_artifact(Path(job.folder), check=False)
    engine = open_artifact(artifact, job.adapter)
    if getattr(engine, "reader", "llama.cpp") != "llama.cpp":
        raise EngineError("llama.cpp is not installed here; see --llama-python")
    return Generating(engine.model) if artifact.target.kind in ("torchao", "merged") else Stepping(engine)


def texts(folder: Path, count: int, length: int, skip: int = 0) -> Iterator[list[int]]:
    """Pieces of this project's documents as token ids, by the tokenizer in a folder."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)((DOCS / "export.md").read_text(encoding="utf-8"))["input_ids"]
    for place in range(skip, skip + count):
        start = (place * length) % (len(ids) - length)
        yield ids[start : start + length]


def memory(key: str) -> int:
    """Bytes of this process by the name of a line in `/proc/self/status`, as VmHWM or VmRSS."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise EngineError(f"this system does not say {key}", expected="/proc of a Linux kernel")


def serve(job: Job) -> None:
    """Answer what stdin says until it ends."""
    import torch
    import transformers  # noqa: F401  counted as imports, not as the model's memory

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    imports = memory("VmRSS")
    began = time.perf_counter()
    try:
        side = open_side(job)
    except EngineError as error:
        _say({"failed": error.what})
        return
    opened = time.perf_counter() - began
    folder = Path(job.folder)
    prompts = list(texts(folder, 16, job.prompt))
    side.round(prompts[-1], 8)  # whatever is made at the first use
    _say({"opened": opened, "imports": imports})
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "round":
            found = side.round(prompts[int(rest) % 15], job.new)
            _say(asdict(found) | {"load": round(os.getloadavg()[0], 2)})
        elif word == "peak":
            _say({"peak": memory("VmHWM")})
        elif word == "logits":
            rows = [side.logits(ids) for ids in texts(folder, _TEXTS, _TEXT_TOKENS)]
            np.save(rest, np.stack(rows).astype(np.float32))
            _say({"rows": len(rows)})


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])))
