"""Greedy answers from a `transformers` model in this process.

Prompts are worked on in windows of a few batches: within a window the longest go together, and what all prompts of the
window begin with (a system message, few-shot examples) is computed once. Windows and batches follow from the whole
list alone, so an interrupted list can be continued with the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.types import Message
from tunesmith.inference.types import Generation
from tunesmith.text.render import Renderer

_WINDOW_BATCHES = 4
_SHARED_MINIMUM = 32
"""Shorter common beginnings are not worth a pass of their own."""


class TorchEngine:
    """Answers with `model` through `renderer`; implements `inference.types.Engine`."""

    def __init__(self, model: Any, renderer: Renderer, context: int, batch_size: int = 32) -> None:
        self.model, self.renderer, self._context, self.batch_size = model, renderer, context, batch_size

    @property
    def context(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self._context

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, the start of the answer included."""
        return len(self.renderer.prompt_ids(messages))

    def generate(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, skip: int = 0
    ) -> Iterator[Generation]:
        """See `inference.types.Engine.generate`."""
        window = self.batch_size * _WINDOW_BATCHES
        for start in range(0, len(prompts), window):
            if start + window <= skip:
                continue
            part = prompts[start : start + window]
            ids = [self.renderer.prompt_ids(p) for p in part]
            answers = self._answer_window(ids, max_new_tokens)
            for offset, (prompt, prompt_ids, answer) in enumerate(zip(part, ids, answers, strict=True)):
                if start + offset < skip:
                    continue
                read = self.renderer.answer(answer, prompt)
                yield Generation(
                    text=read.expected_form,
                    prompt=self.renderer.prompt_text(prompt),
                    prompt_tokens=len(prompt_ids),
                    answer_tokens=len(answer),
                    stopped=bool(answer) and answer[-1] in self.renderer.stop_ids,
                    calls=read.calls,
                    beside=read.content if read.calls else "",
                )

    @torch.inference_mode()
    def _answer_window(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Generated ids for each prompt of a window, the stop token included."""
        was_training = self.model.training
        self.model.eval()
        try:
            shared = _common_beginning(prompts)
            if not self._may_share(max(map(len, prompts)) + max_new_tokens):
                shared = []
            order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
            answers: list[list[int]] = [[] for _ in prompts]
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = [prompts[i][len(shared) :] for i in rows]
                for i, answer in zip(rows, self._decode(shared, batch, max_new_tokens), strict=True):
                    answers[i] = answer
            return answers
        finally:
            self.model.train(was_training)

    def _decode(self, shared: list[int], rest: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy decoding of a batch whose prompts are `shared + rest[i]`; rows that have ended leave the batch."""
        device = next(self.model.parameters()).device
        count, width = len(rest), max(len(r) for r in rest)
        stops = torch.tensor(sorted(self.renderer.stop_ids), device=device)
        cache = self._prefill(shared, count, device)
        ids = torch.zeros(count, width, dtype=torch.long)
        seen = torch.ones(count, len(shared) + width, dtype=torch.long)
        for row, piece in enumerate(rest):  # padded on the left, between the shared beginning and the row's own part
            ids[row, width - len(piece) :] = torch.tensor(piece)
            seen[row, len(shared) : len(shared) + width - len(piece)] = 0
        ids, seen = ids.to(device), seen.to(device)
        places = (seen.cumsum(1) - 1).clamp_min(0)[:, len(shared) :]
        alive = list(range(count))
        answers: list[list[int]] = [[] for _ in rest]
        for _ in range(max_new_tokens):
            out = self.model(
                input_ids=ids,
                attention_mask=seen,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            chosen = out.logits[:, -1].argmax(-1)
            for row, token in zip(alive, chosen.tolist(), strict=True):
                answers[row].append(token)
            going = ~torch.isin(chosen, stops)
            if not going.any():
                break
            if not going.all():
                kept = torch.nonzero(going).squeeze(1)
                cache.batch_select_indices(kept)
                alive = [alive[i] for i in kept.tolist()]
                chosen, seen, places = chosen[kept], seen[kept], places[kept]
            ids = chosen[:, None]
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
            places = places[:, -1:] + 1
        return answers

    def _may_share(self, longest: int) -> bool:
        """Whether rows of up to `longest` tokens may share a beginning.

        Padding stands between the beginning and a row's own part. A sliding window counts it, so with windows shorter
        than a row the beginning would be out of reach too early.
        """
        from transformers import DynamicCache

        if not any(DynamicCache(config=self.model.config).is_sliding):
            return True
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        return window is not None and longest <= window

    def _prefill(self, shared: list[int], count: int, device: torch.device) -> Any:
        """The key-value cache of the shared beginning, repeated for every row; an empty one where there is none."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if not shared:
            return cache
        ids: Tensor = torch.tensor([shared], device=device)
        cache = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(count)
        return cache


def _common_beginning(prompts: list[list[int]]) -> list[int]:
    """The longest beginning shared by all prompts, at least one token short of each; empty if short or single."""
    if len(prompts) < 2:
        return []
    shortest = min(len(p) for p in prompts) - 1
    first, last = min(prompts), max(prompts)  # in sorted order, what these two share is shared by all between
    same = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return prompts[0][:same] if same >= _SHARED_MINIMUM else []
