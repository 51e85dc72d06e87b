"""What a job's events say: texts, types and data as OpenAI's, from the moments of a job and the events of its run.

Each event's `data` holds a `kind` beside what OpenAI shows, by which another dialect can say the same in its own words;
`shown_data` leaves it out. A run that is continued tells again what happened after its last checkpoint: a `Translator`
that hears the run's log from its beginning tells each step once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.service.store.nouns import Event, Job

Level = Literal["info", "warn", "error"]
KIND = "kind"
METRICS = (
    "step",
    "total_steps",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
"""What a step's data may hold, in this order."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An event before it has an id and a place: `store.tell(job.id, draft.message, **draft.fields())`."""

    message: str
    data: Mapping[str, Any]
    level: Level = "info"
    type: Literal["message", "metrics"] = "message"

    def fields(self) -> dict[str, Any]:
        """The fields of an `Event` that it decides beside its message."""
        return {"level": self.level, "type": self.type, "data": dict(self.data)}


def _said(kind: str, message: str, level: Level = "info", **data: Any) -> Draft:
    return Draft(message, {KIND: kind, **data}, level)


def created(job: Job, base: str) -> Draft:
    """The first event. `base`: the local base that stands for the job's model, as it may be shown."""
    said = f" ({job.model} stands for the local base {base})" if base != job.model else ""
    if job.extra.get("starts_from"):
        said = f" (it goes on from {job.model}, which was tuned on the local base {base})"
    return _said("created", f"Created fine-tuning job: {job.id}{said}", model=job.model, base=base)


def validating(job: Job) -> Draft:
    """Before the files are looked at."""
    more = f" and validation file: {job.validation_file}" if job.validation_file else ""
    return _said("validating", f"Validating training file: {job.training_file}{more}")


def validated(hyperparameters: Mapping[str, Any]) -> Draft:
    """When nothing is wrong with the files, and every `auto` is a number."""
    return _said("queued", "Files validated, moving job to queued state", hyperparameters=dict(hyperparameters))


def started() -> Draft:
    """When a worker begins."""
    return _said("started", "Fine-tuning job started")


def paused(step: int | None = None) -> Draft:
    """After a pause was asked for and the state is kept."""
    return _said("paused", "Fine-tuning job paused" + (f" at step {step}" if step else ""))


def resumed() -> Draft:
    """When a paused job waits for a worker again."""
    return _said("resumed", "Fine-tuning job resumed, moving job to queued state")


def cancelled() -> Draft:
    """The last event of a cancelled job."""
    return _said("cancelled", "Fine-tuning job cancelled")


def failed(message: str) -> Draft:
    """The last event of a failed job; `message` as in its `error`."""
    return _said("failed", message, "error")


def warned(text: str) -> Draft:
    """Something a user should know, and that stops nothing."""
    return _said("warning", text, "warn")


def checkpoint_made(step: int, name: str) -> Draft:
    """When the model of an earlier step answers under a name."""
    return _said("checkpoint", f"Checkpoint created at step {step} with Snapshot ID: {name}", step=step, name=name)


def model_made(name: str) -> Draft:
    """When the tuned model answers."""
    return _said("model", f"New fine-tuned model created: {name}", name=name)


def results_made(file_id: str) -> Draft:
    """When a result file can be read; Azure tells of it, OpenAI does not."""
    return _said("results", f"Result file created: {file_id}", file=file_id)


def succeeded() -> Draft:
    """The last event of a job that went well."""
    return _said("succeeded", "The job has successfully completed")


def shown_data(event: Event) -> dict[str, Any]:
    """An event's data as OpenAI shows it: the numbers of a step, and nothing for all others."""
    data = event.data or {}
    return {name: data[name] for name in METRICS if name in data} if event.type == "metrics" else {}


def kind_of(event: Event) -> str:
    """What kind of event it is (`created`, `step`, …), by which it can be put in other words."""
    return str((event.data or {}).get(KIND, "message"))


class Translator:
    """The events of a run as those of a job: a line for every step, once.

    Hears the dicts of `runs.events` in their order, from the beginning of the log. A step after which the whole
    validation file is measured is told when it has been. Which steps these are is said when a training begins; until
    then they are the ends of epochs of `steps_per_epoch` (None: none).
    """

    def __init__(self, *, steps_per_epoch: int | None = None) -> None:
        self._step, self._warnings = 0, set[str]()
        self._per_epoch, self._steps = steps_per_epoch, 0
        self._held: dict[str, Any] | None = None

    def hear(self, event: Mapping[str, Any]) -> list[Draft]:
        """What is to be told after this event."""
        match event.get("kind"):
            case "train_started":
                if self._held is not None:  # cut off before its validation: it is taken, and told, once more
                    self._step, self._held = self._held["step"] - 1, None
                self._steps = int(event["steps"])
                self._per_epoch = int(event.get("evaluate_every", self._per_epoch or 0)) or None
            case "train_step":
                return self._step_taken(event)
            case "validation":
                return self._validated(event)
            case "warning" if (text := _warning(event)) not in self._warnings:
                self._warnings.add(text)
                return [warned(text)]
        return []

    def finish(self) -> list[Draft]:
        """What is still to be told when the run has ended or stopped."""
        held, self._held = self._held, None
        return [] if held is None else [_step_line(held)]

    def _step_taken(self, event: Mapping[str, Any]) -> list[Draft]:
        earlier = self.finish()
        data = step_data(event)
        if data["step"] <= self._step:
            return earlier
        self._step = data["step"]
        if self._per_epoch and (data["step"] % self._per_epoch == 0 or data["step"] == self._steps):
            self._held = data
            return earlier
        return [*earlier, _step_line(data)]

    def _validated(self, event: Mapping[str, Any]) -> list[Draft]:
        if self._held is None or self._held["step"] != int(event["step"]):
            return []
        self._held |= validation_data(event)
        return self.finish()


def _warning(event: Mapping[str, Any]) -> str:
    """What a warning of the run says, with the lines of the file that it is about."""
    text, lines = str(event["text"]), event.get("lines") or ()
    if not lines or re.search(r"\blines? \d", text):
        return text
    more = int(event.get("count", 0)) - len(lines)
    word = "line" if len(lines) == 1 and more <= 0 else "lines"
    return f"{text}: {word} {', '.join(map(str, lines))}" + (f" and {more:,} more" if more > 0 else "")


def step_data(event: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a `train_step` event under OpenAI's names; what was not measured is left out."""
    found = {
        "step": int(event["step"]),
        "total_steps": int(event["steps"]),
        "train_loss": event.get("loss"),
        "train_mean_token_accuracy": event.get("token_accuracy"),
        "valid_loss": event.get("watched_loss"),
        "valid_mean_token_accuracy": event.get("watched_token_accuracy"),
    }
    return {name: value for name, value in found.items() if _finite(value)}


def validation_data(event: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a `validation` event, which are of the whole validation file, under OpenAI's names."""
    found = {
        "full_valid_loss": event.get("loss"),
        "full_valid_mean_token_accuracy": event.get("token_accuracy"),
    }
    return {name: value for name, value in found.items() if _finite(value)}


def _step_line(data: Mapping[str, Any]) -> Draft:
    """`Step 10/303: training loss=0.12, validation loss=0.31`."""
    said = [f"training loss={data['train_loss']:.2f}"] if "train_loss" in data else []
    if "full_valid_loss" in data:
        said.append(f"full validation loss={data['full_valid_loss']:.2f}")
    elif "valid_loss" in data:
        said.append(f"validation loss={data['valid_loss']:.2f}")
    message = f"Step {data['step']}/{data['total_steps']}: {', '.join(said)}"
    return Draft(message, {KIND: "step", **{name: data[name] for name in METRICS if name in data}}, type="metrics")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
