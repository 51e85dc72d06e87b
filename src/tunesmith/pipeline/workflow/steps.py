"""Carrying out one step: what decides its result, the work itself, and what the next step gets."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.reading import source_sha256
from tunesmith.errors import DataError, RecipeError
from tunesmith.export.source import open_folders
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.exporting.flow import export_pack, export_run, export_source
from tunesmith.pipeline.exporting.measure import measure_artifact, speed_of
from tunesmith.pipeline.exporting.reference import measure_reference, score
from tunesmith.pipeline.exporting.rows import FrozenRows, Part, calibration_ids, frozen_rows
from tunesmith.pipeline.exporting.targets import choose_targets
from tunesmith.pipeline.exporting.verify import verify
from tunesmith.pipeline.loading import TASK
from tunesmith.pipeline.named_files import named_files
from tunesmith.pipeline.prepare import Listener
from tunesmith.pipeline.run import run
from tunesmith.pipeline.searching.scoring import LOSS, score_of
from tunesmith.pipeline.workflow.cache import Done, once, step_key
from tunesmith.pipeline.workflow.products import Product
from tunesmith.pipeline.workflow.types import Step, StepKind
from tunesmith.recipe import recipe_hash
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.spaces import with_settings
from tunesmith.runs import environment, stage_key

EXPORTS: Mapping[StepKind, str | None] = {
    "merge": "merged",
    "quantise": "torchao",
    "onnx": "onnx",
    "multi-onnx": "onnx-multi",
    "gguf": "gguf",
    "export": None,
}
"""The kinds of step that make an export, with the artifact's kind where the settings name none."""
_NAME = "scored"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where steps are carried out.

    searching: whether anything is chosen among outcomes; then no step answers a test row.
    """

    cache: Path
    listener: Listener
    searching: bool

    def tell(self, line: str) -> None:
        """One line of progress."""
        self.listener({"kind": "note", "text": line})


@dataclass(frozen=True, slots=True)
class Carried:
    """A step that was carried out, what it measured, and the product as it is after it."""

    done: Done
    product: Product
    measures: Mapping[str, float]


def carry_out(
    step: Step, settings: Mapping[str, Any], product: Product, recipe: Recipe | None, bench: Bench
) -> Carried:
    """Carry a step out, or take what an earlier one with the same inputs made.

    Raises `TunesmithError` where it fails.
    """
    if step.kind == "train":
        if recipe is None:
            raise RecipeError("there is no recipe to train by", where=step.name)
        return _train(with_settings(recipe, settings), product, bench)
    if step.kind == "evaluate":
        return _evaluate(rows_of(settings, bench.searching), product, bench)
    if step.kind == "measure":
        return _measure(bool(settings.get("peak_memory", False)), product, bench)
    return _export(step, target_of(step.kind, settings), product, bench)


def target_of(kind: StepKind, settings: Mapping[str, Any]) -> Target:
    """The export that a step's settings mean. Raises `RecipeError` for what does not go together."""
    named = settings.get("kind") or EXPORTS[kind]
    if named is None:
        raise RecipeError("nothing says what to export to", where="kind", expected="a format")
    (target,) = choose_targets(
        [str(named)],
        bits=settings.get("bits"),
        precision=settings.get("precision"),
        device=settings.get("device"),
        runtime=settings.get("runtime"),
    )
    return target


def rows_of(settings: Mapping[str, Any], searching: bool) -> Part:
    """The rows that an `evaluate` step answers."""
    rows: Part | Literal["auto"] = settings.get("rows", "auto")
    return ("validation" if searching else "test") if rows == "auto" else rows


def _train(recipe: Recipe, product: Product, bench: Bench) -> Carried:
    """Train a recipe, and measure validation rows only."""
    base = open_folders(
        recipe.base.model, None, revision=recipe.base.revision, trust_remote_code=recipe.base.trust_remote_code
    )
    files = {p: source_sha256(s) for p in ("train", "validation", "test") if (s := getattr(recipe.data, p)) is not None}
    key = step_key(
        "train", recipe=recipe_hash(recipe), data=files, files=named_files(recipe), base=base.base_sha256
    )  # fmt: skip

    def train(folder: Path) -> Mapping[str, Any]:
        result = run(recipe, out=folder, through="train", listener=bench.listener)
        gc.collect()
        found = score_of(result.folder, recipe, result.recipe)
        loss = {} if found.loss is None else {LOSS: found.loss}
        return {"measures": {**loss, **({} if found.name == LOSS else {f"training.{found.name}": found.value})}}

    done = once(bench.cache, "train", key, train, kept=_of_run, tell=bench.tell)
    trained = Product(done.product, adapters=product.adapters)
    return Carried(done, trained, done.result["measures"])


def _of_run(folder: Path) -> list[Path]:
    """What of a run decides what it answers."""
    return [folder / name for name in ("adapter", "model", "training.json", "recipe.yaml", TASK)]


def _export(step: Step, target: Target, product: Product, bench: Bench) -> Carried:
    """Export the tuned model; with test rows only where nothing is chosen by what comes of it."""
    inputs: dict[str, Any] = {"source": product.sha256(), "target": target}
    with_rows = product.run is not None and not bench.searching and step.kind != "multi-onnx"
    key = step_key(step.kind, **inputs, verified_on="test rows" if with_rows else "probes")

    def export(folder: Path) -> Mapping[str, Any]:
        for left in (folder, folder.with_name(f"{folder.name}.failed")):
            shutil.rmtree(left, ignore_errors=True)
        if step.kind == "multi-onnx":
            sources = product.sources()
            made = export_pack(
                product.source().recipe.base.model, sources, target, folder, listener=bench.listener
            )  # fmt: skip
        elif with_rows:
            made = export_run(product.folder(), target, out=folder, listener=bench.listener)
        else:
            ids = _calibration(product)
            made = export_source(product.source(), target, folder, calibration=ids, listener=bench.listener)
        gc.collect()
        numbers = made.verification.numbers
        measures = {
            name: float(numbers[name]) for name in ("mean_kl", "top1_agreement") if numbers.get(name) is not None
        }
        adapters = made.artifact.adapters
        return {"measures": measures, "adapter": adapters[0] if adapters else None}

    done = once(bench.cache, step.kind, key, export, tell=bench.tell)
    exported = replace(product, artifact=done.product, adapter_name=done.result["adapter"])
    return Carried(done, exported, done.result["measures"])


def _calibration(product: Product) -> tuple[tuple[int, ...], ...]:
    """Training rows for quantisers; none for a model without a run, and for pairs, which are never answered."""
    if product.run is None or product.recipe().data.columns.second is not None:
        return ()
    rows = _rows(product, "train")
    return calibration_ids(rows, product.source().renderer, product.recipe())


def _evaluate(part: Part, product: Product, bench: Bench) -> Carried:
    """The task's metrics on validation or test rows, asked in the deciding way of the recipe."""
    recipe = product.recipe()
    hashes = product.folder().manifest()["data"]["splits_sha256"]
    key = step_key("evaluate", model=product.content_sha256(), part=part, rows=hashes[part], evaluate=recipe.evaluate,
                   files=named_files(recipe))  # fmt: skip

    def evaluate(folder: Path) -> Mapping[str, Any]:
        rows = _rows(product, part)
        bench.tell(f"answering {len(rows.test)} {part} rows")
        found = score(_NAME, product.engine(), rows, recipe, folder, lambda line: None)
        gc.collect()
        return {"measures": {one.metric: float(one.value) for one in found.metrics}, "rows": len(rows.test)}

    done = once(bench.cache, "evaluate", key, evaluate, tell=bench.tell)
    return Carried(done, product, done.result["measures"])


def prove(product: Product, bench: Bench) -> Carried:
    """An export that was chosen by validation rows, held against the tuned model on the frozen test rows.

    The result's `failed` lists the checks that failed, in words.
    """
    assert product.artifact is not None
    artifact = read_artifact(product.artifact)
    hashes = product.folder().manifest()["data"]["splits_sha256"]
    key = step_key("prove", model=product.content_sha256(), tuned=product.sha256(), rows=hashes["test"])

    def proved(folder: Path) -> Mapping[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        bench.tell("proving the chosen export on test rows")
        source, rows = product.source(), _rows(product, "test")
        reference = measure_reference(source, rows, folder / "tuned", folder / "scratch", bench.tell)
        engine = open_artifact(artifact, product.adapter_name)
        found = verify(artifact, engine, reference, answers=folder, tell=bench.tell)
        shutil.rmtree(folder / "scratch")
        gc.collect()
        metrics = (found.numbers.get("scores") or {}).get("metrics", {})
        return {
            "measures": {name: float(value) for name, value in metrics.items()},
            "failed": [f"{check.name}: {check.text}" for check in found.failed],
            "verification": found.to_dict(),
        }

    done = once(bench.cache, "prove", key, proved, tell=bench.tell)
    return Carried(done, product, done.result["measures"])


def _rows(product: Product, part: Part) -> FrozenRows:
    """Rows of a run as it was trained, those of `part` where they are answered. Raises `DataError` without them."""
    folder = product.folder()
    found = frozen_rows(folder, product.recipe(), part)
    if isinstance(found, str):
        raise DataError(found, where=str(folder.path))
    return found


def _measure(peak_memory: bool, product: Product, bench: Bench) -> Carried:
    """Size and speed on this machine."""
    key = step_key("measure", model=product.content_sha256(), peak_memory=peak_memory, machine=_machine())

    def measure(_: Path) -> Mapping[str, Any]:
        bench.tell("measuring size and speed")
        apart = peak_memory and product.artifact is not None
        speed = (
            measure_artifact(product.artifact, product.adapter_name)
            if apart and product.artifact is not None
            else speed_of(product.engine())
        )
        gc.collect()
        found = {
            "size_bytes": float(product.bytes()),
            "first_token_seconds": speed.first_token,
            "tokens_per_second": speed.decode,
            "seconds_per_token": 1 / speed.decode,
        }
        return {"measures": found | ({"peak_memory_bytes": float(speed.peak_memory)} if speed.peak_memory else {})}

    done = once(bench.cache, "measure", key, measure, tell=bench.tell)
    return Carried(done, product, done.result["measures"])


def _machine() -> str:
    """What speed depends on beside the model."""
    here = environment()
    return stage_key(**{name: here[name] for name in ("platform", "cpu", "cores", "gpu")})
