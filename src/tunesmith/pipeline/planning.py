"""Decisions about the engine that need the loaded base: precision, tokens at once, recomputation, kept states, graphs.

Precision is measured once per machine. What memory decides is computed from shapes and the limit alone. All of it is
written into the run's recipe, and read from there when the run goes on: a machine with less free memory than yesterday
would else compute other bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import FusedLayer, use_fused_layers
from tunesmith.models.load import LoadedBase
from tunesmith.models.methods import attach
from tunesmith.models.trunk import decoder_layers
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.ops.fp8 import fits
from tunesmith.recipe import settle
from tunesmith.recipe.resolve import Choice
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group, Sample
from tunesmith.training.acceleration import choose_compile, choose_graphs, refuse_absent
from tunesmith.training.calibration import measured_rates
from tunesmith.training.memory_bound import SAFE_SHARE, memory_bound
from tunesmith.training.memory_model import row_tokens
from tunesmith.training.memory_trace import Answering, Shapes
from tunesmith.training.objectives import BUILT_IN, BuiltObjective, make_objective
from tunesmith.training.plan import TrainingPlan, steps_of
from tunesmith.training.planner import MemoryPlan, plan_memory
from tunesmith.training.precision import choose_precision, may_pay
from tunesmith.training.resources import held_memory, memory_limit, shown_bytes
from tunesmith.training.trunk_cache import estimate_bytes

_USUAL_TOKENS = {"cpu": 4_096, "cuda": 16_384}
_SHARED_MINIMUM = 32
"""Tokens from which the engine reads a common beginning of prompts once (`inference.torch_engine`)."""
_CACHE_SHARE = 0.25
"""Largest share of the free disk that the states of frozen layers may take unasked."""
_GRAPHS_SHARE = 0.65
"""Of the limit, where micro-batches are captured: passes that are not (evaluations) have memory of their own."""
Row = Sample | Group
_ENGINE = (
    "train.precision",
    "train.micro_batch_tokens",
    "train.recompute",
    "train.cache_trunk",
    "train.cuda_graphs",
    "train.compile",
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe whose engine settings are decided, the decisions, and the memory they were decided by.

    `memory` is None where nothing was traced: the decisions were read from an earlier part of the run, a bound showed
    that all fits, or they are made when adapters are attached.
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    memory: MemoryPlan | None


def plan_engine(
    recipe: Recipe,
    base: LoadedBase,
    added: AddedTokens | None,
    rows: Sequence[Row],
    kept: Recipe | None = None,
    *,
    validation: Sequence[Row] | None = None,
) -> Planned:
    """Decide every engine setting that is still `auto`.

    Parameters
    ----------
    rows: those that are learnt. kept: the recipe of this run's earlier part, whose decisions hold.
    validation: rows answered during training; where not given they are taken to be like those that are learnt.

    Raises `ResourceError` where the training cannot fit, with what would.
    """
    choices: list[Choice] = []

    def decide(key: str, value: Any, reason: str) -> None:
        nonlocal recipe
        recipe, choice = settle(recipe, key, value, reason)
        choices.append(choice)

    if kept is not None:
        for key in _ENGINE:
            name = key.removeprefix("train.")
            if getattr(recipe.train, name) == "auto" and getattr(kept.train, name) != "auto":
                decide(key, getattr(kept.train, name), "as this run began")
    if recipe.train.precision == "auto":
        decide("train.precision", *_precision(base.model.device))
    if recipe.train.cache_trunk == "auto":
        decide("train.cache_trunk", *_cache(recipe, base, rows))
    if recipe.train.cuda_graphs == "auto":
        decide("train.cuda_graphs", *choose_graphs(base.model.device))
    if recipe.train.compile == "auto":
        decide("train.compile", *choose_compile(base.model.device))
    refuse_absent(recipe, base.model.device)
    memory = None
    # Settings of the user's own may not fit either; those of this run's earlier part did.
    if rows and not (kept is not None and _settled(recipe)):
        far = _far_below_the_limit(recipe, base, added, rows, validation)
        if far:
            recipe, more = _settle_memory(recipe, _usual_tokens(recipe, rows, base), 0, far, far)
        elif _plain_objective(recipe):
            try:
                model = _shapes(recipe, base, added)
                recipe, more, memory = fit_memory(recipe, model, rows, base, validation=validation)
            except (RuntimeError, RecipeError):  # what needs numbers is planned when adapters are attached
                more = []
        else:  # a teacher or the user's code is loaded once, and planned with then
            more = []
        choices += more
    return Planned(recipe, tuple(choices), memory)


def fit_memory(
    recipe: Recipe,
    model: LanguageModel | Shapes,
    rows: Sequence[Row],
    base: LoadedBase,
    *,
    objective: BuiltObjective | None = None,
    validation: Sequence[Row] | None = None,
) -> tuple[Recipe, list[Choice], MemoryPlan]:
    """Decide the tokens computed at once and the layers computed again, so that the training fits.

    model: as it is trained, adapters attached, or its shapes. objective: what is minimised; made from the recipe where
    not given. validation: as in `plan_engine`. Raises `ResourceError` where nothing fits.
    """
    asked = recipe.train.micro_batch_tokens
    if objective is None:
        objective = make_objective(recipe.train, folder=Path.cwd(), allow_code=True, base=base)
    usual = _usual_tokens(recipe, rows, base)
    plan = replace(plan_of(recipe, len(rows)), micro_batch_tokens=usual)
    draws = LanguageModel(model.model).draws_chance
    memory = plan_memory(
        model,
        rows,
        replace(plan, share_prefixes=plan.share_prefixes and not draws),
        _memory(recipe, base),
        objective=objective,
        recompute=_recompute(recipe),
        fixed=asked != "auto",
        answers=_answering(recipe, rows if validation is None else validation, base),
    )
    lean = memory.micro_batch_tokens < usual or memory.recompute
    reason = "; ".join(memory.reasons) if lean else "the usual size fits"
    again = memory.reasons[-1] if memory.recompute else "all activations fit"
    recipe, choices = _settle_memory(recipe, memory.micro_batch_tokens, len(memory.recompute), reason, again)
    return recipe, choices, memory


def plan_of(recipe: Recipe, rows: int, *, metric: str | None = None, evaluating: bool = False) -> TrainingPlan:
    """The recipe's `train` section in optimiser steps of so many rows; with `evaluating`, evaluations among them."""
    spec = recipe.train
    batch = int(spec.batch_size)
    steps = spec.max_steps or steps_of(rows, batch, float(spec.epochs))
    return TrainingPlan(
        steps=steps,
        batch_size=batch,
        learning_rate=float(spec.learning_rate),
        seed=spec.seed,
        schedule=spec.schedule,
        decay_ratio=spec.decay_ratio,
        warmup_steps=round(steps * spec.warmup_ratio),
        weight_decay=spec.weight_decay,
        betas=(spec.beta1, spec.beta2),
        epsilon=spec.epsilon,
        max_grad_norm=spec.max_grad_norm,
        micro_batch_tokens=_USUAL_TOKENS["cpu"] if spec.micro_batch_tokens == "auto" else int(spec.micro_batch_tokens),
        evaluate_every=-(-steps // spec.evaluations) if evaluating and spec.evaluations else 0,
        watch_every=spec.watch_every if evaluating else 0,
        watch_rows=spec.watch_rows,
        log_every=spec.log_every,
        patience=spec.patience,
        select_by=spec.select_by,
        metric=metric,
        keep_checkpoints=spec.keep_checkpoints,
        keep_epochs=spec.keep_epochs,
        precision=spec.precision if spec.precision != "auto" else "fp32",
        share_prefixes=spec.share_prefixes and not spec.neftune_alpha and spec.cuda_graphs != "on",
        optimizer=spec.optimizer,
        optimizer_in_backward=spec.optimizer_in_backward,
        lora_plus_ratio=recipe.method.lora_plus_ratio,
        neftune_alpha=spec.neftune_alpha,
        cuda_graphs=spec.cuda_graphs == "on",
    )


def fuse_layers(recipe: Recipe, base: LoadedBase) -> int:
    """Give the base the fused layers it is trained with, where it has none yet; returns how many it has.

    A base that is divided among processes keeps the layers of `transformers`, whose weights come and go; so does one
    whose layers are compiled.
    """
    if _fused(recipe):
        use_fused_layers(base.model)
    return sum(isinstance(module, FusedLayer) for module in base.model.modules())


def _fused(recipe: Recipe) -> bool:
    return recipe.train.sharding != "fsdp" and recipe.train.compile != "on"


def _memory(recipe: Recipe, base: LoadedBase) -> int:
    """Bytes that tensors may take: less what codes in fp8 do, and less for graphs, which keep a pass's memory."""
    limit = memory_limit(recipe.train.memory_limit, base.model.device)
    if recipe.train.precision == "fp8":
        linear = [module.weight for module in base.model.modules() if isinstance(module, nn.Linear)]
        limit -= 2 * sum(weight.numel() for weight in linear if fits(weight))
    return int(_GRAPHS_SHARE * limit) if recipe.train.cuda_graphs == "on" else limit


def _far_below_the_limit(
    recipe: Recipe,
    base: LoadedBase,
    added: AddedTokens | None,
    rows: Sequence[Row],
    validation: Sequence[Row] | None,
) -> str:
    """In words, where a bound shows without a trace that everything fits at the usual size; else nothing."""
    if recipe.train.recompute == "on" or not _plain_objective(recipe):
        return ""
    answers = _answering(recipe, rows if validation is None else validation, base)
    plan = replace(plan_of(recipe, len(rows)), micro_batch_tokens=_usual_tokens(recipe, rows, base))
    limit, held = _memory(recipe, base), held_memory(base.model.device)
    bound = memory_bound(base.model, recipe.method, plan, rows, held, answers=answers, grown=added is not None)
    if bound is None or bound > SAFE_SHARE * limit:
        return ""
    return f"all fits: at most {shown_bytes(bound)} of {shown_bytes(limit)}"


def _settle_memory(recipe: Recipe, tokens: int, layers: int, size: str, again: str) -> tuple[Recipe, list[Choice]]:
    """Write down tokens at once and layers computed again where they were `auto`, with the reason of each."""
    choices = []
    if recipe.train.micro_batch_tokens == "auto":
        recipe, choice = settle(recipe, "train.micro_batch_tokens", tokens, size)
        choices.append(choice)
    if recipe.train.recompute == "auto":
        recipe, choice = settle(recipe, "train.recompute", layers, again)
        choices.append(choice)
    return recipe, choices


def _usual_tokens(recipe: Recipe, rows: Sequence[Row], base: LoadedBase) -> int:
    """Tokens computed at once where memory is no matter: the user's, else enough to keep the device busy."""
    asked = recipe.train.micro_batch_tokens
    if asked != "auto":
        return int(asked)
    return max(_USUAL_TOKENS[base.model.device.type], max(map(row_tokens, rows)))


def _plain_objective(recipe: Recipe) -> bool:
    """Whether the objective is one of ours on the base alone: no teacher beside it, no code of the user's."""
    return recipe.train.objective in BUILT_IN and recipe.train.distillation is None


def _answering(recipe: Recipe, rows: Sequence[Row], base: LoadedBase) -> Answering | None:
    """What evaluations answer at once, where they answer; `rows`: the validation rows, or such as are like them."""
    asked = [row for row in rows[: recipe.train.eval_rows] if isinstance(row, Sample)]
    generated = recipe.evaluate.max_new_tokens
    if not asked or not recipe.train.evaluations or recipe.train.sharding == "fsdp" or generated == "auto":
        return None
    prompts = [row.ids if recipe.train.loss == "all" else row.ids[: _answer_begins(row)] for row in asked]
    longest = min(max(map(len, prompts)), base.context - int(generated))
    if longest < 1:
        return None
    return Answering(
        prompts=min(recipe.evaluate.batch_size, len(prompts)),
        prompt_tokens=longest,
        answer_tokens=int(generated),
        shared_tokens=_common_beginning(prompts, base),
    )


def _common_beginning(prompts: Sequence[npt.NDArray[np.int64]], base: LoadedBase) -> int:
    """Tokens that all prompts begin with, where the engine reads them once: long enough, and not with a window."""
    shortest = min(map(len, prompts)) - 1
    if len(prompts) < 2 or shortest < 1 or getattr(base.model.config.get_text_config(), "sliding_window", None):
        return 0
    same = np.all([p[:shortest] == prompts[0][:shortest] for p in prompts], axis=0)
    length = shortest if same.all() else int(same.argmin())
    return length if length >= _SHARED_MINIMUM else 0


def _answer_begins(row: Sample) -> int:
    """Where the last learnt run of tokens begins: before it stands the prompt that is asked in an evaluation."""
    learnt = np.flatnonzero(row.weights)
    if not len(learnt):
        return len(row.ids)
    gaps = np.flatnonzero(np.diff(learnt) > 1)
    return int(learnt[gaps[-1] + 1] if len(gaps) else learnt[0])


def _precision(device: torch.device) -> tuple[str, str]:
    """The type to compute in, and why; measured only where half precision could be worth it."""
    if not may_pay(device):
        return "fp32", "this processor computes bf16 at most twice as fast, which is not worth its rounding"
    return choose_precision(device, measured_rates(device))


def _settled(recipe: Recipe) -> bool:
    return recipe.train.micro_batch_tokens != "auto" and recipe.train.recompute != "auto"


def recomputed_layers(recipe: Recipe, base: LoadedBase, frozen: int) -> tuple[int, ...]:
    """The decoder layers computed again, by a resolved recipe: the lowest of those that take part in the backward pass.

    Raises `RecipeError` for more layers than there are.
    """
    count = len(decoder_layers(getattr(base.model, base.model.base_model_prefix)))
    wanted = recipe.train.recompute
    if wanted in ("off", "auto"):
        return ()
    number = count - frozen if wanted == "on" else int(wanted)
    if number > count - frozen:
        raise RecipeError(
            f"{number} layers are more than take part in the backward pass",
            where="train.recompute",
            expected=f"at most {count - frozen}",
        )
    return tuple(range(frozen, frozen + number))


def _recompute(recipe: Recipe) -> Any:
    wanted = recipe.train.recompute
    return "on" if isinstance(wanted, int) and wanted else "off" if isinstance(wanted, int) else wanted


def _shapes(recipe: Recipe, base: LoadedBase, added: AddedTokens | None) -> Shapes:
    """The model as it will be trained, without numbers. How adapters begin does not change their shape."""
    # Whether a fused layer computes what the original does can only be tried with numbers: on the base, put back after.
    originals = dict(base.model.named_modules())
    fused = use_fused_layers(base.model) if _fused(recipe) else ()
    shapes = Shapes(base.model)
    for name in fused:
        base.model.set_submodule(name, originals[name])
    method = recipe.method.model_copy(update={"init": "default"})
    shapes.change(lambda model: attach(replace(base, model=model), method, recipe.train.seed, added))
    return shapes


def _cache(recipe: Recipe, base: LoadedBase, rows: Sequence[Row]) -> tuple[str, str]:
    """Whether the states of frozen layers are kept on disk, and why."""
    train = recipe.train
    if recipe.method.last_layers is None:
        return "off", "all layers are tuned"
    if train.neftune_alpha or train.sharding != "none":
        return "off", "the states are not the same each time" if train.neftune_alpha else "weights are divided"
    steps = train.max_steps or float(train.epochs) * len(rows) / int(train.batch_size)
    if steps * int(train.batch_size) <= 1.5 * len(rows):
        return "off", "rows are learnt about once"
    hidden = int(base.model.config.get_text_config().hidden_size)
    needed = estimate_bytes(rows, hidden, base.model.dtype)
    free = psutil.disk_usage(str(Path.cwd())).free
    size = f"{needed / 2**20:,.0f} MiB of disk"
    return ("on", size) if needed < _CACHE_SHARE * free else ("off", f"{size} are too much here")
