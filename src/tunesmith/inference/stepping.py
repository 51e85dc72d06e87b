"""An engine over any runtime that reads tokens and gives logits (`TokenModel`): the answers of `TorchEngine` on the
same weights, up to the runtime's rounding.

One row at a time. What all prompts of a list begin with is read once where a row can be rewound, and so are a prompt
and what its answers begin with when they are scored. It follows from the whole list, never from where one begins in it,
so a list that was interrupted and is continued gives the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.answers import AnswerIds, as_generation, refuse_too_long
from tunesmith.inference.grammar import Grammars, HeldRows
from tunesmith.inference.label_scores import Ids
from tunesmith.inference.next_token import draw, greedy, streams
from tunesmith.inference.prefixes import common_beginning
from tunesmith.inference.types import (
    FloatArray,
    Generation,
    GreedyRow,
    RewindingRow,
    Sampling,
    SizedModel,
    TokenModel,
    TokenRow,
)
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer


class SteppingEngine:
    """Answers with `model` through `renderer`; implements `inference.types.ProbedEngine`.

    `context`: longest prompt plus answer, in tokens; an answer is cut there.
    """

    def __init__(self, model: TokenModel, renderer: Renderer, context: int) -> None:
        self.model, self.renderer, self._context = model, renderer, context

    @property
    def context(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self._context

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, the start of the answer included."""
        return len(self.renderer.prompt_ids(messages))

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        max_new_tokens: int,
        skip: int = 0,
        *,
        forms: Sequence[AnswerForm | None] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Generation]:
        """See `inference.types.Engine.generate`.

        Raises `EngineError`, before anything is asked, for a form that cannot be compiled and for a prompt that leaves
        no room for an answer.
        """
        if forms is not None:
            self._grammars.check(forms)
        ids = [self.renderer.prompt_ids(prompt) for prompt in prompts] if skip < len(prompts) else []
        self._refuse_full(ids)
        longest = min(self._context, max(map(len, ids), default=0) + max_new_tokens)
        with _Rows(self.model, common_beginning(ids), longest) as rows:
            for place in range(skip, len(ids)):
                room = min(max_new_tokens, self._context - len(ids[place]))
                form = None if forms is None else forms[place]
                held = None if form is None else self._grammars.hold([form])
                with rows.behind(ids[place]) as (row, rest):
                    if held is None and sampling is None and isinstance(row, GreedyRow):
                        answer = row.write(rest, room, self.renderer.stop_ids) if room > 0 else []
                    else:
                        drawn = streams(sampling, [place], max_new_tokens)[0] if sampling is not None else None
                        temperature = 1.0 if sampling is None else sampling.temperature
                        answer = self._decode(row, rest, room, held, drawn, temperature)
                yield as_generation(self.renderer, prompts[place], ids[place], answer)

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], skip: int = 0
    ) -> Iterator[tuple[float, ...]]:
        """See `inference.types.Engine.score`.

        An answer's tokens are those it is learnt with, its end token included. Raises `EngineError`, before anything is
        asked, where a prompt and an answer are longer than the context.
        """
        ids = [self.renderer.prompt_ids(prompt) for prompt in prompts] if skip < len(prompts) else []
        if not ids:
            return
        render = AnswerIds(self.renderer)
        said = [render(prompt, texts) for prompt, texts in zip(prompts, answers, strict=True)]
        refuse_too_long(ids, said, self._context)
        longest = max(len(prompt) + max(map(len, texts)) for prompt, texts in zip(ids, said, strict=True))
        with _Rows(self.model, common_beginning(ids), longest) as rows:
            for prompt, texts in list(zip(ids, said, strict=True))[skip:]:
                with rows.behind(prompt) as (row, rest):
                    if isinstance(row, RewindingRow):
                        found = _scores_behind(row, rest, len(prompt), texts)
                    else:
                        found = _scores_apart(rows, row, prompt, texts)
                yield found

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """Logits [len(ids), vocabulary] after each of these tokens. Raises `EngineError` beyond the context."""
        self._refuse_full([list(ids)], answer=False)
        if not ids:
            return np.zeros((0, self.model.vocabulary), dtype=np.float32)
        row = _Rows(self.model, [], len(ids)).new()
        try:
            return row.append(ids)
        finally:
            row.close()

    def _decode(
        self, row: TokenRow, ids: Ids, room: int, held: HeldRows | None, drawn: Tensor | None, temperature: float
    ) -> Ids:
        """At most `room` tokens behind `ids`, the stop token included: by `drawn` [>= room], or the most probable."""
        answer: Ids = []
        while len(answer) < room:
            logits = torch.from_numpy(row.next(ids))[None]
            if held is not None:
                logits = logits.masked_fill(~held.allowed([0]), float("-inf"))
            if not bool(logits.amax().isfinite()):  # the form allows nothing, or the model's logits are no numbers
                break
            step = len(answer)
            chosen = greedy(logits) if drawn is None else draw(logits, drawn[step : step + 1], temperature)
            token = int(chosen)
            answer.append(token)
            if token in self.renderer.stop_ids:
                break
            if held is not None:
                held.take([0], [token])
            ids = [token]
        return answer

    def _refuse_full(self, prompts: Sequence[Ids], *, answer: bool = True) -> None:
        longest = max(map(len, prompts), default=0)
        if longest > self._context - answer:
            raise EngineError(
                f"a prompt has {longest} tokens" if answer else f"{longest} tokens are to be read",
                expected=f"at most {self._context - answer}: the model's context is {self._context} tokens"
                + (", and an answer needs one" if answer else ""),
                fix="shorten it",
            )

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.renderer.tokenizer, self.model.vocabulary, self.renderer.stop_ids)


class _Rows:
    """Rows for the prompts of a list, one after another: one that is rewound to `shared` where it can be, else new
    ones. `shared` is shorter than every prompt; `longest`: tokens of the longest row.
    """

    def __init__(self, model: TokenModel, shared: Ids, longest: int) -> None:
        self._model, self._shared, self._longest = model, shared, longest
        self._kept: RewindingRow | None = None

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def new(self) -> TokenRow:
        """A row of its own, which is closed by who asked for it."""
        return self._model.row_of(self._longest) if isinstance(self._model, SizedModel) else self._model.row()

    @contextmanager
    def behind(self, prompt: Ids) -> Iterator[tuple[TokenRow, Ids]]:
        """A row and what of the prompt it has not read yet."""
        if self._kept is not None:
            self._kept.rewind(len(self._shared))
            yield self._kept, prompt[len(self._shared) :]
            return
        row = self.new()
        if isinstance(row, RewindingRow):
            self._kept = row
            if self._shared:
                row.next(self._shared)
            yield row, prompt[len(self._shared) :]
            return
        try:
            yield row, prompt
        finally:
            row.close()


def _scores_apart(rows: _Rows, row: TokenRow, prompt: Ids, answers: Sequence[Ids]) -> tuple[float, ...]:
    """Log-probabilities of answers, each in a row of its own; the first one in `row`, which is empty."""
    found = [_score(row, prompt, answers[0])]
    for answer in answers[1:]:
        another = rows.new()
        try:
            found.append(_score(another, prompt, answer))
        finally:
            another.close()
    return tuple(found)


def _score(row: TokenRow, prompt: Ids, answer: Ids) -> float:
    """Log-probability of an answer behind a prompt that the row, which is empty, has yet to read."""
    steps = [_chances(row.next(prompt), answer[0])]
    if len(answer) > 1:
        logits = row.append(answer[:-1])
        steps += [_chances(line, token) for line, token in zip(logits, answer[1:], strict=True)]
    return float(np.sum(steps))


def _scores_behind(row: RewindingRow, rest: Ids, length: int, answers: Sequence[Ids]) -> tuple[float, ...]:
    """Log-probabilities of answers behind a prompt of `length` tokens, of which the row has yet to read `rest`.

    Answers are gone through in their tokens' order, so that what neighbours begin with is read once.
    """
    first = row.next(rest)
    found = [0.0] * len(answers)
    path: Ids = []  # read behind the prompt, and the logits after each token of it
    after: list[FloatArray] = []
    for place in sorted(range(len(answers)), key=lambda i: answers[i]):
        answer = answers[place]
        read = answer[:-1]  # what comes after the last token does not matter
        same = next((i for i, (a, b) in enumerate(zip(read, path, strict=False)) if a != b), min(len(read), len(path)))
        if same < len(path):
            row.rewind(length + same)
            path, after = path[:same], after[:same]
        if same < len(read):
            after.extend(row.append(read[same:]))
            path = read
        logits = [first, *after[: len(read)]]
        found[place] = float(np.sum([_chances(line, token) for line, token in zip(logits, answer, strict=True)]))
    return tuple(found)


def _chances(logits: FloatArray, token: int) -> float:
    """Log-probability of a token from the logits [V] before it."""
    highest = float(logits.max())
    return float(logits[token]) - highest - float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
