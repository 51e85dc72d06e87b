"""Candidates that are a prompt around a model: zero-shot, few-shot, retrieval, documents, and the tuned model itself.

One class serves them all, because they differ only in what they show and in the instruction. Examples and passages that
do not fit the context are dropped whole, the least useful first; text is never cut. What was really shown stands in
`notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.types import Example, Message
from tunesmith.errors import EngineError
from tunesmith.evaluation.decoding import Draws, answers
from tunesmith.evaluation.passages import Passage, PassageFinder, with_passages
from tunesmith.evaluation.retrieval import Retriever
from tunesmith.evaluation.types import Answer
from tunesmith.inference.types import Engine
from tunesmith.recipe.evidence import Decoding
from tunesmith.tasks.conversation import asking_conversation
from tunesmith.tasks.types import Task


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked for one row. `answerable` is False where even the bare question does not fit the context.

    shown: examples and passages in it.
    """

    messages: tuple[Message, ...]
    shown: int
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
    k: examples per prompt, or passages.
    max_new_tokens: longest answer, and the room kept for it in the context.
    full: the instruction for a model that was not tuned; False asks exactly as training did.
    facts: put into `notes` as they are, such as the table by which k was chosen.
    decoding: the way in which answers are given.
    draws: answers drawn for every row beside its greedy one; None draws none.
    finder: finds the `k` passages of documents nearest to each question, shown most similar last, in place of examples.
    told: further notes, asked for when `notes` are read: what the engine has to tell of the rows asked last.
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
    decoding: Decoding = "free"
    draws: Draws | None = None
    finder: PassageFinder | None = None
    told: Callable[[], Mapping[str, Any]] = dict
    _asked: tuple[Prompt, ...] = field(default=(), init=False, repr=False)
    _ids: tuple[str, ...] = field(default=(), init=False, repr=False)

    @property
    def notes(self) -> Mapping[str, Any]:
        """`facts`, and of the rows asked last: what was really shown, and how many rows did not fit at all."""
        notes = {"k": self.k, **self.facts, **self.told()}
        answerable = [prompt.shown for prompt in self._asked if prompt.answerable]
        if self.k and answerable:
            mean = sum(answerable) / len(answerable)
            notes["k_used"] = {"mean": mean, "min": min(answerable), "max": max(answerable)}
        if self._asked:
            notes["unanswerable_rows"] = len(self._asked) - len(answerable)
        if self.finder is not None:
            notes["rows_found_in_documents"] = sum(row in self.finder.held_out for row in self._ids)
        return notes

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        """Answers to `examples[skip:]`. A row whose bare question does not fit is answered "" (and counts as wrong).

        Every prompt of the list is built whatever `skip` is: `notes` then describe the whole list, and the engine
        forms the same batches.
        """
        for search in (self.retriever, self.finder):
            if search is not None:
                search.expect(examples)
        prompts = tuple(self.prompt(example) for example in examples)
        self._asked, self._ids = prompts, tuple(example.id for example in examples)
        rows = [example for example, prompt in zip(examples, prompts, strict=True) if prompt.answerable]
        asked = [prompt.messages for prompt in prompts if prompt.answerable]
        skipped = sum(prompt.answerable for prompt in prompts[:skip])
        given: Iterator[Answer] = iter(())
        if asked:
            given = answers(
                self.decoding, self.engine, self.task, rows, asked, self.max_new_tokens, skipped, self.draws
            )
        for prompt in prompts[skip:]:
            if not prompt.answerable:
                text = "\n\n".join(message.content for message in prompt.messages)
                yield Answer("", text, prompt.tokens, 0, stopped=False)
                continue
            answer = next(given, None)
            if answer is None:
                raise EngineError(
                    "the engine gave fewer answers than it was asked for",
                    where=self.name,
                    expected=f"{len(asked)} answers",
                    fix="report this with the run's events.jsonl",
                )
            yield answer
        # An engine that has nothing left to answer may still have something to tell of the list.
        next(given, None)

    def prompt(self, example: Example) -> Prompt:
        """The prompt for one row, with as many of its examples or passages as the context holds."""
        room = self.engine.context - self.max_new_tokens
        for shown, messages in self._fuller_first(example):
            tokens = self.engine.count_tokens(messages)
            if tokens <= room:
                return Prompt(messages, shown, tokens, answerable=True)
        return Prompt(messages, 0, tokens, answerable=False)

    def _fuller_first(self, example: Example) -> Iterator[tuple[int, tuple[Message, ...]]]:
        """What would be asked with everything shown, with one less, …, and with nothing."""
        if self.finder is not None:
            passages: tuple[Passage, ...] = self.finder.nearest(example, self.k)
            for shown in range(len(passages), -1, -1):
                asked = with_passages(example, passages[:shown][::-1])
                yield shown, asking_conversation(self.task, asked, full=self.full)
            return
        shots = self._most_useful_first(example)
        for shown in range(len(shots), -1, -1):
            yield shown, asking_conversation(self.task, example, self._in_order(shots[:shown]), full=self.full)

    def _most_useful_first(self, example: Example) -> tuple[Example, ...]:
        if self.retriever is not None:
            return self.retriever.nearest(example, self.k)
        return tuple(shot for shot in self.shots if shot.id != example.id)[: self.k]

    def _in_order(self, useful: tuple[Example, ...]) -> tuple[Example, ...]:
        """The most similar example stands last, next to the question; fixed ones stay as they were drawn."""
        return useful[::-1] if self.retriever is not None else useful
