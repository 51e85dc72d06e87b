"""A tuned model as a GGUF file that llama.cpp, Ollama and their kin run: weights, tokenizer and chat template in one.

The merged model is read tensor by tensor. F32, F16, Q8_0 and Q4_0 are written here; k-quants are made of such a file by
an installed llama.cpp. What the file's tokenizer makes of texts is compared with the model's own before it is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.export.gguf.families import INSTEAD
from tunesmith.export.types import StepError, Work

MODEL = "model.gguf"
TEMPLATE = "chat_template.jinja"


def write_gguf(work: Work) -> Mapping[str, Any]:
    """Write `model.gguf`, the tokenizer's own files beside it, and a `Modelfile` for Ollama.

    Raises `StepError` for a model, a tokenizer or a precision that llama.cpp does not have.
    """
    require_library()
    from tunesmith.export.gguf.kquants import KQUANTS, require_quantiser
    from tunesmith.export.gguf.modelfile import write_modelfile

    if work.target.precision in KQUANTS:  # before anything large is written
        _refuse_bits(work.bits, work.target.precision)
        require_quantiser(work.target.precision)
    folder = work.source.merged(work.scratch)
    facts = _write_model(work, folder)
    _copy_tokenizer(folder, work.staged, work.source.template)
    return {**facts, **write_modelfile(work, folder)}


def _write_model(work: Work, folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from tunesmith.export.gguf.families import family_of
    from tunesmith.export.gguf.kquants import KQUANTS, quantise_file
    from tunesmith.export.gguf.tokens_check import check_tokens
    from tunesmith.export.gguf.vocabulary import read_vocabulary

    config = config_of(folder)
    family = family_of(config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = read_vocabulary(tokenizer, config.vocab_size, work.source.stop_ids, work.source.template)
    path = work.staged / MODEL
    precision = work.target.precision
    kind = KQUANTS.get(precision)
    whole = work.scratch / "whole.gguf" if kind else path
    facts = _write_weights(work, folder, whole, kind.source(config) if kind else precision, config, vocabulary)
    notes = [*vocabulary.notes, *facts["notes"]]
    if kind:
        work.tell(f"quantising to {precision}")
        facts |= quantise_file(whole, path, precision)
        notes += facts["notes"]
        whole.unlink()
    checked = check_tokens(path, tokenizer, vocabulary, work.source.template)
    # llama.cpp looks GELU up in a table of half precision, whatever the weights are held in.
    activation = "f16" if family.activation.startswith("gelu") else "f32"
    return {
        **facts,
        "architecture": family.arch,
        "pre_tokenizer": vocabulary.pre,
        "activation_precision": activation,
        "tokenizer_checked": checked.facts,
        "notes": [*notes, *checked.notes],
    }


def _write_weights(
    work: Work, folder: Path, path: Path, precision: str, config: Any, vocabulary: Any
) -> dict[str, Any]:
    """The file in one of the precisions that are written here; returns what is worth knowing of it."""
    from gguf import GGMLQuantizationType as Type

    from tunesmith.export.gguf.families import family_of
    from tunesmith.export.gguf.file import Entry, general_settings, vocabulary_settings, write_file
    from tunesmith.export.gguf.precision import (
        bits_per_weight,
        counted,
        file_type,
        in_type,
        types_of,
    )
    from tunesmith.export.gguf.settings import longest_context, model_settings, rotation
    from tunesmith.export.gguf.tensors import plan_tensors, read_tensor

    family = family_of(config)
    positions = rotation(family, config)
    planned = plan_tensors(family, config, folder)
    kept = types_of(planned, precision, work.bits)
    context = longest_context(config, work.source.context)
    entries = [
        Entry(name, values.shape, Type.F32, partial(lambda values: values, values))
        for name, values in positions.tensors.items()
    ]

    def numbers(one: Any) -> Any:
        return in_type(read_tensor(one, family, config), kept[one.name].type, one.source)

    entries += [Entry(one.name, one.shape, kept[one.name].type, partial(numbers, one)) for one in planned]
    work.tell(f"writing {len(entries)} tensors as {precision}")
    settings = {
        **general_settings(work.source.name, work.source.recipe.base.model, file_type(precision)),
        **model_settings(family, config, context),
        **positions.settings,
        **vocabulary_settings(vocabulary, work.source.template),
    }
    write_file(path, family.arch, settings, entries)
    notes = []
    if context < work.source.context:
        notes.append(f"llama.cpp has no windows here: the context is {context} tokens, in which there is none")
    if positions.short_context is not None:
        notes.append(f"up to {positions.short_context} tokens of context the factors for short texts are used")
    return {
        "bits_per_weight": round(bits_per_weight((entry.shape, entry.type) for entry in entries), 3),
        "tensor_types": counted(entry.type for entry in entries),
        "fallback_tensors": sum(one.fallback for one in kept.values()),
        "notes": notes,
    }


def config_of(folder: Path) -> Any:
    """The configuration of a model's folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise StepError("architecture", f"its configuration cannot be read: {error}", INSTEAD) from error


def _refuse_bits(bits: Mapping[str, int], precision: str) -> None:
    """llama.cpp shares out the bits of its k-quants itself."""
    if bits:
        raise StepError(
            "precision",
            f"bits of single modules cannot be said with {precision}",
            "use --precision q8_0 or q4_0, which take them",
        )


def _copy_tokenizer(folder: Path, staged: Path, template: str | None) -> None:
    """The files by which the engine asks, and a reader of `transformers` knows the model."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
    for name in (*names, "config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staged / name)
    if template is not None:
        (staged / TEMPLATE).write_text(template, encoding="utf-8")


def require_library() -> None:
    """Raise `EngineError` with the line that installs it where the gguf library is missing."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise EngineError(
            "the gguf library is not installed", where="export to gguf", fix="pip install 'tunesmith[gguf]'"
        )
