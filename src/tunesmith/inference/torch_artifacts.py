"""Exports that `transformers` opens: an adapter beside its base, and a whole model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.errors import EngineError, VerificationError
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import FloatArray
from tunesmith.models.artifact import Artifact
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import load_tuned
from tunesmith.recipe.schema import Base, Method
from tunesmith.text.render import Renderer

TEMPLATE = "chat_template.jinja"
"""Where `transformers` looks for a tokenizer's chat template."""
LOADING = "loading"
"""Fact of an adapter's manifest: `base` (dtype, revision) and `method` by which the run loads it."""


class ProbedTorchEngine(TorchEngine):
    """A `transformers` model that shows its logits; implements `inference.types.ProbedEngine`."""

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> FloatArray:
        """See `inference.types.ProbedEngine.logits`."""
        with self._evaluating():
            out = self.model(torch.tensor([list(ids)], device=self._device), use_cache=False).logits[0]
        found: FloatArray = out.float().cpu().numpy()
        return found


def folder_renderer(artifact: Artifact, tokenizer: Any = None) -> Renderer:
    """How an export is asked: by the tokenizer and the template in its folder.

    tokenizer: used where the folder holds none, as an adapter's without added tokens. Raises `EngineError` where there
    is none at all.
    """
    from transformers import AutoTokenizer

    if any((artifact.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(artifact.folder))
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"the tokenizer cannot be read: {error}", where=str(artifact.folder)) from error
    if tokenizer is None:
        raise EngineError(
            "there is no tokenizer beside this export", where=str(artifact.folder), fix="export the model again"
        )
    template = artifact.folder / TEMPLATE
    return Renderer(tokenizer, str(template) if template.is_file() else "auto")


def open_adapter(artifact: Artifact, adapter: str | None = None) -> ProbedTorchEngine:
    """An adapter on its base, loaded as its run does: with the base's dtype and quantisation of the training.

    Raises `VerificationError` where the base has other weights now.
    """
    refuse_names(artifact, adapter)
    loading = artifact.facts.get(LOADING, {})
    base = load_base(Base(model=artifact.base, **loading.get("base", {})))
    if base.folder is not None and base.weights_sha256 != artifact.base_sha256:
        raise VerificationError(
            "the base's weights are not those that the adapter was trained on",
            where=artifact.base,
            expected=f"weights with the SHA-256 {artifact.base_sha256[:16]}…",
            fix="bring back the base as it was",
        )
    load_tuned(base, artifact.folder, Method(**loading["method"]) if loading.get("method") else None)
    return _engine(artifact, base)


def open_model(artifact: Artifact, adapter: str | None = None) -> ProbedTorchEngine:
    """A whole model's folder; computed in float32 on a CPU, where half precision is slower, and as stored on a GPU."""
    refuse_names(artifact, adapter)
    return _engine(artifact, load_base(Base(model=str(artifact.folder))))


def refuse_names(artifact: Artifact, adapter: str | None) -> None:
    """Raise `EngineError` where an adapter of an export is asked for that holds one model only."""
    if adapter is not None:
        raise EngineError(
            f"this export holds no adapter {adapter!r}: it is one model",
            where=str(artifact.folder),
            expected="no name of an adapter",
        )


def _engine(artifact: Artifact, base: LoadedBase) -> ProbedTorchEngine:
    return ProbedTorchEngine(base.model, folder_renderer(artifact, base.tokenizer), min(base.context, artifact.context))
