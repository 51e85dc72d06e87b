"""The README.md of a saved model or adapter: what it is of, how it was tuned, how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.models.licence import check_licence, readings
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora import LoraSettings
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.vocabulary import AddedTokens


def base_name(base: LoadedBase) -> str:
    """The name that other tools find the base by: its hub id, or its folder."""
    return base.name if base.folder is None else str(base.folder)


def adapter_card(base: LoadedBase, method: str, added: AddedTokens | None, note: str = "") -> str:
    """The card of an adapter that plain `peft` loads. `note`: how the base was held in memory, if not as it is."""
    revision = f', revision="{base.revision}"' if base.revision else ""
    tokenizer = "ADAPTER" if added else "BASE"
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'ADAPTER = "."  # this folder',
        f'BASE = "{base_name(base)}"',
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer}{'' if added else revision})",
        f"model = AutoModelForCausalLM.from_pretrained(BASE{revision})",
    ]
    if added and added.grown:
        lines.append(f"model.resize_token_embeddings({added.rows})")
    lines.append("model = PeftModel.from_pretrained(model, ADAPTER)")
    text = _head(base, "peft") + _facts(base, method, note)
    if added:
        text += _tokens(added)
        if added.grown:
            text += (
                f"\nThe base must be given {added.rows} embedding rows ({added.rows_before} before) ahead of the "
                "adapter; without it, loading stops with a size mismatch.\n"
            )
    if note:
        text += (
            "\nOn the base's full weights, as loaded below, answers differ a little from those in training. A merged "
            "export of the run holds the weights that were trained on.\n"
        )
    return text + _ending(base, lines)


def own_card(base: LoadedBase, method: str, added: AddedTokens | None, note: str = "", how: str = "") -> str:
    """The card of an adapter that only Tunesmith loads. `how`: the `Method` to load it by, as Python, where needed."""
    revision = f', revision="{base.revision}"' if base.revision else ""
    lines = [
        "from pathlib import Path",
        "",
        "from tunesmith.models.load import load_base",
        "from tunesmith.models.methods import load_tuned",
        f"from tunesmith.recipe.schema import Base{', Method' if how else ''}",
        "",
        'ADAPTER = "."  # this folder',
        f'BASE = "{base_name(base)}"',
        f"base = load_base(Base(model=BASE{revision}))",
        f"load_tuned(base, Path(ADAPTER){', ' + how if how else ''})",
        "model, tokenizer = base.model, base.tokenizer",
    ]
    text = _head(base, "tunesmith") + _facts(base, method, note) + (_tokens(added) if added else "")
    return (
        text + "\nThe peft library does not know adapters of this kind; Tunesmith loads them.\n" + _ending(base, lines)
    )


def model_card(base: LoadedBase, method: str, added: AddedTokens | None, note: str = "") -> str:
    """The card of a whole model."""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'FOLDER = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
    ]
    text = _head(base, "transformers") + _facts(base, method, note) + (_tokens(added) if added else "")
    return text + _ending(base, lines)


def lora_words(settings: LoraSettings, quantize: str = "none") -> str:
    """An adapter's settings in words."""
    parts = [f"rank {settings.rank}", f"alpha {settings.alpha:g}"]
    if settings.use_rslora:
        parts.append("scaled by alpha/sqrt(rank)")
    if settings.rank_pattern or settings.alpha_pattern:
        parts.append("other ranks or alphas for some layers")
    if settings.init in FROM_WEIGHTS:
        parts.append(f"started by {settings.init}, saved with twice the rank as what it adds to the original base")
    if settings.modules_to_save:
        parts.append(f"{', '.join(settings.modules_to_save)} trained in full")
    if quantize != "none":
        parts.append(f"trained on {quantize} weights")
    return f"{'DoRA' if settings.use_dora else 'LoRA'} ({', '.join(parts)})"


def _head(base: LoadedBase, library: str) -> str:
    return f"---\nbase_model: {base_name(base)}\nlibrary_name: {library}\npipeline_tag: text-generation\n---\n\n"


def _facts(base: LoadedBase, method: str, note: str) -> str:
    told = f"- {note}\n" if note else ""
    return (
        f"# {base.name}, tuned\n\n"
        f"- Base: `{base_name(base)}`\n"
        f"- Revision: {base.revision or 'not recorded'}\n"
        f"- SHA-256 of the base's weights: `{base.weights_sha256}`\n"
        f"- Method: {method}\n{told}"
    )


def _tokens(added: AddedTokens) -> str:
    named = ", ".join(f"`{token}` ({place})" for token, place in zip(added.tokens, added.ids, strict=True))
    return f"- Added tokens, with their ids: {named}; embeddings and head come with the tuned weights\n"


def _ending(base: LoadedBase, lines: Sequence[str]) -> str:
    """How to load it, and what is to be said of its licence."""
    return "\n## Loading\n\n```python\n" + "\n".join(lines) + "\n```\n" + _licence(base)


def _licence(base: LoadedBase) -> str:
    """What limits its licence; that of the base by name, where its folder says one that is known."""
    text = "Not stated here. The licence of the base and the rights in the data limit what it can be."
    if base.folder is not None and any(one.licence for one in readings(base.folder)):
        found = check_licence(base.folder, None, name=base.name)
        text += f" The base: {found.name} ({'; '.join(found.where)}). {found.conditions}".rstrip()
    return f"\n## Licence\n\n{text}\n"
