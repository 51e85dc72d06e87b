"""How a model is asked, written beside it: tokenizer, chat template, and the tokens that end an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.export.types import Source
from tunesmith.models.writing import system_errors

TEMPLATE = "chat_template.jinja"
"""Where `transformers` looks for a tokenizer's chat template."""
GENERATION = "generation_config.json"


def write_tokenizer(source: Source, folder: Path) -> Any:
    """Write the tuned model's tokenizer with the run's chat template into `folder`; returns it."""
    from transformers import AutoTokenizer

    own = (source.tuned / "tokenizer_config.json").is_file()
    held = source.tuned if own else source.base_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(held), trust_remote_code=source.recipe.base.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"the tokenizer cannot be read: {error}", where=str(held)) from error
    template = source.template
    if template is not None:
        tokenizer.chat_template = template
    with system_errors(folder):
        tokenizer.save_pretrained(folder)
        if template is not None:
            (folder / TEMPLATE).write_text(template, encoding="utf-8")
    return tokenizer


def write_generation(source: Source, config: Any, folder: Path) -> None:
    """Write the base's settings of generation, with the tokens that end an answer as the run has them."""
    from transformers import GenerationConfig

    path = folder / GENERATION
    if not path.is_file():  # a loaded model has written its own
        kept = source.tuned if not source.is_adapter else source.base_folder
        if (kept / GENERATION).is_file():
            path.write_bytes((kept / GENERATION).read_bytes())
        else:
            GenerationConfig.from_model_config(config).save_pretrained(folder)
    settings = json.loads(path.read_text(encoding="utf-8"))
    stops = list(source.stop_ids)
    if stops:
        settings["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
