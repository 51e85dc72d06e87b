"""A few rows of the user's, as a training would read and render them."""

from __future__ import annotations

from tunesmith.data import load_examples
from tunesmith.errors import DataError, EngineError
from tunesmith.models.load import base_folder
from tunesmith.recipe.schema import Base, Data
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample
from tunesmith.training.gate.weight_files import first_line

AT_MOST = 12


def read_samples(spec: Base, data: Data) -> list[Sample]:
    """The first rows of `data.train` as tokens of the base, with answers supervised.

    Raises `DataError` where the file gives no row, `EngineError` where the base has no tokenizer that can be loaded.
    """
    from transformers import AutoTokenizer

    source = data.train
    loaded = load_examples(data, source)
    if not loaded.examples:
        raise DataError("no row of this file can be learnt", where=source, fix=f"see `tunesmith check {source}`")
    folder = base_folder(spec.model)
    model = spec.model if folder is None else str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(
            f"the tokenizer could not be loaded: {first_line(error)}",
            where=model,
            fix="put the tokenizer's files beside config.json, or leave --rows out",
        ) from error
    chosen = loaded.examples[:AT_MOST]
    renderer = Renderer(tokenizer, spec.chat_template)
    return list(renderer.samples([e.messages for e in chosen], "assistant", [e.id for e in chosen]))
