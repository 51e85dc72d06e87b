"""Candidates that are a prompt around a model: zero-shot, few-shot, retrieval, and the tuned model itself.

One class serves them all, because they differ only in the examples they show and in the instruction. Examples that do
not fit the context are dropped whole, the least useful first; text is never cut. What was really shown is in `notes`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.types import Example, Message
from tunesmith.errors import DataError, EngineError
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.types import Answer
from tunesmith.inference.types import Engine
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.metrics import quick_score
from tunesmith.tasks.types import Task


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked for one row. `answerable` is False where even the bare question does not fit the context."""

    messages: tuple[Message, ...]
    shots: int
    tokens: int
    answerable: bool


@dataclass
class PromptCandidate:
    """A model asked through a prompt.

    Parameters
    ----------
    name: of the candidate, such as `few_shot`.
    engine: the model.
    task: how to ask and to read.
    shots: rows shown in every prompt, the most useful first; the first `k` are taken.
    retriever: finds the `k` training rows nearest to each question instead, shown most similar last.
    k: examples per prompt.
    max_new_tokens: longest answer, and the room kept for it in the context.
    full: the instruction for a model that was not tuned; False asks exactly as training did.
    facts: put into `notes` as they are, such as the table by which k was chosen.
    """

    name: str
    engine: Engine
    task: Task
    max_new_tokens: int
    shots: tuple[Example, ...] = ()
    retriever: Retriever | None = None
    k: int = 0
    full: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    _asked: tuple[Prompt, ...] = field(default=(), init=False, repr=False)

    @property
    def notes(self) -> Mapping[str, Any]:
        """`facts`, and of the rows asked last: the examples really shown, and how many rows did not fit at all."""
        notes = {"k": self.k, **self.facts}
        answerable = [prompt.shots for prompt in self._asked if prompt.answerable]
        if self.k and answerable:
            mean = sum(answerable) / len(answerable)
            notes["k_used"] = {"mean": mean, "min": min(answerable), "max": max(answerable)}
        if self._asked:
            notes["unanswerable_rows"] = len(self._asked) - len(answerable)
        return notes

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        """Answers to `examples[skip:]`. A row whose bare question does not fit is answered "" (and counts as wrong).

        Every prompt of the list is built whatever `skip` is: `notes` then describe the whole list, and the engine
        forms the same batches.
        """
        prompts = tuple(self.prompt(example) for example in examples)
        self._asked = prompts
        asked = [prompt.messages for prompt in prompts if prompt.answerable]
        skipped = sum(prompt.answerable for prompt in prompts[:skip])
        generations = iter(self.engine.generate(asked, self.max_new_tokens, skipped) if skipped < len(asked) else ())
        for prompt in prompts[skip:]:
            if not prompt.answerable:
                text = "\n\n".join(message.content for message in prompt.messages)
                yield Answer("", text, prompt.tokens, 0, stopped=False)
                continue
            generation = next(generations, None)
            if generation is None:
                raise EngineError(
                    "the engine gave fewer answers than it was asked for",
                    where=self.name,
                    expected=f"{len(asked)} answers",
                    fix="report this with the run's events.jsonl",
                )
            yield Answer(
                generation.text,
                generation.prompt,
                generation.prompt_tokens,
                generation.answer_tokens,
                generation.stopped,
            )

    def prompt(self, example: Example) -> Prompt:
        """The prompt for one row, with as many of its examples as the context holds."""
        useful = self._most_useful_first(example)
        room = self.engine.context - self.max_new_tokens
        for shown in range(len(useful), -1, -1):
            messages = asking_conversation(self.task, example, self._in_order(useful[:shown]), full=self.full)
            tokens = self.engine.count_tokens(messages)
            if tokens <= room:
                return Prompt(messages, shown, tokens, answerable=True)
        return Prompt(messages, 0, tokens, answerable=False)

    def _most_useful_first(self, example: Example) -> tuple[Example, ...]:
        if self.retriever is not None:
            return self.retriever.nearest(example, self.k)
        return tuple(shot for shot in self.shots if shot.id != example.id)[: self.k]

    def _in_order(self, useful: tuple[Example, ...]) -> tuple[Example, ...]:
        """The most similar example stands last, next to the question; fixed ones stay as they were drawn."""
        return useful[::-1] if self.retriever is not None else useful


@dataclass(frozen=True, slots=True)
class KChoice:
    """The k chosen on validation rows, and the score of each k tried (empty where there was only one)."""

    k: int
    scores: Mapping[int, float]
    metric: str
    rows: int

    @property
    def facts(self) -> Mapping[str, Any]:
        """For `PromptCandidate.facts`."""
        by_k = {str(k): score for k, score in self.scores.items()}
        return {"k_chosen_on": {"metric": self.metric, "validation_rows": self.rows, "scores": by_k}}


def choose_k(
    candidate_for: Callable[[int], PromptCandidate],
    ks: Sequence[int],
    validation: Sequence[Example],
    *,
    metric: str,
    rows: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> KChoice:
    """The k that answers `rows` validation rows (drawn by seed) best by `metric`; ties go to the smaller k.

    With one k there is nothing to choose and nothing is asked. `on_progress(answers so far, answers in all)`. Raises
    `DataError` where there is no k, or no validation row to choose on.
    """
    tried = sorted(set(ks))
    if not tried or (len(tried) > 1 and not validation):
        raise DataError(
            "the number of examples in a prompt cannot be chosen",
            where="evaluate.few_shot_k, evaluate.retrieval_k",
            expected="at least one k, and validation rows to choose on",
            fix="give data.validation or data.split.validation, or a single k",
        )
    if len(tried) == 1:
        return KChoice(tried[0], {}, metric, 0)
    sample = random.Random(seed).sample(list(validation), min(rows, len(validation)))
    scores: dict[int, float] = {}
    for turn, k in enumerate(tried):
        candidate = candidate_for(k)
        texts: list[str] = []
        for answer in candidate.answer(sample):
            texts.append(answer.text)
            if on_progress is not None:
                on_progress(turn * len(sample) + len(texts), len(tried) * len(sample))
        scores[k] = quick_score(candidate.task, texts, sample)[metric]
    best = min(tried, key=lambda k: (-scores[k], k))
    return KChoice(best, scores, metric, len(sample))
