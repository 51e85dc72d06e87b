"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): two per decoder layer, behind attention and behind MLP.

Each takes what its sub-block gives, `h`, before it is added to the residual stream, and gives
`h + U gelu(D dropout(h) + d) + u` with D [size, hidden] and U [hidden, size]. U and u begin at zero, so that nothing
changes at the start. Because of the non-linearity there is no merging them into the base's weights.

Where a sub-block's result comes from is not a matter of names: a few tokens are run through the base and watched. The
module is the linear layer whose result the sub-block returns (`o_proj`, `down_proj`, `c_proj`, `dense` ...), or, where
more is done behind its last layer (a mixture of experts), the sub-block itself. An adapter stands in its place and
holds it as `base`.

On disk it is a folder as PEFT's are, with a type of our own: the `peft` library cannot load it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS, read_adapter
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora_targets import adaptable, last_layer_paths, saved_paths
from tunesmith.models.model_card import base_name
from tunesmith.models.own_weights import OwnWeights
from tunesmith.models.switching import switched_off
from tunesmith.models.trunk import decoder_layers
from tunesmith.models.writing import system_errors
from tunesmith.recipe.schema import Method

PEFT_TYPE = "TUNESMITH_BOTTLENECK"


class Bottleneck(nn.Module):
    """The module `base` and, on its result [..., hidden], a bottleneck. Weights are at least fp32.

    Attributes
    ----------
    base: the frozen module whose place this takes.
    enabled: without it the result is that of `base`.
    """

    def __init__(
        self, base: nn.Module, shape: tuple[int, int], dtype: torch.dtype, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.dropout, self.enabled = dropout, True
        size, hidden = shape
        device = next(chain(base.parameters(), base.buffers())).device
        down = nn.init.kaiming_uniform_(torch.empty(shape, dtype=dtype), a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(device))
        self.down_bias = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        self.up = nn.Parameter(torch.zeros(hidden, size, dtype=dtype, device=device))
        self.up_bias = nn.Parameter(torch.zeros(hidden, dtype=dtype, device=device))
        self.train(base.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = self.base(*args, **kwargs)
        if not self.enabled:
            return h
        x = F.dropout(h.to(self.down.dtype), self.dropout, self.training)
        change = F.linear(F.gelu(F.linear(x, self.down, self.down_bias)), self.up, self.up_bias)
        return h + change.to(h.dtype)


@dataclass(frozen=True, slots=True)
class BottleneckTuning:
    """Bottleneck adapters in a base: adapters by the path of the module each stands for, and modules tuned in full."""

    layers: Mapping[str, Bottleneck]
    own: OwnWeights
    size: int
    dropout: float
    kind: str = "bottleneck"

    def trained(self) -> Mapping[str, nn.Parameter]:
        """What training changes, by the names in the file, each once."""
        once = {id(value): (name, value) for name, value in reversed(self._tensors().items())}
        return {name: value for name, value in reversed(once.values()) if isinstance(value, nn.Parameter)}

    def enabled(self, on: bool) -> AbstractContextManager[None]:
        """Within this context the model answers with the adapters, or (`on` false) as the base did."""
        return nullcontext() if on else switched_off(self.layers, self.own)

    def save(self, folder: Path, base: LoadedBase) -> str:
        """Write the adapters into `folder` and return the SHA-256 of its weights file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous() for name, value in sorted(self._tensors().items())
        }
        with system_errors(folder / WEIGHTS):
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name(base),
            "revision": base.revision,
            "bottleneck_size": self.size,
            "dropout": self.dropout,
            "activation": "gelu",
            "modules": list(self.layers),
            "modules_to_save": list(self.own.modules),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.own.tensors())
        for path, layer in self.layers.items():
            tensors |= {f"{path}.{name}": value for name, value in layer.named_parameters(recurse=False)}
        return tensors


def attach_bottleneck(base: LoadedBase, method: Method, seed: int) -> BottleneckTuning:
    """Freeze the base and put adapters of `method.bottleneck_size` into it, or into its last layers.

    The same base, method and seed give the same adapters.
    Raises `RecipeError` where there are fewer layers than asked for, `EngineError` for an architecture without a place.
    """
    model = base.model
    _, paths = last_layer_paths(model, method.last_layers or len(decoder_layers(model.base_model)))
    hidden = model.get_input_embeddings().weight.shape[1]
    if method.bottleneck_size > hidden:
        raise RecipeError(
            f"a bottleneck of {method.bottleneck_size} is wider than the base's hidden states ({hidden})",
            where="method.bottleneck_size",
            expected=f"from 1 to {hidden}",
        )
    places = output_modules(model, paths)
    return _attach(
        model, places, saved_paths(model, method.modules_to_save), method.bottleneck_size, method.dropout, seed
    )


def load_bottleneck(base: LoadedBase, folder: Path) -> BottleneckTuning:
    """Attach the adapters in `folder` to a freshly loaded base.

    Raises `EngineError` if the folder is damaged or of another kind, `VerificationError` if it is of another base.
    """
    config, tensors = read_adapter(folder)
    if config["peft_type"] != PEFT_TYPE:
        raise EngineError(f"the adapter is of type {config['peft_type']}", where=str(folder), expected=PEFT_TYPE)
    try:
        places, saved = list(config["modules"]), list(config["modules_to_save"])
        size, dropout, activation = int(config["bottleneck_size"]), float(config["dropout"]), config["activation"]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the adapter's configuration is damaged: {error!r}", where=str(folder / CONFIG)) from error
    if activation != "gelu":
        raise EngineError(f"the activation {activation!r} is not known", where=str(folder / CONFIG), expected="gelu")
    known = {path for path, _ in base.model.named_modules()}
    if missing := [path for path in (*places, *saved) if path not in known]:
        raise _other_base(folder, f"it has no module {missing[0]}")
    tuning = _attach(base.model, places, saved, size, dropout, seed=0)
    live = tuning._tensors()
    for name in sorted(live.keys() | tensors.keys()):
        if name not in tensors or name not in live:
            raise _other_base(folder, f"{name} is " + ("missing" if name in live else "not among its modules"))
        if live[name].shape != tensors[name].shape:
            raise _other_base(folder, f"{name} is {list(tensors[name].shape)}, not {list(live[name].shape)}")
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(tensors[name])
    return tuning


def output_modules(model: Any, layers: list[str]) -> list[str]:
    """Paths of the modules that give the results of attention and MLP in these decoder layers.

    A sub-block is a direct child of a decoder layer that holds matrices; linear layers that are children
    themselves (OPT's `fc1` and `fc2`) make one together. Raises `EngineError` where a result is nobody's own.
    """
    hidden = model.get_input_embeddings().weight.shape[1]
    blocks = [block for path in layers for block in _sub_blocks(model, path)]
    linears = {block: _linears(model, block) for block in blocks}
    results = _results(model, {*blocks, *(name for names in linears.values() for name in names)})
    order = {name: i for i, name in enumerate(results)}
    places = []
    for path in layers:
        found = [block for block in _sub_blocks(model, path) if block in results]
        bare = sorted((block for block in found if linears[block] == [block]), key=order.__getitem__)
        for block in [block for block in found if block not in bare[:-1]]:
            places.append(_place(block, linears[block], results, hidden))
    if None in places or len(places) < len(layers):
        raise EngineError(
            "bottleneck adapters find no place: what attention or MLP give is not the result of one module",
            where=type(model).__name__,
            fix="use method.type: lora",
        )
    return [place for place in places if place is not None]


def _place(block: str, linears: list[str], results: Mapping[str, Any], hidden: int) -> str | None:
    """The module whose result is that of the sub-block: one of its linear layers, else itself, else none."""
    whole = results[block]
    result: Tensor = whole if isinstance(whole, Tensor) else whole[0]
    for name in linears:
        out = results.get(name)
        if not isinstance(out, Tensor) or out.shape[-1] != hidden or out.numel() != result.numel():
            continue
        if torch.equal(out.view_as(result), result):
            return name
    return block if isinstance(whole, Tensor) and whole.shape[-1] == hidden else None


@torch.no_grad()
def _results(model: Any, names: set[str]) -> dict[str, Any]:
    """What these modules give when the model is run on a few tokens, in the order in which they last finished."""
    results: dict[str, Any] = {}

    def keep(name: str, out: Any) -> None:
        results.pop(name, None)
        results[name] = out

    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: keep(name, out))
        for name in names
    ]
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(3, 11, device=model.get_input_embeddings().weight.device)
        model(input_ids=ids[None], use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return results


def _sub_blocks(model: Any, layer: str) -> list[str]:
    """Direct children of a layer that multiply by a matrix: not its norms."""

    def multiplies(child: nn.Module) -> bool:
        return any(adaptable(m) for m in child.modules()) or any(p.ndim > 1 for p in child.parameters())

    children = model.get_submodule(layer).named_children()
    return [f"{layer}.{name}" for name, child in children if multiplies(child)]


def _linears(model: Any, block: str) -> list[str]:
    """Linear layers of a sub-block, without those in a list: of a mixture's experts, each sees some tokens only."""
    inner = model.get_submodule(block).named_modules()
    names = [name for name, module in inner if adaptable(module) and not any(p.isdigit() for p in name.split("."))]
    return [f"{block}.{name}" if name else block for name in names]


def _attach(model: Any, places: list[str], saved: list[str], size: int, dropout: float, seed: int) -> BottleneckTuning:
    model.requires_grad_(False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    both = {model.get_submodule(path) for path in saved} >= {embeddings, head}
    own = OwnWeights(model, saved, tied=both and head.weight is embeddings.weight)
    shape = (size, embeddings.weight.shape[1])
    dtype = torch.promote_types(embeddings.weight.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    layers = {path: Bottleneck(model.get_submodule(path), shape, dtype, dropout, generator) for path in places}
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    return BottleneckTuning(layers, own, size, dropout)


def _other_base(folder: Path, why: str) -> VerificationError:
    return VerificationError(
        f"the adapter does not fit this base: {why}",
        where=str(folder),
        expected="the base it was trained on, unchanged",
    )
