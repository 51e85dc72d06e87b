"""Everything before compute is spent: rows read and checked, splits frozen, base loaded, every `auto` decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.data import check_examples, explain_task, load_examples, make_splits
from tunesmith.data.checks import Depth, split_leaks
from tunesmith.data.duplicates import LeakedRow, NearDuplicates, find_near_duplicates
from tunesmith.data.duplicates.shingles import Tell, silent
from tunesmith.data.examples import LoadResult
from tunesmith.data.on_disk import is_large, load_on_disk
from tunesmith.data.reading import source_sha256
from tunesmith.data.template import refuse_unknown_specials
from tunesmith.data.types import Example, Finding, Splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.models.load import LoadedBase
from tunesmith.models.training_text import TrainingTextRecord, seen_in_training
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.pipeline.opening import open_base
from tunesmith.pipeline.planning import plan_engine
from tunesmith.pipeline.tokens import rendered, said_bytes, those, token_findings, tokenised
from tunesmith.recipe.resolve import Choice, Facts, resolve
from tunesmith.recipe.schema import Data, Recipe, TaskType
from tunesmith.tasks import fit_task, with_samples
from tunesmith.tasks.types import Task
from tunesmith.text.numbers import sample_counts
from tunesmith.text.preview import LengthFacts, length_facts
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample
from tunesmith.training.calibration import cache_folder
from tunesmith.training.planner import MemoryPlan
from tunesmith.training.trackers import require_trackers

Listener = Callable[[dict[str, Any]], None]

_TOLD_AFTER = 1.0
"""Seconds from which work on the rows is worth a line."""


class DataFindingsError(DataError):
    """The data has errors; all of them are in `findings`."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        errors = [f for f in findings if f.severity == "error"]
        shown = "\n".join(
            f"  {f.code}: {f.message} (lines {', '.join(map(str, f.lines[:8]))}{', …' if len(f.lines) > 8 else ''})"
            if f.lines
            else f"  {f.code}: {f.message}"
            for f in errors
        )
        super().__init__(
            f"the data has {len(errors)} kind(s) of error:\n{shown}",
            where=errors[0].source if errors else None,
            fix="mend the rows named above; `tunesmith check` shows each with its fix",
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows read and checked, before any model is touched.

    `leaks` are the test rows that training or validation holds too: scores are given with and without them.
    `task_reason`: why the task was taken for this type; empty where the recipe says it.
    """

    splits: Splits
    findings: tuple[Finding, ...]
    task_type: TaskType
    format: str
    sources: dict[str, str]
    left_out: int
    leaks: tuple[LeakedRow, ...] = ()
    task_reason: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe without `auto`, and all that training and evaluation need.

    `train` and `validation` are in memory where there is little of them, else in a store on the disk. `has_tools` says
    whether any row defines, calls or answers a tool.
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    memory: MemoryPlan | None
    rows: Rows
    task: Task
    base: LoadedBase
    added: AddedTokens | None
    renderer: Renderer
    train: Sequence[Sample]
    validation: Sequence[Sample]
    lengths: LengthFacts
    findings: tuple[Finding, ...]
    seen_test_rows: tuple[str, ...]
    has_tools: bool


def read_data(recipe: Recipe, *, depth: Depth = "usual", listener: Listener | None = None) -> Rows:
    """Read all files of a recipe and split them. Row-level problems are findings; nothing is raised for them.

    `depth` says how thoroughly rows are looked at, `listener` hears of what takes long. Raises `DataError` where no
    rows remain or a file cannot be read at all.
    """
    tell = progress(listener)
    spec = recipe.data
    wanted = recipe.task.type
    findings: list[Finding] = []
    loaded, sources, left_out = {}, {}, 0
    for part in ("train", "validation", "test"):
        path = getattr(spec, part)
        if path is None:
            continue
        result = _load(spec, path, wanted)
        findings += result.findings
        left_out += result.left_out
        loaded[part] = result
        sources[part] = source_sha256(path)
    train = loaded["train"].examples
    if not train:
        raise DataFindingsError(findings) if findings else DataError("no rows", where=spec.train)
    task_type, task_reason = cast(TaskType, wanted), ""
    if wanted == "auto":
        inferred, task_reason = explain_task(train, database=recipe.task.database is not None)
        task_type = cast(TaskType, inferred)
    near: NearDuplicates | None = None
    if depth != "quick" or spec.split.near_duplicates == "together":
        near = find_near_duplicates(train, tell=tell)
    try:
        splits = make_splits(
            train,
            loaded["validation"].examples if "validation" in loaded else None,
            loaded["test"].examples if "test" in loaded else None,
            spec.split,
            task_type=task_type,
            max_rows=spec.max_rows,
            near=near,
        )
    except DataError as error:  # rows that cannot be divided often have a reason that the checks can name
        findings += check_examples(train, task_type=task_type, depth=depth, near=near, tell=tell)
        if any(f.severity == "error" for f in findings):
            raise DataFindingsError(findings) from error
        raise
    clusters = None if near is None else {e.id: number for e, number in zip(train, near.cluster, strict=True)}
    leaks = split_leaks(splits, depth=depth, clusters=clusters, tell=tell)
    findings += check_examples(
        train, task_type=task_type, splits=splits, depth=depth, near=near, leaks=leaks, tell=tell
    )
    return Rows(
        splits, tuple(findings), task_type, loaded["train"].format, sources, left_out, leaks["test"], task_reason
    )


def _load(spec: Data, path: str | Path, task_type: str) -> LoadResult:
    """The examples of a file; those of a large one stay on the disk and are read when they are looked at."""
    if is_large(spec, path):
        return load_on_disk(spec, path, cache_folder(), task_type=task_type)
    return load_examples(spec, path, task_type=task_type)


def progress(listener: Listener | None) -> Tell:
    """Progress of the data room as events; what is done within a second is not told."""
    if listener is None:
        return silent
    began: dict[str, float] = {}

    def tell(label: str, done: int, total: int) -> None:
        seconds = time.monotonic() - began.setdefault(label, time.monotonic())
        if seconds > _TOLD_AFTER or label in told:
            told.add(label)
            event = {"kind": "progress", "label": label, "done": done, "total": total, "unit": "rows"}
            listener({**event, "seconds": seconds})
        if done == total:
            began.pop(label, None)
            told.discard(label)

    told: set[str] = set()
    return tell


def prepare(
    recipe: Recipe,
    rows: Rows,
    at_most: int | None = None,
    kept: Recipe | None = None,
    *,
    listener: Listener = lambda event: None,
) -> Prepared:
    """Load the base, render and tokenise, decide every `auto`.

    `kept` is the recipe of this run's earlier part, if there is one. With `at_most`, of more training rows only about
    so many are tokenised (and every one that may be too long): enough to look at, not to train on. Without it, many
    rows are tokenised once and kept for the next run; `listener` hears of that.
    """
    require_trackers(recipe.train)
    base, added = open_base(recipe)
    if recipe.data.template is not None:
        refuse_unknown_specials(recipe.data.template, base.tokenizer.get_vocab())
    renderer = Renderer(base.tokenizer, recipe.base.chat_template)
    splits = rows.splits
    all_rows = [*splits.train, *splits.validation, *splits.test]
    task = with_samples(fit_task(recipe.task, rows.task_type, all_rows), recipe.evaluate.samples)
    _refuse_what_does_not_fit(recipe, task)
    looked_at = _thinned(splits.train, task, at_most, base.context)

    def samples(part: str, examples: Sequence[Example]) -> Sequence[Sample]:
        if at_most is not None:
            return rendered(examples, renderer, task, recipe)
        return tokenised(examples, renderer, task, recipe, part=part, listener=listener)

    train, validation = samples("train", looked_at), samples("validation", watched_rows(recipe, splits))
    counts, held_out = sample_counts(train), sample_counts(validation)
    lengths, supervised = counts
    longest_answer = int(max((c.max() for c in (supervised, held_out[1]) if len(c)), default=1))
    facts = Facts(
        task_type=rows.task_type,
        answer_form=getattr(task, "form", None),
        labels=tuple(getattr(task, "labels", ())),
        train_rows=len(splits.train),
        validation_rows=len(splits.validation),
        parameters=base.parameters,
        context=base.context,
        longest_row_tokens=min(int(lengths.max(initial=0)), base.context),
        mean_row_tokens=int(lengths.sum()) / len(lengths) if len(lengths) else 0.0,
        longest_answer_tokens=longest_answer,
        device="cuda" if base.model.device.type == "cuda" else "cpu",
        bf16_supported=base.model.device.type == "cuda",
        has_chat_template=bool(getattr(base.tokenizer, "chat_template", None)),
        metric_default=next(iter(task.metrics)),
        data_format=_format(rows.format, recipe.data),
        task_reason=rows.task_reason,
    )
    resolved, choices = resolve(recipe, facts)
    limit = int(resolved.train.max_length)
    learnt = those(train, (supervised > 0) & (lengths <= limit))
    planned = plan_engine(resolved, base, added, learnt, kept, validation=validation)
    return Prepared(
        recipe=planned.recipe,
        choices=(*choices, *planned.choices),
        memory=planned.memory,
        rows=rows,
        task=task,
        base=base,
        added=added,
        renderer=renderer,
        train=train,
        validation=those(validation, held_out[0] <= limit),
        lengths=length_facts(train, limit),
        findings=(*rows.findings, *token_findings(renderer, train, looked_at, counts, limit)),
        seen_test_rows=_seen(base, splits.test),
        has_tools=any(row.has_tools for row in all_rows),
    )


def _refuse_what_does_not_fit(recipe: Recipe, task: Task) -> None:
    """Settings that only the task can prove wrong."""
    if recipe.goal.metric not in ("auto", *task.metrics):
        raise RecipeError(
            f"a {task.name} has no metric {recipe.goal.metric}", where="goal.metric", expected=", ".join(task.metrics)
        )


def watched_rows(recipe: Recipe, splits: Splits) -> tuple[Example, ...]:
    """The rows whose loss is measured while training."""
    return splits.test if recipe.train.loss_on == "test" else splits.validation


def trainable_samples(prepared: Prepared) -> Sequence[Sample]:
    """The training samples that fit; longer ones are left out, never cut (the findings name them)."""
    return those(prepared.train, sample_counts(prepared.train)[0] <= int(prepared.recipe.train.max_length))


def _thinned(examples: Sequence[Example], task: Task, at_most: int | None, context: int) -> Sequence[Example]:
    """At most about so many examples, at equal distances, and every one that could be longer than the context.

    A token is at least one byte of text, so a row of fewer bytes than the context, with room for the template, fits.
    """
    if at_most is None or len(examples) <= at_most:
        return examples
    chosen = set(range(0, len(examples), -(-len(examples) // at_most)))
    chosen |= {i for i, example in enumerate(examples) if said_bytes(task, example) > context // 2}
    return [examples[i] for i in sorted(chosen)]


def _seen(base: LoadedBase, test: Sequence[Example]) -> tuple[str, ...]:
    record = base.folder / "training_text.hashes" if base.folder is not None else None
    if record is None or not record.is_file():
        return ()
    return tuple(seen_in_training(TrainingTextRecord.load(record), test))


def _format(name: str, spec: Data) -> str | None:
    """The format to write down; none where a template, or column names that are well known, say it without."""
    mapped = spec.columns.prompt is not None or name not in ("template", "columns")
    return name if mapped else None
