"""Finished runs of three kinds of task, made up but computed by the real tasks, statistics and rules."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.data.types import Example, Finding, Message
from tunesmith.evaluation.calibration import beliefs_of, calibration
from tunesmith.evaluation.comparison import compare, metric_values
from tunesmith.evaluation.rating import preference_from
from tunesmith.evaluation.scoring import score_answer
from tunesmith.evaluation.statistics import across_seeds
from tunesmith.evaluation.types import Answer, Evaluation, PairedDifference
from tunesmith.recipe.schema import Goal, Prices
from tunesmith.tasks import Classification, Extraction, Generation, Task
from tunesmith.verdict.costs import candidate_costs
from tunesmith.verdict.decision import decide
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.types import Forgetting

TONES = ("angry", "apologetic", "cheerful", "formal", "grateful", "sarcastic", "urgent", "worried")
_OPENINGS = ("Honestly,", "Well,", "Just so you know,", "Listen,", "By the way,", "Once more:", "Look,", "Hello,")
_BODIES = (
    "the parcel was left in the rain again", "thank you for staying late to fix the heating",
    "the meeting moved to nine and nobody told us", "we regret that the order was sent twice",
    "could you call me before the bank closes", "what a wonderful surprise the cake was",
    "the enclosed form is to be returned by Friday", "oh great, another update that breaks the printer",
    "I am not sure the children will be safe there", "the invoice still shows last year's address",
)  # fmt: skip
_FOODS = (
    "flour", "brown sugar", "eggs", "butter", "sea salt", "vanilla extract", "olive oil", "garlic", "red onion",
    "basil", "parmesan", "chicken stock", "lemon juice", "black pepper", "smoked paprika", "coriander leaves",
    "baking powder", "double cream", "dark chocolate", "ground almonds", "cherry tomatoes", "capers",
)  # fmt: skip
_AREAS = ("card", "transfer", "top_up", "exchange", "account", "cash", "pin", "refund", "identity", "fee", "limit")
_ISSUES = (
    "pending",
    "failed",
    "declined",
    "not_recognised",
    "charged_twice",
    "how_to_change",
    "taking_longer_than_said",
)
PLAIN_SYSTEM = "### Instruction\n{instruction}\n\n### Input\n"


_RECIPE = """name: {name}
task:
  type: {task}
data:
  train: rows.csv
  template: '"{{phrase}}" → "{{tone}}"'
base:
  model: embedded:base
method:
  type: lora
  rank: 16
"""
_MANIFEST = {
    "seed": 0,
    "base": {"model": "embedded:base", "sha256": "9f2c" * 16},
    "data": {"rows": 480, "test_sha256": "41ab" * 16},
    "versions": {"python": "3.11.2", "torch": "2.9.1"},
    "hardware": {"cpu": "2 cores", "memory_gib": 15.6},
}


def _examples(pairs: Sequence[tuple[str, str]]) -> list[Example]:
    return [
        Example(
            f"{i:03d}f3a9c{i * 7919 % 10000:04d}", (Message("user", q), Message("assistant", a)), a, i + 2, "rows.csv"
        )
        for i, (q, a) in enumerate(pairs)
    ]


Speak = Callable[[Example, random.Random], str]


def _evaluate(
    task: Task,
    examples: Sequence[Example],
    name: str,
    speak: Speak,
    *,
    tokens: float,
    latency: float,
    notes: Mapping[str, Any],
) -> Evaluation:
    rng = random.Random(name)
    rows = []
    labels = task.labels if name.endswith("_scored") and isinstance(task, Classification) else ()
    for example in examples:
        prompt = f"{PLAIN_SYSTEM.format(instruction=task.instruction)}{example.question}\n\n### Answer\n"
        length = int(tokens * rng.uniform(0.8, 1.2))
        text = speak(example, rng)
        answer = Answer(text, prompt, length, max(1, len(text) // 5), len(text) < 400)
        if labels:
            answer = replace(answer, probabilities=_too_sure(labels, text, rng))
        rows.append(score_answer(task, example, answer))
    metrics = metric_values(name, rows, task, resamples=300, confidence=0.95, seed=0)
    return Evaluation(name, tuple(rows), metrics, latency, latency * 1.6, latency * len(rows), dict(notes))


def _too_sure(labels: Sequence[str], answer: str, rng: random.Random) -> dict[str, float]:
    """Probabilities of all labels that put most on the answer, more than it deserves."""
    top = rng.uniform(0.75, 0.995)
    return {label: top if label == answer else (1 - top) / (len(labels) - 1) for label in labels}


def _history(steps: int, metric: str, final: float) -> tuple[dict[str, Any], ...]:
    rng = random.Random(steps)
    events: list[dict[str, Any]] = []
    best = -1.0
    for step in range(1, steps + 1):
        loss = 0.35 + 3.2 * math.exp(-step / (steps / 5)) + rng.gauss(0, 0.12)
        events.append({"kind": "train_step", "step": step, "steps": steps, "epoch": 3 * step / steps, "loss": loss,
                       "learning_rate": 2e-4, "grad_norm": 1.0, "tokens_per_second": 2800.0, "seconds": 0.4,
                       "memory_bytes": 2**30 + step * 2**20})  # fmt: skip
        if step % (steps // 8) == 0:
            share = step / steps
            value = final * (1 - math.exp(-4 * share)) - 0.06 * max(0, share - 0.8) * 5
            loss = 0.5 + 2.4 * math.exp(-5 * share) + 0.3 * share**3
            probe = {
                "train_loss": 0.3 * loss,
                "train_accuracy": 0.97,
                "loss": loss,
                "accuracy": 0.8,
                "loss_error": 0.02,
            }
            events.append({"kind": "validation", "step": step, "loss": loss,
                           "metrics": {metric: value}, "best": value > best, "probe": probe})  # fmt: skip
            best = max(best, value)
    return tuple(events)


def _report(
    name: str, task: Task, metric: str, evaluations: list[Evaluation], *, min_gain: float = 0.01,
    target: float | None = None, goal: Goal | None = None, final: float = 0.8, training: bool = True,
    caveats: Sequence[str] = (), warnings: tuple[str, ...] = (), hours: float = 4.0,
) -> ReportData:  # fmt: skip
    prices = Prices(hours_of_work=hours)
    by_name = {evaluation.candidate: evaluation for evaluation in evaluations}
    comparison = compare(evaluations, task, metric, resamples=500, confidence=0.95, seed=0)
    costs = candidate_costs(by_name, prices=prices, training_seconds=184.0)
    verdict = decide(
        by_name, comparison.differences, metric=metric, min_gain=min_gain, target=target, confidence=0.95, power=0.8,
        costs=costs, caveats=caveats,
    )  # fmt: skip
    return ReportData(
        name=name,
        created="2026-11-21 14:05",
        task=task.name,
        recipe_yaml=_RECIPE.format(name=name, task=task.name),
        manifest=_MANIFEST,
        goal=goal or Goal(),
        prices=prices,
        verdict=verdict,
        evaluations=tuple(evaluations),
        comparison=comparison.values,
        differences=comparison.differences,
        costs=tuple(costs.values()),
        findings=(
            Finding("duplicate_rows", "warning", "Rows that occur more than once",
                    "remove them, or keep them on purpose", 14, tuple(range(31, 45)), None, "rows.csv"),
            Finding("label_seen_once", "info", "Label with a single row: it cannot be both learnt and tested",
                    "add rows or merge the label into another", 1, (377,), "tone", "rows.csv"),
        ),
        splits_explanation="Rows were divided at random within each label (seed 0); exact duplicates stay in one part.",
        split_sizes={"train": 336, "validation": 48, "test": len(evaluations[0].rows)},
        training={"steps": 120, "tokens": 48231, "seconds": 184.2, "tokens_per_second": 261.8,
                  "peak_memory_bytes": 1_204_000_000, "adapter_sha256": "c0ffee" * 10} if training else None,
        history=_history(120, metric, final) if training else (),
        labels=task.labels if isinstance(task, Classification) else (),
        choices=(("train.learning_rate", "0.0002", "LoRA default for under 1B parameters"),
                 ("train.epochs", "3", "336 rows: few enough to see each three times"),
                 ("evaluate.max_new_tokens", "12", "the longest expected answer has 6 tokens; twice that")),
        warnings=warnings,
    )  # fmt: skip


def _labeller(labels: Sequence[str], right: float, unreadable: float = 0.0) -> Speak:
    """Right with a chance that depends on the row; wrong answers prefer the label's neighbours."""

    def speak(example: Example, rng: random.Random) -> str:
        hard = random.Random(example.id).random()
        if rng.random() < unreadable:
            return "I would say that this depends on what was meant by it."
        if 0.6 * hard + 0.4 * rng.random() < right * (0.55 + 0.45 * right):
            return example.expected
        at = labels.index(example.expected)
        return labels[(at + rng.choice((1, 1, 1, 2, -1, rng.randrange(len(labels))))) % len(labels)]

    return speak


def classification(
    n: int = 384, labels: Sequence[str] = TONES, tuned: float = 0.88, few_shot: float = 0.8, **more: Any
) -> ReportData:
    """Eight tones, or as many labels as given."""
    rng = random.Random(len(labels))
    task = Classification(tuple(labels), given_instruction="Name the tone of the phrase.")
    pairs = [(f"{rng.choice(_OPENINGS)} {rng.choice(_BODIES)}.", labels[i % len(labels)]) for i in range(n)]
    examples = _examples(pairs)
    specs: list[tuple[str, Speak, float, float, dict[str, Any]]] = [
        ("zero_shot", _labeller(labels, 0.34, 0.2), 96, 0.21, {"k": 0}),
        (
            "few_shot",
            _labeller(labels, few_shot, 0.03),
            412,
            0.83,
            {"k": 8, "k_used": {"mean": 7.4, "min": 5, "max": 8}},
        ),
        ("retrieval", _labeller(labels, few_shot - 0.05, 0.02), 371, 0.78, {"k": 8}),
        ("trivial_majority", lambda e, r: labels[0], 0, 0.00001, {}),
        ("trivial_tfidf", _labeller(labels, few_shot - 0.08), 0, 0.0004, {"c": 10.0, "features": 4213}),
        ("tuned", _labeller(labels, tuned), 41, 0.09, {}),
    ]
    if more.pop("ways", False):
        specs += [
            ("tuned_scored", _labeller(labels, tuned), 41, 0.12, {}),
            ("few_shot_grammar", _labeller(labels, few_shot + 0.01), 412, 0.86, {"k": 8}),
            ("few_shot_scored", _labeller(labels, few_shot + 0.02), 412, 0.9, {"k": 8}),
        ]
    return _report(more.pop("name", "phrases"), task, "accuracy", [
        _evaluate(task, examples, name, speak, tokens=tokens, latency=latency, notes=notes)
        for name, speak, tokens, latency, notes in specs
    ], **more)  # fmt: skip


def banking() -> ReportData:
    labels = tuple(f"{area}_{issue}" for area in _AREAS for issue in _ISSUES)
    return classification(
        616,
        labels,
        0.80,
        0.795,
        name="banking",
        warnings=("Training stopped early at step 96: validation did not improve for 3 evaluations.",),
    )


def _picker(keep: float, invent: float, broken: float = 0.0, form: str = "list") -> Speak:
    def speak(example: Example, rng: random.Random) -> str:
        value = json.loads(example.expected)
        if rng.random() < broken:
            return "Ingredients: " + str(value)[:20]
        if form == "object":
            return json.dumps({k: v if rng.random() < keep else "unknown" for k, v in value.items()})
        kept = [item for item in value if rng.random() < keep]
        if rng.random() < invent:
            kept.append(rng.choice(("water", "salt", "pan", "oven", "2 tbsp")))
        return json.dumps(kept)

    return speak


def extraction(form: str = "list", **more: Any) -> ReportData:
    """Foods out of recipes (a list), or fields of an order (an object)."""
    rng = random.Random(3)
    if form == "list":
        task = Extraction("list", given_instruction="List the ingredients.")
        pairs = []
        for _ in range(150):
            foods = rng.sample(_FOODS, rng.randint(2, 7))
            pairs.append(
                ("Mix " + ", ".join(f"{rng.randint(1, 400)} g {food}" for food in foods) + ".", json.dumps(foods))
            )
    else:
        task = Extraction("object", keys=("customer", "item", "quantity", "due"))
        pairs = []
        for i in range(150):
            value = {
                "customer": f"Firm {i % 23}",
                "item": rng.choice(_FOODS),
                "quantity": rng.randint(1, 90),
                "due": f"2026-0{1 + i % 9}-1{i % 10}",
            }
            pairs.append(
                (
                    f"{value['customer']} wants {value['quantity']} × {value['item']} by {value['due']}.",
                    json.dumps(value),
                )
            )
    examples = _examples(pairs)
    specs: list[tuple[str, Speak, float, float, dict[str, Any]]] = [
        ("zero_shot", _picker(0.2, 0.9, 0.6, form), 120, 1.4, {"k": 0}),
        ("few_shot", _picker(0.62, 0.5, 0.1, form), 640, 2.3, {"k": 4}),
        ("trivial_dictionary", _picker(0.84, 0.05, 0.0, form), 0, 0.0002, {"entities": 611}),
        ("tuned", _picker(0.88, 0.12, 0.01, form), 84, 0.9, {}),
    ]
    return _report(more.pop("name", "recipes"), task, "entity_f1", [
        _evaluate(task, examples, name, speak, tokens=tokens, latency=latency, notes=notes)
        for name, speak, tokens, latency, notes in specs
    ], **more)  # fmt: skip


def _writer(keep: float) -> Speak:
    def speak(example: Example, rng: random.Random) -> str:
        words = [w for w in example.expected.split() if rng.random() < keep]
        return " ".join(words + rng.choices(("perhaps", "the", "window", "later", "soon"), k=int(6 * (1 - keep))))

    return speak


def generation(**more: Any) -> ReportData:
    rng = random.Random(5)
    pairs = [
        ("Summarise: " + " ".join(f"{rng.choice(_OPENINGS)} {rng.choice(_BODIES)}." for _ in range(12)),
         f"{rng.choice(_BODIES)}, and {rng.choice(_BODIES)}")
        for _ in range(22)
    ]  # fmt: skip
    task = Generation()
    examples = _examples(pairs)
    specs: list[tuple[str, Speak, float, float, dict[str, Any]]] = [
        ("zero_shot", _writer(0.35), 310, 3.1, {"k": 0}),
        ("retrieval", _writer(0.66), 905, 4.8, {"k": 2}),
        ("tuned", _writer(0.68), 268, 2.9, {}),
    ]
    return _report(more.pop("name", "summaries"), task, "rouge_l", [
        _evaluate(task, examples, name, speak, tokens=tokens, latency=latency, notes=notes)
        for name, speak, tokens, latency, notes in specs
    ], **more)  # fmt: skip


def evidence(n: int = 600) -> ReportData:
    """A classification with everything that a run can measure."""
    report = classification(n, ways=True, name="evidence")
    rows = {evaluation.candidate: evaluation.rows for evaluation in report.evaluations}
    slices = {f"label {label}": [row.id for row in rows["tuned"] if row.expected == label] for label in report.labels}
    slices["input rare"] = [row.id for row in rows["tuned"][:4]]
    calibrations = []
    for name in ("few_shot_scored", "tuned_scored"):
        believed = [(row.probabilities, row.expected) for row in rows[name]]
        test, validation = beliefs_of(believed[: n // 2])[0], beliefs_of(believed[n // 2 :])[0]
        assert test is not None
        calibrations.append(calibration(name, test, validation))
    rng = np.random.default_rng(0)
    gains = np.array([row.scores["accuracy"] for row in rows["tuned"]]) - np.array(
        [row.scores["accuracy"] for row in rows[str(report.verdict.best_alternative)]]
    )
    seeds = across_seeds(np.stack([gains + shift + rng.normal(0, 0.05, len(gains)) for shift in (0.0, 0.02, -0.015)]))
    training = {**(report.training or {}), "diagnoses": [_DIAGNOSIS], "best_step": 90, "stopped_early": False}
    skill = PairedDifference("tuned", "base", "exact_match", -0.075, -0.15, 0.01, 0.21, 40)
    return replace(
        report,
        goal=Goal(requests_per_month=2_000_000),
        slices=slices,
        calibration=tuple(calibrations),
        seeds=seeds,
        training=training,
        forgetting=Forgetting(38.2, 44.9, skill, 40, 0.6, 0.525),
        preferences=(preference_from("people", _PEOPLE), preference_from("judge", _JUDGE)),
    )


_DIAGNOSIS = {
    "code": "overfitting",
    "severity": "warning",
    "title": "Learnt by heart after step 90",
    "seen": "From step 90 on the validation loss rises by 12 % while the training loss falls.",
    "why": "336 rows are few for three epochs.",
    "remedy": "Stop earlier, or add rows.",
    "changes": {"train.epochs": 2},
    "overrides": ["train.epochs=2"],
}
_WINS = {"wins": 41, "ties": 12, "losses": 19, "unjudged": 3, "value": 0.653, "low": 0.548, "high": 0.744,
         "p_value": 0.0062, "lowest": 0.627, "highest": 0.667, "confidence": 0.95}  # fmt: skip
_PEOPLE = {"a": "tuned", "b": "few_shot", "win_rate": _WINS, "counts": True, "why": "two raters agree on 25 rows",
           "agreement": {"name": "Krippendorff's alpha", "value": 0.71, "low": 0.52, "high": 0.86}}  # fmt: skip
_EVEN = {**_WINS, "wins": 31, "losses": 29, "value": 0.514, "low": 0.41, "high": 0.63, "p_value": 0.8}
_JUDGE = {"a": "tuned", "b": "few_shot", "win_rate": _EVEN,
          "counts": False, "why": "it agrees with people no better than chance", "agreement": None}  # fmt: skip


def stopped_before_training() -> ReportData:
    """An alternative is good enough, so nothing was trained."""
    report = classification(200, name="good enough")
    others = tuple(evaluation for evaluation in report.evaluations if evaluation.candidate != "tuned")
    names = [evaluation.candidate for evaluation in others]
    verdict = replace(
        report.verdict, decision="keep_prompting", candidate="few_shot", best_alternative="few_shot", difference=None,
        rule="alternative_reaches_target", reason="Few-shot surely reaches the target, so nothing was trained.",
        rows_needed=None, break_even_requests=None, sensitivity=(), vetoes=(), tied=(), benefits={},
        assumptions={**report.verdict.assumptions, "target": 0.5},
    )  # fmt: skip
    return replace(
        report,
        verdict=verdict,
        evaluations=others,
        comparison=tuple(value for value in report.comparison if value.candidate in names),
        differences=tuple(pair for pair in report.differences if {pair.a, pair.b} <= set(names)),
        costs=tuple(cost for cost in report.costs if cost.candidate in names),
        training=None,
        history=(),
    )


def many_rows(n: int = 10_000) -> ReportData:
    """One sample's rows over and over, each with words of its own."""
    report = classification(200, ways=True, name="many rows")
    rng = random.Random(7)
    words = [f"{a}{b}" for a in ("pa", "re", "mi", "lo", "ku", "ste") for b in ("na", "lo", "ti", "ver", "sha", "mo")]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(n)]
    evaluations = []
    for evaluation in report.evaluations:
        rows = tuple(
            replace(row, id=f"{i:016x}", prompt=f"{row.prompt} {texts[i]}")
            for i, row in zip(range(n), evaluation.rows * (n // 200 + 1), strict=False)
        )
        evaluations.append(replace(evaluation, rows=rows))
    slices = {f"label {label}": [row.id for row in rows if row.expected == label] for label in report.labels}
    return replace(report, evaluations=tuple(evaluations), slices=slices)
