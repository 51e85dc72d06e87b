"""A finished run's evidence for other tools: test rows read again, prompts checked against those that were sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.types import Example
from tunesmith.errors import DataError, EngineError, RecipeError
from tunesmith.evaluation.neighbours import Evidence, Options, Written, read_evidence, with_conversations, write_as
from tunesmith.evaluation.neighbours.evidence import REMOTE, Conversation, whole_text
from tunesmith.models.load import base_folder
from tunesmith.pipeline.opening import tuned_folder
from tunesmith.pipeline.prepare import read_data
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.text.render import Renderer


def write_evidence(
    folder: RunFolder,
    to: str,
    out: Path | None = None,
    *,
    candidates: Sequence[str] = (),
    options: Options | None = None,
) -> Written:
    """Write a run's rows, prompts, answers and scores as the tool `to` reads them; `out` is RUN/evidence/TO by default.

    Only the run, its data and the base's tokenizer are read; no model is loaded. Raises `RecipeError` where the run
    was not evaluated or `to` is no tool we know, `DataError` where the data are not those that were evaluated.
    """
    evidence = gather(folder, candidates)
    return write_as(to, evidence, out if out is not None else folder.path / "evidence" / to, options or Options())


def gather(folder: RunFolder, candidates: Sequence[str] = ()) -> Evidence:
    """The evidence of a run. Turns are given for candidates whose stored prompts they render to, exactly."""
    if not folder.recipe_file.is_file():
        raise RecipeError("this run did not get as far as its recipe", where=str(folder.path))
    recipe = load_recipe(folder.recipe_file)
    if recipe.evaluate.max_new_tokens == "auto":
        raise RecipeError("this run was not evaluated", where=str(folder.path), fix="tunesmith run RECIPE")
    examples = _test_rows(folder, recipe)
    renderer = _renderer(folder, recipe)
    stops = [text for token in sorted(renderer.stop_ids) if (text := str(renderer.tokenizer.decode([token])))]
    evidence = read_evidence(folder, recipe, examples, stops=stops, names=candidates)
    return with_conversations(evidence, _conversations(evidence, examples, renderer))


def _test_rows(folder: RunFolder, recipe: Recipe) -> Sequence[Example]:
    rows = read_data(recipe, depth="quick")
    recorded = folder.manifest().get("data", {}).get("splits_sha256", {}).get("test")
    if recorded != rows.splits.hashes["test"]:
        raise DataError(
            "the test rows are not those that this run was evaluated on",
            where=recipe.data.test or recipe.data.train,
            expected=f"test rows with SHA-256 {recorded}",
            fix="bring the data back as they were, or run the recipe again",
        )
    return rows.splits.test


def _renderer(folder: RunFolder, recipe: Recipe) -> Renderer:
    """What turns conversations into the run's prompts; a run that added tokens has a tokenizer of its own."""
    from transformers import AutoTokenizer

    own, base = tuned_folder(folder), base_folder(recipe.base.model)
    source = own if (own / "tokenizer_config.json").is_file() else base
    settings: Mapping[str, Any] = {} if source is not None else {"revision": recipe.base.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source or recipe.base.model), trust_remote_code=recipe.base.trust_remote_code, **settings
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(
            f"the tokenizer could not be loaded: {str(error).strip().splitlines()[0]}", where=recipe.base.model
        ) from error
    return Renderer(tokenizer, recipe.base.chat_template)


def _conversations(
    evidence: Evidence, examples: Sequence[Example], renderer: Renderer
) -> dict[str, list[Conversation]]:
    """By candidate, the turns of every row: asked as a tuned model is, or with the full instruction."""
    known: dict[str, list[Conversation]] = {}
    ways = {full: [asking_conversation(evidence.task, e, full=full) for e in examples] for full in (False, True)}
    texts = {full: [whole_text(renderer.prompt_text(turns)) for turns in made] for full, made in ways.items()}
    words = {full: [whole_text(_in_words(turns)) for turns in made] for full, made in ways.items()}
    for shown in evidence.asked:
        sent = [answer.prompt for answer in shown.answers]
        written = words if shown.name.startswith(REMOTE) else texts
        found = next((full for full in (False, True) if written[full] == sent), None)
        if found is not None:
            known[shown.name] = ways[found]
    return known


def _in_words(turns: Conversation) -> str:
    """Turns as they are kept of what was sent to an endpoint."""
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
