"""Decoder layers compiled by `torch.compile`, one for each kind, while a model is trained.

What is compiled is the forward function of a layer's class, with sizes left open: all layers of a kind, and streams of
any length, share its code. The whole model is not: that takes minutes where a layer takes seconds, and gains little, as
nothing can be fused across a layer's products. Attention stays outside, as it knows where documents lie; the
compiler sees the layer in pieces around it.

Only training goes through compiled code. Answering, validation and what has no gradient take the layer as it is, or
each would be compiled again. So does the lowest trained layer over frozen embeddings: its input needs no gradient,
which would be another kind for one layer. Layers that are computed again in the backward pass are not compiled either:
torch's compiler stays out of what `torch.utils.checkpoint` calls.

What was compiled is kept in a file for the next run, by versions, device and shapes (`artifact_key`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.trunk import decoder_layers
from tunesmith.ops import packed_attention

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class CompiledLayers:
    """What is compiled: how many layers, of which classes. `reused`: bytes of code of an earlier run, or 0."""

    layers: int
    kinds: tuple[str, ...]
    reused: int


def why_not(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device, or None."""
    if device.type == "cpu" and shutil.which("c++") is None and shutil.which("g++") is None:
        return "compiling for a CPU needs a C++ compiler (c++ or g++), and none was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "compiling for a GPU needs the package triton, and it is not installed"
    return None


@contextmanager
def compiled_layers(
    model: LanguageModel,
    folder: Path | None = None,
    *,
    recomputed: Collection[int] = (),
    backend: str = "inductor",
    tell: Callable[[str], object] = warnings.warn,
) -> Iterator[CompiledLayers]:
    """Within this, the layers of `model` that training goes through are compiled at their first use.

    After adapters are attached and fused layers (which are not compiled) were decided upon.

    Parameters
    ----------
    folder: where compiled code is kept; None keeps none. recomputed: numbers of layers that are computed again.
    backend: of `torch.compile`. tell: hears why what was compiled could not be kept; training is not lost by it.

    Raises
    ------
    ResourceError: there is no compiler.
    """
    if backend == "inductor" and (reason := why_not(model.device)):
        raise ResourceError(reason, where="train.compile", fix="install one, or set train.compile: off")
    file = None if folder is None else folder / f"{artifact_key(model)}.bin"
    reused = 0 if file is None else _load(file)
    layers = _trained_through(model, recomputed)
    kinds = {type(layer): torch.compile(type(layer).forward, dynamic=True, backend=backend) for layer in layers}
    for layer in layers:
        layer.forward = partial(_either, layer, kinds[type(layer)])
    try:
        with packed_attention.hidden_from_compiler():
            yield CompiledLayers(len(layers), tuple(kind.__name__ for kind in kinds), reused)
    finally:
        for layer in layers:
            del layer.forward
        if file is not None and not reused:
            try:
                _save(file)
            except OSError as error:
                tell(f"what was compiled is not kept for the next run: {error}")


def artifact_key(model: LanguageModel) -> str:
    """Of code that can be used again: versions, processor, and names, shapes and types of all that layers hold."""
    device = model.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    held = [
        (name, tuple(p.shape), str(p.dtype), p.requires_grad)
        for layer in decoder_layers(model.trunk)[-1:]
        for name, p in layer.named_parameters()
    ]
    facts = (torch.__version__, transformers.__version__, device.type, where, type(model.model).__name__, held)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _trained_through(model: LanguageModel, but: Collection[int]) -> list[Any]:
    """Layers whose input has a gradient: those above the lowest trained one, or all where embeddings are trained."""
    layers = list(decoder_layers(model.trunk))
    embeddings = model.model.get_input_embeddings()
    first = 0
    if not any(p.requires_grad for p in embeddings.parameters()):
        trained = [i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
        first = trained[0] + 1 if trained else len(layers)
    return [layer for i, layer in enumerate(layers) if i >= first and i not in but]


def _either(layer: nn.Module, compiled: Forward, *args: Any, **kwargs: Any) -> Any:
    """The compiled forward in training, else the layer's own."""
    if layer.training and torch.is_grad_enabled():
        return compiled(layer, *args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)


def _load(file: Path) -> int:
    """Give the compiler what an earlier run compiled; returns its bytes, 0 where there is nothing."""
    try:
        artifacts = file.read_bytes()
    except OSError:  # not there, or not readable: it is compiled again
        return 0
    return len(artifacts) if torch.compiler.load_cache_artifacts(artifacts) is not None else 0


def _save(file: Path) -> None:
    """Keep what was compiled, if anything was."""
    made = torch.compiler.save_cache_artifacts()
    if made is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_bytes(made[0])
    part.replace(file)
