"""The writer of merged models: tensor by tensor where the base's files allow it, else through a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.export.merged.asking import write_generation, write_tokenizer
from tunesmith.export.merged.in_memory import merge, refuse_merging
from tunesmith.export.merged.plan import NeedsMemory, Plan, hollow_base, plan_merge
from tunesmith.export.merged.stream import write_shards
from tunesmith.export.merged.tensors import stored_tensors, weight_files
from tunesmith.export.types import StepError, Work
from tunesmith.models.load import LoadedBase
from tunesmith.models.methods import CARD, FullTuning
from tunesmith.models.model_card import lora_words, model_card
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.models.writing import system_errors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types by the precisions of the kind `merged`; its own type has no entry."""

_DEQUANTISED = "The linear layers here hold the numbers that those stood for, with what was learnt added."


def write_merged(work: Work) -> Mapping[str, Any]:
    """Write the tuned model as a plain `transformers` folder; see `export.types.Writer`.

    Its facts say by which way (`way`: tensor by tensor, or in memory with `why`), in which types, and how many bytes
    the largest file holds. Raises `EngineError` for a method that is no change of weights.
    """
    refuse_merging(work.source.recipe.method.type)
    dtype = DTYPES.get(work.target.precision)
    try:
        plan = plan_merge(work.source)
    except NeedsMemory as reason:
        work.tell(f"merging in memory: {reason}")
        return _through_memory(work, dtype, str(reason))
    return _by_tensor(work, plan, dtype)


def _by_tensor(work: Work, plan: Plan, dtype: torch.dtype | None) -> Mapping[str, Any]:
    source, folder = work.source, work.staged
    with system_errors(folder):
        written = write_shards(plan, folder, dtype, work.tell)
    config = plan.model.config
    if plan.attached is not None:  # names as `save_pretrained` would have them
        config.architectures = [type(plan.model).__name__]
    if plan.untied:
        for one in {id(c): c for c in (config, config.get_text_config())}.values():
            one.tie_word_embeddings = False
    if written.dtypes:
        config.dtype = max(written.dtypes, key=lambda found: found.itemsize) if dtype is None else dtype
    config.save_pretrained(folder)
    write_tokenizer(source, folder)
    write_generation(source, config, folder)
    base = hollow_base(source, plan.model)
    if plan.attached is not None:
        words = f"{lora_words(plan.attached.settings, plan.quantize)}, merged into the base"
        note = f"{written.note} {_DEQUANTISED}" if written.note else ""
        _write_card(work, base, words, plan.added, note)
    elif source.tuned == source.base_folder:
        _write_card(work, base, "none, this is the base as it was", None, "")
    elif (source.tuned / CARD).is_file():
        (folder / CARD).write_bytes((source.tuned / CARD).read_bytes())
    else:
        _write_card(work, base, "full tuning", None, "")
    return {
        "way": "tensor by tensor",
        "dtypes": [str(found).removeprefix("torch.") for found in written.dtypes],
        "files": len(written.files),
        "parameters": written.values,
        "largest_file_bytes": written.largest,
        **({"head": "no longer tied to the embeddings"} if plan.untied else {}),
        **({"left_out": list(plan.left_out)} if plan.left_out else {}),
    }


def _through_memory(work: Work, dtype: torch.dtype | None, why: str) -> Mapping[str, Any]:
    source, folder = work.source, work.staged
    base, tuning = source.open()
    loaded = base.model.dtype
    tied = bool(getattr(source.config.get_text_config(), "tie_word_embeddings", False))  # as it was before tuning
    if isinstance(tuning, FullTuning):
        words = tuning.words
    else:
        merge(base.model, tuning, loaded)
        words = f"{tuning.words}, merged into the base"
    target = dtype or _own_type(work, loaded)
    base.model.to(target)
    _refuse_infinite(base.model, target)
    with system_errors(folder):
        base.model.save_pretrained(folder)
    write_tokenizer(source, folder)
    write_generation(source, base.model.config, folder)
    note = f"{tuning.note} {_DEQUANTISED}" if tuning.note else ""
    _write_card(work, base, words, tuning.added, note)
    files = [path.stat().st_size for path in weight_files(folder)]
    parted = tied and not base.model.config.get_text_config().tie_word_embeddings
    return {
        "way": "in memory",
        "why": why,
        "dtypes": [str(target).removeprefix("torch.")],
        "files": len(files),
        "parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "largest_file_bytes": max(files),
        **({"head": "no longer tied to the embeddings"} if parted else {}),
    }


def _own_type(work: Work, loaded: torch.dtype) -> torch.dtype:
    """The type of most of the base's files, or that which the run held it in, where that has fewer bits."""
    held: dict[torch.dtype, int] = {}
    for path in weight_files(work.source.base_folder):
        for one in stored_tensors(path).values():
            if one.dtype.is_floating_point:
                held[one.dtype] = held.get(one.dtype, 0) + one.bytes
    own = max(held, key=held.__getitem__, default=loaded)
    return own if own in DTYPES.values() and own.itemsize < loaded.itemsize else loaded


def _refuse_infinite(model: Any, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise StepError(
                "merging",
                f"values of {name} are not finite as {str(dtype).removeprefix('torch.')}",
                "use the precision bf16 or fp32; where these end so too, train again with a lower learning rate",
            )


def _write_card(work: Work, base: LoadedBase, words: str, added: AddedTokens | None, note: str) -> None:
    (work.staged / CARD).write_text(model_card(base, words, added, note), encoding="utf-8")
