"""A model's folder as the builder should read it.

The builder learns from `layer_types` which layers attend to a window only. Where a configuration has none, because
all layers of the architecture do (Mistral, Phi-3), it takes them for whole ones: another model beyond the window.
"""

from __future__ import annotations

import json
from pathlib import Path


def builder_view(model: Path, scratch: Path) -> Path:
    """`model`, or where its layers' windows must be spelt out a folder in `scratch` with links to its files.

    A model with code of its own, which the builder does not run either, is left as it is.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(model), trust_remote_code=False).get_text_config()
    except ValueError:
        return model
    if not getattr(config, "sliding_window", None) or getattr(config, "layer_types", None):
        return model
    kept = json.loads((model / "config.json").read_text(encoding="utf-8"))
    kept["layer_types"] = ["sliding_attention"] * config.num_hidden_layers
    view = scratch / "view"
    view.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        link = view / path.name
        if path.is_file() and path.name != "config.json" and not link.exists():
            link.symlink_to(path.resolve())
    (view / "config.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")
    return view
