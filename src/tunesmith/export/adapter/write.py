"""The writer of adapters: the folder that PEFT and the tools built on it read, saying everything explicitly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from typing import Any

from tunesmith.export.adapter.serving import servers_of, serving_facts, serving_words
from tunesmith.export.merged.asking import TEMPLATE
from tunesmith.export.types import Source, StepError, Work
from tunesmith.models.adapter import CONFIG, adapter_names, read_adapter
from tunesmith.models.artifact import MANIFEST
from tunesmith.models.bottleneck import PEFT_TYPE as BOTTLENECK
from tunesmith.models.load import base_folder
from tunesmith.models.methods import CARD

_SHA_LINE, _EMPTY_FORM = "- SHA-256 of the base's weights: `", "[More Information Needed]"
_OF_AN_EXPORT = (MANIFEST, "verification.json")
_NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")
_LORA = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


def write_adapter(work: Work) -> Mapping[str, Any]:
    """Write the adapter's folder; see `export.types.Writer`.

    Its configuration names base, revision and targets explicitly. The facts say what the adapter is and, under
    `servable`, which servers take it, with reasons. Raises `StepError` for a model that was tuned in full.
    """
    source, folder = work.source, work.staged
    if not source.is_adapter:
        raise StepError("adapter", "the model was tuned in full, so there is no adapter", "export it as merged")
    shutil.copytree(source.tuned, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_OF_AN_EXPORT))
    config, tensors = read_adapter(source.tuned)
    config = explicit_config(source, config, adapter_names(source.tuned))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    servers = servers_of(source)
    template = source.template
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    card = folder / CARD
    came = card.read_text(encoding="utf-8") if card.is_file() else ""
    # An export's own card is exported again: what it ends with is found out anew.
    text = came.partition("\n## Serving\n")[0] if _SHA_LINE in came else _card(source, config, came)
    text = f"{text.rstrip()}\n\n{serving_words(servers)}"
    if template is not None and source.recipe.base.chat_template not in ("auto", "tokenizer"):
        text += template_words()
    card.write_text(text, encoding="utf-8")
    return {
        "type": config["peft_type"],
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        **({"rank": config["r"], "alpha": config["lora_alpha"]} if config["peft_type"] == "LORA" else {}),
        "target_modules": config.get("target_modules"),
        "servable": serving_facts(servers),
    }


def explicit_config(source: Source, config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An adapter's configuration with base, revision and targets as names that mean nothing else on any machine."""
    spec = source.recipe.base
    local = base_folder(spec.model)
    done = {
        **config,
        "base_model_name_or_path": spec.model if local is None else str(local.resolve()),
        "revision": spec.revision or config.get("revision"),
    }
    narrowed = any(config.get(key) is not None for key in _NARROWING)
    if config["peft_type"] == BOTTLENECK or not (isinstance(config.get("target_modules"), str) or narrowed):
        return done
    if config["peft_type"] == "LORA":
        paths = adapted_paths(names)
    else:
        _, tuning = source.open()
        paths = sorted(tuning.tuning.wrapper.base_model.targeted_module_names)
    return {**done, "target_modules": paths, **{key: None for key in _NARROWING if key in done}}


def adapted_paths(names: Collection[str]) -> list[str]:
    """Paths of the modules that a LoRA adapter changes, by the names of its tensors."""
    found = set()
    for name in names:
        for part in _LORA:
            if part in name:
                found.add(name.partition(part)[0].removeprefix("base_model.model."))
    return sorted(found)


def template_words() -> str:
    """How others ask the adapter, as a section of its card."""
    return (
        "\n## Chat template\n\n"
        f"It was trained with the template in `{TEMPLATE}`, which is not the base's own:\n\n"
        f'```python\ntokenizer.chat_template = open(f"{{ADAPTER}}/{TEMPLATE}").read()\n```\n'
    )


def _card(source: Source, config: Mapping[str, Any], came: str) -> str:
    """The card of an adapter that was not made here; what it came with follows, unless it is peft's empty form."""
    base, revision = config["base_model_name_or_path"], config.get("revision")
    tokenizer = "ADAPTER" if (source.tuned / "tokenizer_config.json").is_file() else "BASE"
    given = f', revision="{revision}"' if revision else ""
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'ADAPTER = "."  # this folder',
        f'BASE = "{base}"',
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer}{'' if tokenizer == 'ADAPTER' else given})",
        f"model = AutoModelForCausalLM.from_pretrained(BASE{given})",
        "model = PeftModel.from_pretrained(model, ADAPTER)",
    ]
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n"
        f"# {source.name}\n\n- Base: `{base}`\n- Revision: {revision or 'not recorded'}\n"
        f"- SHA-256 of the base's weights: `{source.base_sha256}`\n"
        f"- Method: {config['peft_type']} by the peft library, its options in {CONFIG}\n"
        "\n## Loading\n\n```python\n"
        + "\n".join(code)
        + "\n```\n"
        + (f"\n## What it came with\n\n{_body(came)}\n" if came.strip() and _EMPTY_FORM not in came else "")
    )


def _body(card: str) -> str:
    """A card without the lines of settings at its head."""
    if card.startswith("---\n") and "\n---\n" in card:
        card = card.partition("\n---\n")[2]
    return card.strip()
