"""`tunesmith judge`: a model compares two candidates' stored answers, and counts only if people agree with it.

    pairs labelled by people -> asked first -> is it better than chance? -> the other pairs -> win rate

```
RUN/evaluation/judge/replies.jsonl  every request, what it cost and what came back (local.jsonl: of models here)
                     pairs.jsonl    one line per pair: outcome, or why there is none
RUN/evaluation/judge.json           what comes of it, for the verdict
```
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.judges import (
    FEWEST_LABELS,
    MOST_UNJUDGED,
    JudgedPair,
    Mode,
    Question,
    Rubric,
    Said,
    Trust,
    by_criterion,
    consistency,
    judge_by_choice,
    judge_by_scores,
    measure_trust,
    questions,
)
from tunesmith.evaluation.rating import JUDGE_FILE, Outcome, Pair, answers_sha256, win_rate
from tunesmith.inference.endpoint import Budget
from tunesmith.pipeline.judge_replies import EndpointJudge, Judge, LocalJudge, Tally
from tunesmith.pipeline.prepare import Listener
from tunesmith.pipeline.synthetic import read_journal
from tunesmith.runs import RunFolder, write_json, write_text

_SHOWN = 200
"""Characters of a reply that are shown as an example."""
_FOLDER, _REPLIES, _LOCAL_REPLIES, _PAIRS = "judge", "replies.jsonl", "local.jsonl", "pairs.jsonl"


@dataclass(frozen=True, slots=True)
class JudgeOrder:
    """What shall be judged.

    pairs: of candidates `a` and `b`. labels: what people said, by pair key. rows: judge at most so many pairs, drawn by
    the seed, labelled ones first. unproven: judge without enough labels; the result does not count. least_kappa: asked
    of the judge beside being better than chance. again: forget earlier replies, and what they cost.
    """

    a: str
    b: str
    pairs: tuple[Pair, ...]
    labels: Mapping[str, Outcome] = field(default_factory=dict)
    mode: Mode = "pairwise"
    rubric: Rubric | None = None
    rows: int | None = None
    unproven: bool = False
    least_kappa: float = 0.0
    confidence: float = 0.95
    seed: int = 0
    again: bool = False

    @property
    def in_order(self) -> tuple[Pair, ...]:
        """Pairs whose answers differ, labelled ones first, else as the seed draws them; at most `rows`."""
        different = {pair.key: pair for pair in self.pairs if not pair.identical}
        ordered = sorted(different.values(), key=lambda pair: (pair.key not in self.labels, self._draw(pair)))
        return tuple(ordered[: self.rows])

    def _draw(self, pair: Pair) -> str:
        return hashlib.sha256(f"{self.seed}\0{pair.key}".encode()).hexdigest()


def judge_run(
    folder: RunFolder, order: JudgeOrder, judge: Judge, listener: Listener = lambda event: None
) -> dict[str, Any]:
    """Judge within the judge's budget, write the files above and return what `judge.json` holds.

    Where people's labels show a judge no better than chance, it is asked nothing else, and its result does not count.
    Repeated, it asks only for what is missing.

    Raises
    ------
    RecipeError: for an order that makes no sense, or too few labels (unless `unproven`).
    DataError: where no pair differs. EngineError: where the judge cannot be asked; what it said until then is kept.
    ResourceError: where another process writes this run.
    """
    _check(order, judge)
    with folder.lock():
        place = folder.evaluation / _FOLDER
        place.mkdir(parents=True, exist_ok=True)
        # What a model of this machine says costs nothing, and must not be taken for what an endpoint was paid.
        journal = place / (_REPLIES if isinstance(judge, EndpointJudge) else _LOCAL_REPLIES)
        if order.again:
            journal.unlink(missing_ok=True)
        session = _Session(order, judge, journal, listener)
        pairs = order.in_order
        trust = Trust(False, "it was not measured on human labels")
        labelled = [pair for pair in pairs if pair.key in order.labels]
        if labelled:
            session.ask(labelled)
            trust = session.trust()
        if trust.counts or order.unproven:
            session.ask(pairs[len(labelled) :])
            judged = session.judged(pairs)
        else:
            judged = session.judged(labelled)
        result = session.result(judged, trust, answers_sha256(folder.evaluation, order.a, order.b))
        write_text(place / _PAIRS, "".join(json.dumps(_line(one, order)) + "\n" for one in judged))
        write_json(folder.evaluation / JUDGE_FILE, result)
    return result


def local_judge(model: str, max_tokens: int, batch_size: int = 8) -> LocalJudge:
    """A model of this machine as a judge: `embedded:base`, a folder or a hub id. Raises `EngineError`."""
    from tunesmith.inference.torch_engine import TorchEngine
    from tunesmith.models.load import load_base
    from tunesmith.recipe.schema import Base
    from tunesmith.text.render import Renderer

    base = load_base(Base(model=model))
    if base.context <= max_tokens:
        raise RecipeError(
            f"{model} has a context of {base.context} tokens, which leaves no room for a question",
            where="--answer-tokens",
            expected=f"well under {base.context}",
        )
    engine = TorchEngine(base.model, Renderer(base.tokenizer, "auto"), base.context, batch_size)
    return LocalJudge(engine, model, base.weights_sha256, max_tokens)


def _check(order: JudgeOrder, judge: Judge) -> None:
    if order.mode == "rubric" and order.rubric is None:
        raise RecipeError("there is no rubric to judge by", where="--mode rubric", expected="--rubric FILE")
    if not order.in_order:
        raise DataError(
            f"{order.a} and {order.b} give the same answer to every row", expected="at least one row that differs"
        )
    labelled = sum(pair.key in order.labels for pair in order.in_order)
    if labelled < FEWEST_LABELS and not order.unproven:
        raise RecipeError(
            f"{labelled} of these pairs have a human label: nothing would show that the judge is better than chance",
            where="tunesmith judge",
            expected=f"at least {FEWEST_LABELS} labelled pairs",
            fix="rate some with `tunesmith rate RUN`, give --labels FILE, or see with --unproven a result that does "
            "not count",
        )
    if isinstance(judge, EndpointJudge):
        _check_budget(judge)


def _check_budget(judge: EndpointJudge) -> None:
    judge.endpoint.check()
    budget = judge.budget
    if budget.max_tokens is None and budget.max_money is None:
        raise RecipeError("there is no ceiling", where="--max-tokens, --max-cost", expected="at least one of them")
    if budget.max_money is not None and not (budget.input_price or budget.output_price):
        raise RecipeError(
            "a ceiling of money needs prices", where="--max-cost", expected="--price-in and --price-out per million"
        )


class _Session:
    """One command: the questions it asked and what came back."""

    def __init__(self, order: JudgeOrder, judge: Judge, journal: Path, listener: Listener) -> None:
        self.order, self.judge, self.journal, self.listener = order, judge, journal, listener
        self.tally = Tally()
        self.replies: dict[tuple[str, str], Said] = {}
        self.began = time.monotonic()
        self.asked: list[Question] = []
        self.pairs: list[Pair] = []
        before = read_journal(journal)
        if isinstance(judge, EndpointJudge):
            judge.budget.correct((0, 0), (before.input_tokens, before.output_tokens))

    def ask(self, pairs: Sequence[Pair]) -> None:
        """Ask about these pairs, unless an end was reached before."""
        asked = [question for pair in pairs for question in self._questions(pair)]
        self.asked += asked
        self.pairs += pairs
        if not self.tally.ended and asked:
            self.judge.ask(asked, self.journal, self.tally, self._keep)

    def judged(self, pairs: Sequence[Pair]) -> list[JudgedPair]:
        """The outcomes of these pairs, in their order."""
        return [self._judged(pair) for pair in pairs]

    def trust(self) -> Trust:
        """Of the labelled pairs asked so far."""
        order, judged = self.order, self.judged(self.pairs)
        return measure_trust(
            judged, order.labels, confidence=order.confidence, least_kappa=order.least_kappa, seed=order.seed
        )

    def result(self, judged: Sequence[JudgedPair], trust: Trust, answers: str) -> dict[str, Any]:
        """What `judge.json` holds."""
        order, tally = self.order, self.tally
        said = [self.replies[q.pair, q.part] for q in self.asked if (q.pair, q.part) in self.replies]
        models = Counter(one.model for one in said if one.model)
        outcomes = [one.outcome for one in judged]
        failures: Counter[str] = Counter(one.failure for one in judged if one.failure)
        trust = _still_trusted(trust, models, failures, len(judged))
        budget = self.judge.budget if isinstance(self.judge, EndpointJudge) else Budget()
        rate = win_rate(outcomes, confidence=order.confidence) if any(one is not None for one in outcomes) else None
        rubric = order.rubric
        return {
            "kind": "judge",
            "counts": trust.counts,
            "why": trust.why,
            "a": order.a,
            "b": order.b,
            "mode": order.mode,
            "judge": {**self.judge.describe(), "answered_by": dict(sorted(models.items()))},
            "rubric": rubric.to_dict() if rubric else None,
            "agreement": trust.to_dict(),
            "win_rate": rate.to_dict() if rate else None,
            "criteria": by_criterion(judged, order.a, order.b, rubric, confidence=order.confidence, seed=order.seed)
            if order.mode == "rubric" and rubric
            else {},
            "orders": consistency(judged, order.confidence),
            "pairs": {
                "in_all": len(order.pairs),
                "identical": sum(pair.identical for pair in order.pairs),
                "labelled": sum(one.pair.key in order.labels for one in judged),
                "judged": sum(one is not None for one in outcomes),
                "unjudged": dict(sorted(failures.items())),
            },
            "replies": {
                "asked": len(said),
                "kept_from_before": tally.kept,
                "retried": dict(sorted(tally.retried.items())),
                "failed": _failed(judged),
                "examples": _examples(judged),
            },
            "spent": {"tokens": budget.tokens, "money": budget.money},
            "ended": tally.ended,
            "answers_sha256": answers,
        }

    def _questions(self, pair: Pair) -> tuple[Question, Question]:
        return questions(pair, self.order.a, self.order.b, self.order.mode, self.order.rubric)

    def _judged(self, pair: Pair) -> JudgedPair:
        not_asked = Said(None, failure="not_asked", detail=self.tally.ended)
        replies = {q.part: self.replies.get((q.pair, q.part), not_asked) for q in self._questions(pair)}
        if self.order.mode == "pairwise":
            return judge_by_choice(pair, replies)
        assert self.order.rubric is not None
        return judge_by_scores(pair, self.order.a, self.order.b, replies, self.order.rubric)

    def _keep(self, question: Question, said: Said) -> None:
        self.replies[question.pair, question.part] = said
        self.listener(
            {"kind": "progress", "stage": "judge", "label": "questions to the judge", "done": len(self.replies),
             "total": len(self.asked), "unit": "questions", "seconds": time.monotonic() - self.began}
        )  # fmt: skip


def _still_trusted(trust: Trust, models: Mapping[str, int], failures: Mapping[str, int], pairs: int) -> Trust:
    """What all replies show can only take trust away."""
    if not trust.counts:
        return trust
    if len(models) > 1:
        told = ", ".join(f"{name} ({count})" for name, count in sorted(models.items()))
        return replace(trust, counts=False, why=f"the endpoint changed its model while it was asked: {told}")
    lost = sum(count for failure, count in failures.items() if failure != "not_asked")
    if lost > MOST_UNJUDGED * pairs:
        return replace(trust, counts=False, why=f"{lost} of {pairs} pairs got no outcome from it")
    return trust


def _failed(judged: Sequence[JudgedPair]) -> dict[str, int]:
    """Single replies that are of no use, by reason."""
    found = Counter(said.failure for one in judged for said in one.replies.values() if said.failure)
    prose = sum(len(one.prose) for one in judged)
    return {**dict(sorted(found.items())), **({"unreadable": prose} if prose else {})}


def _examples(judged: Sequence[JudgedPair]) -> dict[str, str]:
    """Of each reason why a pair has no outcome the first reply it happened to, in words."""
    found: dict[str, str] = {}
    for one in judged:
        for part, said in one.replies.items():
            reason = "unreadable" if part in one.prose else said.failure
            told = said.detail if said.text is None else said.text
            if reason and reason != "not_asked" and told.strip():
                found.setdefault(reason, " ".join(told.split())[:_SHOWN])
    return found


def _line(one: JudgedPair, order: JudgeOrder) -> dict[str, Any]:
    names = {"a": order.a, "b": order.b, "tie": "tie", None: None}
    return {
        "id": one.pair.id,
        "pair": one.pair.key,
        "outcome": names[one.outcome],
        "failure": one.failure,
        "same_in_both_orders": one.consistent,
        "people": names[order.labels.get(one.pair.key)],
        "scores": one.scores,
        "replies": {
            part: {"text": said.text, "model": said.model, "failure": said.failure, "detail": said.detail}
            for part, said in one.replies.items()
        },
    }
