"""Learning from a teacher's probabilities (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

At every supervised position the loss is `(1 - weight) CE + weight T² KL(teacher || student)`, both distributions at
temperature T. The teacher reads the same stream of tokens; its logits, like the student's, exist for one chunk of
positions at a time. The formulas stand in `ops/token_loss.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import RecipeError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import LoadedBase, load_base
from tunesmith.models.methods import load_tuned
from tunesmith.ops.token_loss import Teacher, TokenLoss, head_loss
from tunesmith.recipe import load_recipe
from tunesmith.recipe.schema import Base
from tunesmith.runs.folder import RunFolder, is_run
from tunesmith.training.batching import Batch
from tunesmith.training.objectives.inputs import batch_weight, learnt_positions, supervised
from tunesmith.training.objectives.types import LossSum, Objective

_WHERE = "train.distillation.teacher"


def distillation(
    teacher: LanguageModel,
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Objective:
    """The objective for a teacher; its metrics are `cross_entropy` and `teacher_kl` (with its T²).

    vocabulary: the first so many tokens are compared; None where both heads have the same size. The teacher is set to
    evaluation and frozen.
    """
    teacher.model.eval().requires_grad_(False)

    def objective(model: LanguageModel, batch: Batch) -> LossSum:
        learnt = learnt_positions(batch)
        hidden, targets, weights = supervised(model, batch, learnt)
        with torch.no_grad(), teacher.packed():
            theirs = teacher.hidden(batch.ids, batch.packing)[batch.previous[learnt]]
            answer = Teacher(theirs, *teacher.head(), teacher.rule, weight, temperature, vocabulary)
        terms = TokenLoss(label_smoothing, z_loss, answer)
        loss, shown = head_loss(hidden, *model.head(), targets, weights, model.rule, terms)
        return LossSum(loss, batch_weight(batch), shown)

    return objective


def load_teacher(name: str, folder: Path, student: LoadedBase) -> tuple[LanguageModel, int | None]:
    """The teacher of a recipe, on the student's device, and how many tokens to compare (None: all).

    `name` is a hub id, `embedded:NAME`, a model's folder or a run's, counted from `folder`. Raises `RecipeError` where
    its tokenizer is not the student's, `EngineError` where it cannot be loaded or run on packed streams.
    """
    loaded = _load(name, folder)
    _refuse_other_tokens(name, loaded.tokenizer, student.tokenizer)
    teacher = LanguageModel(loaded.model.to(student.model.device))
    teacher.verify()
    sizes = {_head_size(loaded.model), _head_size(student.model)}
    if len(sizes) == 1:
        return teacher, None
    return teacher, min(*sizes, 1 + max(student.tokenizer.get_vocab().values()))


def _load(name: str, folder: Path) -> LoadedBase:
    path = folder / Path(name).expanduser()
    if not is_run(path):
        return load_base(Base(model=str(path) if path.is_dir() else name))
    run = RunFolder.open(path)
    tuned = run.adapter if run.adapter.is_dir() else run.model
    if not tuned.is_dir():
        raise RecipeError(
            "this run has no tuned model yet", where=f"{_WHERE}: {path}", fix="finish it, or name another"
        )
    recipe = load_recipe(run.recipe_file)
    loaded = load_base(recipe.base)
    load_tuned(loaded, tuned, recipe.method)
    return loaded


def _refuse_other_tokens(name: str, teacher: Any, student: Any) -> None:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    other = sorted(t for t in theirs.keys() | ours.keys() if theirs.get(t) != ours.get(t))
    examples = ", ".join(repr(t) for t in other[:4])
    raise RecipeError(
        f"the teacher's tokenizer is not the student's: {len(other):,} tokens differ, such as {examples}",
        where=f"{_WHERE}: {name}",
        expected="the same tokens with the same ids, as probabilities are compared token by token",
        fix="choose a teacher of the base's own family",
    )


def _head_size(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
