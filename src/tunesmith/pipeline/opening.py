"""Opening a recipe's base, with the tokens the recipe adds; and a run's tuned model."""

from __future__ import annotations

from pathlib import Path

import torch

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import load_tuned
from tunesmith.models.servable import require
from tunesmith.models.vocabulary import AddedTokens, add_tokens
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder
from tunesmith.text.templates import CHATML_TOKENS, choose_template
from tunesmith.training.placement import spread

_WEIGHTS_SHARE = 0.6
"""Share of a GPU's free memory that weights may take where layers lie on several; the rest is for training."""


def open_base(recipe: Recipe) -> tuple[LoadedBase, AddedTokens | None]:
    """The base in memory, and what was added to its vocabulary.

    Raises `RecipeError` too where rows are to be longer than its context, and where the recipe wants to serve the
    adapter in a way its method cannot be.
    """
    base = load_base(recipe.base, _device(recipe))
    if recipe.train.max_length != "auto" and recipe.train.max_length > base.context:
        raise RecipeError(
            f"{recipe.train.max_length} tokens are more than the base's context",
            where="train.max_length",
            expected=f"at most {base.context}",
        )
    if recipe.train.sharding == "layers":
        _spread(base)
    wanted = list(recipe.base.add_tokens)
    if recipe.base.chat_template == "chatml":
        wanted += [t for t in CHATML_TOKENS if t not in base.tokenizer.get_vocab() and t not in wanted]
    added = add_tokens(base, wanted, special=CHATML_TOKENS) if wanted else None
    if added is not None and not added.tokens:
        added = None
    require(recipe.method, base.model.config, added_tokens=added is not None)
    if recipe.base.chat_template not in ("auto", "tokenizer"):  # saved with the tokenizer, others ask by it too
        base.tokenizer.chat_template = choose_template(base.tokenizer, recipe.base.chat_template)[1]
    return base, added


def open_tuned(recipe: Recipe, folder: RunFolder) -> LoadedBase:
    """A freshly loaded base turned into the run's tuned model."""
    base = load_base(recipe.base)
    load_tuned(base, tuned_folder(folder), recipe.method)
    return base


def tuned_folder(folder: RunFolder) -> Path:
    """Where a run's adapter or model lies."""
    return folder.adapter if folder.adapter.is_dir() else folder.model


def _device(recipe: Recipe) -> str | None:
    """A base that is to be divided among devices is loaded where it fits: into the CPU's memory."""
    return "cpu" if recipe.train.sharding != "none" else None


def _spread(base: LoadedBase) -> None:
    """Put the base's layers on all GPUs of this machine. Raises `ResourceError` where there are not two."""
    count = torch.cuda.device_count()
    if count < 2:
        raise ResourceError(
            f"there {'is one GPU' if count else 'is no GPU'}, so layers cannot lie on several",
            where="train.sharding",
            expected="two GPUs or more, or train.sharding: none",
            fix="set method.quantize: nf4 for a base that one device cannot hold",
        )
    budgets = [int(torch.cuda.mem_get_info(i)[0] * _WEIGHTS_SHARE) for i in range(count)]
    spread(LanguageModel(base.model), [f"cuda:{i}" for i in range(count)], budgets)
