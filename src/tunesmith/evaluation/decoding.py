"""The ways in which a prompted model gives its answers: free, held to the task's form, or the most probable label.

Asking for a form costs a little time and makes every answer readable. Scoring asks for no text at all: each label is
given the probability that the model would say exactly it, which also tells how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tunesmith.data.types import Example, Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.types import Answer
from tunesmith.inference.types import Engine, Sampling
from tunesmith.recipe.evidence import Decoding
from tunesmith.tasks.types import AnswerForm, Task


@dataclass(frozen=True, slots=True)
class Draws:
    """Answers drawn for every row beside the greedy one: `count` of them at a temperature, from a seed."""

    count: int
    temperature: float
    seed: int


def answers(
    way: Decoding,
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int,
    skip: int = 0,
    draws: Draws | None = None,
) -> Iterator[Answer]:
    """Answers to `prompts[skip:]`, which ask for `examples` [len(prompts)], in that order, given in one `way`.

    Raises `RecipeError` where the task has no such way, and what the engine raises.
    """
    if way == "scored":
        return _most_probable(engine, task, examples, prompts, skip)
    forms = [task.answer_form(example) for example in examples] if way == "grammar" else None
    if forms is not None and not any(forms):
        raise _no_such_way(task, way, "free")
    return _generated(engine, prompts, max_new_tokens, skip, forms, draws)


def _generated(
    engine: Engine,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int,
    skip: int,
    forms: Sequence[AnswerForm | None] | None,
    draws: Draws | None,
) -> Iterator[Answer]:
    drawn = _drawn(engine, prompts, max_new_tokens, skip, forms, draws) if draws is not None else iter(())
    count = draws.count if draws is not None else 0
    for generation in engine.generate(prompts, max_new_tokens, skip, forms=forms):
        samples = tuple(islice(drawn, count))
        if len(samples) < count:
            return
        yield Answer(
            generation.text,
            generation.prompt,
            generation.prompt_tokens,
            generation.answer_tokens,
            generation.stopped,
            samples=samples,
        )


def _drawn(
    engine: Engine,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int,
    skip: int,
    forms: Sequence[AnswerForm | None] | None,
    draws: Draws,
) -> Iterator[str]:
    """The drawn answers, `draws.count` after each other for every prompt: each has a place of its own in the list."""
    count = draws.count
    repeated = [prompt for prompt in prompts for _ in range(count)]
    held = [form for form in forms for _ in range(count)] if forms is not None else None
    sampling = Sampling(draws.temperature, draws.seed)
    for generation in engine.generate(repeated, max_new_tokens, skip * count, forms=held, sampling=sampling):
        yield generation.text


def _most_probable(
    engine: Engine, task: Task, examples: Sequence[Example], prompts: Sequence[Sequence[Message]], skip: int
) -> Iterator[Answer]:
    forms = [task.answer_form(example) for example in examples]
    labels = [form.choices if form is not None and form.separator is None else () for form in forms]
    if not all(labels):
        raise _no_such_way(task, "scored", "free | grammar")
    spelled: dict[tuple[tuple[str, ...], str], tuple[str, ...]] = {}  # rows with the same labels share one list of them
    for form in forms:
        if form is not None and (form.choices, form.closing) not in spelled:
            spelled[form.choices, form.closing] = tuple(label + form.closing for label in form.choices)
    said = [spelled[form.choices, form.closing] for form in forms if form is not None]
    scores = engine.score(prompts, said, skip)
    for prompt, names, logarithms in zip(prompts[skip:], labels[skip:], scores, strict=False):
        text = "\n\n".join(message.content for message in prompt)
        probabilities = normalised(logarithms)
        if probabilities is None:  # a model that has come apart: no label, which counts as wrong
            yield Answer("", text, engine.count_tokens(prompt))
            continue
        best = max(range(len(names)), key=lambda i: (logarithms[i], -i))
        by_name = dict(zip(names, probabilities, strict=True))
        yield Answer(names[best], text, engine.count_tokens(prompt), probabilities=by_name)


def normalised(logarithms: Sequence[float]) -> list[float] | None:
    """Probabilities that add up to 1 from log-probabilities; None where one is no number or all are impossible."""
    top = max(logarithms)
    if any(math.isnan(one) for one in logarithms) or math.isinf(top):
        return None
    weights = [math.exp(one - top) for one in logarithms]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _no_such_way(task: Task, way: str, expected: str) -> RecipeError:
    return RecipeError(
        f"answers cannot be given by {way}: those of {task.name} have no such form here",
        where="evaluate.decoding",
        expected=expected,
    )
