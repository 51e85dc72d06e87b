"""From a recipe's `method` to something trainable on a base, and from a saved folder back to it.

A `Tuning` is what was made trainable, in place. Each kind saves and loads itself; this file only chooses, and has the
one kind that is nothing but the base's own weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from tunesmith.errors import EngineError, RecipeError
from tunesmith.models.adapter import CONFIG, adapter_names, load_adapter, save_adapter, unsupported
from tunesmith.models.bottleneck import PEFT_TYPE as BOTTLENECK
from tunesmith.models.bottleneck import BottleneckTuning, attach_bottleneck, load_bottleneck
from tunesmith.models.load import LoadedBase, load_full
from tunesmith.models.lora import Attached, LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.lora_targets import last_layer_paths, means, saved_paths
from tunesmith.models.model_card import adapter_card, base_name, lora_words, model_card, own_card
from tunesmith.models.trunk import decoder_layers
from tunesmith.models.vocabulary import AddedTokens, embedding_paths, match_vocabulary
from tunesmith.models.writing import system_errors
from tunesmith.recipe.schema import Method

if TYPE_CHECKING:
    from tunesmith.models.peft_method import PeftTuning

CARD = "README.md"


class Tuning(Protocol):
    """What was made trainable on a base, in place."""

    @property
    def kind(self) -> str:
        """lora, full, bottleneck or peft."""
        ...

    @property
    def words(self) -> str:
        """The method and its settings, for a card."""
        ...

    @property
    def note(self) -> str:
        """How the base's weights were held, where they were quantised."""
        ...

    @property
    def added(self) -> AddedTokens | None:
        """What was added to the base's vocabulary."""
        ...

    def save(self, folder: Path, base: LoadedBase) -> str:
        """Write the adapter, or the whole model, into `folder`; returns the SHA-256 of the weights."""
        ...

    def trained(self) -> Mapping[str, nn.Parameter]:
        """Trained parameters by their names in the model, each once."""
        ...

    def enabled(self, on: bool) -> AbstractContextManager[None]:
        """Within this context the model answers tuned, or (`on=False`) as its base."""
        ...


@dataclass(frozen=True, slots=True)
class LoraTuning:
    """LoRA, rsLoRA or DoRA layers, and modules trained in full."""

    model: Any
    attached: Attached
    added: AddedTokens | None = None
    quantize: str = "none"
    note: str = ""
    kind: str = "lora"

    @property
    def words(self) -> str:
        return lora_words(self.attached.settings, self.quantize)

    def save(self, folder: Path, base: LoadedBase) -> str:
        layers = self.attached.layers.values()
        sha = save_adapter(
            folder,
            self.attached,
            base=base_name(base),
            revision=base.revision,
            conv1d=any(layer.conv1d or getattr(layer.base, "conv1d", False) for layer in layers),
        )
        if self.added is not None:
            with system_errors(folder):
                base.tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(adapter_card(base, self.words, self.added, self.note))
        return sha

    def trained(self) -> Mapping[str, nn.Parameter]:
        return trainable_parameters(self.model)

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        if on:
            yield
        else:
            with self.attached.switched_off():
                yield


@dataclass(frozen=True, slots=True)
class FullTuning:
    """The base's own weights, all or some of them.

    `dtypes`: of a base in half precision, which is trained in fp32: the types that its tensors had. Saving gives them
    back, so that what is in memory is what anybody loads.
    """

    model: Any
    words: str
    added: AddedTokens | None = None
    note: str = ""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    kind: str = "full"

    def save(self, folder: Path, base: LoadedBase) -> str:
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if name in self.dtypes:
                tensor.data = tensor.data.to(self.dtypes[name])
        with system_errors(folder):
            self.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(model_card(base, self.words, self.added))
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def trained(self) -> Mapping[str, nn.Parameter]:
        return trainable_parameters(self.model)

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        if not on:
            raise EngineError(
                "full tuning changed the base's weights: its own answers are gone from memory",
                fix="load the base again, or tune with LoRA",
            )
        yield


@dataclass(frozen=True, slots=True)
class WithCard:
    """A tuning that saves its weights only; this saves the card, and the tokenizer where tokens were added.

    `method` says how the base was quantised, where it was.
    """

    tuning: BottleneckTuning | PeftTuning
    words: str
    added: AddedTokens | None = None
    method: Method | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        return self.tuning.kind

    def save(self, folder: Path, base: LoadedBase) -> str:
        sha = self.tuning.save(folder, base)
        if self.added is not None:
            with system_errors(folder):
                base.tokenizer.save_pretrained(folder)
        if self.kind == "peft":
            card = adapter_card(base, self.words, self.added, self.note)
        else:
            card = own_card(base, self.words, self.added, self.note, _as_python(self.method))
        (folder / CARD).write_text(card)
        return sha

    def trained(self) -> Mapping[str, nn.Parameter]:
        return self.tuning.trained()

    def enabled(self, on: bool) -> AbstractContextManager[None]:
        return self.tuning.enabled(on)


def attach(base: LoadedBase, method: Method, seed: int, added: AddedTokens | None = None) -> Tuning:
    """Make of a freshly loaded base what `method` says, in place.

    `added` is what `vocabulary.add_tokens` did to it before: embeddings and head are then trained and saved too. The
    same base, method and seed give the same start, so that a checkpoint needs only the trained parameters.
    Raises `RecipeError` where the method does not fit the base.
    """
    added = added if added is not None and added.tokens else None
    if method.type == "full":
        return _attach_full(base.model, method, added)
    settings = LoraSettings.of_method(method)
    if added is not None:
        settings = _with_embeddings(base.model, settings)
    note = _quantize(base.model, method, settings.modules_to_save)
    if method.type == "lora":
        attached = attach_lora(base.model, settings, seed)
        return LoraTuning(base.model, attached, added, method.quantize, note)
    method = method.model_copy(update={"modules_to_save": list(settings.modules_to_save)})
    if method.type == "bottleneck":
        return _bottleneck(attach_bottleneck(base, method, seed), added, method, note)
    from tunesmith.models.peft_method import attach_peft

    return _of_peft(attach_peft(base, method, seed), added)


def load_tuned(base: LoadedBase, folder: Path, method: Method | None = None) -> Tuning:
    """Turn a freshly loaded base into the tuned model in `folder`, in place: an adapter's folder (ours, or one that
    plain `peft` wrote) or a whole model's. Tokens that were added come from the tokenizer saved there.

    With the `method` it was trained by, the base is quantised first as it was then; without, the adapter is put on
    full weights. Raises `EngineError` if it is damaged, `VerificationError` if it belongs to another base.
    """
    added = match_vocabulary(base, folder)
    if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
        load_full(base.model, folder)
        base.model.eval()
        return FullTuning(base.model, "full tuning", added)
    config = _config(folder)
    note = "" if method is None else _quantize(base.model, method, tuple(method.modules_to_save))
    quantize = "none" if method is None else method.quantize
    if config["peft_type"] == "LORA" and not unsupported(config, adapter_names(folder)):
        tuning: Tuning = LoraTuning(base.model, load_adapter(base.model, folder), added, quantize, note)
    elif config["peft_type"] == BOTTLENECK:
        tuning = _bottleneck(load_bottleneck(base, folder), added, method, note)
    else:
        from tunesmith.models.peft_method import load_peft

        tuning = _of_peft(load_peft(base, folder), added)
    base.model.eval()
    return tuning


def _bottleneck(tuning: BottleneckTuning, added: AddedTokens | None, method: Method | None, note: str) -> Tuning:
    saved = tuple(tuning.own.modules)
    words = f"bottleneck adapters ({tuning.size} wide" + (f", {', '.join(saved)} trained in full)" if saved else ")")
    return WithCard(tuning, words, added, method if note else None, note)


def _of_peft(tuning: PeftTuning, added: AddedTokens | None) -> Tuning:
    words = f"{tuning.config.peft_type.value} by the peft library, its options in {CONFIG}"
    return WithCard(tuning, words, added)


def _as_python(method: Method | None) -> str:
    """What of a method is needed to load what it trained, as Python."""
    if method is None:
        return ""
    return f'Method(quantize="{method.quantize}", double_quantize={method.double_quantize})'


def _attach_full(model: Any, method: Method, added: AddedTokens | None) -> FullTuning:
    """All weights, or those of the last layers and the final norm.

    The head stays frozen with `last_layers` unless `modules_to_save` names it: where it shares its weight with the
    embeddings, training it would send the backward pass down to the bottom, which is what was to be saved, and one
    recipe should mean the same on a base that does not share. Shared weights stay shared: one tensor is trained.
    """
    if method.quantize != "none":
        raise RecipeError(
            "full tuning changes the weights, which quantised ones cannot follow",
            where="method.quantize",
            fix="set method.quantize: none, or use method.type: lora",
        )
    # Updates smaller than half precision can hold would be lost; layers of two types cannot be chained.
    dtypes: dict[str, torch.dtype] = {}
    if model.dtype in (torch.bfloat16, torch.float16):
        dtypes = {name: t.dtype for name, t in chain(model.named_parameters(), model.named_buffers())}
        model.float()
    paths = saved_paths(model, method.modules_to_save)
    if method.last_layers is None:
        model.requires_grad_(True)
        return FullTuning(model, "full tuning", added, dtypes=dtypes)
    model.requires_grad_(False)
    paths += last_layer_paths(model, method.last_layers)[1] + _final_norms(model)
    paths += embedding_paths(model) if added is not None else ()
    for path in paths:
        model.get_submodule(path).requires_grad_(True)
    return FullTuning(model, f"full tuning of the last {method.last_layers} layers", added, dtypes=dtypes)


def _final_norms(model: Any) -> list[str]:
    """Paths of the norms that stand beside the list of layers; a norm of the embeddings is not one that follows it."""
    trunk = getattr(model, model.base_model_prefix)
    layers = decoder_layers(trunk)
    paths = {module: path for path, module in model.named_modules()}
    beside = paths[layers].rpartition(".")[0]
    children = model.get_submodule(beside).named_children()
    return [paths[m] for name, m in children if "Norm" in type(m).__name__ and "emb" not in name]


def _with_embeddings(model: Any, settings: LoraSettings) -> LoraSettings:
    """Settings by which embeddings and head are trained and saved too, as one weight where they are one."""
    names = settings.modules_to_save
    paths = [path for path in embedding_paths(model) if not any(means(name, path) for name in names)]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return replace(settings, modules_to_save=(*names, *paths), tie_saved=tied)


def _quantize(model: Any, method: Method, keep: tuple[str, ...]) -> str:
    """Quantise the base where the method says so; returns what was done in words."""
    if method.quantize == "none":
        return ""
    from tunesmith.models.quantized import quantize_base

    return quantize_base(model, method.quantize, method.double_quantize, keep).note


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter's folder; it has a `peft_type`."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        return {**config, "peft_type": str(config["peft_type"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"this is no tuned model: {error}",
            where=str(folder),
            expected=f"{CONFIG} of an adapter, or config.json of a whole model",
        ) from error
