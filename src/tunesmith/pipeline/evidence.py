"""All that a verdict and a report rest on, in one object: as a run has it at its end, and as it is read back later.

What can be asked again only of a model stands in files of its own (`evaluation/<candidate>.jsonl`, `comparison.json`,
`training.json`); what was found on the way to the verdict stands in `decided_from.json`. Together they give the same
verdict again without the data, the base or the tuned model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.types import Finding
from tunesmith.errors import VerificationError
from tunesmith.evaluation.comparison import Comparison
from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference, ScoredAnswer
from tunesmith.pipeline.seeds import Seeds
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict.benefits import Weights
from tunesmith.verdict.types import CandidateCost, Forgetting

COMPARISON = "comparison.json"
DECIDED_FROM = "decided_from.json"
_FACTS = ("latency_p50", "latency_p95", "seconds")


@dataclass(frozen=True, slots=True)
class Background:
    """What the report says of the rows and of the recipe: nothing here decides."""

    task: str
    labels: tuple[str, ...]
    findings: tuple[Finding, ...]
    splits_explanation: str
    split_sizes: Mapping[str, int]
    choices: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the verdict of a run rests on.

    recipe: resolved. training: its facts; None where nothing was trained. caveats: those found on the way, others are
    found in the numbers. slices: ids of test rows by the name of a slice. seeds: None for a single training. clusters:
    by test row, what it hangs together with; None where rows are independent.
    """

    recipe: Recipe
    evaluations: tuple[Evaluation, ...]
    comparison: Comparison
    costs: Mapping[str, CandidateCost]
    training: Mapping[str, Any] | None
    caveats: tuple[str, ...]
    slices: Mapping[str, Sequence[str]]
    background: Background
    forgetting: Forgetting | None = None
    seeds: Seeds | None = None
    weights: Weights | None = None
    clusters: Mapping[str, str] | None = None

    @property
    def by_name(self) -> dict[str, Evaluation]:
        """Evaluations by candidate."""
        return {one.candidate: one for one in self.evaluations}


@dataclass(frozen=True, slots=True)
class Compared:
    """What `comparison.json` holds; `facts` is what else is known of each candidate, by name."""

    comparison: Comparison | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forgetting: Forgetting | None = None
    seeds: Seeds | None = None


def write_comparison(
    folder: RunFolder,
    comparison: Comparison,
    evaluations: Sequence[Evaluation],
    clean: Comparison | None,
    forgetting: Forgetting | None,
    seeds: Seeds | None,
) -> None:
    """Keep the comparison; `clean` is the one without leaked test rows."""
    kept = {**_sides(comparison), "candidates": candidate_facts(evaluations)}
    if clean is not None:
        kept["without_leaks"] = _sides(clean)
    if forgetting is not None:
        kept["forgetting"] = asdict(forgetting)
    if seeds is not None:
        kept["seeds"] = seeds.to_dict()
    write_json(folder.path / COMPARISON, kept)


def read_comparison(folder: RunFolder) -> Compared:
    """What was compared in a run; nothing where there is no comparison yet."""
    path = folder.path / COMPARISON
    if not path.is_file():
        return Compared()
    kept = json.loads(path.read_text(encoding="utf-8"))
    comparison = Comparison(
        kept["metric"],
        tuple(MetricValue(**v) for v in kept["values"]),
        tuple(PairedDifference(**d) for d in kept["differences"]),
    )
    seeds = Seeds.from_dict(kept["seeds"]) if "seeds" in kept else None
    return Compared(comparison, kept["candidates"], _read_forgetting(kept.get("forgetting")), seeds)


def candidate_facts(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """What is worth showing of each candidate beside its metrics."""
    return {e.candidate: {**{fact: getattr(e, fact) for fact in _FACTS}, **e.notes} for e in evaluations}


def read_training(folder: RunFolder) -> dict[str, Any] | None:
    """The facts of the run's training, without its history; None where nothing was trained."""
    path = folder.path / "training.json"
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    facts.pop("history", None)
    return facts


def write_evidence(folder: RunFolder, evidence: Evidence, preferences: Sequence[Preference]) -> None:
    """Keep what stands in no other file of the run; `preferences` are those that were heard."""
    write_json(
        folder.path / DECIDED_FROM,
        {
            "preferences": [asdict(one) for one in preferences],
            "trained": evidence.training is not None,
            "costs": [asdict(cost) for cost in evidence.costs.values()],
            "caveats": list(evidence.caveats),
            "slices": {name: list(ids) for name, ids in evidence.slices.items()},
            "clusters": dict(evidence.clusters) if evidence.clusters is not None else None,
            "background": asdict(evidence.background),
            "weights": asdict(evidence.weights) if evidence.weights else None,
        },
    )


def heard_otherwise(folder: RunFolder, preferences: Sequence[Preference]) -> bool:
    """Whether a run was decided, and with other preferences than these. Raises as `read_evidence`."""
    path = folder.path / DECIDED_FROM
    if not path.is_file():
        return False
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["preferences"]
    except (ValueError, KeyError, TypeError) as problem:
        raise _unreadable(folder, problem) from problem
    return bool(kept != json.loads(json.dumps([asdict(one) for one in preferences])))


def read_evidence(folder: RunFolder) -> Evidence | None:
    """The evidence of a run that was decided; None where it was not, or by a version that kept none.

    Raises `VerificationError` where a file is gone or damaged.
    """
    path = folder.path / DECIDED_FROM
    if not path.is_file():
        return None
    try:
        kept, compared = json.loads(path.read_text(encoding="utf-8")), read_comparison(folder)
        comparison = compared.comparison
        if comparison is None:
            raise FileNotFoundError(folder.path / COMPARISON)
        background = kept["background"]
        return Evidence(
            recipe=load_recipe(folder.recipe_file),
            evaluations=tuple(_read_evaluation(folder, name, comparison, of) for name, of in compared.facts.items()),
            comparison=comparison,
            costs={cost["candidate"]: CandidateCost(**cost) for cost in kept["costs"]},
            training=read_training(folder) if kept["trained"] else None,
            caveats=tuple(kept["caveats"]),
            slices=kept["slices"],
            background=Background(
                task=background["task"],
                labels=tuple(background["labels"]),
                findings=tuple(Finding(**{**f, "lines": tuple(f["lines"])}) for f in background["findings"]),
                splits_explanation=background["splits_explanation"],
                split_sizes=background["split_sizes"],
                choices=tuple((key, value, reason) for key, value, reason in background["choices"]),
            ),
            forgetting=compared.forgetting,
            seeds=compared.seeds,
            weights=Weights(**kept["weights"]) if kept["weights"] else None,
            clusters=kept.get("clusters"),
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise _unreadable(folder, problem) from problem


def _unreadable(folder: RunFolder, problem: Exception) -> VerificationError:
    return VerificationError(
        f"what the verdict rests on cannot be read: {problem}",
        where=str(folder.path),
        fix="run the recipe again with --new",
    )


def _read_evaluation(folder: RunFolder, name: str, comparison: Comparison, facts: Mapping[str, Any]) -> Evaluation:
    """A candidate as it was compared: its stored answers, with the intervals of the comparison."""
    path: Path = folder.evaluation / f"{name}.jsonl"
    with path.open(encoding="utf-8") as file:
        rows = tuple(_read_row(line) for line in file)
    return Evaluation(
        candidate=name,
        rows=rows,
        metrics=tuple(value for value in comparison.values if value.candidate == name),
        notes={key: value for key, value in facts.items() if key not in _FACTS},
        **{fact: facts[fact] for fact in _FACTS},
    )


def _read_row(line: str) -> ScoredAnswer:
    row = ScoredAnswer(**json.loads(line))
    return replace(row, samples=tuple(row.samples))


def _read_forgetting(kept: Mapping[str, Any] | None) -> Forgetting | None:
    if kept is None:
        return None
    return Forgetting(**{**kept, "skill": PairedDifference(**kept["skill"]) if kept["skill"] else None})


def _sides(comparison: Comparison) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "values": [asdict(v) for v in comparison.values],
        "differences": [asdict(d) for d in comparison.differences],
    }
