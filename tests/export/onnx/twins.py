"""Small models with random weights in shapes that ONNX Runtime GenAI can run, PEFT adapters of them, and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.tiny import VOCABULARY, byte_tokenizer
from tunesmith.export.source import FolderSource, open_folders
from tunesmith.export.types import Work
from tunesmith.export.writers import writer_of
from tunesmith.models.artifact import Artifact, Target, hash_files, write_artifact

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = [int(i) for i in torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(1))]
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 256,
}
_OWN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 16}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1]}),
    "smollm3 without positions": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 16}),
    "phi3": ("Phi3", {"original_max_position_embeddings": 256, "sliding_window": None}),
    "phi": ("Phi", {}),
    "odd heads": ("Llama", {"hidden_size": 32, "intermediate_size": 32}),
    "odd blocks": ("Llama", {"intermediate_size": 96}),
}


def model_of(family: str, seed: int = 0) -> Any:
    """A random model of a family, in float32."""
    torch.manual_seed(seed)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=256
        )
        return transformers.GPT2LMHeadModel(config).eval()
    if family == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        own = transformers.Gemma3TextConfig(**_SIZES, head_dim=16, sliding_window=16, layer_types=layers)
        return transformers.Gemma3ForCausalLM(own).eval()
    name, more = _OWN[family]
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **more})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def save_model(folder: Path, family: str) -> Path:
    """A base's folder."""
    model = model_of(family)
    if getattr(model.config, "attention_bias", False) or family == "qwen2":
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.endswith("_proj.bias"):
                    value.normal_(std=0.1)
    model.save_pretrained(folder)
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path, base: Path, seed: int = 1, targets: Sequence[str] = ALL, rank: int = 4, **more: Any
) -> Path:
    """An adapter that PEFT wrote, with random factors that change the model well."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM", **more)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1)
    wrapped.save_pretrained(folder)
    return folder


def peft_logits(base: Path, adapter: Path | None, ids: Sequence[int] = IDS) -> np.ndarray:
    """What plain PEFT gives, [len(ids), vocabulary]."""
    from peft import PeftModel

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(torch.tensor([list(ids)])).logits[0].numpy()


def export(
    folder: Path, source: FolderSource, target: Target, sources: Mapping[str, FolderSource] | None = None, **more: Any
) -> Artifact:
    """An export as its caller makes it: written, described and given its manifest, in `folder`."""
    folder.mkdir(parents=True)
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir()
    work = Work(source, target, folder, scratch, lambda line: None, sources=sources or {}, **more)
    facts = writer_of(target.kind)(work)
    files, size = hash_files(folder)
    artifact = Artifact(
        folder=folder, target=target, files=files, bytes=size, base=source.recipe.base.model, base_sha256="0" * 64,
        chat_template="auto", template_sha256=None, stop_ids=source.stop_ids, context=source.context,
        adapters=tuple(facts.get("adapters", ())), facts=facts,
    )  # fmt: skip
    write_artifact(artifact)
    return artifact


def opened(base: Path, adapter: Path | None = None) -> FolderSource:
    """A base with an adapter as exports see it."""
    return open_folders(str(base), adapter)


@dataclass(frozen=True)
class Multi:
    """A base with three adapters, exported together in float32: folders of each, and the export."""

    base: Path
    adapters: Mapping[str, Path]
    artifact: Artifact


@cache
def int4_export(root: Path) -> tuple[Path, Path, Artifact]:
    """(base, adapter, export): a tied Llama with an adapter on all its layers. Built once for all tests below `root`,
    the base of their temporary folders."""
    base = save_model(root / "int4-base", "llama tied")
    adapter = save_adapter(root / "int4-adapter", base)
    return base, adapter, export(root / "int4-export", opened(base, adapter), Target("onnx", "int4"))


@cache
def multi_export(root: Path) -> Multi:
    """Adapters of other ranks, targets, layers and scales over a base with biases; built once, as `int4_export`."""
    base = save_model(root / "multi-base", "qwen2")
    made = {
        "plain": save_adapter(root / "multi-plain", base),
        "quant \u00e4/x": save_adapter(
            root / "multi-few", base, seed=2, targets=("q_proj", "v_proj"), rank=3, use_rslora=True,
            layers_to_transform=[1], layers_pattern="layers",
        ),
        "quant-\u00e4-x": save_adapter(
            root / "multi-patterns", base, seed=3, rank=2, rank_pattern={"q_proj": 5}, alpha_pattern={"down_proj": 7}
        ),
    }  # fmt: skip
    sources = {name: opened(base, folder) for name, folder in made.items()}
    artifact = export(root / "multi-export", sources["plain"], Target("onnx-multi", "fp32"), sources)
    return Multi(base, made, artifact)
