"""What lies beside the graph: tokenizer, chat template, configuration, and how GenAI is told to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.export.merged.asking import write_tokenizer
from tunesmith.export.types import Source

GENAI = "genai_config.json"
_PLAIN_SEARCH: dict[str, Any] = {
    "do_sample": False,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
}
"""Answers as they were scored: the most probable tokens, whatever the base's own settings of generation are."""


def dress(source: Source, model: Path, folder: Path) -> None:
    """Write beside a graph what it is asked with: tokenizer and template of `source`, its stop tokens and context.

    model: the `transformers` folder that the graph was made of.
    """
    write_tokenizer(source, folder)
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    path = folder / GENAI
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["context_length"] = source.context
    if source.stop_ids:
        settings["model"]["eos_token_id"] = list(source.stop_ids)
    settings["search"] |= {**_PLAIN_SEARCH, "max_length": source.context}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
