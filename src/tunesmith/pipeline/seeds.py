"""Several trainings of one recipe: the same rows and settings with other seeds, each evaluated on the same test rows.

The model that is shipped is the first one, of `train.seed`; the others are trained to know how much of its score is
luck. They lie in `seeds/<seed>/` of the run, each a run folder of its own that is continued where it stopped. Picking
the best of them would flatter it, so none is picked.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from tunesmith.evaluation.comparison import Clusters, Comparison, compare_seeds, value_over_seeds
from tunesmith.evaluation.statistics import AcrossSeeds
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.pipeline.evaluating import run_tuned
from tunesmith.pipeline.prepare import Listener, Prepared, Rows, prepare
from tunesmith.pipeline.training import TUNED, follow, run_training, training_job
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.schema import Evaluate, Recipe
from tunesmith.runs import RunFolder, write_text
from tunesmith.tasks.types import Task
from tunesmith.verdict.costs import is_tuned

FOLDER = "seeds"


@dataclass(frozen=True, slots=True)
class Seeds:
    """The deciding metric of tuned over several trainings.

    seeds: of the trainings, the one that is shipped first. values: tuned's, in that order. value: over rows and
    trainings. differences: tuned minus each alternative, over rows and trainings.
    """

    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    value: AcrossSeeds
    differences: Mapping[str, AcrossSeeds]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Seeds:
        """The opposite of `to_dict`."""
        return cls(
            kept["metric"],
            tuple(kept["seeds"]),
            tuple(kept["values"]),
            _across(kept["value"]),
            {name: _across(one) for name, one in kept["differences"].items()},
        )


def measured_alone(spec: Evaluate) -> Evaluate:
    """Settings for one more training beside the run's own: asked in the way that decides, and nothing else."""
    first_way = spec.decoding[:1] if isinstance(spec.decoding, list) else ["free"]
    return spec.model_copy(update={"seeds": 1, "forgetting": False, "decoding": first_way})


def further_trainings(recipe: Recipe) -> Iterator[Recipe]:
    """A resolved recipe with the seeds that follow its own."""
    for number in range(1, recipe.evaluate.seeds):
        train = recipe.train.model_copy(update={"seed": recipe.train.seed + number})
        yield recipe.model_copy(update={"train": train, "evaluate": measured_alone(recipe.evaluate)})


def train_further(prepared: Prepared, folder: RunFolder, listener: Listener) -> list[Evaluation]:
    """Train and evaluate with every further seed; what was done before is read."""
    return [_train_one(recipe, prepared.rows, folder, listener) for recipe in further_trainings(prepared.recipe)]


def _train_one(recipe: Recipe, rows: Rows, folder: RunFolder, listener: Listener) -> Evaluation:
    """One more training. Its model goes with this call: two of them may not fit into memory."""
    seed = recipe.train.seed
    listener({"kind": "note", "text": f"training again with seed {seed}"})
    run = RunFolder.create_at(folder.path / FOLDER / str(seed))
    with run.lock():
        prepared = prepare(recipe, rows)
        write_text(run.recipe_file, dump_recipe(prepared.recipe, {}, omit_auto=True))
        _, prepared = run_training(prepared, recipe, run, listener)
        evaluation = run_tuned(prepared, run, listener)[0]
        run.set_status("finished", verdict=f"seed {seed}")
    del prepared
    gc.collect()
    return evaluation


def follow_further(prepared: Prepared) -> None:
    """The part in it of a process that is not the first."""
    for recipe in further_trainings(prepared.recipe):
        follow(training_job(prepare(recipe, prepared.rows)))


def seeds_of(
    trainings: Sequence[Evaluation],
    alternatives: Sequence[Evaluation],
    task: Task,
    metric: str,
    *,
    first_seed: int,
    confidence: float,
    clusters: Clusters | None,
) -> Seeds:
    """What several trainings show, the shipped one first; tuned's other ways of answering are no alternatives."""
    return Seeds(
        metric=metric,
        seeds=tuple(first_seed + number for number in range(len(trainings))),
        values=tuple(_value(one, metric) for one in trainings),
        value=value_over_seeds(trainings, task, metric, confidence=confidence, clusters=clusters),
        differences={
            other.candidate: compare_seeds(trainings, other, task, metric, confidence=confidence, clusters=clusters)
            for other in alternatives
            if not is_tuned(other.candidate)
        },
    )


def over_seeds(comparison: Comparison, seeds: Seeds) -> Comparison:
    """The comparison with tuned's deciding value, and its differences to alternatives, over rows and trainings.

    Where all trainings agree on all rows there is no spread to speak of, and what the first one shows is left.
    """
    mean = fmean(seeds.values)
    values = tuple(
        _over(value, mean, seeds.value) if (value.candidate, value.metric) == (TUNED, seeds.metric) else value
        for value in comparison.values
    )
    others = {v.candidate: v.value for v in values if v.metric == seeds.metric}
    differences = []
    for pair in comparison.differences:
        name = pair.b if pair.a == TUNED else pair.a
        across = seeds.differences.get(name) if TUNED in (pair.a, pair.b) and pair.metric == seeds.metric else None
        differences.append(pair if across is None else _paired(pair, mean - others[name], across, name))
    return Comparison(comparison.metric, values, tuple(differences))


def with_values(evaluations: Sequence[Evaluation], comparison: Comparison) -> tuple[Evaluation, ...]:
    """Evaluations with the metrics as they stand in a comparison."""
    return tuple(
        replace(one, metrics=tuple(value for value in comparison.values if value.candidate == one.candidate))
        for one in evaluations
    )


def _over(value: MetricValue, mean: float, across: AcrossSeeds) -> MetricValue:
    if across.error == 0:
        return value
    reach = across.interval[1] - across.mean
    return replace(value, value=mean, low=max(0.0, mean - reach), high=min(1.0, mean + reach))


def _paired(pair: PairedDifference, difference: float, across: AcrossSeeds, name: str) -> PairedDifference:
    """Tuned minus an alternative as the mean over trainings, with Student's t test of it."""
    if across.error == 0:
        return pair
    from scipy.special import stdtr

    reach = across.interval[1] - across.mean
    return replace(
        pair,
        a=TUNED,
        b=name,
        difference=difference,
        low=max(-1.0, difference - reach),
        high=min(1.0, difference + reach),
        p_value=float(2 * stdtr(across.degrees, -abs(difference) / across.error)),
        test=f"t test over rows and {across.seeds} trainings",
    )


def _value(evaluation: Evaluation, metric: str) -> float:
    return next(value.value for value in evaluation.metrics if value.metric == metric)


def _across(kept: Mapping[str, Any]) -> AcrossSeeds:
    low, high = kept["interval"]
    return AcrossSeeds(**{**kept, "interval": (low, high)})
