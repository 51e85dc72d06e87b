"""Answers from a `transformers` model in this process: greedy, drawn, held to a form, or as probabilities of labels.

Prompts are worked on in windows of a few batches: within a window the longest go together, and what all prompts of the
list begin with (a system message, few-shot examples) is computed once. Windows and batches follow from the whole
list alone, so an interrupted list can be continued with the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.abilities import may_attend_behind, may_share, takes_a_mask
from tunesmith.inference.answers import AnswerIds, as_generation, refuse_too_long
from tunesmith.inference.behind_prefix import Prefix, attending_behind, own_mask
from tunesmith.inference.grammar import Grammars, HeldRows
from tunesmith.inference.label_scores import (
    AnswerTree,
    Ids,
    alike,
    answer_tree,
    answer_trees,
    rows_at_once,
    score_rows,
    score_tree,
)
from tunesmith.inference.next_token import draw, greedy, streams
from tunesmith.inference.prefixes import PrefixCache, common_beginning, window_beginning
from tunesmith.inference.types import Generation, Sampling
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

_WINDOW_BATCHES = 4
_TRIED_ANSWERS = 32
"""Of how many answers it is computed both ways whether a tree of them serves."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How the answers of a window are written: each row's form, and its random numbers [rows, tokens]."""

    forms: Sequence[AnswerForm | None] | None = None
    uniform: Tensor | None = None
    temperature: float = 1.0


class TorchEngine:
    """Answers with `model` through `renderer`; implements `inference.types.Engine`."""

    def __init__(self, model: Any, renderer: Renderer, context: int, batch_size: int = 32) -> None:
        self.model, self.renderer, self._context, self.batch_size = model, renderer, context, batch_size
        self._attends_behind: bool | None = None

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
        """See `inference.types.Engine.generate`. A form that cannot be compiled raises before anything is asked."""
        if forms is not None:
            self._grammars.check(forms)
        window = self.batch_size * _WINDOW_BATCHES
        ids = [self.renderer.prompt_ids(prompt) for prompt in prompts] if skip < len(prompts) else []
        whole, kept = common_beginning(ids), PrefixCache(self.model)
        for start in range(0, len(ids), window):
            if start + window <= skip:
                continue
            part = slice(start, start + window)
            ways = Ways(
                forms[part] if forms is not None else None,
                streams(sampling, range(len(ids))[part], max_new_tokens) if sampling is not None else None,
                sampling.temperature if sampling is not None else 1.0,
            )
            answers = self._answer_window(ids[part], max_new_tokens, ways, whole, kept)
            for offset, (prompt, prompt_ids, answer) in enumerate(zip(prompts[part], ids[part], answers, strict=True)):
                if start + offset < skip:
                    continue
                yield as_generation(self.renderer, prompt, prompt_ids, answer)

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]], skip: int = 0
    ) -> Iterator[tuple[float, ...]]:
        """See `inference.types.Engine.score`.

        An answer's tokens are those it is learnt with, its end token included. Raises `EngineError` where prompt and
        answer are longer than the context.
        """
        window = self.batch_size * _WINDOW_BATCHES
        ids = [self.renderer.prompt_ids(prompt) for prompt in prompts] if skip < len(prompts) else []
        whole, kept = common_beginning(ids), PrefixCache(self.model)
        render = AnswerIds(self.renderer)
        if ids:  # before anything is asked; answers that are others after other prompts are looked at again
            self._refuse_too_long([max(ids, key=len)], [render(prompts[0], answers[0])])
        by_tree: bool | None = None
        for start in range(0, len(ids), window):
            if start + window <= skip:
                continue
            part = slice(start, start + window)
            said = [render(prompt, texts) for prompt, texts in zip(prompts[part], answers[part], strict=True)]
            self._refuse_too_long(ids[part], said)
            if by_tree is None:  # on the first prompt of the list, so that a continued list decides alike
                by_tree = self._tree_serves(ids[0], render(prompts[0], answers[0]))
            found = self._score_window(ids[part], said, whole, kept, by_tree)
            yield from found[max(0, skip - start) :]

    @torch.inference_mode()
    def _answer_window(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        ways: Ways | None = None,
        whole: Ids | None = None,
        kept: PrefixCache | None = None,
    ) -> list[Ids]:
        """Generated ids for each prompt of a window, the stop token included. `whole`: what the whole list shares."""
        ways, kept = ways or Ways(), kept or PrefixCache(self.model)
        shared = self._shared(prompts, max_new_tokens, whole)
        answers: list[Ids] = [[] for _ in prompts]
        with self._evaluating(), self._behind(kept, shared, prompts) as prefix:
            for rows in _batches(prompts, self.batch_size):
                batch = [prompts[i][len(shared) :] for i in rows]
                forms = [ways.forms[i] for i in rows] if ways.forms is not None else None
                one = Ways(forms, None if ways.uniform is None else ways.uniform[rows], ways.temperature)
                decoded = self._decode(kept, shared, batch, max_new_tokens, one, prefix)
                for i, answer in zip(rows, decoded, strict=True):
                    answers[i] = answer
        return answers

    def _decode(
        self, kept: PrefixCache, shared: Ids, rest: list[Ids], max_new_tokens: int, ways: Ways, prefix: Prefix | None
    ) -> list[Ids]:
        """Decodes a batch whose prompts are `shared + rest[i]`; rows that have ended leave the batch."""
        device = self._device
        count = len(rest)
        stops = torch.tensor(sorted(self.renderer.stop_ids), device=device)
        held = self._grammars.hold(ways.forms) if ways.forms is not None and any(ways.forms) else None
        cached = 0 if prefix is not None else len(shared)
        cache = kept.repeated(shared[:cached], count, device)
        ids, own, places = _padded(rest, len(shared))
        seen = torch.cat([own.new_ones(count, cached), own], dim=1)
        ids, seen, places = ids.to(device), seen.to(device), places.to(device)
        alive = list(range(count))
        answers: list[Ids] = [[] for _ in rest]
        for step in range(max_new_tokens):
            out = self._forward(ids, seen, places, cache, prefix)
            cache = out.past_key_values
            chosen, legal = _choose(out.logits[:, -1], alive, step, held, ways)
            going = legal & ~torch.isin(chosen, stops)
            tokens, goes_on = chosen.tolist(), going.tolist()
            for row, token, may in zip(alive, tokens, legal.tolist(), strict=True):
                if may:
                    answers[row].append(token)
            if not any(goes_on):
                break
            if held is not None:
                held.take(*zip(*((r, t) for r, t, on in zip(alive, tokens, goes_on, strict=True) if on), strict=True))
            if not all(goes_on):
                left = torch.nonzero(going).squeeze(1)
                cache.reorder_cache(left)  # a selection too, and the one that every kind of layer has
                alive = [alive[i] for i in left.tolist()]
                chosen, seen, places = chosen[left], seen[left], places[left]
            ids = chosen[:, None]
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
            places = places[:, -1:] + 1
        return answers

    def _forward(self, ids: Tensor, seen: Tensor, places: Tensor, cache: Any, prefix: Prefix | None) -> Any:
        """One pass over the next tokens of each row, [rows, L]; seen [rows, S] is 0 for padding among all so far."""
        more: dict[str, Any] = {"attention_mask": seen}
        if prefix is not None:
            more = {"attention_mask": own_mask(seen, ids.shape[1], self._dtype), "prefix": prefix}
        return self.model(
            input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1, **more
        )

    @contextmanager
    def _behind(self, kept: PrefixCache, shared: Ids, prompts: list[Ids]) -> Iterator[Prefix | None]:
        """The shared beginning where rows can attend to it in place, which they then do; else None."""
        if not shared or not may_attend_behind(self.model, self._device):
            yield None
            return
        prefix = kept.once(shared, self._device)
        if self._attends_behind is None:
            self._attends_behind = self._prefix_serves(kept, shared, prompts[:2], prefix)
        if not self._attends_behind:
            yield None
            return
        with attending_behind(self.model):
            yield prefix

    def _prefix_serves(self, kept: PrefixCache, shared: Ids, prompts: list[Ids], prefix: Prefix) -> bool:
        """Whether attending to a beginning in place gives this model's own probabilities, found out on two prompts."""
        rest = [prompt[len(shared) :] for prompt in prompts]
        ids, own, places = (one.to(self._device) for one in _padded(rest, len(shared)))
        seen = torch.cat([own.new_ones(len(rest), len(shared)), own], dim=1)
        cache = kept.repeated(shared, len(rest), self._device)
        usual = self._forward(ids, seen, places, cache, None).logits[:, -1].log_softmax(-1)
        try:
            with attending_behind(self.model):
                cache = kept.repeated([], len(rest), self._device)
                tried = self._forward(ids, own, places, cache, prefix).logits[:, -1].log_softmax(-1)
        except (EngineError, TypeError):  # it does not hand the beginning on to its attention
            return False
        return alike(usual, tried, self._dtype)

    @torch.inference_mode()
    def _score_window(
        self, prompts: list[Ids], said: list[tuple[Ids, ...]], whole: Ids, kept: PrefixCache, by_tree: bool
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the answers to each prompt of a window."""
        found: list[list[float]] = [[] for _ in prompts]
        more = max(len(one) for a in said for one in a)
        with self._evaluating():
            if not by_tree or not may_share(self.model, max(map(len, prompts)) + more):
                return [tuple(self._by_rows(p, a).tolist()) for p, a in zip(prompts, said, strict=True)]
            shared = self._shared(prompts, more, whole)
            with self._behind(kept, shared, prompts) as prefix:
                for same in _grouped(said):
                    longest = max(len(prompts[i]) for i in same) - len(shared)
                    for tree in answer_trees(said[same[0]], self._vocabulary):
                        at_once = rows_at_once(tree, longest, len(shared), self._vocabulary)
                        for some in _batches([prompts[i] for i in same], min(self.batch_size, at_once)):
                            rows = [same[i] for i in some]
                            rest = [prompts[i][len(shared) :] for i in rows]
                            for i, scores in zip(rows, self._by_tree(kept, shared, rest, tree, prefix), strict=True):
                                found[i] += scores
        return [tuple(scores) for scores in found]

    def _by_tree(
        self, kept: PrefixCache, shared: Ids, rest: list[Ids], tree: AnswerTree, prefix: Prefix | None = None
    ) -> list[list[float]]:
        cache = kept.repeated([] if prefix is not None else shared, len(rest), self._device)
        scores: list[list[float]] = score_tree(self.model, cache, len(shared), rest, tree, prefix).tolist()
        return scores

    def _by_rows(self, prompt: Ids, said: Sequence[Ids]) -> Tensor:
        return score_rows(self.model, prompt, said, self._vocabulary)

    @torch.inference_mode()
    def _tree_serves(self, prompt: Ids, said: tuple[Ids, ...]) -> bool:
        """Whether one pass over a tree of answers gives this model's probabilities, found out behind a prompt's end.

        A few tokens of it tell most: behind a long prompt, what a careless mask lets in hardly counts.
        """
        prompt, said = prompt[-4:], said[:_TRIED_ANSWERS]
        if not takes_a_mask(self.model) or not may_share(self.model, len(prompt) + max(map(len, said))):
            return False
        with self._evaluating():
            scores = self._by_tree(PrefixCache(self.model), [], [prompt], answer_tree(said))
            return alike(torch.tensor(scores[0]), self._by_rows(prompt, said).cpu(), self._dtype)

    def _shared(self, prompts: list[Ids], more: int, whole: Ids | None) -> Ids:
        """What the prompts of a window share, where rows that long may share anything."""
        if not may_share(self.model, max(map(len, prompts)) + more):
            return []
        return window_beginning(whole or [], prompts)

    def _refuse_too_long(self, prompts: list[Ids], said: list[tuple[Ids, ...]]) -> None:
        refuse_too_long(prompts, said, self._context)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.renderer.tokenizer, self._vocabulary, self.renderer.stop_ids)


def _choose(logits: Tensor, alive: list[int], step: int, held: HeldRows | None, ways: Ways) -> tuple[Tensor, Tensor]:
    """The next token of each row that goes on, and whether there was a legal one, both [rows].

    There is none where a form allows no token, and where a model has come apart and its logits are no numbers.
    """
    if held is not None:
        logits = logits.masked_fill(~held.allowed(alive).to(logits.device), float("-inf"))
    legal = logits.amax(-1).isfinite()
    if ways.uniform is None:
        return greedy(logits), legal
    return draw(logits, ways.uniform[alive, step], ways.temperature), legal


def _padded(rest: list[Ids], shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, which of them are no padding, and their positions behind `shared` tokens, [rows, W] each.

    Padding is on the left, between the shared beginning and the row's own part.
    """
    width = max(map(len, rest))
    ids = torch.zeros(len(rest), width, dtype=torch.long)
    own = torch.zeros_like(ids)
    places = torch.zeros_like(ids)
    for row, piece in enumerate(rest):
        start = width - len(piece)
        ids[row, start:] = torch.tensor(piece)
        own[row, start:] = 1
        places[row, start:] = shared + torch.arange(len(piece))
    return ids, own, places


def _batches(prompts: Sequence[Ids], size: int) -> list[list[int]]:
    """The prompts' indices in batches, the longest together."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _grouped(said: Sequence[tuple[Ids, ...]]) -> list[list[int]]:
    """Rows that have the very same answers, together."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}

    for row, one in enumerate(said):
        groups.setdefault(tuple(map(tuple, one)), []).append(row)
    return list(groups.values())
