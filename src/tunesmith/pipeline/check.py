"""`check`: everything that can be known before compute is spent, in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data import check_examples, infer_task
from tunesmith.data.checks import Depth
from tunesmith.data.duplicates import LeakedRow
from tunesmith.data.examples import EVERYTHING, examples_from
from tunesmith.data.findings import in_order
from tunesmith.data.fixing import Fixed, fix_rows
from tunesmith.data.looking import load_and_look
from tunesmith.data.quality import detectable_difference, rows_to_detect
from tunesmith.data.reading import read_rows
from tunesmith.data.types import Finding
from tunesmith.errors import DataError, EngineError, RecipeError, TunesmithError, VerificationError
from tunesmith.evaluation.document_files import read_documents
from tunesmith.models.servable import Servability, servable
from tunesmith.pipeline.estimating import TrainingEstimate, estimate_training
from tunesmith.pipeline.numbers import DataNumbers
from tunesmith.pipeline.prepare import (
    DataFindingsError,
    Listener,
    Prepared,
    Rows,
    prepare,
    progress,
    read_data,
    trainable_samples,
)
from tunesmith.pipeline.preview import numbers_of
from tunesmith.pipeline.remotes import remote_problems
from tunesmith.pipeline.tuning_costs import TuningCosts, costs_with_base, costs_without_base
from tunesmith.recipe.resolve import Choice
from tunesmith.recipe.schema import Data, Recipe
from tunesmith.tasks import fit_task
from tunesmith.text.preview import preview
from tunesmith.text.types import Sample

_LOOKED_AT = 5_000
"""Training rows tokenised to know lengths, where there are more."""
_SETTING = "remote_setting"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `preview` holds examples as (text, loss weight) pairs, `lengths` tokens per training row,
    `leaks` the test rows that were seen before, one by one. `problem`: why the base could not be loaded, where the data
    has no errors of its own; then no row was tokenised and nothing timed.
    """

    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...] = ()
    preview: tuple[tuple[tuple[str, float], ...], ...] = ()
    lengths: tuple[int, ...] = ()
    estimate: dict[str, Any] = field(default_factory=dict)
    numbers: DataNumbers | None = None
    splits: dict[str, Any] = field(default_factory=dict)
    leaks: tuple[LeakedRow, ...] = ()
    tuning_costs: TuningCosts | None = None
    problem: TunesmithError | None = None

    @property
    def exit_code(self) -> int:
        """That of `problem`, else 3 where the data has errors, 2 where only settings have, else 0."""
        if self.problem is not None:
            return self.problem.exit_code
        codes = {f.code for f in self.findings if f.severity == "error"}
        if not codes:
            return 0
        return RecipeError.exit_code if codes <= {_SETTING} else DataError.exit_code

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object; lists of lines are complete."""
        return {
            "findings": [asdict(f) for f in self.findings],
            "choices": [asdict(c) for c in self.choices],
            "splits": self.splits,
            "leaks": [asdict(leak) for leak in self.leaks],
            "preview": [[{"text": text, "weight": weight} for text, weight in tokens] for tokens in self.preview],
            "lengths": list(self.lengths),
            "estimate": self.estimate,
            "numbers": self.numbers.to_dict() if self.numbers is not None else None,
            "tuning_costs": self.tuning_costs.to_dict() if self.tuning_costs is not None else None,
        }


def check(recipe: Recipe, listener: Listener = lambda event: None, *, quick: bool = False) -> CheckReport:
    """Read and check the data, load the base, show what will be learnt, and measure what a run will take.

    Problems of rows, of documents and of endpoints' settings never raise, nor does a base that cannot be loaded; they
    are all in the report. `quick` leaves out what compares rows by likeness and what doubts labels.
    """
    beside = (*_remote_findings(recipe), *_document_findings(recipe))
    try:
        rows = read_data(recipe, depth="quick" if quick else "full", listener=listener)
    except DataFindingsError as error:
        return CheckReport((*_with_an_error(error.findings), *beside))
    try:
        prepared = prepare(recipe, rows, at_most=_LOOKED_AT)
    except TunesmithError as error:
        return _unprepared(recipe, rows, beside, error)
    samples = trainable_samples(prepared)
    shown = [s for s in prepared.train if s.supervised][:3]
    estimate = estimate_training(prepared, samples) if samples else None
    numbers = _numbers(prepared, estimate) if estimate is not None else None
    too_long = sum(f.count for f in prepared.findings if f.code == "row_too_long")
    return CheckReport(
        findings=(*prepared.findings, *beside),
        choices=prepared.choices,
        preview=tuple(p.tokens for p in preview(prepared.renderer, shown)),
        lengths=prepared.lengths.lengths,
        estimate=_figures(prepared, samples, estimate) if estimate is not None else {},
        numbers=numbers,
        splits=_splits(rows, recipe),
        leaks=rows.leaks,
        tuning_costs=costs_with_base(prepared, estimate, numbers, too_long),
    )


def _unprepared(recipe: Recipe, rows: Rows, beside: Sequence[Finding], error: TunesmithError) -> CheckReport:
    """What is known although preparing raised `error`: of a base that cannot be loaded, all costs but the machines'.

    Raises `error` again where it is of a setting and the data is fine.
    """
    data_has_errors = any(f.severity == "error" for f in rows.findings)
    of_base = _is_of_base(error)
    if not data_has_errors and not of_base:
        raise error
    findings = [*rows.findings, *beside, _unusable(error)]
    labels = 0
    try:
        every = [*rows.splits.train, *rows.splits.validation, *rows.splits.test]
        labels = len(getattr(fit_task(recipe.task, rows.task_type, every), "labels", ()))
    except TunesmithError as wrong:  # it would have been the next thing to be told
        if wrong.what != error.what:
            findings.append(_unusable(wrong))
    return CheckReport(
        tuple(findings),
        splits=_splits(rows, recipe),
        leaks=rows.leaks,
        tuning_costs=costs_without_base(recipe, rows, labels, error) if of_base else None,
        problem=None if data_has_errors else error,
    )


def _is_of_base(error: TunesmithError) -> bool:
    return isinstance(error, EngineError | VerificationError) or (error.where or "").startswith("base.")


def _unusable(error: TunesmithError) -> Finding:
    where = f"{error.where}: " if error.where else ""
    fix = error.fix or (f"expected {error.expected}" if error.expected else "see the message")
    return Finding("cannot_go_on", "error", f"{where}{error.what}", fix, 1)


def _remote_findings(recipe: Recipe) -> Iterator[Finding]:
    """What would keep an endpoint from being asked, before a run begins."""
    for problem in remote_problems(recipe):
        expected = f"; expected {problem.expected}" if problem.expected else ""
        yield Finding(
            _SETTING, "error", f"{problem.what}{expected}", problem.fix or "mend this setting", 1, field=problem.key
        )


def _document_findings(recipe: Recipe) -> Iterator[Finding]:
    """Why the documents to search could not be read."""
    if recipe.data.documents is None:
        return
    try:
        read_documents(recipe.data.documents, recipe.data.encoding)
    except DataError as error:
        fix = error.fix or "see the message"
        yield Finding("documents", "error", error.what, fix, 1, field="data.documents", source=error.where)


def _with_an_error(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings of data that cannot be used. Where each is a warning of its own, they left no row together."""
    if any(finding.severity == "error" for finding in findings):
        return tuple(findings)
    nothing = Finding("cannot_go_on", "error", "no row is left to train on", "mend the rows named by the warnings", 1)
    return (*findings, nothing)


def check_file(path: Path, listener: Listener = lambda event: None, *, quick: bool = False) -> CheckReport:
    """Check a bare file of rows, without recipe and model: of any size, on all cores."""
    result, seen = load_and_look(Data(train=str(path)), path)
    found = list(result.findings)
    if result.examples:
        depth: Depth = "quick" if quick else "full"
        found += check_examples(
            result.examples,
            task_type=infer_task(result.examples),
            depth=depth,
            seen=seen,
            processes=None,
            tell=progress(listener),
        )
    return CheckReport(tuple(in_order(found)))


def fix(data: Data, *, task_type: str = "auto", also: Sequence[str] = ()) -> tuple[Fixed, ...]:
    """Write cleaned copies of the training and the validation file, each with a log; a test file is never touched.

    `also` are codes of findings to mend besides the usual ones, see `tunesmith.data.fixing`.
    """
    made = []
    for part in ("train", "validation"):
        source = getattr(data, part)
        if source is None:
            continue
        path = Path(source)
        if not path.is_file():
            raise RecipeError(
                "only a file can be mended", where=f"data.{part}: {source}", fix="export the rows to a file first"
            )
        read = read_rows(path, encoding=data.encoding)
        result = examples_from(read, data, source, task_type=task_type, learns=EVERYTHING)
        task = infer_task(result.examples) if task_type == "auto" else task_type
        made.append(fix_rows(path, read, result.examples, result.findings, task_type=task, also=also))
    return tuple(made)


def _splits(rows: Rows, recipe: Recipe) -> dict[str, Any]:
    """How the rows are divided, and what the test set can show."""
    tested, least = len(rows.splits.test), recipe.verdict.min_gain
    return {
        "explanation": rows.splits.explanation,
        "sizes": {part: len(getattr(rows.splits, part)) for part in ("train", "validation", "test")},
        "hashes": dict(rows.splits.hashes),
        "detectable_difference": detectable_difference(tested),
        "test_rows_for_min_gain": rows_to_detect(least) if least > 0 else None,
    }


def _numbers(prepared: Prepared, estimate: TrainingEstimate) -> DataNumbers:
    """Tokens, time, memory and money of the run, here and elsewhere."""
    prepared = replace(prepared, memory=estimate.memory)
    return numbers_of(prepared, time=estimate.time, trained=estimate.trained)


def _figures(prepared: Prepared, samples: Sequence[Sample], estimate: TrainingEstimate) -> dict[str, Any]:
    """The estimate as it is shown: figures by name, with their unit as the name's end."""
    time, memory, prices = estimate.time, estimate.memory, estimate.recipe.verdict.prices
    return {
        "rows": len(prepared.rows.splits.train),
        "rows_looked_at": len(samples),
        "supervised_share": prepared.lengths.supervised / max(1, prepared.lengths.tokens),
        "padding_a_padded_trainer_would_waste": prepared.lengths.padding_share,
        "optimiser_steps": estimate.plan.steps,
        "training_tokens": estimate.tokens,
        "tokens_computed": time.tokens,
        "tokens_per_second": estimate.tokens_per_second,
        "training_seconds": time.training_seconds,
        "validation_seconds": time.validation_seconds,
        "peak_memory_bytes": memory.predicted_peak_bytes,
        "memory_parts_bytes": dict(memory.parts),
        "parameters_trained": estimate.trained,
        "servable": {s.server: {"ok": s.ok, "reasons": list(s.reasons)} for s in _servers(prepared)},
        f"compute_{prices.currency}": time.seconds / 3600 * prices.hardware_per_hour,
        f"work_{prices.currency}": prices.hours_of_work * prices.work_per_hour,
        "note": "time measured on a few micro-batches here; answers during training and the evaluation come on top",
    }


def _servers(prepared: Prepared) -> tuple[Servability, ...]:
    return servable(prepared.recipe.method, prepared.base.model.config, prepared.added is not None)
