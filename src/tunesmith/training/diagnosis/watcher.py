"""Diagnosing a training while it runs: every finding is told once, when it is first seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.training.diagnosis.registry import diagnose
from tunesmith.training.diagnosis.types import Diagnosis, NotFinite, TrainingFacts


class Watcher:
    """Hears the events of a training and tells `diagnosis` events: a diagnosis' record, and `seen_at`, the step.

    Attributes
    ----------
    told: step at which each code was first told.
    """

    def __init__(self, facts: TrainingFacts, tell: Callable[[dict[str, Any]], None] = lambda event: None) -> None:
        self.facts, self._tell = facts, tell
        self._history: list[Mapping[str, Any]] = []
        self.told: dict[str, int] = {}

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in one event; a validation is diagnosed."""
        if event["kind"] == "train_started":
            self.facts = replace(self.facts, trainable=event["trainable"], parameters=event["parameters"])
        if event["kind"] not in ("train_step", "validation"):
            return
        self._history.append(event)
        if event["kind"] == "validation" and event["step"]:
            self._tell_new(diagnose(self._history, self.facts, finished=False), int(event["step"]))

    def finish(self, not_finite: NotFinite | None = None) -> tuple[Diagnosis, ...]:
        """What is wrong with the whole run; `not_finite` where it ended in a number that is none."""
        self.facts = replace(self.facts, not_finite=not_finite)
        found = diagnose(self._history, self.facts)
        self._tell_new(found, max((int(event["step"]) for event in self._history), default=0))
        return found

    def _tell_new(self, found: tuple[Diagnosis, ...], step: int) -> None:
        for diagnosis in found:
            if diagnosis.code not in self.told:
                self.told[diagnosis.code] = step
                self._tell({"kind": "diagnosis", "seen_at": step, **diagnosis.record()})
