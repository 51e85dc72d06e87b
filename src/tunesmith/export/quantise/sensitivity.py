"""Which layers may not be cut: how far a model's predictions move when one group of layers alone is quantised.

A group is the linear layers of a decoder layer that read the same tensor (queries, keys and values; gate and up): what
servers fuse into one product must have one precision. The head and the embeddings, tied or not, are never cut.

A plan of mixed precision is the smallest file found whose predictions stay within a bound: from the fewest bits on, the
group that buys most divergence per byte gets more, until the model as a whole holds the bound. Divergences add up only
roughly, so what is planned is quantised and measured as a whole before it is called a plan; rows that are measured on
are not those that the weights were fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from tunesmith.errors import RecipeError
from tunesmith.export.quantise.calibration import begin, within
from tunesmith.export.quantise.divergence import Reference
from tunesmith.export.quantise.folder import load_merged
from tunesmith.export.quantise.grid import Grid
from tunesmith.export.quantise.layers import Block, blocks_of, group_size, set_weight, weight_of
from tunesmith.export.quantise.quantising import WHOLE, Rows, Tell, by_gptq, by_rtn
from tunesmith.export.types import Source, StepError
from tunesmith.inference.quantised_weights import Codes

Method = Literal["gptq", "rtn"]
_MEASURED = 4
"""Every so many-th row is measured on; the others are fitted to."""
_ALONE = 512
"""Tokens on which a group is measured alone; the whole model is measured on all."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Layers that are cut together; by bits per weight, mean KL in nats when they alone are cut, and their bytes."""

    paths: tuple[str, ...]
    divergence: Mapping[int, float]
    bytes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """Bits by layer, and what was measured: mean KL of the whole model in nats per token, and the layers' bytes."""

    bits: Mapping[str, int]
    bound: float
    divergence: float
    bytes: int
    sensitivities: tuple[Sensitivity, ...]

    def facts(self) -> dict[str, Any]:
        """The plan and the table of sensitivities, the most sensitive first, as it goes into a manifest."""
        ranked = sorted(self.sensitivities, key=lambda one: -max(one.divergence.values()))
        return {
            "bound": self.bound,
            "divergence": round(self.divergence, 6),
            "layers": {str(b): sum(1 for x in self.bits.values() if x == b) for b in sorted(set(self.bits.values()))},
            "sensitivity": [
                {"layers": list(one.paths), "kl": {str(b): round(kl, 6) for b, kl in one.divergence.items()}}
                | {"bits": self.bits[one.paths[0]]}
                for one in ranked
            ],
        }


def plan_bits(
    source: Source,
    rows: Rows,
    bound: float,
    tell: Tell,
    *,
    bits: Sequence[int] = (4, 8, WHOLE),
    scratch: Path | None = None,
) -> Plan:
    """The plan of mixed precision for a tuned model; see `plan`.

    scratch: where the merged model may lie; with an export's own folder it is merged once. None: a temporary one.
    """
    with TemporaryDirectory(prefix="tunesmith-plan-") as temporary:
        model = load_merged(source.merged(scratch or Path(temporary)))
        return plan(model, rows, bits, bound, tell)


def _silent(line: str) -> None:
    """Nobody listens."""


@torch.no_grad()
def plan(
    model: Any,
    rows: Rows,
    bits: Sequence[int] = (4, 8, WHOLE),
    bound: float = 0.01,
    tell: Tell = _silent,
    method: Method = "gptq",
) -> Plan:
    """The smallest mix of `bits` found whose mean KL on held-out `rows` is at most `bound` nats per token.

    `rows` are token ids of training rows. The model is left as it was. 16 bits mean as it is, and are always possible.
    Raises `RecipeError` for a bound that is not positive or bits that are none, `StepError` without rows.
    """
    if not bound > 0:
        raise RecipeError(f"a bound of {bound} cannot be held", where="--mixed", expected="a mean KL above 0")
    if strange := sorted(set(bits) - {4, 8, WHOLE}):
        raise RecipeError(f"{strange[0]} bits per weight are not possible", where="bits", expected="4, 8 and 16")
    fitted, measured = split(rows)
    if not measured:
        raise StepError("planning the precision", "there are no calibration rows", "export with --bits 8")
    levels = tuple(sorted({*bits, WHOLE}))
    blocks = blocks_of(model)
    trial = _Trial(model, blocks, fitted, method, tell)
    reference = Reference.of(model, measured)
    found = trial.sensitivities(Reference.of(model, measured, _ALONE), levels)
    states = _ladder(found, levels)
    place, divergence = _first_true(
        lambda place: trial.truly(reference, _by_path(found, states[place])),
        trial.first_within(reference, found, states, bound),
        len(states) - 1,
        bound,
    )
    size = sum(one.bytes[b] for one, b in zip(found, states[place], strict=True))
    return Plan(_by_path(found, states[place]), bound, divergence, size, tuple(found))


def _first_true(measure: Callable[[int], float], likely: int, last: int, bound: float) -> tuple[int, float]:
    """The first place found, from a likely one on, where what is measured is within the bound; `last` at the latest.

    Steps grow until one is within it, and what they passed over is then halved: measuring is dear.
    """
    place, failing, step = likely, likely - 1, 1
    while (value := measure(place)) > bound and place < last:
        failing, place, step = place, min(last, place + step), 2 * step
    while place - failing > 1:
        middle = (place + failing) // 2
        if (nearer := measure(middle)) <= bound:
            place, value = middle, nearer
        else:
            failing = middle
    return place, value


def split(rows: Rows) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Rows to fit to and rows to measure on, the longer part first; where there are few, both are all of them."""
    kept = [row for row in rows if len(row) > 1]
    if len(kept) < _MEASURED:
        return kept, kept
    return [row for i, row in enumerate(kept) if i % _MEASURED], kept[::_MEASURED]


class _Trial:
    """A model whose layers are cut and put back."""

    def __init__(self, model: Any, blocks: list[Block], rows: Rows, method: Method, tell: Tell) -> None:
        self.model, self.blocks, self.rows, self.method, self.tell = model, blocks, rows, method, tell
        self.layers = {path: module for block in blocks for path, module in block.linears.items()}
        self.whole = {path: weight_of(module).clone() for path, module in self.layers.items()}
        self.group = group_size(blocks)
        self.codes: dict[int, Mapping[str, Codes]] = {}

    def sensitivities(self, reference: Reference, levels: Sequence[int]) -> list[Sensitivity]:
        """Of every group, for all levels below the whole; 0 for the whole."""
        groups = self._groups()
        for level in levels:
            if level < WHOLE:
                self.tell(f"planning: all layers with {level} bits")
                self.codes[level] = self._cut(dict.fromkeys(self.layers, level))
                self._restore()
        found = []
        for number, paths in enumerate(groups, 1):
            divergence, size = {WHOLE: 0.0}, {WHOLE: sum(2 * self.whole[path].numel() for path in paths)}
            for level, codes in self.codes.items():
                self._put(dict.fromkeys(paths, level))
                divergence[level] = reference.divergence(self.model)
                size[level] = sum(codes[path].file_bytes for path in paths)
                self._restore(paths)
            found.append(Sensitivity(paths, dict(sorted(divergence.items())), dict(sorted(size.items()))))
            if number % 10 == 0 or number == len(groups):
                self.tell(f"planning: {number} of {len(groups)} groups of layers cut alone")
        return found

    def first_within(
        self, reference: Reference, found: Sequence[Sensitivity], states: Sequence[tuple[int, ...]], bound: float
    ) -> int:
        """The first state within the bound when its groups are cut together, by bisection: states get better."""
        low, high = 0, len(states) - 1
        while low < high:
            middle = (low + high) // 2
            self._put(_by_path(found, states[middle]))
            within_bound = reference.divergence(self.model) <= bound
            self._restore()
            low, high = (low, middle) if within_bound else (middle + 1, high)
        return low

    def truly(self, reference: Reference, bits: Mapping[str, int]) -> float:
        """Divergence when the model is quantised with these bits from the start, as the export will do it."""
        self._cut(bits)
        divergence = reference.divergence(self.model)
        self._restore()
        self.tell(f"planning: {_said(bits)}: KL {divergence:.4f}")
        return divergence

    def _groups(self) -> list[tuple[str, ...]]:
        walk = begin(self.model, self.blocks, within(self.rows, 64), 64)
        groups: list[tuple[str, ...]] = []
        for block in self.blocks:
            shared = [one.paths for one in walk.inputs()[0]]
            known = {path for paths in shared for path in paths}
            groups += [*shared, *((path,) for path in block.linears if path not in known)]
            walk.step()
        return groups

    def _cut(self, bits: Mapping[str, int]) -> Mapping[str, Codes]:
        if self.method == "rtn":
            return by_rtn(self.blocks, bits, self._grid).codes
        return by_gptq(self.model, self.blocks, bits, self._grid, self.rows, _silent).codes

    def _grid(self, bits: int) -> Grid:
        return Grid(bits, self.group)

    def _put(self, bits: Mapping[str, int]) -> None:
        for path, level in bits.items():
            if level < WHOLE:
                set_weight(self.layers[path], self.codes[level][path].values())

    def _restore(self, paths: Sequence[str] | None = None) -> None:
        for path in self.layers if paths is None else paths:
            set_weight(self.layers[path], self.whole[path])


def _ladder(found: Sequence[Sensitivity], levels: Sequence[int]) -> list[tuple[int, ...]]:
    """Bits of each group, from all lowest to all whole: each step raises the group that gains most KL per byte."""
    now = [levels[0]] * len(found)
    states = [tuple(now)]
    while any(level < WHOLE for level in now):
        _, group, level = max(
            (_gain(one, now[i], level), -i, -level) for i, one in enumerate(found) for level in levels if level > now[i]
        )
        now[-group] = -level
        states.append(tuple(now))
    return states


def _gain(one: Sensitivity, now: int, level: int) -> float:
    """Divergence saved per byte added."""
    return (one.divergence[now] - one.divergence[level]) / max(1, one.bytes[level] - one.bytes[now])


def _by_path(found: Sequence[Sensitivity], state: Sequence[int]) -> dict[str, int]:
    return {path: level for one, level in zip(found, state, strict=True) for path in one.paths}


def _said(bits: Mapping[str, int]) -> str:
    counts = {level: sum(1 for b in bits.values() if b == level) for level in sorted(set(bits.values()))}
    return ", ".join(f"{count} layers with {level} bits" for level, count in counts.items())
