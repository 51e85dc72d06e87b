"""Decoder layers that compute themselves in two fused steps around the attention, in place of the ones of a model.

A fused layer is an object of a subclass of the layer's own class, on the same submodules: parameter names, adapters put
on a projection later, gradient checkpointing and hooks on the layer are as before. At each call it looks at what it is
made of, and uses `ops.decoder_layer` where that is exactly what the layer would compute; in every other case (a cache
of keys and values, weights in half precision, dropout, a switched-off or quantised adapter, hooks on a submodule) it is
the layer it came from. Under autocast only the products are computed in the narrower type; adapters then take the
original way, as their small updates would be lost in a sum of that type.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunesmith.models.lora import LoraLinear
from tunesmith.ops.decoder_layer import Projection, attention_input, attention_output
from tunesmith.ops.document_attention import can_attend, document_attention
from tunesmith.ops.packed_attention import ATTENTION
from tunesmith.ops.packing import Packing
from tunesmith.ops.pointwise import Heads, Norm
from tunesmith.ops.product import FastLinear

MIN_TOKENS = 16
"""Below so many tokens (decoding) stacking weights costs more than it saves."""
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_LAYERS = frozenset(f"{family}DecoderLayer" for family in _FAMILIES)
_INNER = frozenset(f"{family}{part}" for family in _FAMILIES for part in ("Attention", "MLP"))
_NORMS = frozenset(f"{family}RMSNorm" for family in _FAMILIES)
_CHILDREN = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_HEAD_NORMS = frozenset({"q_norm", "k_norm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class _Parts:
    """A layer's tensors as the fused steps take them."""

    norm: Norm
    joined: tuple[Projection, Projection, Projection]
    heads: Heads
    q_norm: Norm | None
    k_norm: Norm | None
    out: Projection
    mlp_norm: Norm
    gate: Projection
    up: Projection
    down: Projection


class FusedLayer(nn.Module):
    """The forward pass that a fused layer's class puts before the one of the original class."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = None if args or not _plain_call(hidden_states, kwargs) else _parts(self, hidden_states.dtype)
        if parts is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        return _forward(self, parts, hidden_states, **kwargs)


def use_fused_layers(model: nn.Module) -> tuple[str, ...]:
    """Put a fused layer in place of each layer of known structure on a CPU; returns their names.

    Before or after adapters are attached. The first of each class must give what it gave before, on random input, or
    none of that class is replaced.
    """
    replaced = []
    agrees: dict[type, bool] = {}
    for name, layer in list(model.named_modules()):
        original = type(layer)
        if not _known(layer):
            continue
        fused = _fused(layer)
        if original not in agrees:
            agrees[original] = _agrees(layer, fused)
        if agrees[original]:
            model.set_submodule(name, fused)
            replaced.append(name)
    return tuple(replaced)


def _forward(
    layer: Any, parts: _Parts, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
) -> Tensor:
    batch, length, width = hidden.shape
    x = hidden.reshape(-1, width)
    cos, sin = (t.expand(batch, -1, -1).reshape(-1, t.shape[-1]) for t in position_embeddings)
    within = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    states = attention_input(x, parts.norm, parts.joined, parts.heads, cos, sin, parts.q_norm, parts.k_norm, within)
    attended = _attended(layer.self_attn, states, batch, kwargs).to(x.dtype)
    out = attention_output(x, attended, parts.out, parts.mlp_norm, parts.gate, parts.up, parts.down, within)
    return out.view(batch, length, width)


def _attended(attention: Any, states: tuple[Tensor, Tensor, Tensor], batch: int, given: dict[str, Any]) -> Tensor:
    """What attention gives, [B T, Hq D], for queries, keys and values [H, B T, D] and the layer's keyword arguments."""
    window, packing = _window(attention), given.get("packing")
    scaling: float = attention.scaling
    if (
        isinstance(packing, Packing)
        and attention.config._attn_implementation == ATTENTION
        and given.get("attention_mask") is None
        and not packing.prefixes
        and can_attend(states[0])
    ):
        return document_attention(*states, packing.lengths, scaling, window)
    # [H, B T, D] to [B, H, T, D]
    query, key, value = (t.view(len(t), batch, -1, t.shape[-1]).transpose(0, 1) for t in states)
    others = {name: v for name, v in given.items() if name not in ("past_key_values", "use_cache", "attention_mask")}
    if _has_window(attention):
        others["sliding_window"] = window
    attended, _ = _attention_function(attention)(
        attention, query, key, value, given.get("attention_mask"), dropout=0.0, scaling=scaling, **others
    )
    return attended.reshape(states[0].shape[1], -1)  # type: ignore[no-any-return]


def _has_window(attention: Any) -> bool:
    return hasattr(attention, "sliding_window") or type(attention).__name__ == "MistralAttention"


def _window(attention: Any) -> int | None:
    """Qwen's attention knows its own window, Mistral's reads the configuration's, Llama's has none."""
    if not _has_window(attention):
        return None
    known = attention if hasattr(attention, "sliding_window") else attention.config
    window: int | None = getattr(known, "sliding_window", None)
    return window


def _attention_function(attention: Any) -> Any:
    """The attention the model is set to, found as its own layer finds it."""
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)


def _plain_call(hidden: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a call is one of training or of reading a prompt, in a precision in which weights may be summed."""
    return (
        hidden.ndim == 3
        and hidden.shape[0] * hidden.shape[1] >= MIN_TOKENS
        and hidden.device.type == "cpu"
        and (hidden.dtype == torch.float32 or (hidden.dtype == torch.float64 and not torch.is_autocast_enabled("cpu")))
        and kwargs.get("past_key_values") is None
        and kwargs.get("position_embeddings") is not None
    )


def _known(layer: nn.Module) -> bool:
    """Whether this is, by name and by children, a layer whose computation we know."""
    if type(layer).__name__ not in _LAYERS or not type(layer).__module__.startswith("transformers.models."):
        return False
    children = dict(layer.named_children())
    if set(children) != _CHILDREN:
        return False
    attention, mlp = (dict(children[name].named_children()) for name in ("self_attn", "mlp"))
    if set(attention) not in (_ATTENTION, _ATTENTION | _HEAD_NORMS) or set(mlp) != _MLP:
        return False
    weight = next(layer.parameters())
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def _parts(layer: Any, dtype: torch.dtype) -> _Parts | None:
    """The parts of a layer as it is at this moment, or None if it is not just what the fused steps compute."""
    attention, mlp = layer.self_attn, layer.mlp
    inner = (attention, mlp)
    if any(_hooked(m) for m in inner) or any(type(m).__name__ not in _INNER for m in inner):
        return None
    if attention.training and attention.attention_dropout:
        return None
    if type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation") or _hooked(mlp.act_fn):
        return None
    norms = [_norm(m, dtype) for m in (layer.input_layernorm, layer.post_attention_layernorm)]
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    linears = [_projection(m, dtype) for m in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    head_norms = [_norm(m, dtype) for m in (getattr(attention, n, None) for n in ("q_norm", "k_norm")) if m is not None]
    if None in norms or None in linears or None in head_norms:
        return None
    size = attention.head_dim
    if torch.is_autocast_enabled("cpu") and any(p is not None and p.a is not None for p in linears):
        return None
    q, k, v, out, gate, up, down = (p for p in linears if p is not None)
    q_norm, k_norm = head_norms if head_norms else (None, None)
    heads = Heads(len(q.weight) // size, len(k.weight) // size, size)
    first, second = (n for n in norms if n is not None)
    return _Parts(first, (q, k, v), heads, q_norm, k_norm, out, second, gate, up, down)


def _norm(module: nn.Module, dtype: torch.dtype) -> Norm | None:
    if type(module).__name__ not in _NORMS or _hooked(module) or module.weight.dtype != dtype:
        return None
    return Norm(module.weight, module.variance_epsilon)  # type: ignore[arg-type]


def _projection(module: nn.Module, dtype: torch.dtype) -> Projection | None:
    if _hooked(module):
        return None
    if type(module) is nn.Linear or type(module) is FastLinear:
        weights = [module.weight, *([] if module.bias is None else [module.bias])]
        return Projection(module.weight, module.bias) if all(w.dtype == dtype for w in weights) else None
    if type(module) is not LoraLinear or not _summable(module):
        return None
    base = module.base
    if not isinstance(base, nn.Linear) or not all(w.dtype == dtype for w in (base.weight, module.lora_A)):
        return None
    plain = _projection(base, dtype)
    if plain is None:
        return None
    return Projection(plain.weight, plain.bias, *module.factors, module.scaling)


def _summable(module: LoraLinear) -> bool:
    """Whether the layer is, at this moment, `W + s B A` and nothing else."""
    if not module.enabled or (module.training and module.dropout):
        return False
    return getattr(module, "magnitude", None) is None and not getattr(module, "quantized", False)


def _hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see this module called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""The fused class of each class, made once."""


def _fused(layer: nn.Module) -> nn.Module:
    """An object of the fused class on everything the layer holds."""
    original = type(layer)
    if original not in _CLASSES:
        _CLASSES[original] = type(f"Fused{original.__name__}", (FusedLayer, original), {"__module__": __name__})
    fused = object.__new__(_CLASSES[original])
    fused.__dict__.update(layer.__dict__)
    return fused


@torch.no_grad()
def _agrees(layer: Any, fused: Any) -> bool:
    """Whether both give the same for random tokens and positions."""
    weight = layer.input_layernorm.weight
    if _parts(fused, weight.dtype) is None:
        return True  # the fused layer then calls the original
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, MIN_TOKENS, len(weight), generator=generator).to(weight)
    angles = torch.randn(1, MIN_TOKENS, layer.self_attn.head_dim, generator=generator).to(weight)
    given = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}
    ours, theirs = fused(hidden, **given), layer(hidden, **given)
    return bool((ours - theirs).norm() <= _TOLERANCE * theirs.norm())
