"""What is known of a run while it goes on: events of the pipeline, kept as far as a display needs them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.verdict.wording import count, duration, percent

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class TrainingProgress:
    """The training so far; `losses` of every step that was told."""

    steps: int
    resumed_at: int = 0
    step: int = 0
    epoch: float = 0.0
    loss: float = float("nan")
    losses: list[float] = field(default_factory=list)
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    memory_bytes: int = 0
    validation: str = ""
    best_step: int | None = None

    @property
    def seconds_left(self) -> float:
        """Time the remaining steps take at the pace so far, evaluations aside."""
        return self.seconds / self.step * max(0, self.steps - self.step) if self.step else 0.0


@dataclass(slots=True)
class Progress:
    """The run so far, told event by event to `see`."""

    title: str = ""
    training: TrainingProgress | None = None
    bars: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def see(self, event: Mapping[str, Any]) -> None:
        """Take one event in; kinds that nothing here shows are passed over."""
        match event["kind"]:
            case "stage_started":
                self.title = str(event.get("title") or event["stage"])
                self.bars = {}
            case "stage_finished":
                self.title, self.bars, self.training = "", {}, None
            case "progress":
                self.bars[str(event["label"])] = event
            case "train_started":
                self.training = TrainingProgress(event["steps"], event.get("resumed_at", 0))
            case "train_step" if self.training is not None:
                _take_step(self.training, event)
            case "validation" if self.training is not None:
                self.training.validation = validation_text(event)
                if event["best"]:
                    self.training.best_step = event["step"]


def _take_step(training: TrainingProgress, event: Mapping[str, Any]) -> None:
    for name in ("step", "steps", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"):
        setattr(training, name, event[name])
    training.memory_bytes = event["memory_bytes"] or 0
    training.losses.append(event["loss"])


def step_text(training: TrainingProgress) -> str:
    """A step in one line of words and numbers."""
    parts = [
        f"step {training.step}/{training.steps}",
        f"epoch {training.epoch:.2f}",
        f"loss {training.loss:.4f}",
        f"lr {training.learning_rate:.1e}",
        f"{count(round(training.tokens_per_second))} tokens/s",
        f"{duration(training.seconds_left)} left",
    ]
    if training.memory_bytes:
        parts.append(size(training.memory_bytes))
    return " · ".join(parts)


def validation_text(event: Mapping[str, Any]) -> str:
    """A validation in one line: loss, and metrics as percentages."""
    loss = event["loss"]
    parts = [f"validation loss {loss:.4f}"] if loss is not None else []
    parts += [f"{name.replace('_', ' ')} {percent(value)}" for name, value in event["metrics"].items()]
    return " · ".join(parts) + (" (best)" if event["best"] else "")


def bar_text(event: Mapping[str, Any]) -> str:
    """One line of progress: `few_shot: 32/480 rows, 4.1 min left`, with its `rate` a second where it has one."""
    done, total = event["done"], event["total"]
    # The first one has waited for all of its batch, and says nothing of the rest.
    left = event["seconds"] / done * (total - done) if done > 1 else None
    rest = f", {duration(left)} left" if left else f", {duration(event['seconds'])}" if done == total else ""
    rate = f", {count(round(event['rate']))} {event['unit']}/s" if "rate" in event else ""
    return f"{event['label']}: {count(done)}/{count(total)} {event['unit']}{rate}{rest}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as bars of text, averaged into at most `width` of them; not-a-number leaves a gap."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    finite = [mean for mean in means if mean - mean == 0]
    if not finite:
        return " " * width
    low, high = min(finite), max(finite)
    top, span = len(_BARS) - 1, high / 2 - low / 2  # halves, as the whole may be more than a number can be
    return "".join(
        " " if mean - mean != 0 else _BARS[round((mean / 2 - low / 2) / span * top) if span > 0 else 0]
        for mean in means
    )


def size(number: float) -> str:
    """Bytes for people: 812 MiB, 2.4 GiB."""
    if number < 2**20:
        return f"{number / 2**10:.0f} KiB"
    if number < 2**30:
        return f"{number / 2**20:.0f} MiB"
    return f"{number / 2**30:.1f} GiB"
