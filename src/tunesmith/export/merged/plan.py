"""What becomes of every tensor of a base's files when an adapter is merged into it, found without loading a weight.

The model is built without memory, gets the adapter as it would to answer, and its names are held against those in the
files. Where they are the same, each tensor can be made by itself. Where they are not, `NeedsMemory` says why: newer
versions of `transformers` join, split and rename tensors while loading, and only a loaded model knows the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tunesmith.export.merged.tensors import Stored, stored_tensors, weight_files
from tunesmith.export.types import Source
from tunesmith.models.adapter import adapter_names, load_adapter, read_adapter, unsupported
from tunesmith.models.load import LoadedBase, base_folder, loaded_dtype
from tunesmith.models.lora import Attached
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.quantized import layers_to_quantize
from tunesmith.models.vocabulary import AddedTokens, match_vocabulary

PREFIX = "base_model.model."
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class NeedsMemory(Exception):  # noqa: N818 (no failure: the other way is taken)
    """Why a tuned model cannot be merged tensor by tensor."""


@dataclass(frozen=True, slots=True)
class Update:
    """What LoRA adds to a weight [out, in]: `s B A`, from A [r, in] and B [out, r]; and DoRA's magnitudes [out].

    start: pissa or olora where A and B began with parts of the weight, and only their change is added.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None
    start: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """How one tensor of the merged model is made.

    Attributes
    ----------
    name: in the merged model's files.
    stored: the base's tensor; None where the adapter brings all of it.
    own: values that the adapter brings in the base's place.
    update: what is added.
    transposed: whether the file holds the weight as [in, out].
    quantised: whether the weight was held in few bits while the adapter was trained.
    """

    name: str
    stored: Stored | None
    own: Tensor | None = None
    update: Update | None = None
    transposed: bool = False
    quantised: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        if self.own is not None:
            return tuple(self.own.shape)
        assert self.stored is not None
        return self.stored.shape


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge that can be done tensor by tensor.

    Attributes
    ----------
    shards: items by the base's file that they belong to, in the order of these files.
    loaded: the type that the run held the base's weights in.
    quantize, double: how the linear layers were held: none, nf4 or int8.
    kept: linear layers that were not quantised, where others were.
    model: the tuned model, without memory, for its configuration.
    attached: the adapter on it; None where the model is only copied.
    left_out: tensors in the base's files that are none of the model's, as loading ignores them too.
    untied: whether head and embeddings shared their weight and no longer do.
    """

    shards: tuple[tuple[Path, tuple[Item, ...]], ...]
    loaded: torch.dtype
    quantize: str
    double: bool
    kept: tuple[str, ...]
    model: Any
    attached: Attached | None
    added: AddedTokens | None
    left_out: tuple[str, ...]
    untied: bool


def plan_merge(source: Source) -> Plan:
    """The plan for a base with an adapter, or for a whole tuned model, whose files are copied.

    Raises `NeedsMemory` where this is no plan, `EngineError` for damaged files, `VerificationError` for an adapter of
    another base.
    """
    spec = source.recipe.base
    loaded = loaded_dtype(spec)
    files = weight_files(source.base_folder if source.is_adapter else source.tuned)
    stored = {path: stored_tensors(path) for path in files}
    if not source.is_adapter:
        return _copy(source, stored, loaded)
    config, tensors = read_adapter(source.tuned)
    if unsupported(config, adapter_names(source.tuned)):
        raise NeedsMemory(f"the peft library merges {config['peft_type']} with these options, in a loaded model")
    model = model_without_memory(source.base_folder, spec.trust_remote_code)
    found = {name: one for tensors_of in stored.values() for name, one in tensors_of.items()}
    names = _matching_names(model, found, loaded)
    method = source.recipe.method
    base = hollow_base(source, model)
    added = match_vocabulary(base, source.tuned)
    quantised = layers_to_quantize(model, tuple(method.modules_to_save)) if method.quantize != "none" else {}
    embeddings, head = _end_names(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    attached = load_adapter(model, source.tuned)
    untied = tied and not attached.own.tied and _ends_differ(attached, embeddings, head)
    own, updates = _brought(attached, tensors)
    if tied and not untied and (embeddings in own or head in own):  # one weight, saved under either name
        own |= {names_of: own.get(embeddings, own.get(head)) for names_of in (embeddings, head)}  # type: ignore[misc]
    items: dict[Path, list[Item]] = {path: [] for path in files}
    for name in names:
        held = found.get(name)
        if held is None:  # the other end of a tied pair holds its values
            if not untied:
                continue
            held = found[embeddings if name == head else head]
        path = name.rpartition(".")[0]
        module = attached.layers.get(path)
        transposed = name.endswith(".weight") and (
            isinstance(_inner(model, path), Conv1D) if module is None else module.conv1d
        )
        items[held.path].append(
            Item(
                name=name,
                stored=held,
                own=own.get(name),
                update=updates.get(name),
                transposed=transposed,
                quantised=quantised.get(path, False) and name.endswith(".weight"),
            )
        )
    return Plan(
        shards=tuple((path, tuple(of_file)) for path, of_file in items.items()),
        loaded=loaded,
        quantize=method.quantize,
        double=method.double_quantize,
        kept=tuple(path for path, replaced in quantised.items() if not replaced),
        model=model,
        attached=attached,
        added=added,
        left_out=tuple(sorted(found.keys() - names)),
        untied=untied,
    )


def _copy(source: Source, stored: Mapping[Path, Mapping[str, Stored]], loaded: torch.dtype) -> Plan:
    model = model_without_memory(source.tuned, source.recipe.base.trust_remote_code)
    shards = tuple((path, tuple(Item(name, one) for name, one in of.items())) for path, of in stored.items())
    return Plan(shards, loaded, "none", False, (), model, None, None, (), False)


def model_without_memory(folder: Path, trust_remote_code: bool) -> Any:
    """The model of a folder on the meta device.

    Raises `NeedsMemory` where its files are quantised, or its code comes with it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise NeedsMemory("the base's own files are quantised")
    if trust_remote_code and getattr(config, "auto_map", None):
        raise NeedsMemory("its code comes with the model, and must be saved beside it")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).eval()


def hollow_base(source: Source, model: Any) -> LoadedBase:
    """A base as `load_base` gives it, around a model without memory; for what needs to know no weight."""
    from transformers import AutoTokenizer

    spec = source.recipe.base
    tokenizer = AutoTokenizer.from_pretrained(str(source.base_folder), trust_remote_code=spec.trust_remote_code)
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        name=spec.model,
        revision=spec.revision or getattr(model.config, "_commit_hash", None),
        weights_sha256=source.base_sha256,
        folder=base_folder(spec.model),
        context=source.context,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _matching_names(model: Any, found: Mapping[str, Stored], loaded: torch.dtype) -> list[str]:
    """Names of the model's tensors, where each has its own in the files, or shares that of the other end."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    half = loaded in (torch.bfloat16, torch.float16)
    if half and (getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None)):
        raise NeedsMemory("some of its layers stay in 32 bits whatever it is loaded in")
    for change in get_model_conversion_mapping(model, add_legacy=False):
        if name := next((name for name in found if change.compiled_sources.search(name)), None):
            raise NeedsMemory(f"tensors such as {name} are converted while loading")
    state = model.state_dict()
    ends = _end_names(model)
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    for group in shared.values():
        if len(group) > 1 and set(group) != set(ends):
            raise NeedsMemory(f"{' and '.join(group)} are one weight")
    tied = any(len(group) > 1 for group in shared.values())
    if tied and set(ends) <= found.keys():
        raise NeedsMemory("its head is tied to the embeddings, and the files hold both")
    for name, tensor in state.items():
        held = found.get(name)
        if held is None and tied and name in ends and any(end in found for end in ends):
            continue
        if held is None:
            raise NeedsMemory(f"the model's {name} has another name in the base's files")
        if tuple(tensor.shape) != held.shape:
            raise NeedsMemory(f"the model's {name} has another shape in the base's files")
        if tensor.is_floating_point() and held.dtype not in _FLOATS:
            raise NeedsMemory(f"{name} is held as {str(held.dtype).removeprefix('torch.')} in the base's files")
    return list(state)


def _end_names(model: Any) -> tuple[str, str]:
    """Names of the weights of embeddings and head."""
    paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return f"{paths[id(ends[0])]}.weight", f"{paths[id(ends[1])]}.weight"


def _ends_differ(attached: Attached, *ends: str) -> bool:
    """Whether one of the ends is adapted, or trained in full."""
    paths = {end.removesuffix(".weight") for end in ends}
    return bool(paths & attached.layers.keys()) or any(f"{path}.weight" in attached.own.tensors() for path in paths)


def _brought(attached: Attached, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Update]]:
    """What the adapter's file brings, by the names in the model: whole tensors, and updates of weights."""
    updates, used = {}, set()
    for path, layer in attached.layers.items():
        stem = f"{PREFIX}{path}"
        a, b = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        magnitudes = (f"{stem}.lora_magnitude_vector", f"{stem}.lora_magnitude_vector.weight")
        magnitude = next((name for name in magnitudes if name in tensors), None)
        used |= {a, b, *magnitudes}
        start = attached.settings.init if attached.settings.init in FROM_WEIGHTS else None
        update = Update(tensors[a], tensors[b], layer.scaling, None, start)
        updates[f"{path}.weight"] = update if magnitude is None else replace(update, magnitude=tensors[magnitude])
    own = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if name not in used
    }
    return own, updates


def _inner(model: Any, path: str) -> Any:
    return model.get_submodule(path) if path else model
