"""Many LoRA adapters on one base in one batch.

Every linear layer of the base is wrapped once, in place (`AdaptedLinear`). It multiplies all tokens of a step by the
base's weight in one product; then each adapter adds its thin update, `s (x Aᵀ) Bᵀ`, to the tokens of its own rows,
which stand together in the stream. So ranks, targets and scalings may differ from adapter to adapter, and none is
merged. DoRA's magnitudes rescale the rows of their adapter (`y = (m/n) ∘ (x Wᵀ + s x Aᵀ Bᵀ) + b`).

What a file may hold beyond that (modules trained in full, new tokens, other methods) cannot be added to a shared base:
`batchable` tells, and such a model is loaded as one of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError, VerificationError
from tunesmith.models.adapter import CONFIG, adapter_names, read_adapter, unsupported
from tunesmith.models.lora import LoraSettings
from tunesmith.models.lora_targets import layer_shape
from tunesmith.ops.dora_linear import row_norms
from tunesmith.ops.product import FastLinear, few_rows_product

_WORTH_STACKING = 3
"""Adapters in one step from which on their products are made together."""
_REPEATED = 3
"""Steps of the same adapters after which their factors are laid side by side."""
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")


@dataclass(frozen=True, slots=True)
class Update:
    """An adapter's part in one layer: A, transposed [in, r]; s B, transposed [r, out]; and DoRA's `m/n` [out]."""

    a: Tensor
    b: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, by the paths of the layers it changes."""

    folder: Path
    layers: Mapping[str, Update]

    @property
    def bytes(self) -> int:
        tensors = (t for u in self.layers.values() for t in (u.a, u.b, u.scale) if t is not None)
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of a stream, which are answered under `adapter`."""

    start: int
    stop: int
    adapter: Adapter


class Current:
    """Which tokens of the stream in work belong to which adapter; every wrapped layer looks here.

    `spans` are of the whole stream. Where only the tokens that are to be continued reach a layer (the head), `chosen`
    are theirs.
    """

    def __init__(self) -> None:
        self.tokens = self.continued = 0
        self.spans: tuple[Span, ...] = ()
        self.chosen: tuple[Span, ...] = ()
        self._last: tuple[Span, ...] = ()
        self._stacks: list[Stack] = []

    def begin(self, tokens: int, continued: int, spans: tuple[Span, ...], chosen: tuple[Span, ...]) -> None:
        """A stream of so many tokens, of which so many are to be continued. Spans that come again stay one object."""
        self.tokens, self.continued = tokens, continued
        self.spans = self._last = self._last if spans == self._last else spans
        self.chosen = self.spans if chosen == self.spans else chosen

    def stack(self) -> Stack:
        """Somewhere for a layer to lay adapters side by side."""
        self._stacks.append(Stack())
        return self._stacks[-1]

    def forget(self) -> None:
        """Let go of adapters that were laid side by side."""
        self._last = ()
        for stack in self._stacks:
            stack.clear()

    def of(self, tokens: int) -> tuple[Span, ...]:
        """Whose the tokens are that a layer is given. Raises `EngineError` where it is given others."""
        if tokens == self.tokens or not self.spans:
            return self.spans
        if tokens != self.continued:
            raise EngineError(
                f"a layer is given {tokens} of {self.tokens} tokens, so it is not known whose they are",
                fix="merge the adapter into its base, and serve that",
            )
        return self.chosen

    def clear(self) -> None:
        self.tokens = self.continued = 0
        self.spans = self.chosen = ()


class AdaptedLinear(nn.Module):
    """A base's linear layer, and the updates of the adapters whose tokens are in the stream.

    `direct`: the layer is a plain product with its weight.
    """

    def __init__(self, base: nn.Module, path: str, current: Current) -> None:
        super().__init__()
        self.base, self.path = base, path
        self._current, self._stack = current, current.stack()
        self.direct = type(base) in (nn.Linear, FastLinear)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)  # the weight and the shape are the base's

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = few_rows_product(flat, self.base.weight, self.base.bias) if self.direct else self.base(x)  # type: ignore[arg-type]
        spans = self._current.of(flat.shape[0])
        if not spans:
            return out.view(*x.shape[:-1], out.shape[-1])
        out = out.reshape(-1, out.shape[-1])
        add_updates(flat, out, spans, self.path, self.base.bias, self._stack)  # type: ignore[arg-type]
        return out.view(*x.shape[:-1], out.shape[-1])


@dataclass(frozen=True, slots=True)
class _Stacked:
    """Adapters side by side: A [n, in, r] and s B [n, r, out], for the tokens at `places`, one of each."""

    places: slice | Tensor
    a: Tensor
    b: Tensor

    def add(self, x: Tensor, out: Tensor) -> None:
        change = torch.bmm(x[self.places, None].to(self.a.dtype), self.a)
        if isinstance(self.places, slice) and out.dtype == change.dtype:
            out[self.places, None].baddbmm_(change, self.b)
        else:
            out[self.places] += torch.bmm(change, self.b)[:, 0].to(out.dtype)


@dataclass(slots=True)
class Stack:
    """The updates of several adapters for a layer, side by side, so that one product serves one token of each.

    Made of updates of one rank when the same adapters have come `_REPEATED` times; only the last such set is kept.
    """

    _spans: tuple[Span, ...] = ()
    _seen: int = 0
    _made: _Stacked | None = None

    def clear(self) -> None:
        self._spans, self._seen, self._made = (), 0, None

    def of(self, spans: tuple[Span, ...], path: str) -> _Stacked | None:
        """The adapters of spans of one token each; None where it is not worth it. Equal spans are the same object."""
        if spans is not self._spans:
            self._spans, self._seen, self._made = spans, 0, None
        self._seen += 1
        if self._seen == _REPEATED:
            self._made = _stacked(spans, path)
        return self._made


def _stacked(spans: Sequence[Span], path: str) -> _Stacked | None:
    updates = [span.adapter.layers.get(path) for span in spans]
    found = [update for update in updates if update is not None and update.scale is None]
    alone = all(span.stop - span.start == 1 for span in spans)
    if len(spans) < _WORTH_STACKING or not alone or len(found) < len(spans):
        return None
    if len({update.a.shape for update in found}) > 1 or len({id(span.adapter) for span in spans}) < len(spans):
        return None
    first, last = spans[0].start, spans[-1].stop
    places: slice | Tensor = slice(first, last)
    if last - first != len(spans):  # tokens of nobody in between
        places = torch.tensor([span.start for span in spans], device=found[0].a.device)
    return _Stacked(places, torch.stack([update.a for update in found]), torch.stack([update.b for update in found]))


def add_updates(x: Tensor, out: Tensor, spans: tuple[Span, ...], path: str, bias: Tensor | None, stack: Stack) -> None:
    """Add to `out` [T, out] what the adapters of `spans` make of `x` [T, in] in the layer at `path`, in place."""
    if len(spans) >= _WORTH_STACKING and (stacked := stack.of(spans, path)) is not None:
        stacked.add(x, out)
        return
    for span in spans:
        update = span.adapter.layers.get(path)
        if update is not None:
            add_update(x[span.start : span.stop], out[span.start : span.stop], update, bias)


def add_update(x: Tensor, out: Tensor, update: Update, bias: Tensor | None) -> None:
    """Add to `out` [T, out] what an adapter makes of `x` [T, in], in place."""
    thin = x.to(update.a.dtype) @ update.a
    if update.scale is None and out.dtype == thin.dtype:
        out.addmm_(thin, update.b)
        return
    change = (thin @ update.b).to(out.dtype)
    if update.scale is None:
        out += change
        return
    plain = out if bias is None else out - bias
    scaled = ((plain + change).to(update.scale.dtype) * update.scale).to(out.dtype)
    out.copy_(scaled if bias is None else scaled + bias)


def wrap_linears(model: nn.Module, current: Current) -> dict[str, nn.Module]:
    """Wrap every linear layer of a model, in place; the layers themselves by their paths."""
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not isinstance(module, AdaptedLinear)
    }
    for path, module in linears.items():
        model.set_submodule(path, AdaptedLinear(module, path, current))
    return linears


def batchable(folder: Path) -> bool:
    """Whether what is in `folder` is an adapter that can share its base with others. Raises `EngineError` if it
    cannot be read."""
    if not (folder / CONFIG).is_file() or (folder / "tokenizer_config.json").is_file():
        return False
    names = adapter_names(folder)
    config = read_config(folder)
    thin = all(name.endswith((_A, _B, *_MAGNITUDES)) for name in names)
    return thin and not config.get("modules_to_save") and not unsupported(config, names)


@torch.no_grad()
def read_updates(folder: Path, linears: Mapping[str, nn.Module]) -> Adapter:
    """The adapter in a folder that is `batchable`, for a base with these linear layers.

    Raises `EngineError` if it is damaged, `VerificationError` if it is of another base.
    """
    config, tensors = read_adapter(folder)
    try:
        settings = LoraSettings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            use_rslora=config.get("use_rslora", False),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )
    except KeyError as error:
        raise EngineError(f"the adapter's configuration lacks {error}", where=str(folder)) from error
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise EngineError(
            f"the adapter is damaged: {broken[0]} holds values that are no numbers",
            where=str(folder),
            fix="train it again, or take an earlier checkpoint",
        )
    paths = [name.removeprefix(_PREFIX).removesuffix(_A) for name in tensors if name.endswith(_A)]
    layers = {path: _update(path, tensors, settings.of_layer(path).scaling, linears, folder) for path in paths}
    return Adapter(folder, layers)


def _update(
    path: str, tensors: Mapping[str, Tensor], scaling: float, linears: Mapping[str, nn.Module], folder: Path
) -> Update:
    linear = linears.get(path)
    a, b = tensors[_PREFIX + path + _A], tensors.get(_PREFIX + path + _B)
    shape = None if linear is None else layer_shape(linear)
    if linear is None or b is None or shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
        why = "has no place in it" if linear is None else f"does not fit a layer of {shape}"
        raise VerificationError(
            f"the adapter does not fit this base: {path} {why}",
            where=str(folder),
            expected="the base it was trained on, unchanged",
        )
    weight: Tensor = linear.weight  # type: ignore[assignment]
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = a.to(weight.device, wide), b.to(weight.device, wide)
    magnitude = next((t for end in _MAGNITUDES if (t := tensors.get(_PREFIX + path + end)) is not None), None)
    scale = None
    if magnitude is not None:
        plain = weight.t() if isinstance(linear, Conv1D) else weight
        scale = magnitude.to(weight.device, wide).reshape(-1) / row_norms(plain, a, b, scaling)
    return Update(a.t().contiguous(), (b * scaling).t().contiguous(), scale)


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of an adapter. Raises `EngineError` if it cannot be read."""
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"the adapter cannot be read: {error}", where=str(folder)) from error
    if not isinstance(found, dict) or "peft_type" not in found:
        raise EngineError("the adapter cannot be read: it has no peft_type", where=str(folder / CONFIG))
    return found
