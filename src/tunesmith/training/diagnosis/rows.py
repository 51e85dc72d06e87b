"""Signs that lie in the rows: answers that do not belong to their inputs, parts that differ, one answer over all."""

from __future__ import annotations

from typing import Any

from tunesmith.training.diagnosis.curves import Curves
from tunesmith.training.diagnosis.types import Diagnosis, Separation, TrainingFacts
from tunesmith.training.diagnosis.wording import count, nats, percent

_NO_BETTER = 0.9
"""Share of the loss of guessing: a model that has read anything out of its inputs is well below, at some time."""
_BY_HEART = 0.7
"""Share of the loss of guessing that only memory of rows explains, where validation rows stay at guessing."""
_GUESSED = 1.3
"""Share of the loss of guessing below which the frequencies, at least, are learnt."""
_ENOUGH_ROWS = 100
"""With fewer rows a true relation may stay unlearnt as well."""
_SHIFT = 0.7
"""Area under the curve: parts drawn from one file stay below it (0.5, give or take 0.15 with 30 rows)."""
_TEST_SHIFT = 0.85
"""The same where no loss can confirm it."""
_GAP = (1.5, 0.2)
"""Factor and nats by which validation rows must be worse than training rows at the kept checkpoint."""
_DOMINANT = 0.7
"""Share of the most frequent answer from which giving it always looks like success."""
_LONGEST = 10.0
"""Times the epochs of this run, at most, that a remedy asks for."""
_SWALLOWED = 0.5
"""Share of the other rows that get the frequent answer, or are not answered rightly."""
_FEW_ANSWERS = 3
"""With fewer rows of rare answers, their recall says nothing."""


def labels_unrelated(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Validation rows are never answered better than by frequency, and words of prompts do not tell answers either."""
    lowest, last, prior = curves.lowest, curves.last, facts.prior_loss
    if lowest is None or last is None or lowest.loss is None or prior is None or facts.rows < _ENOUGH_ROWS:
        return None
    if lowest.loss < _NO_BETTER * prior or not curves.far(facts, 0.3):
        return None
    level = curves.level_at(last.step)
    words = facts.answers_from_words
    related = words is not None and words.above(words.chance)
    by_heart = level < _BY_HEART * prior
    guessing = level < _GUESSED * prior and curves.far(facts, 0.6)
    if related or not (by_heart or (words is not None and guessing)):
        return None
    told = (
        f" The words of a prompt give its answer away in {percent(words.score)} of rows held out; chance is "
        f"{percent(words.chance)}."
        if words is not None
        else ""
    )
    learnt = (
        f", although the training rows are known by heart (loss {nats(level)})"
        if by_heart
        else f", and the training rows are not either (loss {nats(level)})"
    )
    return Diagnosis(
        code="labels_unrelated",
        severity="error",
        title="Answers do not belong to their inputs",
        seen=f"Validation rows were never answered better (lowest loss {nats(lowest.loss)}, step {lowest.step}) than "
        f"by guessing how often each answer occurs ({nats(prior)}){learnt}.{told}",
        why="There is no relation to learn, or none that so many rows show: answers were shuffled or shifted against "
        "their inputs, the wrong column holds the answer, or what decides is not in the input.",
        remedy="Read twenty rows and answer them yourself; then correct the rows, data.columns or data.template.",
        steps=(lowest.step, last.step),
    )  # fmt: skip


def differing_validation(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Validation rows look unlike training rows and are answered worse."""
    shift, kept = facts.validation_shift, curves.kept
    if shift is None or kept is None or not shift.above(_SHIFT) or kept.loss is None or not curves.far(facts, 0.3):
        return None
    last = curves.last or kept
    level = curves.level_at(last.step)
    factor, nats_up = _GAP
    if last.loss is None or last.loss < factor * level or last.loss < level + nats_up:
        return None
    start = ""
    if curves.before is not None and curves.before.loss is not None and curves.before.train_loss is not None:
        start = f" (before training {nats(curves.before.loss)} against {nats(curves.before.train_loss)})"
    return _differs(
        "validation_differs",
        "validation",
        shift,
        facts,
        f" At step {last.step} their loss is {nats(last.loss)} against {nats(level)} on training rows{start}.",
        (last.step,),
    )


def differing_test(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Test rows look unlike training rows. Where validation rows do too, these show whether it matters."""
    both = facts.validation_shift is not None and facts.validation_shift.above(_SHIFT)
    if facts.test_shift is None or not facts.test_shift.above(_TEST_SHIFT) or both:
        return None
    return _differs("test_differs", "test", facts.test_shift, facts, "", ())


def one_answer_for_all(curves: Curves, facts: TrainingFacts) -> Diagnosis | None:
    """Answers have collapsed onto the most frequent one."""
    top, kept = facts.top_label, curves.kept
    if (
        top is None
        or top[1] < _DOMINANT
        or kept is None
        or not curves.far(facts, 0.6)
        or "rare_recall" not in kept.answers
    ):
        return None
    measures = kept.answers
    expected, given, recall = measures["expected_top_share"], measures["top_share"], measures["rare_recall"]
    rare = round((1 - expected) * measures["rows"])
    if rare < _FEW_ANSWERS or given < expected + _SWALLOWED * (1 - expected) or recall > 1 - _SWALLOWED:
        return None
    # Until the other answers have been seen as often as the usual one was: they are what is left to learn.
    longer = min(max(3.0, top[1] / (1 - top[1])), _LONGEST) if top[1] < 1 else _LONGEST
    changes: dict[str, Any] = {
        "train.epochs": float(f"{longer * facts.epochs:.3g}"),
        "train.max_steps": None,
        "train.patience": 0,
    }
    if facts.metric == "accuracy":
        changes = {"goal.metric": "macro_f1", **changes}
    return Diagnosis(
        code="one_answer_for_all",
        severity="error",
        title=f"Nearly everything is answered {top[0]!r}",
        seen=f"{percent(given)} of the validation answers are {top[0]!r}; it is right for {percent(expected)}. Of the "
        f"{count(rare, 'row')} with another answer {percent(recall)} are answered rightly (step {kept.step}).",
        why=f"{percent(top[1])} of the training rows have this answer. Giving it always is right so often that there "
        "is little left to learn from, and accuracy calls that a success.",
        remedy="Collect more rows with the other answers, or repeat theirs until the shares are alike; let macro-F1 "
        "choose the checkpoint, and train until they have been seen as often as the usual answer was.",
        changes=changes,
        steps=(kept.step,),
    )  # fmt: skip


def _differs(
    code: str, part: str, shift: Separation, facts: TrainingFacts, seen: str, steps: tuple[int, ...]
) -> Diagnosis:
    by_order = facts.split_method == "order"
    return Diagnosis(
        code=code,
        severity="warning",
        title=f"{part.capitalize()} rows are unlike the training rows",
        seen=f"From its words alone it can be told whether a row is of training or of {part}: {percent(shift.score)} "
        f"of pairs are told apart, where 50 % is chance.{seen}",
        why="The parts were split by the order of the file, which is sorted by something that matters."
        if by_order
        else "The parts come from different places, times or people. What is learnt on one need not hold on the other.",
        remedy="Split at random."
        if by_order
        else f"Put rows like those of {part} into the training file; what is asked later must be learnt.",
        changes={"data.split.method": "auto"} if by_order else {},
        steps=steps,
    )
