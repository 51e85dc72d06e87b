"""From a recipe's settings to the objective they mean."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.models.load import LoadedBase
from tunesmith.recipe.schema import Train
from tunesmith.training.objectives.code import bind_options, split_reference
from tunesmith.training.objectives.contrastive import DISTANCES, contrastive
from tunesmith.training.objectives.cross_entropy import counted_cross_entropy, cross_entropy
from tunesmith.training.objectives.custom import BaseFacts, custom_objective
from tunesmith.training.objectives.distillation import distillation, load_teacher
from tunesmith.training.objectives.regularised import regularised_cross_entropy
from tunesmith.training.objectives.types import BuiltObjective, Objective

BUILT_IN = ("cross_entropy", "contrastive")


def make_objective(train: Train, *, folder: Path, allow_code: bool, base: LoadedBase) -> BuiltObjective:
    """The objective of a recipe's `train` section.

    folder: the recipe's; files and teachers are counted from it. allow_code: whether `file.py:NAME` may be run; a
    recipe that came over a network must not. base: the student, for sizes, device and tokenizer.

    Raises `RecipeError` for an unknown name, options that do not fit, code that is not allowed or wrong, terms of the
    token loss beside another objective, and a teacher with another tokenizer.
    """
    reference = split_reference(train.objective)
    if reference is None and train.objective not in BUILT_IN:
        near = difflib.get_close_matches(train.objective, BUILT_IN, n=1)
        raise RecipeError(
            f"there is no objective {train.objective!r}",
            where="train.objective",
            expected=", ".join(BUILT_IN) + (", file.py:function or file.py:Class" if allow_code else ""),
            fix=f"is {near[0]!r} meant?" if near else None,
        )
    if reference is not None and not allow_code:
        raise RecipeError(
            "a recipe that came over the network cannot name code",
            where=f"train.objective: {train.objective}",
            expected=f"one of {', '.join(BUILT_IN)}",
            fix="run it from the command line of the machine that has the file",
        )
    if train.objective != "cross_entropy":
        _refuse_token_terms(train)
    if reference is not None:
        file, name = reference
        return custom_objective(
            (folder / Path(file).expanduser()).resolve(),
            name,
            train.objective_options,
            base_facts(base),
            seed=train.seed,
        )
    make = {"cross_entropy": _cross_entropy, "contrastive": _contrastive}[train.objective]
    return BuiltObjective(make(train, folder, base), train.objective, pairs=train.objective == "contrastive")


def refuse_other_rows(objective: BuiltObjective, *, pairs: bool) -> None:
    """Raise `RecipeError` where the objective compares pairs and rows (`pairs`) are none, or the other way round."""
    if objective.pairs and not pairs:
        raise RecipeError(
            f"{objective.name} compares pairs of texts, and the rows are single ones",
            where="train.objective",
            expected="data.columns: {prompt: first text, second: second text, answer: label}",
            fix="set data.columns.second, or another objective",
        )
    if objective.pairs is False and pairs:
        raise RecipeError(
            f"{objective.name} learns tokens, and the rows are pairs of texts with a label",
            where="train.objective",
            expected="contrastive, or a file.py:NAME that takes (output1, output2, label)",
            fix="remove data.columns.second, or set another objective",
        )


def base_facts(base: LoadedBase) -> BaseFacts:
    """What a user's class may be told about the base."""
    return BaseFacts(
        hidden_size=int(base.model.config.get_text_config().hidden_size),
        vocab_size=int(base.model.get_output_embeddings().weight.shape[0]),
        device=base.model.device,
    )


def _cross_entropy(train: Train, folder: Path, base: LoadedBase) -> Objective:
    _options(_no_options, train.objective_options, "cross_entropy")
    if train.distillation is not None:
        teacher, vocabulary = load_teacher(train.distillation.teacher, folder, base)
        return distillation(
            teacher,
            weight=train.distillation.weight,
            temperature=train.distillation.temperature,
            vocabulary=vocabulary,
            label_smoothing=train.label_smoothing,
            z_loss=train.z_loss,
        )
    if train.label_smoothing or train.z_loss:
        return regularised_cross_entropy(train.label_smoothing, train.z_loss)
    return counted_cross_entropy if train.token_accuracy else cross_entropy


def _contrastive(train: Train, folder: Path, base: LoadedBase) -> Objective:
    options = _options(contrastive, train.objective_options, "contrastive")
    margin, distance = options.get("margin", 2.0), options.get("distance", "euclidean")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not margin > 0:
        raise RecipeError(
            f"{margin!r} is not allowed", where="train.objective_options.margin", expected="number, above 0"
        )
    if distance not in DISTANCES:
        raise RecipeError(
            f"{distance!r} is not allowed",
            where="train.objective_options.distance",
            expected=" or ".join(DISTANCES),
        )
    return contrastive(**options)


def _no_options() -> None:
    """What cross_entropy takes."""


def _options(call: Callable[..., Any], options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return bind_options(call, options, what=name)


def _refuse_token_terms(train: Train) -> None:
    asked = {
        "train.label_smoothing": bool(train.label_smoothing),
        "train.z_loss": bool(train.z_loss),
        "train.distillation": train.distillation is not None,
    }
    named = [name for name, there in asked.items() if there]
    if named:
        raise RecipeError(
            f"{', '.join(named)} belong(s) to cross_entropy, not to {train.objective}",
            where="train.objective",
            expected="cross_entropy with it, or another objective without",
        )
