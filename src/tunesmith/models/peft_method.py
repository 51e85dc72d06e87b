"""Any tuning method of the `peft` library, by its name and its own options.

`peft` puts its layers into the model in place; the `transformers` model stays what it was and is run by us, packed,
without the wrapper that `peft` keeps around it. What that wrapper would do in a forward pass is therefore not done, and
methods that need it are refused: decided by what a method's classes say of themselves, then verified on the model.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import save_file
from torch import Tensor, nn

from tunesmith.errors import EngineError, RecipeError, TunesmithError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS, read_adapter
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase
from tunesmith.models.lora_targets import ALL_LINEAR, saved_names, saved_paths, select_targets, target_names
from tunesmith.models.model_card import base_name
from tunesmith.models.quantized import QuantizedLinear
from tunesmith.models.writing import system_errors
from tunesmith.recipe.schema import Method

ADAPTER = "default"

_SET_BY_US = ("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
_FOREIGN = ("megatron_config", "megatron_core")  # names a module that would be imported
_OWN_TARGETS = ("IA3", "BEFT", "LN_TUNING", "TRAINABLE_TOKENS")
"""Types that do not adapt linear layers alike: without further word `peft` chooses their modules, by architecture."""

# What `peft` and torch raise for options that cannot be used: there is no common ancestor but Exception.
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)


@dataclass(frozen=True, slots=True)
class PeftTuning:
    """A method of `peft` in a base. `wrapper` is what `peft` keeps around the model; it shares all its modules."""

    wrapper: PeftModel
    kind: str = "peft"

    @property
    def config(self) -> PeftConfig:
        return self.wrapper.peft_config[ADAPTER]

    def trained(self) -> Mapping[str, nn.Parameter]:
        """What training changes, by the names in the model."""
        model = self.wrapper.get_base_model()
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        """Within this context the model answers with what was tuned, or (`on` false) as the base did."""
        if on:
            yield
            return
        trained = {name: parameter.requires_grad for name, parameter in self.wrapper.named_parameters()}
        try:
            with self.wrapper.disable_adapter():
                yield
        finally:
            for name, parameter in self.wrapper.named_parameters():  # switching changes what is trained
                parameter.requires_grad_(trained[name])

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds, under the names of `peft`."""
        state = get_peft_model_state_dict(self.wrapper, adapter_name=ADAPTER, save_embedding_layers=False)
        return dict(sorted(state.items()))

    def save(self, folder: Path, base: LoadedBase) -> str:
        """Write a folder that `PeftModel.from_pretrained` loads; returns the SHA-256 of its weights file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.tensors().items()}
        with system_errors(folder / WEIGHTS):
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = self.config.to_dict() | {
            "base_model_name_or_path": base_name(base),
            "revision": base.revision,
            "inference_mode": True,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=_as_json) + "\n")
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def peft_types() -> list[str]:
    """Names that `method.peft_type` may have, usable here or not."""
    return sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING)


def attach_peft(base: LoadedBase, method: Method, seed: int) -> PeftTuning:
    """Put the method named `method.peft_type` into the base, with `method.peft_options`.

    `target_modules`, `modules_to_save` and `last_layers` of the method are passed on where its options do not name
    such things themselves; rank, alpha and dropout have other names and meanings there, and are options.
    Raises `RecipeError` for a name or option that does not exist, for a method that cannot be used here, with the
    reason, and for options that `peft` refuses.
    """
    kind = _known_type(method.peft_type)
    refuse_unsuitable(kind)
    if any(isinstance(module, QuantizedLinear) for module in base.model.modules()):
        raise RecipeError(
            "methods of the peft library cannot be used on quantised weights",
            where="method.quantize",
            fix="use method.type: lora, or method.quantize: none",
        )
    options = _options(kind, method, base.model)
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **options)
    except _FAILURES as error:
        raise _refused(kind, error) from error
    before = _logits(base.model)
    tuning = _attach(base.model, config, seed, kind)
    _verify(tuning, base.model, kind, before)
    return tuning


def load_peft(base: LoadedBase, folder: Path) -> PeftTuning:
    """Attach what `PeftTuning.save` wrote to a freshly loaded base.

    Raises `EngineError` if the folder is damaged or of a type that cannot be used, `VerificationError` if it is of
    another base.
    """
    given, tensors = read_adapter(folder)
    try:
        kind = _known_type(given["peft_type"])
        refuse_unsuitable(kind)
        fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        if unknown := sorted(given.keys() - fields):
            raise EngineError(
                f"the installed peft has no option {', '.join(unknown)} for {kind}",
                where=str(folder / CONFIG),
                fix=f"install peft {given.get('peft_version', 'of the version it was saved with')}",
            )
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode, config.base_model_name_or_path = False, None
        tuning = _attach(base.model, config, seed=0, kind=kind)
    except RecipeError as error:
        raise EngineError(f"the adapter cannot be used: {error.what}", where=str(folder)) from error
    except _FAILURES as error:
        raise EngineError(f"the adapter's configuration is damaged: {error}", where=str(folder / CONFIG)) from error
    live = tuning.tensors()
    for name in sorted(live.keys() | tensors.keys()):
        if name not in tensors or name not in live:
            raise _other_base(folder, f"{name} is " + ("missing" if name in live else "not among its tensors"))
        if live[name].shape != tensors[name].shape:
            raise _other_base(folder, f"{name} is {list(tensors[name].shape)}, not {list(live[name].shape)}")
    set_peft_model_state_dict(tuning.wrapper, tensors, adapter_name=ADAPTER)
    return tuning


def refuse_unsuitable(kind: str) -> None:
    """Raise `RecipeError` for a type whose classes say that it does more than change layers inside the model."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    if issubclass(config, PromptLearningConfig):
        reason = "it puts learnt tokens or states before each text, which in a packed stream belong to no document"
    elif tuner is None or not issubclass(tuner, BaseTuner):
        reason = "it puts attention of its own into the model, which does not keep packed documents apart"
    elif tuner.forward is not BaseTuner.forward:
        reason = "it does something around each forward pass (routing, task ids, a loss of its own), not in its layers"
    else:
        return
    raise RecipeError(
        f"{kind} cannot be used here: {reason}",
        where="method.peft_type",
        expected="a method that only changes layers inside the model, such as LORA, VERA, OFT, LOHA, HRA or IA3",
    )


def _known_type(name: str | None) -> str:
    known = peft_types()
    wanted = (name or "").upper().replace("-", "_")
    if wanted in known:
        return wanted
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    raise RecipeError(
        "method.type: peft needs the method's name" if not name else f"the peft library has no method {name!r}",
        where="method.peft_type",
        expected="one of " + ", ".join(near or known),
    )


def _options(kind: str, method: Method, model: Any) -> dict[str, Any]:
    """The options of a type's config: those given, and what the rest of the method says for it."""
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    allowed = sorted(fields - {*_SET_BY_US, *_FOREIGN, "peft_version"})
    problems = []
    for name in method.peft_options:
        if name in allowed:
            continue
        near = difflib.get_close_matches(name, allowed, n=3)
        why = "is set by the run" if name in fields else "nearest: " + ", ".join(near) if near else "unknown"
        problems.append(f"{name} ({why})")
    if problems:
        raise RecipeError(
            f"{kind} has no such options: " + "; ".join(problems),
            where="method.peft_options",
            expected="some of " + ", ".join(allowed),
        )
    options = dict(method.peft_options)
    saved = saved_paths(model, method.modules_to_save)
    if saved:
        if "modules_to_save" not in fields:
            raise _not_here(kind, "modules_to_save", "leave it out")
        options.setdefault("modules_to_save", list(saved_names(model, method.modules_to_save, saved)))
    if "target_modules" in fields and "target_modules" not in options:
        if kind not in _OWN_TARGETS:
            targets = select_targets(model, method.target_modules, saved, method.last_layers)
            options["target_modules"] = list(target_names(model, method.target_modules, targets))
            return options
        if method.target_modules != ALL_LINEAR:
            options["target_modules"] = method.target_modules
    if method.last_layers is not None:
        raise _not_here(kind, "last_layers", "name the modules or layers in method.peft_options, and leave it out")
    return options


def _attach(model: Any, config: PeftConfig, seed: int, kind: str) -> PeftTuning:
    device = model.get_input_embeddings().weight.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            wrapper = get_peft_model(model, config, adapter_name=ADAPTER)
    except _FAILURES as error:
        raise _refused(kind, error) from error
    wrapper.train(model.training)
    tuning = PeftTuning(wrapper)
    inside = set(map(id, model.parameters()))
    if any(p.requires_grad and id(p) not in inside for p in wrapper.parameters()):
        raise RecipeError(
            f"{kind} cannot be used here: it trains weights beside the model, which only its own forward pass uses",
            where="method.peft_type",
        )
    if getattr(config, "use_asa", False):
        raise RecipeError(
            f"{kind} with use_asa must be told of each step, which is not done here",
            where="method.peft_options.use_asa",
            fix="leave it out",
        )
    if not tuning.trained():
        raise RecipeError(f"{kind} with these options trains nothing", where="method.peft_options")
    return tuning


@torch.no_grad()
def _verify(tuning: PeftTuning, model: Any, kind: str, before: Tensor) -> None:
    """Check with other than the first weights, which often change nothing, that the method does what we count on.

    Packed documents give the model's own logits; these are those that `peft` itself computes; switched off the model
    is the base.
    """
    kept = {name: parameter.clone() for name, parameter in tuning.trained().items()}
    generator = torch.Generator().manual_seed(0)
    training = model.training
    model.eval()
    try:
        for parameter in tuning.trained().values():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.add_(noise.to(parameter))
        LanguageModel(model).verify()
        _differentiate(model, tuning.trained())
        ours, theirs = _logits(model), _logits(tuning.wrapper)
        with tuning.enabled(False):
            off = _logits(model)
    except EngineError as error:
        raise RecipeError(f"{kind} cannot be used here: {error.what}", where="method.peft_type") from error
    except _FAILURES as error:
        raise _refused(kind, error) from error
    finally:
        model.train(training)
        for name, parameter in tuning.trained().items():
            parameter.copy_(kept[name])
    allowed = 0.03 if before.dtype in (torch.float16, torch.bfloat16) else 1e-3
    if not _distance(ours, theirs) <= allowed:
        raise RecipeError(
            f"{kind} with these options changes more than the model's layers: logits differ from peft's own by "
            f"{_distance(ours, theirs):.1e} (relative)",
            where="method.peft_options",
        )
    if not _distance(off, before) <= allowed:
        raise RecipeError(
            f"{kind} with these options changes the base's weights: switched off, its logits differ from the base's by "
            f"{_distance(off, before):.1e} (relative)",
            where="method.peft_options",
            fix="for PiSSA or OLoRA use method.type: lora and method.init",
        )


def _differentiate(model: Any, trained: Mapping[str, nn.Parameter]) -> None:
    """Take the gradient of something once: layers that work in place may not allow it."""
    with torch.enable_grad():
        ids = torch.arange(3, 11, device=next(model.parameters()).device)
        out = model(input_ids=ids[None], use_cache=False).logits.float().square().mean()
        torch.autograd.grad(out, list(trained.values()), allow_unused=True)


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits [8, V] of a few tokens, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        ids = torch.arange(3, 11, device=next(model.parameters()).device)
        return model(input_ids=ids[None], use_cache=False).logits[0]  # type: ignore[no-any-return]
    finally:
        model.train(training)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def _as_json(value: Any) -> Any:
    """Sets as sorted lists, so that the same adapter gives the same bytes; enumerations by their value."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"{type(value).__name__} has no place in a configuration file")


def _refused(kind: str, error: BaseException) -> TunesmithError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RecipeError(f"peft refuses {kind} with these options: {first}", where="method.peft_options")


def _not_here(kind: str, setting: str, fix: str) -> RecipeError:
    return RecipeError(f"{kind} with these options does not take {setting}", where=f"method.{setting}", fix=fix)


def _other_base(folder: Path, why: str) -> VerificationError:
    return VerificationError(
        f"the adapter does not fit this base: {why}",
        where=str(folder),
        expected="the base it was trained on, unchanged",
    )
