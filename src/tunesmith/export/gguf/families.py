"""What sets the model families apart in a GGUF file: the few things that the names of their tensors do not say.

llama.cpp computes each architecture in its own way. Where `transformers` computes the same numbers differently, the
weights in the file are changed so that both agree: rotary halves are interleaved (Llama), the one that Gemma adds to
its norms is added beforehand, and a scale of the queries that llama.cpp does not read goes into the queries' weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.export.types import StepError

Array = npt.NDArray[np.float32]
INSTEAD = "export merged weights (--to merged), which llama.cpp's own converter reads too, or ONNX (--to onnx)"
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj"})


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one `model_type` are written.

    Attributes
    ----------
    arch: what llama.cpp calls the architecture.
    activation: the one that llama.cpp computes for it.
    biased: modules that may have a bias there.
    own_head: whether the head may have a weight of its own.
    permuted: rotary dimensions are pairs of neighbours, not of halves.
    ones_added: the norms' weights are stored with the one that the model adds to them.
    query_scale: the module whose weight takes up a scale of the queries that the file cannot say.
    transposed: linear layers are stored as [in, out] (GPT-2's Conv1D).
    free_head_dim: heads need not share out the hidden size.
    rotary: positions are rotations; else they are embedded.
    """

    arch: str
    activation: str = "silu"
    biased: frozenset[str] = frozenset()
    own_head: bool = True
    permuted: bool = False
    ones_added: bool = False
    query_scale: Literal["q_proj", "q_norm"] | None = None
    transposed: bool = False
    free_head_dim: bool = True
    rotary: bool = True


_LLAMA = Family("llama", biased=_ATTENTION | {"o_proj", "gate_proj", "up_proj", "down_proj"}, permuted=True)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "granite": Family("granite", biased=_LLAMA.biased, permuted=True),
    "qwen2": Family("qwen2", biased=_ATTENTION, free_head_dim=False),
    "qwen3": Family("qwen3", biased=_ATTENTION),
    "gemma": Family("gemma", activation="gelu_pytorch_tanh", biased=_ATTENTION, own_head=False, ones_added=True),
    "gemma2": Family(
        "gemma2",
        activation="gelu_pytorch_tanh",
        biased=_ATTENTION,
        own_head=False,
        ones_added=True,
        query_scale="q_proj",
    ),
    "gemma3_text": Family(
        "gemma3", activation="gelu_pytorch_tanh", biased=_ATTENTION, ones_added=True, query_scale="q_norm"
    ),
    "phi3": Family("phi3", free_head_dim=False),
    "gpt2": Family(
        "gpt2",
        activation="gelu_new",
        biased=frozenset({"c_attn", "c_proj", "c_fc", "ln_1", "ln_2", "ln_f"}),
        transposed=True,
        free_head_dim=False,
        rotary=False,
    ),
}
"""By `model_type`. A model of another type is refused by `family_of`, with what works instead."""


def family_of(config: Any) -> Family:
    """The family of a model's configuration. Raises `StepError` for one that is not written, with every reason."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise StepError("architecture", f"{config.model_type} models are not written as GGUF", INSTEAD)
    if reasons := _refused(family, config):
        raise StepError("architecture", "; ".join(reasons), INSTEAD)
    return family


def _refused(family: Family, config: Any) -> list[str]:
    """What llama.cpp would compute otherwise than this model does."""
    reasons = []
    activation = activation_of(config)
    if activation != family.activation:
        reasons.append(f"llama.cpp computes {family.arch} with {family.activation}, this model has {activation}")
    if not family.own_head and not config.tie_word_embeddings:
        reasons.append(f"llama.cpp takes the head of {family.arch} from the embeddings, this model has one of its own")
    if not family.free_head_dim and head_dim(config) * config.num_attention_heads != config.hidden_size:
        reasons.append(f"llama.cpp shares the hidden size out among the heads of {family.arch}, this model does not")
    if config.model_type == "gpt2":
        flags = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention")
        reasons += [f"llama.cpp has no {flag}" for flag in flags if getattr(config, flag, False)]
        if not config.scale_attn_weights:
            reasons.append("llama.cpp always scales attention by the size of a head, this model does not")
    if getattr(config, "use_bidirectional_attention", None):
        reasons.append("llama.cpp computes this architecture with causal attention, this model looks both ways")
    return reasons


def activation_of(config: Any) -> str:
    """The name of the activation; Gemma's configurations keep it under either of two keys."""
    for key in ("hidden_activation", "hidden_act", "activation_function"):
        if (name := getattr(config, key, None)) is not None:
            return str(name)
    return "unknown"


def head_dim(config: Any) -> int:
    """Numbers in one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def query_factor(family: Family, config: Any) -> float:
    """By how much the queries must grow so that llama.cpp's scale of the attention gives the model's own."""
    if family.query_scale is None:
        return 1.0
    # llama.cpp tells the two largest Gemmas by their number of layers, and scales them by the hidden size.
    largest = {"gemma2": 46, "gemma3": 62}[family.arch]
    theirs = (
        config.hidden_size // config.num_attention_heads if config.num_hidden_layers == largest else head_dim(config)
    )
    return math.sqrt(theirs / config.query_pre_attn_scalar)


def change_rows(family: Family, config: Any, module: str, rows: Array) -> Array:
    """Rows of a linear layer's weight, of its bias or of an adapter's B, as llama.cpp wants them."""
    if family.permuted and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        return interleave(rows, heads)
    if family.query_scale == module == "q_proj":
        return rows * np.float32(query_factor(family, config))
    return rows


def interleave(rows: Array, heads: int) -> Array:
    """Rows [heads x 2 x half, ...] with each head's two halves dealt out alternately: pairs become neighbours."""
    half = rows.shape[0] // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2)).reshape(rows.shape)


def change_tensor(family: Family, config: Any, module: str, values: Array) -> Array:
    """Any tensor of the model as llama.cpp wants it; `module` is the last part of its module's path."""
    if module.endswith("norm"):
        values = values + np.float32(1) if family.ones_added else values
        return values * np.float32(query_factor(family, config)) if module == family.query_scale else values
    if family.transposed and values.ndim == 2 and module.startswith("c_"):
        values = np.ascontiguousarray(values.T)
    return change_rows(family, config, module, values)
