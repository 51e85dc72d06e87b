"""Candidates asked on the test rows, kept in the run, and asked again only where something that changes answers did.

A prompted candidate answers in every way that the recipe names: the first way is the candidate itself, each further one
a candidate of its own, such as `tuned_scored`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.comparison import evaluate_candidate
from tunesmith.evaluation.decoding import Draws
from tunesmith.evaluation.looping import looped
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.types import Candidate, Evaluation
from tunesmith.inference.types import Engine
from tunesmith.pipeline.answer_perplexity import answer_perplexity
from tunesmith.pipeline.calibrating import calibrate
from tunesmith.pipeline.clusters import clusters_of
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.stage import Stage, data_key, engine_of, progress
from tunesmith.pipeline.training import TUNED
from tunesmith.recipe.evidence import Decoding
from tunesmith.runs import RunFolder
from tunesmith.verdict.wording import split_way

_ANSWERS_VERSION = 1
"""Of how constrained and drawn answers are made; a change must change it."""


def run_tuned(prepared: Prepared, folder: RunFolder, listener: Listener) -> list[Evaluation]:
    """Score the tuned model, asked exactly as it was trained, in every way; the first one decides."""
    return evaluate_ways(prompted(TUNED, prepared, engine_of(prepared), full=False), prepared, folder, listener)


def prompted(name: str, prepared: Prepared, engine: Engine, full: bool = True, **more: Any) -> PromptCandidate:
    """A prompt around an engine, with the recipe's limits; it answers in the first of the recipe's ways."""
    settings = {"full": full, "decoding": ways(prepared)[0], **more}
    return PromptCandidate(name, engine, prepared.task, int(prepared.recipe.evaluate.max_new_tokens), **settings)


def ways(prepared: Prepared) -> Sequence[Decoding]:
    """How prompted candidates answer, the deciding way first."""
    decoding = prepared.recipe.evaluate.decoding
    if decoding == "auto":
        raise RecipeError("not resolved", where="evaluate.decoding", expected="a resolved recipe")
    return decoding


def evaluate_ways(
    candidate: PromptCandidate, prepared: Prepared, folder: RunFolder, listener: Listener
) -> list[Evaluation]:
    """A candidate in every way that the recipe names, the deciding one first and under the candidate's own name.

    Where the recipe wants several answers per row they are drawn here, in each way that writes answers. Of a way that
    scores labels the calibration is measured too (`pipeline.calibrating`), where answers are free texts the perplexity
    of those expected (`pipeline.answer_perplexity`).
    """
    spec, named, found = prepared.recipe.evaluate, ways(prepared), []
    draws = Draws(spec.samples, spec.temperature, prepared.recipe.train.seed) if spec.samples > 1 else None
    for place, way in enumerate(named):
        name = candidate.name if place == 0 else f"{candidate.name}_{way}"
        told = candidate.facts if list(named) == ["free"] else {**candidate.facts, "decoding": way}
        one = replace(candidate, name=name, facts=told, decoding=way, draws=None if way == "scored" else draws)
        evaluation = evaluate(one, prepared, folder, listener)
        if place == 0:
            adapter = _adapter(candidate.name, folder)
            notes = answer_perplexity(one, evaluation, prepared, folder, listener, adapter=adapter)
            evaluation = replace(evaluation, notes={**evaluation.notes, **notes})
        found.append(evaluation)
        if way == "scored":
            calibrate(one, found[-1], prepared, folder, listener)
    return found


def evaluate(candidate: Candidate, prepared: Prepared, folder: RunFolder, listener: Listener) -> Evaluation:
    """One candidate on the test rows; what was measured before with the same settings is read.

    The notes say how often it was cut by the token limit, and how often while it repeated itself.
    """
    spec = prepared.recipe.evaluate
    stage = Stage(
        folder,
        f"evaluate_{candidate.name}",
        [f"evaluation/{candidate.name}.*"],
        **data_key(prepared),
        **asking_settings(prepared),
        **_way_settings(candidate),
        adapter=_adapter(candidate.name, folder),
        k=candidate.notes.get("k"),
    )
    evaluation = evaluate_candidate(
        candidate,
        prepared.task,
        prepared.rows.splits.test,
        folder.path / "evaluation",
        latency_rows=spec.latency_rows,
        resamples=spec.bootstrap,
        confidence=spec.confidence,
        seed=prepared.recipe.train.seed,
        clusters=clusters_of(prepared),
        on_progress=progress(listener, "evaluate" if is_tuned(candidate.name) else "baselines", candidate.name),
    )
    if stage.result is None:
        stage.finish({m.metric: m.value for m in evaluation.metrics})
    return replace(evaluation, notes={**evaluation.notes, **_endings(evaluation)})


def is_tuned(name: str) -> bool:
    """Whether a candidate is the tuned model, in one way of answering or another."""
    return split_way(name)[0] == TUNED


def _adapter(name: str, folder: RunFolder) -> str | None:
    """Hash of the tuned weights, where the candidate is the tuned model."""
    if not is_tuned(name):
        return None
    found: str = json.loads((folder.path / "training.json").read_text())["adapter_sha256"]
    return found


def asking_settings(prepared: Prepared) -> dict[str, Any]:
    """Settings that change answers; those that only change intervals do not ask a model again."""
    spec = prepared.recipe.evaluate
    return {
        "max_new_tokens": spec.max_new_tokens,
        "batch_size": spec.batch_size,
        "selection_rows": spec.selection_rows,
        "seed": prepared.recipe.train.seed,
    }


def _way_settings(candidate: Candidate) -> dict[str, Any]:
    """What a way of answering adds to them; nothing where answers are free and one per row, as they always were."""
    if not isinstance(candidate, PromptCandidate) or (candidate.decoding == "free" and candidate.draws is None):
        return {}
    draws = None if candidate.draws is None else [candidate.draws.count, candidate.draws.temperature]
    return {"decoding": candidate.decoding, "draws": draws, "answers": _ANSWERS_VERSION}


def _endings(evaluation: Evaluation) -> dict[str, float]:
    """Shares of answers that the token limit cut, and among all of those cut while they repeated themselves."""
    cut = [row for row in evaluation.rows if not row.stopped and row.answer_tokens]
    if not cut:
        return {}
    return {"cut": len(cut) / len(evaluation.rows), "looped": looped(evaluation.rows)}
