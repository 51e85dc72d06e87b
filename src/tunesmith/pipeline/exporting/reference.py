"""What an export is held against: the tuned model in memory, asked once, and its base beside it.

Logits are kept in a scratch folder, so that never more than one model is in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data.types import Message
from tunesmith.evaluation.comparison import evaluate_candidate, load_evaluation
from tunesmith.evaluation.decoding import Draws
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.types import Evaluation
from tunesmith.export.source import FolderSource
from tunesmith.inference.torch_artifacts import ProbedTorchEngine
from tunesmith.inference.types import Engine, FloatArray, Generation, ProbedEngine
from tunesmith.models.vocabulary import match_vocabulary
from tunesmith.pipeline.exporting.rows import FrozenRows, spread
from tunesmith.pipeline.training import TUNED
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.conversation import training_conversation

Tell = Callable[[str], None]
Ids = tuple[int, ...]

_PROBE_ROWS, _ROW_TOKENS = 16, 128
_RANDOM_ROWS, _RANDOM_TOKENS = 2, 24
_MOST_NUMBERS = 1 << 26
"""Logits kept of each model at most, which is a quarter of a gigabyte."""
CHATS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "What is the colour of the sky?"),),
    (Message("system", "Answer in one word."), Message("user", "Größe, 東京, naïve – 12.5 %?")),
    (Message("user", "Hello"), Message("assistant", "Hello! What can I do?"), Message("user", "Count to three.\n")),
)
"""Conversations by which template and stopping are compared where there are no rows, or beside them."""
CHAT_TOKENS = 24


@dataclass(frozen=True)
class Reference:
    """The tuned model's side of every comparison.

    probes: token ids that are read; the first `real` of them are test rows with their answers, or conversations.
    evaluation: of the tuned model on the test rows; None where `rows` says why there is none.
    chats: the tuned model's answers to `CHATS`; empty where nothing is asked.
    is_tuned: whether there is anything that tuning changed.
    """

    source: FolderSource
    recipe: Recipe
    rows: FrozenRows | str
    folder: Path
    probes: tuple[Ids, ...]
    real: int
    evaluation: Evaluation | None
    chats: tuple[Generation, ...]
    is_tuned: bool

    def tuned(self, place: int) -> FloatArray:
        """Logits [tokens, vocabulary] of the tuned model after each token of a probe."""
        return _kept(self.folder, "tuned", place)

    def base(self, place: int) -> FloatArray:
        """The same of the base as it was before tuning. Only where `is_tuned`."""
        return _kept(self.folder, "base", place)


def reference_bytes(vocabulary: int) -> int:
    """Bytes of scratch files that a reference takes at most: the logits of the tuned model and of its base."""
    positions = _PROBE_ROWS * _ROW_TOKENS
    return 2 * 4 * (min(_MOST_NUMBERS, positions * vocabulary) + _RANDOM_ROWS * _RANDOM_TOKENS * vocabulary)


def measure_reference(
    source: FolderSource, rows: FrozenRows | str, answers: Path | None, scratch: Path, tell: Tell
) -> Reference:
    """Ask the tuned model and its base all that exports of it will be compared with.

    answers: the run's folder of evaluations; the tuned model's is read there, or made and kept beside the exports'.
    """
    recipe, folder = source.recipe, scratch / "reference"
    folder.mkdir(parents=True)
    tell("opening the tuned model")
    base, tuning = source.open()
    engine = ProbedTorchEngine(base.model, source.renderer, source.context)
    probes, real = _probes(source, rows)
    _keep(engine, probes, folder, "tuned")
    evaluation: Evaluation | None = None
    chats: tuple[Generation, ...] = ()
    if source.asked:
        chats = tuple(engine.generate(CHATS, CHAT_TOKENS))
    if isinstance(rows, FrozenRows) and answers is not None:
        evaluation = tuned_evaluation(engine, rows, recipe, answers, tell)
    is_tuned = source.tuned != source.base_folder
    if source.is_adapter:
        with tuning.enabled(False):
            _keep(engine, probes, folder, "base")
    del base, tuning, engine
    gc.collect()
    if is_tuned and not source.is_adapter:
        before = source.open_base()
        match_vocabulary(before, source.tuned)
        _keep(ProbedTorchEngine(before.model, source.renderer, source.context), probes, folder, "base")
        del before
        gc.collect()
    return Reference(source, recipe, rows, folder, probes, real, evaluation, chats, is_tuned)


def tuned_evaluation(engine: Engine, rows: FrozenRows, recipe: Recipe, answers: Path, tell: Tell) -> Evaluation:
    """The tuned model's answers to the test rows: those of the run, or asked now where it did not ask."""
    spec = recipe.evaluate
    known = load_evaluation(
        answers, TUNED, rows.task, rows.test, resamples=spec.bootstrap, confidence=spec.confidence,
        seed=recipe.train.seed, clusters=rows.clusters,
    )  # fmt: skip
    if known is not None:
        return known
    tell(f"asking the tuned model the {len(rows.test)} {rows.part} rows, which the run did not")
    return score(TUNED, engine, rows, recipe, answers / "exports", tell)


def score(name: str, engine: Engine, rows: FrozenRows, recipe: Recipe, folder: Path, tell: Tell) -> Evaluation:
    """A model as one more candidate on the rows, asked in the deciding way of the recipe; answers go to `folder`.

    What lies there under this name is asked anew: a new export has other weights.
    """
    spec = recipe.evaluate
    for ending in ("jsonl", "jsonl.partial", "timing.json"):
        (folder / f"{name}.{ending}").unlink(missing_ok=True)
    way = spec.decoding[0] if spec.decoding != "auto" else "free"
    draws = Draws(spec.samples, spec.temperature, recipe.train.seed) if spec.samples > 1 and way != "scored" else None
    candidate = PromptCandidate(
        name, engine, rows.task, int(spec.max_new_tokens), full=False, decoding=way, draws=draws
    )

    return evaluate_candidate(
        candidate, rows.task, rows.test, folder, latency_rows=spec.latency_rows, resamples=spec.bootstrap,
        confidence=spec.confidence, seed=recipe.train.seed, clusters=rows.clusters, on_progress=_told(tell, rows.part),
    )  # fmt: skip


def _told(tell: Tell, part: str) -> Callable[[int, int], None]:
    """Progress in quarters: a line for every row would hide the others."""
    told = 0

    def done(count: int, total: int) -> None:
        nonlocal told
        quarter = 4 * count // total
        if quarter > told and count < total:
            told = quarter
            tell(f"{count} of {total} {part} rows answered")

    return done


def _probes(source: FolderSource, rows: FrozenRows | str) -> tuple[tuple[Ids, ...], int]:
    """What is read: real rows, each as it would be learnt, and random tokens; and how many are real."""
    vocabulary = source.config.get_text_config().vocab_size
    most = min(_ROW_TOKENS, source.context)
    renderer = source.renderer
    real: list[Ids] = []
    if isinstance(rows, FrozenRows):
        for place in spread(len(rows.test), _PROBE_ROWS):
            turns = training_conversation(rows.task, rows.test[place])
            real.append(tuple(renderer.sample(turns, source.recipe.train.loss).ids[-most:].tolist()))
    elif source.asked:
        real = [tuple(renderer.prompt_ids(chat)[-most:]) for chat in CHATS]
    budget = _MOST_NUMBERS // vocabulary
    kept: list[Ids] = []
    for ids in real:
        if budget >= len(ids):
            kept.append(ids)
            budget -= len(ids)
    draw = torch.Generator().manual_seed(0)
    known = min(vocabulary, len(source.tokenizer))
    noise = torch.randint(0, known, (_RANDOM_ROWS, min(_RANDOM_TOKENS, source.context)), generator=draw)
    return (*(ids for ids in kept if ids), *(tuple(ids) for ids in noise.tolist())), len([i for i in kept if i])


def _keep(engine: ProbedEngine, probes: Sequence[Ids], folder: Path, name: str) -> None:
    """Write the logits of every probe."""
    for place, ids in enumerate(probes):
        np.save(folder / f"{name}-{place}.npy", engine.logits(ids))


def _kept(folder: Path, name: str, place: int) -> FloatArray:
    found: Any = np.load(folder / f"{name}-{place}.npy", mmap_mode="r")
    return found  # type: ignore[no-any-return]
