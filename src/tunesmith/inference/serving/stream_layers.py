"""Decoder layers that compute a step's stream in few calls, in place of those of the model.

While a step has few tokens most of its time is spent between the operations. A `StreamLayer` computes what the layer of
`transformers` does with one product for queries, keys and values, and with the fused operations of `ops.pointwise`
(norms, rotation). Adapters add their updates to the columns of the layer they are for. The joined weight is a copy of
which the layers' own weights are parts; where they had been mapped from a file, what is mapped stays. The two large
products of the gated activation are therefore not joined: they would double most of a model in memory.

It is for layers whose structure is known (Llama, Mistral, Qwen2, Qwen3), in fp32 on a CPU. Whether a model still gives
its own logits with them is measured before they are kept (`runner.best_runner`); the layers they replace are the plain
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.inference.serving.adapters import AdaptedLinear, Current, Stack, add_updates
from tunesmith.inference.serving.stream_attention import Step, attend_step
from tunesmith.ops.partial_attention import ScoreRule
from tunesmith.ops.pointwise import Heads, Norm, rms_norm, split_heads
from tunesmith.ops.product import few_rows_product

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_CHILDREN = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_HEAD_NORMS = frozenset({"q_norm", "k_norm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of a joined product are a layer's."""

    path: str
    start: int
    stop: int
    bias: Tensor | None
    stack: Stack


class Joined:
    """Linear layers that read the same input, as one product with their adapters' updates."""

    def __init__(self, linears: Sequence[AdaptedLinear], current: Current) -> None:
        self._current = current
        bases: list[Any] = [linear.base for linear in linears]
        self.weight = bases[0].weight.data
        if len(bases) > 1:
            self.weight = torch.cat([base.weight.data for base in bases])
        self._parts: list[_Columns] = []
        start = 0
        for linear, base in zip(linears, bases, strict=True):
            end = start + base.weight.shape[0]
            base.weight = nn.Parameter(self.weight[start:end], requires_grad=False)
            self._parts.append(_Columns(linear.path, start, end, base.bias, current.stack()))
            start = end
        biases = [base.bias for base in bases]
        self.bias = None if None in biases else torch.cat(biases)

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [T, in] to [T, all outputs]."""
        out = few_rows_product(x, self.weight, self.bias)
        spans = self._current.of(x.shape[0])
        if spans:
            for part in self._parts:
                add_updates(x, out[:, part.start : part.stop], spans, part.path, part.bias, part.stack)
        return out


class StreamLayer(nn.Module):
    """Stands for a decoder layer. What it holds of it stays the layer's; only the way it is computed is another."""

    def __init__(self, layer: Any, current: Current) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.__dict__["original"] = layer  # not registered: its weights are found where they were
        self._norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self._head_norms = tuple(_norm(getattr(attention, n)) if hasattr(attention, n) else None for n in _NORM_ORDER)
        self._attention_in = Joined([attention.q_proj, attention.k_proj, attention.v_proj], current)
        self._attention_out = Joined([attention.o_proj], current)
        self._gate, self._up = Joined([mlp.gate_proj], current), Joined([mlp.up_proj], current)
        self._mlp_out = Joined([mlp.down_proj], current)
        size = attention.head_dim
        columns = len(attention.q_proj.base.weight), len(attention.k_proj.base.weight)
        self._heads = Heads(columns[0] // size, columns[1] // size, size)
        self._rule = ScoreRule(float(attention.scaling))
        known = attention if hasattr(attention, "sliding_window") else attention.config
        windowed = hasattr(attention, "sliding_window") or type(attention).__name__ == "MistralAttention"
        self._window: int | None = getattr(known, "sliding_window", None) if windowed else None
        self._index: int = attention.layer_idx

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], step: Step, **_: Any
    ) -> Tensor:
        x = hidden_states[0]
        cos, sin = position_embeddings[0][0], position_embeddings[1][0]
        q_norm, k_norm = self._head_norms
        joined = self._attention_in(rms_norm(x, self._norms[0])[0])
        query, key, value = split_heads(joined, self._heads, cos, sin, q_norm, k_norm)
        attended = attend_step(self._index, query[None], key[None], value[None], step, self._rule, self._window)
        h = self._attention_out(attended.reshape(x.shape[0], -1)).add_(x)
        read = rms_norm(h, self._norms[1])[0]
        gated = F.silu(self._gate(read), inplace=True).mul_(self._up(read))
        return self._mlp_out(gated).add_(h)[None]


_NORM_ORDER = ("q_norm", "k_norm")


def use_stream_layers(model: nn.Module, current: Current) -> dict[str, nn.Module]:
    """Put a `StreamLayer` in place of each layer of known structure; the layers themselves by their paths."""
    found = {path: layer for path, layer in model.named_modules() if _known(layer)}
    for path, layer in found.items():
        model.set_submodule(path, StreamLayer(layer, current))
    return found


def put_back(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Undo `use_stream_layers`."""
    for path, layer in layers.items():
        model.set_submodule(path, layer)


def _known(layer: Any) -> bool:
    """Whether this is, by name, children and types, a layer whose computation we know."""
    kind = type(layer).__name__
    family = kind.removesuffix("DecoderLayer")
    if family not in _FAMILIES or kind == family or not type(layer).__module__.startswith("transformers.models."):
        return False
    children = dict(layer.named_children())
    if set(children) != _CHILDREN:
        return False
    attention, mlp = children["self_attn"], children["mlp"]
    inner, gated = (dict(part.named_children()) for part in (attention, mlp))
    if set(inner) not in (_ATTENTION, _ATTENTION | _HEAD_NORMS) or set(gated) != _MLP:
        return False
    if type(gated["act_fn"]).__name__ not in ("SiLU", "SiLUActivation"):
        return False
    norms = [children["input_layernorm"], children["post_attention_layernorm"]]
    norms += [inner[name] for name in _HEAD_NORMS & inner.keys()]
    linears = [inner[name] for name in _ATTENTION] + [gated[name] for name in _MLP - {"act_fn"}]
    plain = all(isinstance(one, AdaptedLinear) and one.direct for one in linears)
    dense = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in layer.parameters())
    biases = [getattr(inner[name].base, "bias", None) is None for name in ("q_proj", "k_proj", "v_proj")]
    names = (f"{family}Attention", f"{family}MLP")
    return (
        plain
        and dense
        and (type(attention).__name__, type(mlp).__name__) == names
        and all(type(norm).__name__ == f"{family}RMSNorm" for norm in norms)
        and len(set(biases)) == 1
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.data, float(module.variance_epsilon))
