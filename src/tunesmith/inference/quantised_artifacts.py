"""Exports with quantised weights, opened in this process to be asked: `gptq`, `awq`, `fp8` and `torchao`.

Of the first three the codes become numbers once, when the file is opened, and products are computed with these: what a
server's kernels approximate is computed plainly here, at the memory of the whole model. `torchao` keeps its codes and
computes with kernels of its own. An engine's `kernel` says which it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EngineError
from tunesmith.inference.quantised_weights import fp8_tokens, fp8_values, unpack_awq, unpack_gptq
from tunesmith.inference.torch_artifacts import ProbedTorchEngine, folder_renderer, refuse_names
from tunesmith.models.artifact import Artifact
from tunesmith.models.load import pick_dtype
from tunesmith.ops.product import use_fast_linears
from tunesmith.text.render import Renderer

Values = Callable[[str, Mapping[str, Tensor]], Tensor]
"""A quantised layer's path, and its tensors by their last name, to its weight [out, in]."""


class QuantisedEngine(ProbedTorchEngine):
    """A `ProbedTorchEngine`. `kernel`: what computes the products of its quantised layers."""

    def __init__(self, model: Any, renderer: Renderer, context: int, kernel: str) -> None:
        super().__init__(model, renderer, context)
        self.kernel = kernel


def open_gptq(artifact: Artifact, adapter: str | None = None) -> QuantisedEngine:
    """The `gptq` format, layers of other bits (`dynamic`) included. Raises `EngineError` for a damaged file."""
    refuse_names(artifact, adapter)
    config = _quantization(artifact, "gptq")
    other = {
        rule.removeprefix("+:"): int(said["bits"]) for rule, said in config.get("dynamic", {}).items() if rule[0] == "+"
    }

    def values(path: str, tensors: Mapping[str, Tensor]) -> Tensor:
        bits = next((b for rule, b in other.items() if re.match(rule, path)), int(config["bits"]))
        return unpack_gptq(tensors, bits).values()

    return _engine(artifact, _dense(artifact, "qweight", values), "torch, codes made numbers when opened")


def open_awq(artifact: Artifact, adapter: str | None = None) -> QuantisedEngine:
    """The `awq` format, layout `gemm`. Raises `EngineError` for a damaged file."""
    refuse_names(artifact, adapter)
    group = int(_quantization(artifact, "awq")["group_size"])
    model = _dense(artifact, "qweight", lambda path, tensors: unpack_awq(tensors, group).values())
    return _engine(artifact, model, "torch, codes made numbers when opened")


def open_fp8(artifact: Artifact, adapter: str | None = None) -> QuantisedEngine:
    """Float8 weights; what enters these layers is rounded token by token, as GPU servers do.

    Raises `EngineError` for a damaged file.
    """
    refuse_names(artifact, adapter)
    _quantization(artifact, "compressed-tensors")
    cut: list[str] = []

    def values(path: str, tensors: Mapping[str, Tensor]) -> Tensor:
        cut.append(path)
        return fp8_values(tensors["weight"], tensors["weight_scale"])

    model = _dense(artifact, "weight_scale", values)
    for path in cut:
        model.get_submodule(path).register_forward_pre_hook(lambda module, args: (fp8_tokens(args[0]), *args[1:]))
    return _engine(artifact, model, "torch, float8 weights and tokens as float32 numbers")


def open_torchao(artifact: Artifact, adapter: str | None = None) -> QuantisedEngine:
    """A folder with torchao's tensors, opened by `transformers`. Raises `EngineError` where torchao is missing."""
    refuse_names(artifact, adapter)
    if find_spec("torchao") is None:
        raise EngineError(
            "torchao is not installed", where=str(artifact.folder), fix="pip install 'tunesmith[quantise]'"
        )
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    _quantization(artifact, "torchao")
    logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            artifact.folder,
            dtype=pick_dtype("auto", torch.device("cuda" if cuda else "cpu")),
            device_map="cuda" if cuda else None,
            use_safetensors=True,
            output_loading_info=True,
        )
        _refuse_gaps(found)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as problem:
        raise _damaged(artifact.folder, problem) from problem
    return _engine(artifact, model.eval(), f"torchao {artifact.target.precision}")


def _engine(artifact: Artifact, model: Any, kernel: str) -> QuantisedEngine:
    return QuantisedEngine(model, folder_renderer(artifact), artifact.context, kernel)


def _quantization(artifact: Artifact, method: str) -> dict[str, Any]:
    """The folder's `quantization_config`, of the method that is expected."""
    path = artifact.folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
        if config["quant_method"] != method:
            raise ValueError(f"its weights are of kind {config['quant_method']!r}")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise EngineError(
            f"this is no model with weights of kind {method!r}: {problem}", where=str(path), fix="export again"
        ) from problem
    return config


def _dense(artifact: Artifact, mark: str, values: Values) -> Any:
    """A plain model of the folder's architecture with the numbers that its codes stand for.

    `mark`: the last name of a tensor that only quantised layers have.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = pick_dtype("auto", device)
    logging.disable_progress_bar()
    try:
        layers, state = _read(artifact.folder, mark)
        config = AutoConfig.from_pretrained(artifact.folder)
        del config.quantization_config
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        conv1d = _conv1d_paths(kind, config)
        for path in sorted(layers):
            weight = values(path, layers.pop(path))
            state[f"{path}.weight"] = (weight.t() if path in conv1d else weight).contiguous().to(dtype)
        model, found = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        _refuse_gaps(found)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as problem:
        raise _damaged(artifact.folder, problem) from problem
    model = model.to(device).eval().requires_grad_(False)
    use_fast_linears(model)
    return model


def _refuse_gaps(found: Mapping[str, Any]) -> None:
    """Raise `ValueError` where tensors were missing, which `transformers` would draw by chance, or not known."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(what) or ())):
            raise ValueError(f"{what.replace('_keys', '')} tensors: {', '.join(names[:3])}")


def _read(folder: Path, mark: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of quantised layers by path, less their biases, and all others by name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    cut = {name.rpartition(".")[0] for name in found if name.rpartition(".")[2] == mark}
    layers: dict[str, dict[str, Tensor]] = {path: {} for path in cut}
    for name in list(found):
        path, _, last = name.rpartition(".")
        if path in cut and last != "bias":
            layers[path][last] = found.pop(name)
    return layers, found


def _conv1d_paths(kind: Any, config: Any) -> set[str]:
    """Layers whose weight lies the other way round in a model of this architecture."""
    with torch.device("meta"):
        model: nn.Module = kind(config)
    return {path for path, module in model.named_modules() if isinstance(module, Conv1D)}


def _damaged(folder: Path, problem: BaseException) -> EngineError:
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return EngineError(f"the quantised model cannot be opened: {first}", where=str(folder), fix="export again")
