"""The rows of the table of `train_speed.py`: what is learnt, how much of it, what is asked, and the peer's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from _train_speed_job import Job, Setting
from _training_work import RowKind

OURS = Setting("tunesmith", "defaults")


@dataclass(frozen=True)
class Case:
    """A row of the table: a workload, a shape, what is asked of it, and how much of it two cores do in a few minutes.

    `rows`: per optimiser step; `epoch_steps`: steps until rows come again (0: never); `steps` of a round, of which
    `warmup` are not timed; `sweep_steps` of a setting's single run. `bar` and `goal` are ratios of speed, `memory` the
    largest ratio of memory above the loaded model, `ceiling_goal` a share of the fastest matrix product. `padded` and
    `padding_free`: numbers of rows that the peer computes at once, one after the other tried. `wide`: other settings of
    it, too.
    """

    workload: str
    shape: str
    title: str
    method: Literal["lora", "full"]
    kind: RowKind
    rows: int
    steps: int
    warmup: int
    sweep_steps: int
    bar: float
    goal: float
    padded: tuple[int, ...]
    padding_free: tuple[int, ...] = ()
    memory: float | None = None
    ceiling_goal: float | None = None
    epoch_steps: int = 0
    last_layers: int | None = None
    wide: bool = False

    @property
    def learning_rate(self) -> float:
        return 2e-4 if self.method == "lora" else 5e-5

    @property
    def unit(self) -> Literal["tokens", "examples"]:
        """What speed is counted in."""
        return "examples" if self.kind == "prefix" else "tokens"

    def job(self, setting: Setting, model: Path, steps: int, exact_norms: bool) -> Job:
        """What one process is to do."""
        rows = self.rows * (self.epoch_steps or steps)
        return Job(
            setting=setting,
            model=str(model),
            method=self.method,
            kind=self.kind,
            rows=rows,
            rows_per_step=self.rows,
            steps=steps,
            learning_rate=self.learning_rate,
            last_layers=self.last_layers,
            exact_norms=exact_norms,
        )


_LORA, _FULL = "LoRA of rank 16, ragged chat rows", "full tuning, ragged chat rows"
_PREFIX = "LoRA of rank 16, a shared system prompt of 256 tokens, 64 tokens of each row's own"
_LAST = "LoRA of rank 16 in the last third of the layers (3 of 8), ragged chat rows, from the second epoch on"
_MANY = (1, 2, 4, 8), (2, 4, 8)
_FEW = (2, 8), (8,)
CASES = (
    Case("lora", "8M", _LORA, "lora", "chat", 8, 23, 3, 9, 2.5, 4.0, *_MANY, memory=0.6, wide=True),
    Case("lora", "135M", _LORA, "lora", "chat", 8, 5, 1, 3, 1.8, 2.4, *_FEW, memory=0.6, ceiling_goal=0.65),
    Case("full", "8M", _FULL, "full", "chat", 8, 23, 3, 9, 1.8, 3.0, *_MANY, memory=0.6, wide=True),
    Case("full", "135M", _FULL, "full", "chat", 8, 5, 1, 3, 1.5, 1.9, *_FEW, memory=0.6),
    Case("prefix", "8M", _PREFIX, "lora", "prefix", 16, 8, 2, 4, 5.0, 8.0, (2, 4, 16)),
    Case("last-layers", "8M", _LAST, "lora", "chat", 8, 18, 6, 9, 3.0, 4.5, *_MANY, epoch_steps=6, last_layers=3),
)
WORKLOADS = (*dict.fromkeys(case.workload for case in CASES), "startup")


def our_settings(every: bool) -> list[Setting]:
    """Ours as a user gets it, and with less computed at once: memory against speed."""
    less = [Setting("tunesmith", f"{tokens} tokens at once", tokens) for tokens in (256, 512, 1024)]
    return [OURS, *(less if every else [])]


def peer_settings(case: Case, every: bool) -> list[Setting]:
    """What SFTTrainer can do on a CPU without changing the result, and what is worth knowing beside it.

    Rows padded, or end to end with a mask (`padding free`: of no use where all rows are of one length). Every exact
    `loss_type` computes head and loss alike. Left out: packing, which makes other steps of the same rows.
    """
    rows = case.rows
    padded = [n for n in case.padded if not rows % n]
    settings = [Setting("trl", f"{n} x {rows // n}", n, candidate=True) for n in padded]
    settings += [
        Setting("trl", f"{n} x {rows // n}, padding free", n, candidate=True, padding_free=True)
        for n in case.padding_free
        if not rows % n
    ]
    if case.wide:
        settings.append(Setting("transformers", f"{rows} x 1", rows))
    if every:
        settings += [
            Setting("trl", f"{rows} x 1, checkpointing", rows, candidate=True, checkpointing=True),
            Setting("trl", f"{rows} x 1, grouped by length", rows, grouped=True),
            Setting("trl", f"1 x {rows}, our allocator", 1, allocator=True),
            Setting("transformers", f"1 x {rows}", 1),
        ]
    return settings


def waiting(setting: Setting) -> list[Setting]:
    """The setting with OpenMP's threads waiting in each of its other ways."""
    return [replace(setting, name=f"{setting.name}, {p.lower()} waiting", wait_policy=p) for p in ("PASSIVE", "ACTIVE")]
