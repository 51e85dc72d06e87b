"""Watching a training with the eyes of somebody who has seen many: what is measured for it, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.models.forward import LanguageModel
from tunesmith.pipeline.prepare import Prepared, trainable_samples
from tunesmith.recipe.resolve import usual_learning_rate
from tunesmith.training.diagnosis import Diagnosis, NotFinite, Watcher, diagnose
from tunesmith.training.diagnosis.gather import gather_facts
from tunesmith.training.diagnosis.probe import Probe
from tunesmith.training.step import DivergenceError


class Diagnosing:
    """Adds to validation events what a diagnosis needs, and tells `diagnosis` events during and after the training.

    answers: measures of the last generated validation answers (see `answer_measures`). tell: hears the diagnoses.
    """

    def __init__(
        self,
        prepared: Prepared,
        steps: int,
        answers: Callable[[], Mapping[str, float]],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        recipe, samples = prepared.recipe, trainable_samples(prepared)
        facts = gather_facts(
            recipe,
            prepared.task,
            prepared.rows.splits,
            samples,
            prepared.renderer,
            steps=steps,
            usual_learning_rate=usual_learning_rate(recipe.method.type, prepared.base.parameters),
        )
        self._model = LanguageModel(prepared.base.model)
        self._probe = Probe(samples, prepared.validation)
        self._answers = answers
        self._watcher = Watcher(facts, tell)
        self._before: dict[str, Any] = {"kind": "validation", "step": 0, "loss": None, "probe": {}}

    def begin(self) -> None:
        """Measure the model before its first step."""
        self._before["probe"] = self._probe.measure(self._model)
        self._watcher.hear(self._before)

    def complete(self, event: dict[str, Any]) -> None:
        """Add to a validation event what was not measured yet."""
        event["probe"], event["answers"] = self._probe.measure(self._model), dict(self._answers())

    def hear(self, event: Mapping[str, Any]) -> None:
        """Judge by an event that is complete."""
        self._watcher.hear(event)

    def failed(self, error: DivergenceError) -> None:
        """Say why a training ended in a number that is none."""
        self._watcher.finish(NotFinite(step=error.step, rows=error.rows))

    def finish(self, history: tuple[Mapping[str, Any], ...]) -> tuple[Diagnosis, ...]:
        """What is wrong with the whole run, earlier parts of it included."""
        self._watcher.finish()
        return diagnose([self._before, *history], self._watcher.facts)
