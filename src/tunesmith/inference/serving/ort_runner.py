"""Steps of an exported model in ONNX Runtime: rows of one adapter side by side, their memory written in place.

The graphs of ONNX Runtime GenAI attend by an operator that takes, for every row of a batch, how much of its memory is
filled, and that writes the next token's keys and values where the others lie, if input and output are the same
memory. So rows of any lengths are continued in one pass, join and leave between two steps, and nothing is copied for a
step. `BatchRunner` does so: rows of one adapter live in the slots of one `_Batch`; a row that joins is copied into a
slot, and one that leaves is copied out of it if it is still wanted. Prompts are read row by row, in their own memory.

Other graphs give longer keys and values back than they got: `GrowingRunner` runs them row by row.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.inference.ort_engine import OrtGraph
from tunesmith.inference.serving.runner import Part, Runner

Array = npt.NDArray[Any]

_BLOCK = 64
"""Tokens by which memory grows at least; and an eighth of what there is."""
_ALIKE = 0.03
"""By which logits read in a batch may differ from those read alone, as a share of their spread. Where products are of 8
bits, a row's last bits decide what its numbers are rounded to (0.009 was seen); with another's memory it is about 1."""


@dataclass(frozen=True, eq=False)
class OrtAdapter:
    """An adapter's factors, by the names of the graph's inputs (`OrtValue`)."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the tensors that a graph remembers: names of input and output, heads, width, type."""

    past: str
    present: str
    heads: int
    width: int
    dtype: Any


class RowMemory:
    """Keys and values of one row, [1, heads, room, width] each; its own, or the slot of a batch."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.length, self.arrays = 0, list(arrays)

    @property
    def room(self) -> int:
        return int(self.arrays[0].shape[2])

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in self.arrays)

    def copy(self, length: int, room: int) -> RowMemory:
        other = RowMemory([_zeros(one, 1, max(length, room)) for one in self.arrays])
        other.length = length
        for made, one in zip(other.arrays, self.arrays, strict=True):
            made[:, :, :length] = one[:, :, :length]
        return other

    def own(self, room: int) -> None:
        """Have memory of its own, for so many tokens."""
        self.arrays = self.copy(self.length, room).arrays


@dataclass(eq=False, slots=True)
class _Batch:
    """Memory of the rows that are continued together: [slots, heads, room, width] each; whose slot each one is."""

    arrays: list[Array]
    members: list[weakref.ref[RowMemory]] = field(default_factory=list)

    @property
    def slots(self) -> int:
        return int(self.arrays[0].shape[0])

    @property
    def room(self) -> int:
        return int(self.arrays[0].shape[2])

    def put(self, memory: RowMemory, slot: int) -> None:
        """Copy a row into a slot, which is its memory from now on."""
        for held, one in zip(self.arrays, memory.arrays, strict=True):
            held[slot, :, : memory.length] = one[0, :, : memory.length]
        memory.arrays = [held[slot : slot + 1] for held in self.arrays]
        if slot == len(self.members):
            self.members.append(weakref.ref(memory))
        else:
            self.members[slot] = weakref.ref(memory)

    def leave_only(self, wanted: set[int]) -> None:
        """Copy out rows that are kept and not in work (`wanted`: their ids), and close the gaps."""
        there = [one() for one in self.members]
        for memory in there:
            if memory is not None and id(memory) not in wanted:
                memory.own(memory.length)
        stay = [memory for memory in there if memory is not None and id(memory) in wanted]
        gaps = [slot for slot, memory in enumerate(there) if memory is None or id(memory) not in wanted]
        slots = {id(memory): slot for slot, memory in enumerate(there) if memory is not None}
        for gap in gaps:
            if gap >= len(stay):
                break
            last = max(stay, key=lambda memory: slots[id(memory)])
            self.put(last, gap)
            slots[id(last)] = gap
        del self.members[len(stay) :]


class BatchRunner:
    """Rows of one adapter in one pass; implements `serving.runner.Runner`."""

    shares = True

    def __init__(self, session: Any, kept: Sequence[Kept]) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session, self._kept = session, kept
        self._known = frozenset(one.name for one in session.get_inputs())
        self._batches: dict[OrtAdapter | None, _Batch] = {}

    def forget(self) -> None:
        """Hold on to no adapter; rows in work get their places again with the next step."""
        for batch in self._batches.values():
            batch.leave_only(set())
        self._batches = {}

    def memory(self, room: int) -> RowMemory:
        return RowMemory([np.zeros((1, one.heads, max(1, room), one.width), one.dtype) for one in self._kept])

    def run(self, parts: Sequence[Part]) -> Tensor:
        groups: dict[OrtAdapter | None, list[int]] = {}
        for place, part in enumerate(parts):
            if part.wants == "last" and len(part.ids) == 1 and part.memory.length:
                groups.setdefault(_adapter(part), []).append(place)
        for adapter in [one for one in self._batches if one not in groups]:
            self._batches.pop(adapter).leave_only(set())
        found: dict[int, Array] = {}
        for adapter, places in groups.items():
            rows = [parts[place].memory for place in places]
            logits = self._continue(adapter, rows, [parts[place].ids[0] for place in places])
            found |= {place: line[None] for place, line in zip(places, logits, strict=True)}
        for place, part in enumerate(parts):
            if place not in found:
                found[place] = self._read(part)
        wanted = [found[place] for place in range(len(parts)) if len(found[place])]
        if not wanted:
            return torch.empty(0, 0)
        return torch.from_numpy(np.concatenate(wanted).astype(np.float32, copy=False))

    def _continue(self, adapter: OrtAdapter | None, rows: Sequence[RowMemory], ids: Sequence[int]) -> Array:
        """Logits [rows, V] of one more token of each."""
        batch = self._together(adapter, rows)
        slots = {id(memory): slot for slot, one in enumerate(batch.members) if (memory := one()) is not None}
        order = [slots[id(row)] for row in rows]
        tokens, lengths = np.empty((len(rows), 1), np.int64), np.empty(len(rows), np.int64)
        tokens[order, 0], lengths[order] = ids, [row.length for row in rows]
        mask = (np.arange(int(lengths.max()) + 1) <= lengths[:, None]).astype(np.int64)
        logits = self._pass(adapter, tokens, mask, lengths[:, None], [one[: len(rows)] for one in batch.arrays])
        for row in rows:
            row.length += 1
        chosen: Array = logits[order, 0]
        return chosen

    def _together(self, adapter: OrtAdapter | None, rows: Sequence[RowMemory]) -> _Batch:
        """The batch in whose first slots these rows lie, and no others, with room for a token more."""
        longest = max(row.length for row in rows) + 1
        batch = self._batches.get(adapter)
        if batch is not None:
            batch.leave_only({id(row) for row in rows})
        if batch is None or batch.slots < len(rows) or batch.room < longest:
            slots, room = 1 << (len(rows) - 1).bit_length(), longest + max(_BLOCK, longest // 8)
            batch = self._batches[adapter] = _Batch(
                [np.zeros((slots, one.heads, room, one.width), one.dtype) for one in self._kept]
            )
        there = {id(one()) for one in batch.members}
        for row in rows:
            if id(row) not in there:
                batch.put(row, len(batch.members))
        return batch

    def _read(self, part: Part) -> Array:
        """The wanted logits [wanted, V] of further tokens of one row."""
        memory, count = part.memory, len(part.ids)
        end = memory.length + count
        if memory.room < end:
            memory.own(end + max(_BLOCK, end // 8))
        tokens = np.asarray([part.ids], np.int64)
        places = np.arange(memory.length, end, dtype=np.int64)[None]
        logits = self._pass(_adapter(part), tokens, np.ones((1, end), np.int64), places, memory.arrays)
        memory.length = end
        return _wanted(part, logits[0])

    def _pass(
        self, adapter: OrtAdapter | None, tokens: Array, mask: Array, places: Array, arrays: Sequence[Array]
    ) -> Array:
        binding = self._session.io_binding()
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
        for name, array in given.items():
            if name in self._known:
                binding.bind_cpu_input(name, array)
        for name, value in (adapter.values if adapter is not None else {}).items():
            binding.bind_ortvalue_input(name, value)
        held = [self._value(array) for array in arrays]
        binding.bind_output("logits")
        for one, value in zip(self._kept, held, strict=True):
            binding.bind_ortvalue_input(one.past, value)
            binding.bind_ortvalue_output(one.present, value)
        self._session.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[0].numpy()
        return logits


class GrowingMemory:
    """What a graph gave back last, for one row."""

    def __init__(self, graph: OrtGraph, past: Any, length: int = 0) -> None:
        self._graph, self.past, self.length = graph, past, length

    @property
    def bytes(self) -> int:
        return sum(one.numpy().nbytes for one in self.past)

    def copy(self, length: int, room: int) -> GrowingMemory:
        return GrowingMemory(self._graph, self._graph.cut(self.past, length), length)


class GrowingRunner:
    """One row after the other; implements `serving.runner.Runner`."""

    shares = True

    def __init__(self, graph: OrtGraph) -> None:
        self._graph = graph

    def forget(self) -> None:
        """It holds nothing."""

    def memory(self, room: int) -> GrowingMemory:
        return GrowingMemory(self._graph, self._graph.nothing())

    def run(self, parts: Sequence[Part]) -> Tensor:
        found = []
        for part in parts:
            memory, adapter = part.memory, _adapter(part)
            values = adapter.values if adapter is not None else {}
            logits, memory.past = self._graph.step(part.ids, memory.past, memory.length, values)
            memory.length += len(part.ids)
            found.append(_wanted(part, logits))
        wanted = [one for one in found if len(one)]
        return torch.from_numpy(np.concatenate(wanted)) if wanted else torch.empty(0, 0)


def best_ort_runner(session: Any, graph: OrtGraph) -> Runner:
    """The runner in batches where it gives the logits of the one row by row, found out on a few random tokens.

    Raises `EngineError` for a graph that cannot be computed at all.
    """
    usual = GrowingRunner(graph)
    batched = BatchRunner(session, kept_of(graph))
    try:
        expected = _tried(usual, graph.vocabulary)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"ONNX Runtime cannot compute the model: {first[:300]}", fix="export again") from error
    try:
        got = _tried(batched, graph.vocabulary)
    except Exception:  # the runtime's errors have no common ancestor but this: it does not take memory in place
        return usual
    return batched if _alike(got, expected) else usual


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether logits [tokens, V] are equal up to rounding; what is added to all of a token's does not count."""
    ours, theirs = (one.double() - one.double().mean(-1, keepdim=True) for one in (ours, theirs))
    error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-30)
    return bool(error < _ALIKE)


def kept_of(graph: OrtGraph) -> tuple[Kept, ...]:
    """What a graph remembers."""
    return tuple(Kept(past, present, *shape, dtype) for past, present, shape, dtype in graph.kept)


def _tried(runner: Runner, vocabulary: int) -> Tensor:
    """Logits of two rows: read whole and in parts, and continued side by side."""
    ids = torch.randint(0, vocabulary, (19,), generator=torch.Generator().manual_seed(0)).tolist()
    first, second = runner.memory(4), runner.memory(30)
    steps = [
        runner.run([Part(first, ids[:9], None, "all")]),
        runner.run([Part(second, ids[2:5], None, "none"), Part(first, ids[9:12], None, "last")])[-1:],
        runner.run([Part(second, ids[5:7], None, "last")]),
        runner.run([Part(first, ids[12:13], None), Part(second, ids[13:14], None)]),
        runner.run([Part(second, ids[14:15], None), Part(first, ids[15:16], None)]),
    ]
    return torch.cat(steps)


def _wanted(part: Part, logits: Array) -> Array:
    """Of logits [tokens, V] those that a part wants."""
    return {"all": logits, "last": logits[-1:], "none": logits[:0]}[part.wants]


def _adapter(part: Part) -> OrtAdapter | None:
    adapter: Any = part.adapter
    if adapter is not None and not isinstance(adapter, OrtAdapter):
        raise EngineError("this adapter is none of an ONNX model")
    return adapter


def _zeros(like: Array, rows: int, room: int) -> Array:
    return np.zeros((rows, like.shape[1], room, like.shape[3]), like.dtype)
