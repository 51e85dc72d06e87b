"""The alternatives to tuning, measured before anything is trained.

How a prompt is best asked (which instruction, which examples, how many of them or of the passages) is chosen on
validation rows, together, and kept in the run; the test rows are asked once, with what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from tunesmith.evaluation.encoder import TextEncoder, load_encoder
from tunesmith.evaluation.prompt_choice import Variant, choose_prompt
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.shots import draw_shots, first_shots
from tunesmith.evaluation.trivial import trivial_baselines
from tunesmith.evaluation.types import Evaluation
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.document_search import document_search, search_name
from tunesmith.pipeline.evaluating import asking_settings, evaluate, evaluate_ways, prompted
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.remotes import announce, check_remotes, remote_candidates, tell_of
from tunesmith.pipeline.stage import Stage, data_key, engine_of, progress
from tunesmith.runs import RunFolder
from tunesmith.tasks.types import Task
from tunesmith.training.calibration import cache_folder

Make = Callable[..., PromptCandidate]
"""A candidate from its `Variant` and further settings of `PromptCandidate`."""


def run_baselines(prepared: Prepared, folder: RunFolder, listener: Listener) -> list[Evaluation]:
    """Measure every alternative the recipe names on the test set. The base must not be tuned yet.

    Raises `RecipeError` for a remote that cannot be asked, `DataError` for documents that cannot be read, both before
    any model is asked, and `EngineError` where an endpoint is gone; what was measured until then is kept.
    """
    wanted, splits = prepared.recipe.baselines, prepared.rows.splits
    check_remotes(prepared.recipe)
    engine = engine_of(prepared)
    encoder = _encoder(prepared)
    prompts: list[Callable[[], PromptCandidate]] = []
    if "zero_shot" in wanted:
        prompts.append(lambda: _zero_shot(prepared, engine, folder, listener))
    if "few_shot" in wanted:
        prompts.append(lambda: _few_shot(prepared, engine, folder, listener))
    if "retrieval" in wanted:
        prompts.append(lambda: _retrieval(prepared, engine, encoder, folder, listener))
    if _with_documents(prepared):
        prompts.append(_documents(prepared, engine, encoder, folder, listener))
    found = []
    if "trivial" in wanted:
        for baseline in trivial_baselines(prepared.task):
            found.append(evaluate(baseline.fit(splits.train, splits.validation), prepared, folder, listener))
    for make in prompts:
        found += evaluate_ways(make(), prepared, folder, listener)
        _tell_of_rows_in_documents(found[-1], listener)
    for remote, candidate in remote_candidates(prepared, folder):
        announce(remote, candidate, prepared, folder, listener)
        found.append(evaluate(candidate, prepared, folder, listener))
        tell_of(found[-1], listener)
    return found


def _zero_shot(prepared: Prepared, engine: TorchEngine, folder: RunFolder, listener: Listener) -> PromptCandidate:
    def make(variant: Variant, **more: Any) -> PromptCandidate:
        return _asked("zero_shot", variant, prepared, engine, **more)

    return _chosen("zero_shot", make, _variants(prepared, [0]), prepared, folder, listener)


def _few_shot(prepared: Prepared, engine: TorchEngine, folder: RunFolder, listener: Listener) -> PromptCandidate:
    spec, train, seed = prepared.recipe.evaluate, prepared.rows.splits.train, prepared.recipe.train.seed
    most = max(spec.few_shot_k)
    shots = {"diverse": draw_shots(train, prepared.task, most, seed), "fixed": first_shots(train, most)}

    def make(variant: Variant, **more: Any) -> PromptCandidate:
        return _asked("few_shot", variant, prepared, engine, shots=shots[variant.choice], **more)

    variants = _variants(prepared, spec.few_shot_k, spec.few_shot_choice)
    settings = {} if spec.few_shot_choice == ["diverse"] else {"choices": list(spec.few_shot_choice)}
    return _chosen("few_shot", make, variants, prepared, folder, listener, settings)


def _retrieval(
    prepared: Prepared, engine: TorchEngine, encoder: TextEncoder | None, folder: RunFolder, listener: Listener
) -> PromptCandidate:
    retriever = Retriever(prepared.rows.splits.train, encoder)
    facts = {"search": search_name(prepared)} if encoder is not None else {}
    settings = {**facts, "encoder": encoder.name} if encoder is not None else {}

    def make(variant: Variant, **more: Any) -> PromptCandidate:
        more["facts"] = {**facts, **more.get("facts", {})}
        return _asked("retrieval", variant, prepared, engine, retriever=retriever, **more)

    variants = _variants(prepared, prepared.recipe.evaluate.retrieval_k)
    return _chosen("retrieval", make, variants, prepared, folder, listener, settings)


def _documents(
    prepared: Prepared, engine: TorchEngine, encoder: TextEncoder | None, folder: RunFolder, listener: Listener
) -> Callable[[], PromptCandidate]:
    """The documents are read at once, so that what is wrong with them is told before anything is asked."""
    search = document_search(prepared, engine, encoder)
    if skipped := search.documents.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in skipped.items())
        listener({"kind": "note", "text": f"documents: files that are not read: {sum(skipped.values()):,} ({kinds})"})

    def make(variant: Variant, **more: Any) -> PromptCandidate:
        more["facts"] = {**search.facts, **more.get("facts", {})}
        return _asked("documents", variant, prepared, engine, finder=search.finder, **more)

    variants = _variants(prepared, prepared.recipe.evaluate.documents_k)
    settings = {**search.key, **({"encoder": encoder.name} if encoder is not None else {})}
    return lambda: _chosen("documents", make, variants, prepared, folder, listener, settings)


def _asked(name: str, variant: Variant, prepared: Prepared, engine: TorchEngine, **more: Any) -> PromptCandidate:
    """A prompt around the base, in the words of the variant."""
    candidate = prompted(name, prepared, engine, k=variant.k, **more)
    return replace(candidate, task=_worded(prepared, variant.instruction))


def _worded(prepared: Prepared, instruction: int) -> Task:
    """The task with another wording of its instruction; what says the form of the answer stays."""
    if instruction == 0:
        return prepared.task
    text = prepared.recipe.evaluate.instructions[instruction - 1]
    return replace(prepared.task, given_instruction=text)  # type: ignore[type-var]


def _variants(prepared: Prepared, ks: Sequence[int], choices: Sequence[str] = ("",)) -> list[Variant]:
    """Every combination, the task's own instruction first."""
    instructions = range(len(prepared.recipe.evaluate.instructions) + 1)
    return [Variant(k, choice, number) for number, choice, k in product(instructions, choices, sorted(set(ks)))]


def _chosen(
    name: str,
    make: Make,
    variants: Sequence[Variant],
    prepared: Prepared,
    folder: RunFolder,
    listener: Listener,
    settings: Mapping[str, Any] | None = None,
) -> PromptCandidate:
    """The candidate with its variant chosen on validation rows; the choice is kept in the run.

    `settings`: what answers depend on beside rows, base and numbers of examples. Where they have changed, the
    candidate's answers are asked for anew.
    """
    spec, metric = prepared.recipe.evaluate, str(prepared.recipe.goal.metric)
    if len(variants) == 1 and not settings:
        return make(variants[0])
    worded = {"instructions": list(spec.instructions)} if spec.instructions else {}
    stage = Stage(
        folder,
        f"{name}_k",
        [f"evaluation/{name}.*", f"evaluation/{name}_*"],
        **data_key(prepared),
        **asking_settings(prepared),
        ks=[variant.k for variant in variants if variant.instruction == 0],
        metric=metric,
        **worded,
        **(settings or {}),
    )
    if stage.result is None:
        choice = choose_prompt(
            make,
            variants,
            prepared.rows.splits.validation,
            metric=metric,
            rows=spec.selection_rows,
            seed=prepared.recipe.train.seed,
            on_progress=progress(listener, "baselines", f"{name}: choosing how to ask"),
        )
        stage.finish({**asdict(choice.variant), "facts": dict(choice.facts(spec.instructions))})
        return make(choice.variant, facts=choice.facts(spec.instructions))
    kept = dict(stage.result)
    facts = kept.pop("facts")
    return make(replace(variants[0], **kept), facts=facts)


def _tell_of_rows_in_documents(evaluation: Evaluation, listener: Listener) -> None:
    if count := int(evaluation.notes.get("rows_found_in_documents", 0)):
        text = f"{count} of {len(evaluation.rows)} test rows stand in the documents, question and answer"
        listener(
            {"kind": "warning", "text": f"{text}: those passages were not shown for them", "code": "row_in_documents",
             "count": count}
        )  # fmt: skip


def _with_documents(prepared: Prepared) -> bool:
    return "documents" in prepared.recipe.baselines and prepared.recipe.data.documents is not None


def _encoder(prepared: Prepared) -> TextEncoder | None:
    """The recipe's encoder, where something is to be found with it."""
    source = prepared.recipe.evaluate.embedding_model
    if source is None or not ("retrieval" in prepared.recipe.baselines or _with_documents(prepared)):
        return None
    return load_encoder(source, cache=cache_folder() / "embeddings")
