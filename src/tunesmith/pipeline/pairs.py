"""A run on pairs of texts: the model learns to place texts, and generates nothing, so only training applies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.pairs import Pair, PairSplits, check_pairs, load_pairs, split_pairs
from tunesmith.data.reading import source_sha256
from tunesmith.data.types import Finding
from tunesmith.errors import RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.pipeline.opening import open_base
from tunesmith.pipeline.planning import plan_engine
from tunesmith.pipeline.prepare import DataFindingsError
from tunesmith.pipeline.training import Job
from tunesmith.recipe.resolve import Choice, Facts, resolve
from tunesmith.recipe.schema import Recipe
from tunesmith.text.pairs import fitting_groups, pair_groups
from tunesmith.text.types import Group
from tunesmith.training.objectives.contrastive import Distance
from tunesmith.training.objectives.pair_metrics import pair_metrics

_PROBES = 4


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """A recipe without `auto` and its pairs, ready to be learnt."""

    recipe: Recipe
    choices: tuple[Choice, ...]
    splits: PairSplits
    findings: tuple[Finding, ...]
    sources: dict[str, str]
    left_out: int
    job: Job


def is_pairs(recipe: Recipe) -> bool:
    """Whether the rows of a recipe are pairs of texts."""
    return recipe.data.columns.second is not None


def prepare_pairs(recipe: Recipe, earlier: Recipe | None = None) -> PreparedPairs:
    """Read, check and split the pairs, load the base, decide every `auto`.

    `earlier` is the recipe of this run's earlier part, if there is one.

    Raises `DataFindingsError` naming everything that is wrong with the rows.
    """
    spec = recipe.data
    loaded = {
        part: load_pairs(spec, getattr(spec, part))
        for part in ("train", "validation", "test")
        if getattr(spec, part) is not None
    }
    findings = [f for result in loaded.values() for f in result.findings]
    if not loaded["train"].pairs or any(f.severity == "error" for f in findings):
        raise DataFindingsError(findings)
    held = {part: loaded[part].pairs if part in loaded else None for part in ("validation", "test")}
    splits = split_pairs(loaded["train"].pairs, held["validation"], held["test"], spec.split, max_rows=spec.max_rows)
    findings += check_pairs(loaded["train"].pairs, splits)
    if any(f.severity == "error" for f in findings):
        raise DataFindingsError(findings)
    base, added = open_base(recipe)
    train, validation = (pair_groups(base.tokenizer, part) for part in (splits.train, splits.validation))
    lengths = [len(s.ids) for group in train for s in group.samples]
    metric = "pair_accuracy" if all(group.label in (0.0, 1.0) for group in train) else "spearman"
    resolved, choices = resolve(
        recipe.model_copy(update={"task": recipe.task.model_copy(update={"type": "generation"})}),
        Facts(
            task_type="generation",
            answer_form=None,
            labels=(),
            train_rows=len(train),
            validation_rows=len(validation),
            parameters=base.parameters,
            context=base.context,
            longest_row_tokens=min(max(lengths), base.context),
            mean_row_tokens=sum(lengths) / len(lengths),
            longest_answer_tokens=1,
            device="cuda" if base.model.device.type == "cuda" else "cpu",
            bf16_supported=base.model.device.type == "cuda",
            has_chat_template=bool(getattr(base.tokenizer, "chat_template", None)),
            metric_default=metric,
            data_format="columns",
        ),
    )
    limit = int(resolved.train.max_length)
    findings += _too_long(splits.train, train, limit)
    if any(f.severity == "error" for f in findings):
        raise DataFindingsError(findings)
    rows, kept = tuple(fitting_groups(train, limit)), tuple(fitting_groups(validation, limit))
    planned = plan_engine(resolved, base, added, rows, earlier)
    resolved = planned.recipe
    distance: Distance = "cosine" if recipe.train.objective_options.get("distance") == "cosine" else "euclidean"
    model = LanguageModel(base.model)

    def score() -> Mapping[str, float]:
        return pair_metrics(model, kept, distance=distance, token_budget=4096)

    job = Job(
        recipe=resolved,
        base=base,
        added=added,
        rows=rows,
        validation=kept,
        validation_rows=len(kept),
        metric=metric,
        score=score if kept else None,
        probes=[group.samples[0].ids.tolist() for group in (kept or rows)[:_PROBES]],
    )
    sources = {part: source_sha256(getattr(spec, part)) for part in loaded}
    left_out = sum(result.left_out for result in loaded.values())
    return PreparedPairs(resolved, (*choices, *planned.choices), splits, tuple(findings), sources, left_out, job)


def _too_long(pairs: Sequence[Pair], groups: Sequence[Group], limit: int) -> list[Finding]:
    """Pairs of the training rows that do not fit, and are left out."""
    long = [p for p, group in zip(pairs, groups, strict=True) if any(len(s.ids) > limit for s in group.samples)]
    if not long:
        return []
    return [
        Finding(
            code="row_too_long",
            severity="error" if len(long) == len(pairs) else "warning",
            message=f"{len(long)} pair(s) have a text of more than {limit} tokens and are left out of training",
            fix="shorten these texts, or use a base with a longer context; nothing is ever cut",
            count=len(long),
            lines=tuple(p.line for p in long),
            source=long[0].source,
        )
    ]


def pairs_key(prepared: PreparedPairs) -> dict[str, Any]:
    """What the training of pairs depends on beside the recipe's method and training."""
    base = prepared.job.base
    return {"splits": dict(prepared.splits.hashes), "base": base.weights_sha256, "dtype": prepared.recipe.base.dtype}


def refuse_other_stages(through: str) -> None:
    """Pairs have no answers to generate: there is nothing to compare with prompts."""
    if through != "train":
        raise RecipeError(
            "pairs of texts have no answers to generate, so alternatives, evaluation and verdict do not apply",
            where="data.columns.second",
            fix="use `tunesmith train`; the validation metric (pair accuracy, Spearman) is in its result",
        )
