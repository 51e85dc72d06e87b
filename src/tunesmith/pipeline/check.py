"""`check`: everything that can be known before compute is spent, in one report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data import check_examples, infer_task, load_examples
from tunesmith.data.types import Finding
from tunesmith.errors import DataError, TunesmithError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import attach_lora, trainable_parameters
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Prepared, prepare, read_data, trainable_samples
from tunesmith.pipeline.stages import lora_settings, training_plan
from tunesmith.recipe.resolve import Choice
from tunesmith.recipe.schema import Data, Recipe
from tunesmith.text.preview import preview
from tunesmith.text.types import Sample
from tunesmith.training.loop import accumulate_gradients
from tunesmith.training.resources import peak_memory, reset_peak_memory

_LOOKED_AT = 5_000
"""Training rows tokenised to know lengths, where there are more."""
_PROBE_TOKENS = 1_024
"""Tokens computed to measure memory and speed: enough to be typical, few enough for `check` to stay small."""
_ADAMW_BYTES = 8
"""AdamW keeps two fp32 numbers per trained parameter."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `preview` holds examples as (text, loss weight) pairs, `lengths` tokens per training row."""

    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...] = ()
    preview: tuple[tuple[tuple[str, float], ...], ...] = ()
    lengths: tuple[int, ...] = ()
    estimate: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """3 where the data has errors, else 0."""
        return DataError.exit_code if any(f.severity == "error" for f in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object; lists of lines are complete."""
        return {
            "findings": [asdict(f) for f in self.findings],
            "choices": [asdict(c) for c in self.choices],
            "splits": self.splits,
            "preview": [[{"text": text, "weight": weight} for text, weight in tokens] for tokens in self.preview],
            "lengths": list(self.lengths),
            "estimate": self.estimate,
        }


def check(recipe: Recipe, listener: Listener = lambda event: None) -> CheckReport:
    """Read and check the data, load the base, show what will be learnt, and measure what a run will take.

    Row-level problems never raise; they are all in the report.
    """
    try:
        rows = read_data(recipe)
    except DataFindingsError as error:
        return CheckReport(error.findings)
    try:
        prepared = prepare(recipe, rows, at_most=_LOOKED_AT)
    except TunesmithError as error:
        if not any(f.severity == "error" for f in rows.findings):
            raise
        # The data has errors of its own: they are listed too, instead of one problem at a time.
        unusable = Finding("cannot_go_on", "error", f"{error.where}: {error.what}", error.fix or "see the message", 1)
        return CheckReport((*rows.findings, unusable))
    samples = trainable_samples(prepared)
    shown = [s for s in prepared.train if s.supervised][:3]
    return CheckReport(
        findings=prepared.findings,
        choices=prepared.choices,
        preview=tuple(p.tokens for p in preview(prepared.renderer, shown)),
        lengths=prepared.lengths.lengths,
        estimate=_estimate(prepared, samples) if samples else {},
        splits={
            "explanation": rows.splits.explanation,
            "sizes": {part: len(getattr(rows.splits, part)) for part in ("train", "validation", "test")},
            "hashes": dict(rows.splits.hashes),
        },
    )


def check_file(path: Path) -> CheckReport:
    """Check a bare file of rows, without recipe and model."""
    result = load_examples(Data(train=str(path)), path)
    found = list(result.findings)
    if result.examples:
        found += check_examples(result.examples, task_type=infer_task(result.examples))
    return CheckReport(tuple(found))


def _estimate(prepared: Prepared, samples: Sequence[Sample]) -> dict[str, Any]:
    """Tokens, memory, time and money of the run, from one measured optimiser step on this machine's own rows.

    The longest rows are taken for memory (the worst step), a typical batch for speed; the model is left as it was in
    value, but with gradients computed once: `check` ends with the process that called it.
    """
    rows = len(prepared.rows.splits.train)
    plan = training_plan(prepared, rows)
    recipe = prepared.recipe
    if recipe.method.type == "lora":
        attach_lora(prepared.base.model, lora_settings(prepared), recipe.train.seed)
    else:
        prepared.base.model.requires_grad_(True)
    model = LanguageModel(prepared.base.model)
    parameters = trainable_parameters(prepared.base.model)
    by_length = sorted(samples, key=lambda s: len(s.ids))
    typical = by_length[:: max(1, len(samples) // plan.batch_size)][: plan.batch_size]
    longest = by_length[-plan.batch_size :]
    model.model.train()
    reset_peak_memory()
    before = peak_memory()
    probe = _up_to(longest[::-1], _PROBE_TOKENS)
    _, probed = accumulate_gradients(model, probe, plan)
    # What a step needs above the loaded model grows with the tokens computed at once.
    at_once = min(sum(len(s.ids) for s in longest), max(plan.micro_batch_tokens, len(longest[-1].ids)))
    trained = sum(p.numel() for p in parameters.values())
    memory = before + round((peak_memory() - before) * max(1.0, at_once / probed)) + trained * _ADAMW_BYTES
    began = time.perf_counter()
    _, tokens = accumulate_gradients(model, _up_to(typical, _PROBE_TOKENS), plan)
    rate = tokens / (time.perf_counter() - began)
    for parameter in parameters.values():
        parameter.grad = None
    mean = sum(len(s.ids) for s in samples) / len(samples)
    training_tokens = round(plan.steps * plan.batch_size * mean)
    seconds = training_tokens / rate
    prices = recipe.verdict.prices
    return {
        "rows": rows,
        "rows_looked_at": len(samples),
        "supervised_share": prepared.lengths.supervised / max(1, prepared.lengths.tokens),
        "padding_a_padded_trainer_would_waste": prepared.lengths.padding_share,
        "optimiser_steps": plan.steps,
        "training_tokens": training_tokens,
        "tokens_per_second": rate,
        "training_seconds": seconds,
        "peak_memory_bytes": memory,
        "parameters_trained": trained,
        f"compute_{prices.currency}": seconds / 3600 * prices.hardware_per_hour,
        f"work_{prices.currency}": prices.hours_of_work * prices.work_per_hour,
        "note": "measured on one step here; validation during training and the evaluation of candidates come on top",
    }


def _up_to(samples: Sequence[Sample], tokens: int) -> list[Sample]:
    """The first samples of together at most so many tokens; at least one."""
    taken: list[Sample] = []
    for sample in samples:
        if taken and sum(len(s.ids) for s in taken) + len(sample.ids) > tokens:
            break
        taken.append(sample)
    return taken
