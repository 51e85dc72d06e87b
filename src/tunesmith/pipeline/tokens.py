"""The rows of a part as the samples a training reads: in memory where they are few, else in a store that is kept.

Stores lie in `tokens/` of the user's cache folder (`$TUNESMITH_CACHE`, else `~/.cache/tunesmith`), one for each part,
named by a hash of everything that decides its tokens. A second run on the same rows, with another learning rate say,
opens what the first one made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.types import Example, Finding, Message
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.conversation import training_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.keeping import kept_store
from tunesmith.text.render import Renderer
from tunesmith.text.store import StoredSamples
from tunesmith.text.tokenising import store_key, tokenise_conversations, turns_hash
from tunesmith.text.types import Sample
from tunesmith.training.calibration import cache_folder
from tunesmith.training.resources import shown_bytes

Listener = Callable[[dict[str, Any]], None]

WORTH_KEEPING = 2 << 20
"""Bytes of a part (`said_bytes`) from which its tokens are kept: fewer are tokenised in less than a second."""
_TOLD_EVERY = 0.5
"""Seconds between two reports of progress."""


def tokenised(
    examples: Sequence[Example],
    renderer: Renderer,
    task: Task,
    recipe: Recipe,
    *,
    part: str,
    listener: Listener,
) -> Sequence[Sample]:
    """The samples of a part, `train` or `validation`, in the order of its rows.

    listener: hears of progress, and what was kept where.
    Raises `ResourceError` where the cache folder cannot be written.
    """
    if not _many(examples, task):
        return rendered(examples, renderer, task, recipe)
    # What is hashed is the turns themselves: whatever in a row, a task or the code decides them has its say.
    key = store_key(turns_hash(_conversations(examples, task)), renderer, recipe.train.loss)
    folder, made = cache_folder() / "tokens" / key, False

    def make(path: Path) -> StoredSamples:
        nonlocal made
        made = True
        done = _progress(listener, f"tokenising the {part} rows", len(examples))
        turns = _conversations(examples, task)
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
                lines=tuple(sorted(examples[i].line for i in long)),
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
                lines=tuple(sorted(examples[i].line for i in endless)),
                source=examples[endless[0]].source,
            )
        )
    return found


def _ending(renderer: Renderer, samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Whether each sample learns a token that ends a turn [n]."""
    if isinstance(samples, StoredSamples):
        return samples.learn_any(renderer.stop_ids)
    return np.fromiter(map(renderer.ends_turn, samples), np.bool_, len(samples))


def said_bytes(task: Task, example: Example) -> int:
    """Bytes (UTF-8) of what a row is learnt as: its turns, the calls in them, the tools offered, the instruction.

    A token is at least one byte, so without what the template adds a row has at most so many tokens.
    """
    size = 0
    for message in training_conversation(task, example):
        texts = [message.content, *(text for call in message.tool_calls for text in (call.name, call.arguments))]
        offered = message.tools.definitions if message.tools is not None else ()
        size += sum(len(text.encode()) for text in (*texts, *offered))
    return size


def _many(examples: Sequence[Example], task: Task) -> bool:
    """Whether tokenising these rows takes so long that its result is worth keeping."""
    size = 0
    for example in examples:
        size += said_bytes(task, example)
        if size >= WORTH_KEEPING:
            return True
    return False


def _conversations(examples: Sequence[Example], task: Task) -> Iterator[tuple[str, Sequence[Message]]]:
    """The turns each row is learnt as, with the row's id."""
    return ((example.id, training_conversation(task, example)) for example in examples)


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
