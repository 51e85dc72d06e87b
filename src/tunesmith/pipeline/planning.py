"""Decisions about the engine that need the loaded base: precision, tokens at once, recomputation, kept states.

Precision is measured once per machine. What memory decides is computed from shapes and the limit alone. All of it is
written into the run's recipe, and read from there when the run goes on: a machine with less free memory than yesterday
would else compute other bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tunesmith.errors import RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase
from tunesmith.models.methods import attach
from tunesmith.models.trunk import decoder_layers
from tunesmith.models.vocabulary import AddedTokens
from tunesmith.recipe import settle
from tunesmith.recipe.resolve import Choice
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group, Sample
from tunesmith.training.calibration import measured_rates
from tunesmith.training.memory_trace import Shapes
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.planner import MemoryPlan, plan_memory
from tunesmith.training.precision import choose_precision
from tunesmith.training.resources import memory_limit
from tunesmith.training.trunk_cache import estimate_bytes

_USUAL_TOKENS = {"cpu": 4_096, "cuda": 16_384}
_CACHE_SHARE = 0.25
"""Largest share of the free disk that the states of frozen layers may take unasked."""
_ENGINE = ("train.precision", "train.micro_batch_tokens", "train.recompute", "train.cache_trunk")


@dataclass(frozen=True, slots=True)
class Planned:
    """A recipe whose engine settings are decided, the decisions, and the memory they were decided by.

    `memory` is None where the decisions were read from an earlier part of the run.
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    memory: MemoryPlan | None


def plan_engine(
    recipe: Recipe,
    base: LoadedBase,
    added: AddedTokens | None,
    rows: Sequence[Sample | Group],
    kept: Recipe | None = None,
) -> Planned:
    """Decide every engine setting that is still `auto`.

    Parameters
    ----------
    rows: those that are learnt. kept: the recipe of this run's earlier part, whose decisions hold.

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
        decide("train.precision", *choose_precision(base.model.device, measured_rates(base.model.device)))
    if recipe.train.cache_trunk == "auto":
        decide("train.cache_trunk", *_cache(recipe, base, rows))
    memory = None
    if rows and not (kept is not None and _settled(recipe)):  # settings of the user's own may not fit either
        try:
            model = _shapes(recipe, base, added)
        except (RuntimeError, RecipeError):  # an adapter that needs numbers to be attached is planned when it is
            return Planned(recipe, tuple(choices), None)
        recipe, more, memory = fit_memory(recipe, model, rows, base)
        choices += more
    return Planned(recipe, tuple(choices), memory)


def fit_memory(
    recipe: Recipe, model: LanguageModel | Shapes, rows: Sequence[Sample | Group], base: LoadedBase
) -> tuple[Recipe, list[Choice], MemoryPlan]:
    """Decide the tokens computed at once and the layers computed again, so that the training fits.

    model: as it is trained, adapters attached, or its shapes. Raises `ResourceError` where nothing fits.
    """
    asked = recipe.train.micro_batch_tokens
    longest = max(_tokens(row) for row in rows)
    usual = max(_USUAL_TOKENS[base.model.device.type], longest) if asked == "auto" else int(asked)
    precision = recipe.train.precision
    plan = TrainingPlan(
        steps=1,
        batch_size=int(recipe.train.batch_size),
        learning_rate=float(recipe.train.learning_rate),
        seed=recipe.train.seed,
        micro_batch_tokens=usual,
        precision=precision if precision != "auto" else "fp32",
        optimizer=recipe.train.optimizer,
        optimizer_in_backward=recipe.train.optimizer_in_backward,
        share_prefixes=False,
    )
    memory = plan_memory(
        model,
        rows,
        plan,
        memory_limit(recipe.train.memory_limit, base.model.device),
        recompute=_recompute(recipe),
        fixed=asked != "auto",
    )
    lean = memory.micro_batch_tokens < usual or memory.recompute
    reason = "; ".join(memory.reasons) if lean else "the usual size fits"
    choices = []
    if asked == "auto":
        recipe, choice = settle(recipe, "train.micro_batch_tokens", memory.micro_batch_tokens, reason)
        choices.append(choice)
    if recipe.train.recompute == "auto":
        reason = memory.reasons[-1] if memory.recompute else "all activations fit"
        recipe, choice = settle(recipe, "train.recompute", len(memory.recompute), reason)
        choices.append(choice)
    return recipe, choices, memory


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
    shapes = Shapes(base.model)
    method = recipe.method.model_copy(update={"init": "default"})
    shapes.change(lambda model: attach(replace(base, model=model), method, recipe.train.seed, added))
    return shapes


def _cache(recipe: Recipe, base: LoadedBase, rows: Sequence[Sample | Group]) -> tuple[str, str]:
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


def _tokens(row: Sample | Group) -> int:
    return len(row.ids) if isinstance(row, Sample) else sum(len(s.ids) for s in row.samples)
