"""From recipe, rows and samples to the facts a diagnosis needs: all of them known before the first step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.types import Example, Splits
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample
from tunesmith.training.diagnosis.types import TrainingFacts
from tunesmith.training.diagnosis.word_signal import predictability, separation

_MOST_ROWS = 500
"""Rows of each part looked at for shares and words (half a second); more would hardly change a finding."""
_ONLY_ANSWERS = 0.99
"""Share of the loss on answers from which its level can be compared with guessing them."""
_REPEATED = 3
"""Rows per distinct answer, on average, from which answers are a closed set."""


def gather_facts(
    recipe: Recipe,
    task: Task,
    splits: Splits,
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    steps: int,
    usual_learning_rate: float | None = None,
    rows_available: int | None = None,
    zero_shot: float | None = None,
) -> TrainingFacts:
    """The facts of a run about to train.

    Parameters
    ----------
    recipe: resolved (no `auto` left). samples: the training rows as they are learnt, in any order, found by their ids.
    usual_learning_rate: what `auto` decides for this base and method. rows_available: training rows in the file.
    """
    epochs = steps / max(1, math.ceil(len(samples) / int(recipe.train.batch_size)))
    looked_at = _evenly(samples, _MOST_ROWS)
    by_id = {example.id: example for example in splits.train}
    known = [(s, by_id[s.example_id]) for s in looked_at if s.example_id in by_id]
    prompts = [renderer.prompt_ids(asking_conversation(task, example)) for _, example in known]
    answer_supervised, answer_weight = _answer_shares([s for s, _ in known], [len(p) for p in prompts])
    labels = _closed_labels(splits.train)
    return TrainingFacts(
        rows=len(samples),
        steps=steps,
        epochs=epochs,
        learning_rate=float(recipe.train.learning_rate),
        method=recipe.method.type,
        rows_available=rows_available,
        labels=labels,
        prior_loss=_prior_loss(labels, looked_at, answer_weight),
        answers_from_words=predictability(prompts, [e.expected for _, e in known]) if labels else None,
        validation_shift=separation(prompts, _prompts(renderer, task, splits.validation)),
        test_shift=separation(prompts, _prompts(renderer, task, splits.test)),
        split_method=None if recipe.data.validation is not None else recipe.data.split.method,
        answer_supervised=answer_supervised,
        answer_weight=answer_weight,
        end_learnt=sum(map(renderer.ends_turn, looked_at)) / len(looked_at) if looked_at else None,
        chat_template=Path(recipe.base.chat_template).name,
        usual_learning_rate=usual_learning_rate,
        rank=recipe.method.rank if recipe.method.type == "lora" else None,
        metric=str(recipe.goal.metric),
        zero_shot=zero_shot,
    )


def _answer_shares(samples: Sequence[Sample], prompt_lengths: Sequence[int]) -> tuple[float | None, float | None]:
    """Share of the answers' tokens that are learnt, and share of the loss weight that is on them.

    An answer is what follows the prompt, up to its last learnt token where one is: what a template writes after the
    end of a turn belongs to nobody.
    """
    tokens = learnt = 0
    weight = total = 0.0
    for sample, start in zip(samples, prompt_lengths, strict=True):
        answer = sample.weights[start:]
        places = np.flatnonzero(answer)
        tokens += int(places[-1]) + 1 if len(places) else len(answer)
        learnt += len(places)
        weight += float(np.nansum(answer))
        total += float(np.nansum(sample.weights))
    return (learnt / tokens if tokens else None), (weight / total if total else None)


def _closed_labels(examples: Sequence[Example]) -> dict[str, int]:
    """How often each answer occurs, where answers repeat; else nothing."""
    counts = Counter(example.expected.strip() for example in examples)
    return dict(counts) if 1 < len(counts) <= len(examples) / _REPEATED else {}


def _prior_loss(labels: dict[str, int], samples: Sequence[Sample], answer_weight: float | None) -> float | None:
    """Entropy of the answers over the tokens of an answer, in nats.

    By the chain rule the losses of an answer's tokens add up to minus the logarithm of its probability; a model that
    knows only how often each occurs therefore pays this on average.
    """
    if not labels or answer_weight is None or answer_weight < _ONLY_ANSWERS:
        return None
    rows = sum(labels.values())
    entropy = -sum(n / rows * math.log(n / rows) for n in labels.values())
    return entropy / float(np.mean([s.supervised for s in samples if s.supervised]))


def _prompts(renderer: Renderer, task: Task, examples: Sequence[Example]) -> list[list[int]]:
    return [renderer.prompt_ids(asking_conversation(task, example)) for example in _evenly(examples, _MOST_ROWS)]


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most about so many, at equal distances."""
    return list(items[:: max(1, -(-len(items) // most))])
