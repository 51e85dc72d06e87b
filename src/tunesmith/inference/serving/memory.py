"""What running answers remember: keys and values of their tokens, in segments, within a bounded number of bytes.

A segment belongs to one row and holds, for each layer, the keys and values of its tokens one behind another. It grows
in blocks. What ended rows knew is kept for prompts that begin alike (`Beginnings`) as long as nobody needs the room.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

_BLOCK = 64
"""Tokens by which a segment grows at least; and an eighth of what it has."""
SHORTEST = 16
"""Tokens; a shorter common beginning is not worth the copy."""

Ids = npt.NDArray[np.int64]


class Segment:
    """Keys and values of one row's tokens; `room` says how many to expect.

    Attributes
    ----------
    length: how many tokens are known in every layer.
    bytes: memory held.
    """

    def __init__(self, room: int = 0) -> None:
        self.length, self.bytes, self._room = 0, 0, room
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [Hkv, L, D] of the next tokens behind the known ones; all of the layer, [Hkv, S, D]."""
        start, end = self.length, self.length + keys.shape[1]
        held = self._layers.get(layer)
        if held is None or held[0].shape[1] < end:
            held = self._layers[layer] = self._grown(held, keys, values, end)
        held[0][:, start:end] = keys
        held[1][:, start:end] = values
        return held[0][:, :end], held[1][:, :end]

    def copy(self, length: int, room: int) -> Segment:
        """Another segment that begins with the first `length` tokens of this one and has room for `room`."""
        other = Segment(room)
        other.length = length
        for layer, (keys, values) in self._layers.items():
            made = _empty(keys, max(length, room)), _empty(values, max(length, room))
            made[0][:, :length], made[1][:, :length] = keys[:, :length], values[:, :length]
            other._layers[layer] = made
            other.bytes += _bytes(made)
        return other

    def _grown(
        self, held: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, end: int
    ) -> tuple[Tensor, Tensor]:
        size = max(self._room, end) if held is None else end + max(_BLOCK, end // 8)
        made = _empty(keys, size), _empty(values, size)
        self.bytes += _bytes(made)
        if held is not None:
            self.bytes -= _bytes(held)
            made[0][:, : self.length], made[1][:, : self.length] = held[0][:, : self.length], held[1][:, : self.length]
        return made


def _empty(like: Tensor, length: int) -> Tensor:
    return like.new_empty(like.shape[0], length, like.shape[2])


def _bytes(pair: tuple[Tensor, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in pair)


@dataclass(eq=False, slots=True)
class Known:
    """Tokens whose keys and values are at hand, under one adapter."""

    adapter: object
    ids: Ids
    segment: Segment


class Beginnings:
    """What ended rows knew, the least recently used first. Under another adapter the same tokens have other keys.

    None that is kept begins another. In the order of their tokens the one that shares most with a prompt therefore
    stands beside the place where the prompt would stand, however many there are.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._used: dict[Known, None] = {}
        self._ordered: dict[object, list[tuple[bytes, Known]]] = {}

    def __len__(self) -> int:
        return len(self._used)

    def longest(self, adapter: object, ids: Ids, running: Iterable[Known] = ()) -> tuple[Known | None, int]:
        """Who knows most of the beginning of `ids`, and how many tokens; at most all but the last."""
        best, most = None, SHORTEST - 1
        ordered = self._ordered.get(adapter, [])
        at = bisect_left(ordered, _sortable(ids), key=_tokens)
        beside = (one for _, one in ordered[max(0, at - 1) : at + 1])
        for one in (*beside, *(one for one in running if one.adapter is adapter)):
            same = common(one.ids[: one.segment.length], ids[:-1])
            if same > most:
                best, most = one, same
        if best is None:
            return None, 0
        self._refresh(best)
        return best, most

    def keep(self, new: Known) -> None:
        """Keep what an ended row knew, instead of a shorter one that it begins with."""
        if len(new.ids) < SHORTEST:
            return
        ordered = self._ordered.setdefault(new.adapter, [])
        tokens = _sortable(new.ids)
        at = bisect_left(ordered, tokens, key=_tokens)
        if at < len(ordered) and ordered[at][0].startswith(tokens):  # nothing new
            self._refresh(ordered[at][1])
            return
        if at and tokens.startswith(ordered[at - 1][0]):
            at -= 1
            self._leave(ordered.pop(at)[1])
        ordered.insert(at, (tokens, new))
        self._used[new] = None
        self.bytes += new.segment.bytes

    def drop_oldest(self) -> bool:
        """Forget the one that was not used for longest; whether there was one."""
        if not self._used:
            return False
        oldest = next(iter(self._used))
        ordered = self._ordered[oldest.adapter]
        ordered.pop(bisect_left(ordered, _sortable(oldest.ids), key=_tokens))
        self._leave(oldest)
        return True

    def forget(self, adapter: object) -> None:
        """Forget all that was known under an adapter."""
        for _, one in self._ordered.pop(adapter, []):
            self._leave(one)

    def _refresh(self, one: Known) -> None:
        if one in self._used:
            del self._used[one]
            self._used[one] = None

    def _leave(self, one: Known) -> None:
        del self._used[one]
        self.bytes -= one.segment.bytes


def _sortable(ids: Ids) -> bytes:
    """Tokens as bytes that are ordered as they are, and begin alike where they do."""
    return ids.astype(">u4").tobytes()


def _tokens(entry: tuple[bytes, Known]) -> bytes:
    return entry[0]


def common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if not length or one[0] != other[0]:
        return 0
    differ = one[:length] != other[:length]
    first = int(differ.argmax())
    return first if differ[first] else length


def as_ids(tokens: Iterable[int]) -> Ids:
    return np.fromiter(tokens, dtype=np.int64)


def memory_for_answers(share: float = 0.25) -> int:
    """Bytes that keys and values may take by default: a share of what is available now, from 256 MB to 8 GB."""
    import psutil

    return int(min(8e9, max(256e6, share * psutil.virtual_memory().available)))
