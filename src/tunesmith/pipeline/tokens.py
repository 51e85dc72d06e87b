"""The rows of a part as the samples a training reads: in memory where they are few, else in a store that is kept.

Stores lie in `tokens/` of the user's cache folder (`$TUNESMITH_CACHE`, else `~/.cache/tunesmith`), one for each part,
named by a hash of everything that decides its tokens. A second run on the same rows, with another learning rate say,
opens what the first one made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.types import Example, Finding
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks import task_record
from tunesmith.tasks.conversation import training_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.keeping import kept_store
from tunesmith.text.render import Renderer
from tunesmith.text.store import StoredSamples
from tunesmith.text.tokenising import store_key, tokenise_conversations
from tunesmith.text.types import Sample
from tunesmith.training.calibration import cache_folder
from tunesmith.training.resources import shown_bytes

Listener = Callable[[dict[str, Any]], None]

WORTH_KEEPING = 2 << 20
"""Characters of a part from which its tokens are kept: fewer are tokenised in less than a second."""
_NOT_CONTENT = {"train", "validation", "test", "split", "max_rows", "learning_curve", "learning_curve_shares"}
"""Settings of `data` that say where rows are and which are taken, not what one says."""
_TOLD_EVERY = 0.5
"""Seconds between two reports of progress."""


def tokenised(
    examples: Sequence[Example],
    renderer: Renderer,
    task: Task,
    recipe: Recipe,
    *,
    part: str,
    sources: Mapping[str, str],
    listener: Listener,
) -> Sequence[Sample]:
    """The samples of a part, `train` or `validation`, in the order of its rows.

    sources: SHA-256 of the files the rows come from. listener: hears of progress, and what was kept where.
    Raises `ResourceError` where the cache folder cannot be written.
    """
    if not _many(examples):
        return rendered(examples, renderer, task, recipe)
    key = _key(examples, renderer, task, recipe, sources)
    folder, made = cache_folder() / "tokens" / key, False

    def make(path: Path) -> StoredSamples:
        nonlocal made
        made = True
        turns = ((example.id, training_conversation(task, example)) for example in examples)
        done = _progress(listener, f"tokenising the {part} rows", len(examples))
        return tokenise_conversations(renderer, turns, path, loss=recipe.train.loss, done=done)

    def say(text: str) -> None:
        listener({"kind": "note", "text": text})

    store = kept_store(folder, make, say)
    size = shown_bytes(store.nbytes)
    if made:
        tokens = int(store.lengths.sum())
        say(f"{len(store):,} {part} rows are {tokens:,} tokens, kept for the next run ({size}) in {folder}")
    else:
        say(f"the {part} rows were tokenised before: {size} in {folder}")
    return store


def rendered(examples: Sequence[Example], renderer: Renderer, task: Task, recipe: Recipe) -> tuple[Sample, ...]:
    """The samples of some rows, in memory."""
    conversations = [training_conversation(task, example) for example in examples]
    return tuple(renderer.samples(conversations, recipe.train.loss, [example.id for example in examples]))


def those(samples: Sequence[Sample], wanted: npt.NDArray[np.bool_]) -> Sequence[Sample]:
    """The samples for which `wanted` [n] says so, in order; those of a store stay on the disk."""
    if wanted.all():
        return samples
    places = np.flatnonzero(wanted)
    return samples.take(places) if isinstance(samples, StoredSamples) else tuple(samples[i] for i in places.tolist())


def token_findings(
    renderer: Renderer,
    samples: Sequence[Sample],
    examples: Sequence[Example],
    counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    limit: int,
) -> list[Finding]:
    """What only tokens can tell: rows that do not fit, rows that do not end. `counts`: tokens, and those learnt."""
    lengths, supervised = counts
    found = []
    long = np.flatnonzero(lengths > limit).tolist()
    if long:
        found.append(
            Finding(
                code="row_too_long",
                severity="error" if len(long) == len(samples) else "warning",
                message=f"{len(long)} row(s) are longer than {limit} tokens and are left out of training "
                f"({int(supervised[long].sum())} supervised tokens)",
                fix="shorten these rows, or use a base with a longer context; nothing is ever cut",
                count=len(long),
                lines=tuple(examples[i].line for i in long),
                source=examples[long[0]].source,
            )
        )
    endless = np.flatnonzero((supervised > 0) & ~_ending(renderer, samples)).tolist()
    if endless:
        found.append(
            Finding(
                code="end_not_learnt",
                severity="warning",
                message=f"in {len(endless)} row(s) no token that ends the answer is learnt: the model may never stop",
                fix="choose a base.chat_template whose assistant turns end with an end-of-turn token",
                count=len(endless),
                lines=tuple(examples[i].line for i in endless),
                source=examples[endless[0]].source,
            )
        )
    return found


def _ending(renderer: Renderer, samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Whether each sample learns a token that ends a turn [n]."""
    if isinstance(samples, StoredSamples):
        return samples.learn_any(renderer.stop_ids)
    return np.fromiter(map(renderer.ends_turn, samples), np.bool_, len(samples))


def _many(examples: Sequence[Example]) -> bool:
    """Whether tokenising these rows takes so long that its result is worth keeping."""
    characters = 0
    for example in examples:
        characters += sum(len(message.content) for message in example.messages)
        if characters >= WORTH_KEEPING:
            return True
    return False


def _key(
    examples: Sequence[Example], renderer: Renderer, task: Task, recipe: Recipe, sources: Mapping[str, str]
) -> str:
    """The name of a part's store. Ids are hashes of what rows say; the files they are from are hashed as well."""
    content = hashlib.sha256()
    for example in examples:
        content.update(f"{example.id}\n".encode())
    mapping = recipe.data.model_dump(mode="json", exclude=_NOT_CONTENT)
    more = [task_record(task), mapping, dict(sources)]
    return store_key(
        content.hexdigest(), renderer, recipe.train.loss, json.dumps(more, sort_keys=True, ensure_ascii=False)
    )


def _progress(listener: Listener, label: str, total: int) -> Callable[[int], None]:
    began = told = time.monotonic()

    def done(count: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < _TOLD_EVERY and count < total:
            return
        told = now
        seconds = max(now - began, 1e-9)
        event = {"kind": "progress", "label": label, "done": count, "total": total, "unit": "rows"}
        listener({**event, "seconds": seconds, "rate": count / seconds})

    return done
