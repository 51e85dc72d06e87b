"""GGUF files read back into a `transformers` model, for where no llama.cpp is installed.

Every number becomes the one it stands for, in 32 bits. This knows the format from its description and from how
llama.cpp computes, and nothing of what wrote the file, so that comparing its answers says something about the file.
A setting that is not understood is refused: a model that is read nearly right would look like a bad export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.inference.gguf_file import Array, GgufFile

_MODULES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Parts of a block, by their names in the file."""
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_MODULES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_IGNORED = ("general.", "tokenizer.", "GGUF.", "quantize.")
_MODEL_TYPES = {"gemma3": "gemma3_text"}
_SCALED_ROTATION = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class ModelFile(GgufFile):
    """The file of a model, which knows the settings that somebody asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.architecture = str(self.fields.get("general.architecture", "unknown"))
        self._asked: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting of the architecture."""
        whole = f"{self.architecture}.{key}"
        self._asked.add(whole)
        return self.fields.get(whole, default)

    def needed(self, key: str) -> Any:
        """A setting without which there is no model. Raises `EngineError` where the file does not say it."""
        found = self.setting(key)
        if found is None:
            raise EngineError(
                f"the file does not say {self.architecture}.{key}", where=str(self.path), fix="export again"
            )
        return found

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        tokens = self.fields.get("tokenizer.ggml.tokens")
        return int(self.setting("vocab_size", None if tokens is None else len(tokens)) or self.needed("vocab_size"))

    def unread(self) -> list[str]:
        """Settings that nobody has asked for."""
        return sorted(k for k in self.fields if k not in self._asked and not k.startswith(_IGNORED))


def read_model(path: Path, adapter: Path | None = None) -> Any:
    """The `transformers` model that a GGUF file is, in float32, with a GGUF adapter added to its weights.

    Raises `EngineError` for a file that cannot be read, an architecture or a setting that is not understood.
    """
    import torch
    from transformers import AutoModelForCausalLM

    file = ModelFile(path)
    config = _config(file)
    if unread := file.unread():
        raise EngineError(
            f"the file has settings that are not understood here: {', '.join(unread)}",
            where=str(path),
            fix="pip install llama-cpp-python, which reads them",
        )
    with torch.random.fork_rng(devices=[]):  # weights are drawn, although all are replaced
        model = AutoModelForCausalLM.from_config(config).float().eval()
    deltas = dict(_adapter_deltas(GgufFile(adapter))) if adapter is not None else {}
    left = set(model.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    values = model.state_dict()
    with torch.no_grad():
        for name, numbers in _weights(file, config, deltas):
            if name not in left or values[name].shape != numbers.shape:
                raise EngineError(f"{name} of shape {list(numbers.shape)} has no place in the model", where=str(path))
            values[name].copy_(torch.from_numpy(numbers))
            left.discard(name)
        for name in [n for n in left if n.endswith("o_proj.bias")]:  # Llama's may have them elsewhere only
            values[name].zero_()
            left.discard(name)
    if left:
        raise EngineError(f"the file lacks {', '.join(sorted(left)[:5])}", where=str(path), fix="export again")
    if "rope_freqs.weight" in file.names:
        model.model.rotary_emb.inv_freq.div_(torch.from_numpy(file.tensor("rope_freqs.weight")))
    return model


def _weights(file: ModelFile, config: Any, deltas: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name in sorted(file.names - set(_SCALED_ROTATION)):
        values = file.tensor(name)
        if name in deltas:
            values = values + deltas[name]
        yield _model_name(file, name), _undone(file, config, name, values)
    if missing := deltas.keys() - file.names:
        raise EngineError(f"the adapter changes {sorted(missing)[0]}, which the model lacks", where=str(file.path))


def adapter_changes(path: Path, config: Any) -> Iterator[tuple[str, Array]]:
    """What a GGUF adapter adds to each weight of the `transformers` model with this configuration, by its name there.

    A scale of the queries that a file has in its weights is not taken out. Raises as `read_model`.
    """
    file = ModelFile(path)
    for name, change in _adapter_deltas(file):
        yield _model_name(file, name), _undone(file, config, name, change)


def _adapter_deltas(file: GgufFile) -> Iterator[tuple[str, Array]]:
    """What a GGUF adapter adds to each weight: alpha / rank x B A."""
    alpha = float(file.fields["adapter.lora.alpha"])
    for name in sorted(n.removesuffix(".lora_a") for n in file.tensors if n.endswith(".lora_a")):
        a, b = file.tensor(f"{name}.lora_a"), file.tensor(f"{name}.lora_b")
        yield name, (b @ a) * np.float32(alpha / b.shape[1])


def _model_name(file: ModelFile, name: str) -> str:
    gpt2 = file.architecture == "gpt2"
    whole = {
        "token_embd": "transformer.wte" if gpt2 else "model.embed_tokens",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f" if gpt2 else "model.norm",
        "output": "lm_head",
    }
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    parts = dict(_GPT2_MODULES) if gpt2 else dict(_MODULES)
    if file.architecture in ("gemma2", "gemma3"):
        parts |= _FOUR_NORMS
    if file.architecture == "phi3":
        parts["ffn_up"] = "mlp.gate_up_proj"
    if match is None or match[2] not in parts:
        raise EngineError(f"the tensor {name} is not understood here", where=str(file.path))
    return f"{'transformer.h' if gpt2 else 'model.layers'}.{match[1]}.{parts[match[2]]}.{kind}"


def _undone(file: ModelFile, config: Any, name: str, values: Array) -> Array:
    """A tensor as `transformers` has it."""
    if file.architecture.startswith("gemma") and name.endswith("norm.weight"):
        return values - np.float32(1)
    if file.architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return np.ascontiguousarray(values.T)
    if file.architecture in ("llama", "granite") and ".attn_q." in name:
        return _halves(values, config.num_attention_heads)
    if file.architecture in ("llama", "granite") and ".attn_k." in name:
        return _halves(values, config.num_key_value_heads)
    return values


def _halves(values: Array, heads: int) -> Array:
    """Rows of each head from pairs of neighbours into two halves: the even ones first, then the odd."""
    size = values.shape[0] // heads
    places = [h * size + i for h in range(heads) for i in (*range(0, size, 2), *range(1, size, 2))]
    return values[places]


def _config(file: ModelFile) -> Any:
    from transformers import AutoConfig

    builders: Mapping[str, Callable[[ModelFile], dict[str, Any]]] = {
        "llama": _llama,
        "granite": _granite,
        "qwen2": lambda _: {"use_sliding_window": False},
        "qwen3": lambda f: {"attention_bias": "blk.0.attn_q.bias" in f.names, "use_sliding_window": False},
        "gemma": lambda f: {"attention_bias": "blk.0.attn_q.bias" in f.names},
        "gemma2": _gemma2,
        "gemma3": _gemma3,
        "phi3": lambda _: {"sliding_window": None},
    }
    if file.architecture == "gpt2":
        return _gpt2(file)
    if file.architecture not in builders:
        raise EngineError(
            f"files of {file.architecture} are not read here",
            where=str(file.path),
            fix="pip install llama-cpp-python, which reads them",
        )
    return AutoConfig.for_model(
        _MODEL_TYPES.get(file.architecture, file.architecture),
        **{**_common(file), **builders[file.architecture](file)},
    )


def _common(file: ModelFile) -> dict[str, Any]:
    heads, hidden = file.needed("attention.head_count"), file.needed("embedding_length")
    size = file.setting("attention.key_length", hidden // heads)
    if file.setting("attention.value_length", size) != size:
        raise EngineError("keys and values of different sizes are not read here", where=str(file.path))
    return {
        "vocab_size": file.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": file.needed("feed_forward_length"),
        "num_hidden_layers": file.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.setting("attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": file.needed("context_length"),
        "rms_norm_eps": file.needed("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.names,
        "rope_parameters": _rotation(file, size),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _rotation(file: ModelFile, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": file.setting("rope.freq_base", 10_000.0)}
    turned = file.setting("rope.dimension_count", size)
    if turned != size:
        found["partial_rotary_factor"] = turned / size
    kind = file.setting("rope.scaling.type", "none")
    attention = file.setting("rope.scaling.attn_factor", 1.0)
    original = file.setting("rope.scaling.original_context_length")
    factor = file.setting("rope.scaling.factor", 1.0)
    beta = {key: file.setting(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    if kind == "linear":
        found |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        whole = attention * (1 + 0.1 * math.log(factor))
        found |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        found |= {"attention_factor": whole} | {key: value for key, value in beta.items() if value is not None}
    elif kind == "longrope":
        found |= {"rope_type": "longrope", "original_max_position_embeddings": original, "factor": 1.0}
        found["attention_factor"] = attention
        for name in ("long", "short"):
            found[f"{name}_factor"] = file.tensor(f"rope_factors_{name}.weight").tolist()
    elif kind != "none":
        raise EngineError(f"positions scaled by {kind} are not read here", where=str(file.path))
    return found


def _llama(file: ModelFile) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "mlp_bias": "blk.0.ffn_up.bias" in file.names,
    }


def _granite(file: ModelFile) -> dict[str, Any]:
    return {
        **_llama(file),
        "attention_multiplier": file.needed("attention.scale"),
        "embedding_multiplier": file.setting("embedding_scale", 1.0),
        "residual_multiplier": file.setting("residual_scale", 1.0),
        "logits_scaling": file.needed("logit_scale"),
    }


def _windows(file: ModelFile, period: int) -> dict[str, Any]:
    """Layers with windows: as the file lists them, or all but every n-th."""
    layers = file.needed("block_count")
    window = file.setting("attention.sliding_window")
    pattern = file.setting("attention.sliding_window_pattern", period)
    if isinstance(pattern, int):
        pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    slides = [bool(one) and window is not None for one in pattern]
    kinds = ["sliding_attention" if one else "full_attention" for one in slides]
    return {"layer_types": kinds} | ({} if window is None else {"sliding_window": window})


def _query_scale(file: ModelFile, layers_of_largest: int) -> int:
    heads, hidden = file.needed("attention.head_count"), file.needed("embedding_length")
    if file.needed("block_count") == layers_of_largest:
        return int(hidden // heads)
    return int(file.setting("attention.key_length", hidden // heads))


def _gemma2(file: ModelFile) -> dict[str, Any]:
    file.setting("rope.freq_base_swa")
    return {
        **_windows(file, 2),
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "attn_logit_softcapping": file.setting("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.setting("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scale(file, 46),
    }


def _gemma3(file: ModelFile) -> dict[str, Any]:
    size = file.setting("attention.key_length")
    local = {"rope_type": "default", "rope_theta": file.setting("rope.freq_base_swa", 10_000.0)}
    return {
        **_windows(file, 6),
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "final_logit_softcapping": file.setting("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scale(file, 62),
        "rope_parameters": {"full_attention": _rotation(file, size), "sliding_attention": local},
    }


def _gpt2(file: ModelFile) -> Any:
    from transformers import AutoConfig

    heads = file.needed("attention.head_count")
    if file.setting("attention.head_count_kv", heads) != heads:
        raise EngineError("GPT-2 has as many heads of keys as of queries", where=str(file.path))
    return AutoConfig.for_model(
        "gpt2",
        vocab_size=file.vocabulary,
        n_positions=file.needed("context_length"),
        n_embd=file.needed("embedding_length"),
        n_layer=file.needed("block_count"),
        n_head=heads,
        n_inner=file.needed("feed_forward_length"),
        layer_norm_epsilon=file.needed("attention.layer_norm_epsilon"),
        tie_word_embeddings="output.weight" not in file.names,
        bos_token_id=None,
        eos_token_id=None,
    )
