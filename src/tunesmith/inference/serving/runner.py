"""What computes the steps of a server's model: the logits of rows that are asked and answered side by side.

`FlatRunner` puts the tokens of all rows into one stream (`stream_attention`). `RowRunner` runs the model row by row
with the memory that `transformers` gives it: for models that remember more than keys and values, or rewrite their
masks. It is also the plain reference of the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.inference.abilities import depends_on_the_longest, keeps_keys_and_values, through_the_registry
from tunesmith.inference.serving.adapters import Adapter, Current, Span
from tunesmith.inference.serving.memory import Segment
from tunesmith.inference.serving.stream_attention import Step, use_serving_attention
from tunesmith.inference.serving.stream_layers import put_back, use_stream_layers

Wants = Literal["last", "all", "none"]


class Memory(Protocol):
    """What a row's tokens so far have left behind."""

    length: int

    def copy(self, length: int, room: int) -> Any:
        """Another one with the first `length` of its tokens."""
        ...

    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A row's next tokens, and of which of them the logits are wanted."""

    memory: Any
    ids: Sequence[int]
    adapter: Adapter | None
    wants: Wants = "last"


class Runner(Protocol):
    """Computes steps.

    Attributes
    ----------
    shares: whether a memory can be cut at any token, so that prompts can share a beginning and be read in chunks.
    """

    shares: bool

    def forget(self) -> None:
        """Hold on to no adapter."""
        ...

    def memory(self, room: int) -> Any:
        """An empty memory, with room for so many tokens to begin with."""
        ...

    def run(self, parts: Sequence[Part]) -> Tensor:
        """Logits [wanted, V] on the CPU, in the order of the parts; the memories then know the tokens."""
        ...


class FlatRunner:
    """All rows in one stream. Rows of one adapter should stand together in `parts`."""

    shares = True

    def __init__(self, model: Any, current: Current) -> None:
        self._model, self._current = model, current
        self._device = next(model.parameters()).device

    def forget(self) -> None:
        self._current.forget()

    def memory(self, room: int) -> Segment:
        return Segment(room)

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> Tensor:
        ids: list[int] = []
        places: list[int] = []
        ends: list[int] = []
        chosen: list[int] = []
        runs: list[tuple[Adapter | None, int, int, int, int]] = []  # adapter, tokens and wanted tokens from and to
        for part in parts:
            start, before = len(ids), len(chosen)
            ids += part.ids
            places += range(part.memory.length, part.memory.length + len(part.ids))
            ends.append(len(ids))
            if part.wants == "all":
                chosen += range(start, len(ids))
            elif part.wants == "last":
                chosen.append(len(ids) - 1)
            if runs and runs[-1][0] is part.adapter:
                runs[-1] = (*runs[-1][:2], len(ids), runs[-1][3], len(chosen))
            else:
                runs.append((part.adapter, start, len(ids), before, len(chosen)))
        kept = chosen or [len(ids) - 1]  # torch takes no empty choice; the one that nobody wants has no update either
        current = self._current
        current.begin(
            len(ids), len(kept),
            tuple(Span(a, b, adapter) for adapter, a, b, _, _ in runs if adapter is not None),
            tuple(Span(c, d, adapter) for adapter, _, _, c, d in runs if adapter is not None),
        )  # fmt: skip
        try:
            out = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([places], device=self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(kept, device=self._device),
                step=Step([part.memory for part in parts], ends),
            )
        finally:
            current.clear()
        for part in parts:
            part.memory.length += len(part.ids)
        logits: Tensor = out.logits[0, : len(chosen)]
        return logits.float().cpu()


@dataclass(slots=True)
class RowMemory:
    """The cache of `transformers` of one row."""

    cache: Any
    length: int = 0

    def copy(self, length: int, room: int) -> RowMemory:
        if length != self.length:
            raise EngineError("what this model remembers cannot be cut")
        return RowMemory(copy.deepcopy(self.cache), length)

    @property
    def bytes(self) -> int:
        tensors = [t for layer in self.cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)


class RowRunner:
    """One row after the other, each with its own cache."""

    shares = False

    def __init__(self, model: Any, current: Current) -> None:
        self._model, self._current = model, current
        self._device = next(model.parameters()).device

    def forget(self) -> None:
        self._current.forget()

    def memory(self, room: int) -> RowMemory:
        from transformers import DynamicCache

        return RowMemory(DynamicCache(config=self._model.config))

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> Tensor:
        logits = [self._run(part) for part in parts]
        return torch.cat(logits) if logits else torch.empty(0, 0)

    def _run(self, part: Part) -> Tensor:
        count = len(part.ids)
        wanted = {"last": 1, "all": count, "none": 0}[part.wants]
        current, adapter = self._current, part.adapter
        spans = (lambda tokens: ()) if adapter is None else (lambda tokens: (Span(0, tokens, adapter),))
        current.begin(count, max(1, wanted), spans(count), spans(max(1, wanted)))
        start = part.memory.length
        try:
            out = self._model(
                input_ids=torch.tensor([list(part.ids)], device=self._device),
                attention_mask=torch.ones(1, start + count, dtype=torch.long, device=self._device),
                past_key_values=part.memory.cache,
                use_cache=True,
                logits_to_keep=max(1, wanted),
            )
        finally:
            current.clear()
        part.memory.cache = out.past_key_values
        part.memory.length += count
        return out.logits[0, -max(1, wanted) :][-wanted or count :].float().cpu()  # type: ignore[no-any-return]


def best_runner(model: Any, current: Current) -> Runner:
    """The faster runner whose logits are this model's own, found out on a few random tokens."""
    usual = RowRunner(model, current)
    if not keeps_keys_and_values(model) or not through_the_registry(model) or depends_on_the_longest(model):
        return usual
    before = model.config._attn_implementation
    expected = _tried(usual, model)
    use_serving_attention(model)
    flat = FlatRunner(model, current)
    if not _gives(flat, model, expected):
        model.set_attn_implementation(before)
        return usual
    layers = use_stream_layers(model, current)
    if layers and not _gives(flat, model, expected):
        put_back(model, layers)
    return flat


def _gives(runner: Runner, model: Any, expected: Tensor) -> bool:
    """Whether a runner's logits are those expected."""
    try:
        return _alike(_tried(runner, model), expected, model.dtype)
    except (EngineError, TypeError):  # it does not hand the step on to its attention, or takes no choice of logits
        return False


def _tried(runner: Runner, model: Any) -> Tensor:
    """Logits of two rows: read whole and in parts, and continued side by side."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (19,), generator=torch.Generator().manual_seed(0)).tolist()
    one, other = runner.memory(0), runner.memory(0)
    found = [runner.run([Part(one, ids[:9], None, "all")])]
    found.append(runner.run([Part(other, ids[9:12], None), Part(one, ids[12:13], None)]))
    found.append(runner.run([Part(one, ids[13:14], None), Part(other, ids[14:15], None)]))
    if runner.shares or keeps_keys_and_values(model):
        found.append(runner.run([Part(other, ids[15:19], None, "all"), Part(one, ids[14:15], None)]))
    return torch.cat(found)


def _alike(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to rounding; half precision rounds at every layer."""
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)
    return bool(error <= (0.03 if dtype in (torch.float16, torch.bfloat16) else 1e-3))
