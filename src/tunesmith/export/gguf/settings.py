"""What a GGUF file says of a model beside its weights: sizes, norms, windows, scales, and how positions are rotated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.export.gguf.families import INSTEAD, Array, Family, head_dim
from tunesmith.export.types import StepError

Value = bool | int | float | str | bytes | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]
Settings = Mapping[str, Value]
"""By key; the type of a number is its Python type: int is stored as uint32, float as float32."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How positions are rotated: settings, the tensors of factors by which frequencies are divided, and the longest
    context in which the factors for short texts hold (None: any)."""

    settings: Settings
    tensors: Mapping[str, Array]
    short_context: int | None = None


def model_settings(family: Family, config: Any, context: int) -> dict[str, Value]:
    """Everything but positions, under full keys. `context` is the longest text in tokens."""
    found: dict[str, Value] = {
        # Embedded positions are a tensor with a row for each.
        "context_length": context if family.rotary else config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": _feed_forward(config),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads if family.rotary else config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    if config.model_type == "gpt2":
        found["attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
    else:
        found["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
        if family.free_head_dim:
            found["attention.key_length"] = found["attention.value_length"] = head_dim(config)
    found |= dict(_windows(family, config)) | dict(_scales(config))
    return {f"{family.arch}.{key}": value for key, value in found.items()}


def longest_context(config: Any, context: int) -> int:
    """The longest context that llama.cpp computes as the model does: it has no windows but in Gemma's layers."""
    if config.model_type in ("gemma2", "gemma3_text"):
        return context
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    windowed = "sliding_attention" in layers if layers else window is not None
    return min(context, int(window)) if windowed and window else context


def _feed_forward(config: Any) -> int:
    if config.model_type == "gpt2":
        return int(config.n_inner or 4 * config.hidden_size)
    return int(config.intermediate_size)


def _windows(family: Family, config: Any) -> Iterator[tuple[str, Value]]:
    if family.arch not in ("gemma2", "gemma3"):
        return
    pattern = [kind == "sliding_attention" for kind in config.layer_types]
    if any(pattern):
        yield "attention.sliding_window", int(config.sliding_window)
        yield "attention.sliding_window_pattern", pattern
    elif family.arch == "gemma2":
        raise StepError("architecture", "llama.cpp gives gemma2 windows, this model has none", INSTEAD)


def _scales(config: Any) -> Iterator[tuple[str, Value]]:
    caps = {key: getattr(config, f"{key}_softcapping", None) for key in ("attn_logit", "final_logit")}
    if config.model_type == "gemma2" and None in caps.values():
        raise StepError("architecture", "llama.cpp caps the logits of gemma2, this model does not", INSTEAD)
    if config.model_type == "gemma3_text" and caps["attn_logit"] is not None:
        raise StepError("architecture", "llama.cpp does not cap the attention of gemma3, this model does", INSTEAD)
    yield from ((f"{key}_softcapping", float(cap)) for key, cap in caps.items() if cap is not None)
    if config.model_type == "granite":
        yield "attention.scale", float(config.attention_multiplier)
        yield "embedding_scale", float(config.embedding_multiplier)
        yield "residual_scale", float(config.residual_multiplier)
        yield "logit_scale", float(config.logits_scaling)


def rotation(family: Family, config: Any) -> Rotation:
    """How positions are rotated. Raises `StepError` for a way that llama.cpp does not have."""
    if not family.rotary:
        return Rotation({}, {})
    parameters, settings = config.rope_parameters, dict[str, Value]()
    if "full_attention" in parameters:  # Gemma's layers with windows turn by frequencies of their own
        local = parameters.get("sliding_attention", parameters["full_attention"])
        if local.get("rope_type", "default") != "default":
            raise StepError("positions", "llama.cpp does not scale the positions of layers with windows", INSTEAD)
        settings["rope.freq_base_swa"] = float(local["rope_theta"])
        parameters = parameters["full_attention"]
    share = float(parameters.get("partial_rotary_factor", 1.0))
    size = int(head_dim(config) * share)
    if share != 1.0 and family.arch != "phi3":
        raise StepError(
            "positions", f"llama.cpp turns all numbers of a head of {family.arch}, this model some", INSTEAD
        )
    settings |= {"rope.freq_base": float(parameters["rope_theta"]), "rope.dimension_count": size}
    more = _scaled(config, parameters)
    settings |= more.settings
    prefixed = {f"{family.arch}.{key}": value for key, value in settings.items()}
    return Rotation(prefixed, more.tensors, more.short_context)


def _scaled(config: Any, parameters: Mapping[str, Any]) -> Rotation:
    """What is done for texts longer than those of the pretraining."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return Rotation({}, {})
    if kind not in ("linear", "yarn", "llama3", "longrope"):
        raise StepError("positions", f"llama.cpp does not scale positions by {kind!r}", INSTEAD)
    if kind == "linear":
        return Rotation({"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}, {})
    frequencies, attention = _transformers_frequencies(config, kind)
    if kind == "llama3":
        size = 2 * len(frequencies)
        plain = float(parameters["rope_theta"]) ** -(np.arange(0, size, 2, dtype=np.float64) / size)
        return Rotation({}, {"rope_freqs.weight": (plain / frequencies).astype(np.float32)})
    original = int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
    settings: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.original_context_length": original}
    if kind == "longrope":
        settings["rope.scaling.attn_factor"] = attention
        factors = {name: np.asarray(parameters[f"{name}_factor"], dtype=np.float32) for name in ("long", "short")}
        return Rotation(settings, {f"rope_factors_{name}.weight": f for name, f in factors.items()}, original)
    factor = float(parameters["factor"])
    if not parameters.get("truncate", True):
        raise StepError("positions", "llama.cpp rounds the range of YaRN's correction, this model does not", INSTEAD)
    settings |= {
        "rope.scaling.factor": factor,
        # llama.cpp multiplies by YaRN's usual factor itself; what remains is 1 but for models with one of their own.
        "rope.scaling.attn_factor": attention / (0.1 * math.log(factor) + 1),
        "rope.scaling.yarn_beta_fast": float(parameters.get("beta_fast") or 32),
        "rope.scaling.yarn_beta_slow": float(parameters.get("beta_slow") or 1),
    }
    return Rotation(settings, {})


def _transformers_frequencies(config: Any, kind: str) -> tuple[Any, float]:
    """The frequencies and the attention's factor that `transformers` itself computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    layers = {"layer_type": "full_attention"} if "full_attention" in config.rope_parameters else {}
    frequencies, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu", **layers)
    return frequencies.double().numpy(), float(attention)
