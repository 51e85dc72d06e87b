"""Watching a training with the eyes of somebody who has seen many: what is measured for it, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tunesmith.models.forward import LanguageModel
from tunesmith.pipeline.prepare import Prepared, read_data, trainable_samples
from tunesmith.recipe.resolve import usual_learning_rate
from tunesmith.recipe.schema import Recipe
from tunesmith.training.diagnosis import Diagnosis, NotFinite, TrainingFacts, Watcher, diagnose
from tunesmith.training.diagnosis.gather import gather_facts
from tunesmith.training.diagnosis.memory import FEW_ROWS
from tunesmith.training.diagnosis.probe import Probe
from tunesmith.training.step import DivergenceError


class Diagnosing:
    """Adds to validation events what a diagnosis needs, and tells `diagnosis` events during and after the training.

    asked: the recipe as it was given. answers: measures of the last generated validation answers (see
    `answer_measures`). tell: hears the diagnoses.
    """

    def __init__(
        self,
        prepared: Prepared,
        asked: Recipe,
        steps: int,
        answers: Callable[[], Mapping[str, float]],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        samples = trainable_samples(prepared)
        self._prepared, self._asked, self._steps, self._tell = prepared, asked, steps, tell
        self._model = LanguageModel(prepared.base.model)
        self._probe = Probe(samples, prepared.validation)
        self._answers = answers
        self._watcher: Watcher | None = None
        self._switch: Callable[[bool], AbstractContextManager[None]] | None = None
        self._heard: list[Mapping[str, Any]] = []
        self._before: dict[str, Any] = {"kind": "validation", "step": 0, "loss": None, "probe": {}}

    def begin(self, switch: Callable[[bool], AbstractContextManager[None]] | None) -> None:
        """To be called before the first step: the model as it is then is measured, what comes later is judged against.

        switch: within `switch(False)` the model answers as before its first step. Given one, the measuring waits until
        a step has been heard of.
        """
        self._switch = switch
        if switch is None:
            self._measure_before()

    def _measure_before(self) -> None:
        with nullcontext() if self._switch is None else self._switch(False):
            self._before["probe"] = self._probe.measure(self._model)
        self._heard.insert(0, self._before)
        self._switch = None

    def complete(self, event: dict[str, Any]) -> None:
        """Add to a validation event what was not measured yet."""
        event["probe"], event["answers"] = self._probe.measure(self._model), dict(self._answers())

    def hear(self, event: Mapping[str, Any]) -> None:
        """Judge by an event that is complete."""
        if self._switch is not None and event["kind"] == "train_step":
            self._measure_before()
        if self._watcher is None and not (event["kind"] == "validation" and event["step"]):
            self._heard.append(event)  # nothing is judged before the first validation
        else:
            self._judge().hear(event)

    def failed(self, error: DivergenceError) -> None:
        """Say why a training ended in a number that is none."""
        self._judge().finish(NotFinite(step=error.step, rows=error.rows))

    def finish(self, history: tuple[Mapping[str, Any], ...]) -> tuple[Diagnosis, ...]:
        """What is wrong with the whole run, earlier parts of it included."""
        watcher = self._judge()
        watcher.finish()
        return diagnose([self._before, *history], watcher.facts)

    def _judge(self) -> Watcher:
        """What judges, made with all facts when it is first needed: words of rows take a while to count."""
        if self._switch is not None:
            self._measure_before()
        if self._watcher is None:
            self._watcher = Watcher(self._facts(), self._tell)
            for event in self._heard:
                self._watcher.hear(event)
            self._heard.clear()
        return self._watcher

    def _facts(self) -> TrainingFacts:
        prepared, recipe = self._prepared, self._prepared.recipe
        samples = trainable_samples(prepared)
        return gather_facts(
            recipe,
            prepared.task,
            prepared.rows.splits,
            samples,
            prepared.renderer,
            steps=self._steps,
            usual_learning_rate=usual_learning_rate(recipe.method.type, prepared.base.parameters),
            rows_available=_rows_available(self._asked, len(samples)),
        )


def _rows_available(asked: Recipe, learnt: int) -> int | None:
    """Training rows there are without `data.max_rows`; read again, and so only where few were left."""
    if asked.data.max_rows is None or learnt >= FEW_ROWS:
        return None
    whole = asked.model_copy(update={"data": asked.data.model_copy(update={"max_rows": None})})
    return len(read_data(whole).splits.train)
