"""What `export.py` measures: bases of true shapes with random weights, an adapter of each, and their exports."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from _serve_models import make_adapter
from tunesmith.errors import EngineError
from tunesmith.export.source import FolderSource, open_folders
from tunesmith.export.types import Work
from tunesmith.export.writers import writer_of
from tunesmith.models.artifact import MANIFEST, Artifact, Target, hash_files, read_artifact, write_artifact
from tunesmith.models.load import EMBEDDED

CONTEXT = 2048
RANDOM_BASES = ("135M-untied", "135M-tied", "0.5B")
ADAPTER = "tuned"
"""The name of the adapter in an export that can switch."""


@dataclass(frozen=True)
class Model:
    """A base with an adapter, each in a folder."""

    name: str
    base: Path
    adapter: Path

    def source(self) -> FolderSource:
        return open_folders(str(self.base), self.adapter, name=ADAPTER)

    def parameters(self) -> int:
        """Values in the base's files; tied ones once."""
        from tunesmith.export.onnx.write import parameters

        return parameters(self.base)


def make_model(name: str, folder: Path) -> Model:
    """The base of this name (`embedded`, or one of `RANDOM_BASES`) in fp32 and an adapter of rank 16 on all linear
    layers, with random factors; those that lie in `folder` already are taken."""
    made = Model(name, folder / "base", folder / "adapter")
    if not (made.base / "tokenizer_config.json").is_file():
        make_base(name, made.base)
    if not (made.adapter / "adapter_config.json").is_file():
        make_adapter(made.base, made.adapter, seed=1)
    return made


def make_base(name: str, folder: Path) -> None:
    """Write the base with the embedded base's tokenizer, whose vocabulary is smaller than that of the shapes."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "base")
    if name == "embedded":
        model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED / "base", dtype=torch.float32)
    else:
        torch.manual_seed(0)
        ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        model = random_model(name, ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_model(name: str, ends: Mapping[str, Any]) -> Any:
    """A model of a true shape with weights as a training would begin with; rows of the head as wide as those of trained
    models (the spread of SmolLM2's configuration)."""
    if name == "0.5B":
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=CONTEXT,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
                initializer_range=896**-0.5, **ends,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=CONTEXT, tie_word_embeddings=name == "135M-tied",
            initializer_range=576**-0.5, **ends,
        )
    )  # fmt: skip


def make_export(
    model: Model, target: Target, folder: Path, scratch: Path, tell: Callable[[str], None] = lambda line: None
) -> Artifact | str:
    """The export in `folder`, or why there is none; one that lies there already is taken."""
    if (folder / MANIFEST).is_file():
        return read_artifact(folder, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scratch.mkdir(parents=True, exist_ok=True)
    source, began = model.source(), time.monotonic()
    several = {ADAPTER: source} if target.kind == "onnx-multi" else {}
    try:
        facts = dict(writer_of(target.kind)(Work(source, target, folder, scratch, tell, sources=several)))
    except EngineError as error:
        shutil.rmtree(folder)
        return error.what
    facts["seconds"] = round(time.monotonic() - began, 1)
    return described(source, target, folder, facts)


def described(source: FolderSource, target: Target, folder: Path, facts: Mapping[str, Any]) -> Artifact:
    """Write the manifest of an export that nobody verified: its figures say how near it is."""
    template = source.template
    files, size = hash_files(folder)
    artifact = Artifact(
        folder=folder, target=target, files=files, bytes=size, base=source.recipe.base.model,
        base_sha256=source.base_sha256, chat_template=source.recipe.base.chat_template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        stop_ids=source.stop_ids, context=source.context, facts=json.loads(json.dumps(dict(facts))),
        adapters=(ADAPTER,) if target.kind == "onnx-multi" else (),
    )  # fmt: skip
    write_artifact(artifact)
    return artifact
