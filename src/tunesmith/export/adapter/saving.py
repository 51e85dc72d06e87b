"""A plain LoRA adapter written as PEFT's folder, with a card that says of what it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tunesmith.export.adapter.convert import Converted
from tunesmith.export.adapter.serving import serving_words
from tunesmith.export.adapter.write import template_words
from tunesmith.export.merged.asking import TEMPLATE
from tunesmith.export.types import Source
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.models.load import base_folder
from tunesmith.models.methods import CARD
from tunesmith.models.servable import servable_file
from tunesmith.models.writing import system_errors

_PREFIX = "base_model.model."
_GGUF_LOADING = """
## Loading

Beside a GGUF file of its base:

```
llama-server -m base-gguf/model.gguf --lora {file}
```

which can be made by

```python
from pathlib import Path
from tunesmith.export.source import open_folders
from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.flow import export_source

export_source(open_folders("{base}", None), Target("gguf", "q8_0"), Path("base-gguf"))
```
"""


def save_plain(source: Source, adapter: Converted, folder: Path, title: str, made: Sequence[str]) -> dict[str, Any]:
    """Write the adapter into an empty folder; returns its `adapter_config.json`.

    source: whose base, tokenizer and template it goes with. made: of what and how it was made, a line each.
    """
    spec = source.recipe.base
    name = _base_name(source)
    alpha = round(adapter.alpha) if adapter.alpha == round(adapter.alpha) else adapter.alpha
    config = {
        "peft_type": "LORA",
        "peft_version": version("peft"),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": spec.revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": adapter.conv1d,
        "target_modules": sorted(adapter.layers),
        "modules_to_save": None,
        "use_rslora": False,
        "init_lora_weights": True,
    }
    tensors = {}
    for path, layer in sorted(adapter.layers.items()):
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.a.contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = layer.b.contiguous()
    with system_errors(folder / WEIGHTS):
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = source.template
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    revision = f', revision="{spec.revision}"' if spec.revision else ""
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'ADAPTER = "."  # this folder',
        f'BASE = "{name}"',
        f"tokenizer = AutoTokenizer.from_pretrained(BASE{revision})",
        f"model = AutoModelForCausalLM.from_pretrained(BASE{revision})",
        "model = PeftModel.from_pretrained(model, ADAPTER)",
    ]
    text = (
        _head(source, adapter, "peft", title, made)
        + "\n## Loading\n\n```python\n"
        + "\n".join(code)
        + "\n```\n\n"
        + serving_words(servable_file(config, list(tensors), source.config))
    )
    if template is not None and spec.chat_template not in ("auto", "tokenizer"):
        text += template_words()
    (folder / CARD).write_text(text, encoding="utf-8")
    return config


def write_gguf_card(
    source: Source, adapter: Converted, folder: Path, file: str, title: str, made: Sequence[str]
) -> None:
    """Write the card of a GGUF adapter `file`, and the chat template that it was tuned by, beside it."""
    text = _head(source, adapter, "gguf", title, made) + _GGUF_LOADING.format(file=file, base=_base_name(source))
    template = source.template
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        text += f"\nIt was tuned by the chat template in `{TEMPLATE}`: llama-server takes it as --chat-template-file.\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def _base_name(source: Source) -> str:
    """The base's name on the hub, or its folder."""
    local = base_folder(source.recipe.base.model)
    return str(source.recipe.base.model) if local is None else str(local.resolve())


def _head(source: Source, adapter: Converted, library: str, title: str, made: Sequence[str]) -> str:
    """What a card says first: base, method, and of what the adapter was made."""
    base, revision = _base_name(source), source.recipe.base.revision
    return (
        f"---\nbase_model: {base}\nlibrary_name: {library}\npipeline_tag: text-generation\n---\n\n# {title}\n\n"
        f"- Base: `{base}`\n- Revision: {revision or 'not recorded'}\n"
        f"- SHA-256 of the base's weights: `{source.base_sha256}`\n"
        f"- Method: LoRA (rank {adapter.rank}, alpha {adapter.alpha:g})\n" + "".join(f"- {line}\n" for line in made)
    )


def error_words(adapter: Converted) -> str:
    """How near an adapter comes to what it was made of."""
    if adapter.worst is None:
        return "exact, up to the rounding of 32-bit numbers"
    path, worst = adapter.worst
    return f"relative error {adapter.error:.2g} of what is added to the weights, at most {worst:.2g} ({path})"
