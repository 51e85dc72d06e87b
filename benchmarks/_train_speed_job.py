"""One measurement of `train_speed.py`, in a process of its own: load, train, and print what happened as JSON.

    python benchmarks/_train_speed_job.py JOB      # JOB is a `Job` as JSON; `train_speed.py` starts it

Here is what both sides are measured by. How each trains is in `_train_speed_ours.py` and `_train_speed_peer.py`.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _training_work import RowKind, TokenRow, make_rows, order_of


@dataclass(frozen=True)
class Setting:
    """How one side is run. `micro_batch`: what is computed at once, the peer in rows, ours in tokens (0: default).

    Only a `candidate` can be the peer of the headline; the others inform. `padding_free`: rows end to end, and a mask.
    `grouped`: rows in another order (by length). `allocator`: with the memory settings our engine makes, to see what
    they alone bring. `wait_policy`: OpenMP's; empty leaves it as this side's user gets it.
    """

    trainer: str
    name: str
    micro_batch: int = 0
    candidate: bool = False
    padding_free: bool = False
    checkpointing: bool = False
    grouped: bool = False
    allocator: bool = False
    wait_policy: str = ""


@dataclass(frozen=True)
class Job:
    """What one process measures. `rows`: in the data set; `last_layers`: adapters in so many layers only, or None.

    `exact_norms`: compute the peer's gradient norms anew, in double: torch's own sum of squares of a large fp32 tensor
    is off by 1e-4 (2 million numbers) to 2e-3 (28 million). That time is left out of the steps.
    """

    setting: Setting
    model: str
    method: str
    kind: RowKind
    rows: int
    rows_per_step: int
    steps: int
    learning_rate: float
    last_layers: int | None = None
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    exact_norms: bool = False

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `json.dumps(asdict(job))` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "setting": Setting(**fields["setting"])})


@dataclass
class Record:
    """What is noted while a side trains: loss, gradient norm and end of every step, and memory.

    `paused`: seconds that went into measuring and are no part of the steps. `peak_bytes`: the process's largest
    resident memory until the end of the last step. `facts`: what a side says of itself, such as how long it prepared.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    paused: float = 0.0
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    tensors_changed: tuple[int, int] = (0, 0)

    def step(self, loss: float, grad_norm: float) -> None:
        """Note a step's results; `end` notes when it was over."""
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)

    def end(self) -> None:
        """Note that a step is over."""
        self.ends.append(time.perf_counter() - self.paused)
        self.note_memory()

    def note_memory(self) -> None:
        """Keep the peak so far; our loop starts a new peak measurement when it begins."""
        self.peak_bytes = max(self.peak_bytes, memory("VmHWM"))

    def measures(self, steps: int) -> dict[str, Any]:
        """What was recorded; raises if a step is missing."""
        if not (len(self.losses) == len(self.grad_norms) == len(self.ends) == steps):
            raise SystemExit(f"{len(self.losses)} losses and {len(self.ends)} times of {steps} steps were recorded")
        return asdict(self)


def measure(job: Job) -> dict[str, Any]:
    """Load, train, and tell. Runs in the child."""
    if job.setting.trainer == "tunesmith":
        import _train_speed_ours as side
    else:
        import _train_speed_peer as side  # type: ignore[no-redef]
    model = side.load(job)
    rows = make_rows(job.kind, job.rows, side.vocabulary(model), job.seed)
    order = order_of(job.rows, job.rows_per_step, job.steps, job.seed)
    loaded = settled(side.parameters(model))
    record = Record()
    side.train(job, model, rows, order, record)
    return {
        "setting": asdict(job.setting),
        **record.measures(job.steps),
        "tokens": [sum(len(rows[i].ids) for i in step) for step in order],
        "examples": [len(step) for step in order],
        "loaded_bytes": loaded,
    }


def settled(parameters: Sequence[Any]) -> int:
    """Resident bytes with libraries and model and nothing else: all weights read in, freed memory given back."""
    for parameter in parameters:
        parameter.detach().flatten()[::1024].sum()  # weights may be mapped from their file: at least a number a page
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def watch(parameters: Mapping[str, Any]) -> Callable[[], tuple[int, int]]:
    """Afterwards: how many of the tensors changed, and how many there are (looking at the first 1,024 numbers)."""
    before = {name: p.detach().flatten()[:1024].clone() for name, p in parameters.items()}

    def compare() -> tuple[int, int]:
        changed = sum(not bool((p.detach().flatten()[:1024] == before[n]).all()) for n, p in parameters.items())
        return changed, len(before)

    return compare


def memory(name: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {name}")


def rows_in_order(rows: Sequence[TokenRow], order: Sequence[Sequence[int]]) -> list[TokenRow]:
    """The rows as they are learnt, one after the other."""
    return [rows[i] for step in order for i in step]


def main() -> None:
    """Do the job given on the command line; its result is the last line of the output."""
    print(json.dumps(measure(Job.from_json(sys.argv[1]))))


if __name__ == "__main__":
    main()
