"""Signs that the loss does not look at what should be learnt."""

from __future__ import annotations

from tunesmith.training.diagnosis.curves import Curves
from tunesmith.training.diagnosis.types import Diagnosis, TrainingFacts
from tunesmith.training.diagnosis.wording import percent

_HALF = 0.5
_MOST_ON_PROMPTS = 0.1
"""Share of the loss that is about answers: below it, prompts are learnt and answers are a by-product."""
_MOSTLY_WRONG = 0.5


def answers_not_learnt(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Answer tokens carry no loss, or are lost among prompt tokens and come out wrong."""
    if facts.answer_supervised is None:
        return None
    masked = facts.answer_supervised < _HALF
    if not masked:
        metric = curves.metric(curves.kept, facts)
        drowned = facts.answer_weight is not None and facts.answer_weight < _MOST_ON_PROMPTS
        if not (drowned and curves.far(facts, 0.5) and metric is not None and metric < _MOSTLY_WRONG):
            return None
    weight = facts.answer_weight if facts.answer_weight is not None else 0.0
    return Diagnosis(
        code="answers_not_learnt",
        severity="error" if masked else "warning",
        title="The loss is on the prompts, not on the answers",
        seen=f"{percent(facts.answer_supervised)} of the answers' tokens are learnt, and {percent(weight)} of the loss "
        "is about answers.",
        why="The model learns to write questions. A training loss that falls says nothing about its answers.",
        remedy="Learn the assistant's turns: train.loss: assistant, and no weight 0 on the last answer.",
        changes={"train.loss": "assistant"},
    )


def end_not_learnt(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """No token that ends a turn is learnt, and answers do not end."""
    if facts.end_learnt is None or facts.end_learnt >= _HALF:
        return None
    kept = curves.kept
    ended = kept.answers.get("ended") if kept is not None else None
    if ended is not None and ended >= 1 - _MOST_ON_PROMPTS:
        return None  # the base ends its answers by itself
    runs_on = (
        f" Of the answers to validation rows {percent(1 - ended)} run on until they are cut."
        if ended is not None
        else ""
    )
    return Diagnosis(
        code="end_not_learnt",
        severity="error",
        title="The model does not learn to stop",
        seen=f"In {percent(1 - facts.end_learnt)} of the rows no token that ends the answer is learnt.{runs_on}",
        why="The chat template"
        + (f" ({facts.chat_template})" if facts.chat_template else "")
        + " writes no end-of-turn token behind an answer, or the loss leaves it out.",
        remedy="Take a chat template whose assistant turns end with an end-of-turn token.",
        changes={"base.chat_template": "auto"},
        steps=(kept.step,) if kept is not None else (),
    )
