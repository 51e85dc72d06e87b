"""Rules a recipe's values must keep that types alone do not say."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.recipe.problems import Problem
from tunesmith.recipe.schema import Recipe


def check_values(recipe: Recipe) -> list[Problem]:
    """Every value that is of the right type and still makes no sense."""
    return [*_positive(recipe), *_split(recipe), *_lists(recipe)]


def _positive(recipe: Recipe) -> Iterator[Problem]:
    counts = {
        "train.batch_size": recipe.train.batch_size,
        "train.micro_batch_tokens": recipe.train.micro_batch_tokens,
        "evaluate.max_new_tokens": recipe.evaluate.max_new_tokens,
    }
    for key, count in counts.items():
        if count != "auto" and count < 1:
            yield Problem(key, f"{count} is not allowed", expected="integer, at least 1 | auto")
    # One token predicts nothing: the loss is on the token after another.
    if recipe.train.max_length != "auto" and recipe.train.max_length < 2:
        yield Problem(
            "train.max_length", f"{recipe.train.max_length} is not allowed", expected="integer, at least 2 | auto"
        )
    amounts = {
        "train.epochs": recipe.train.epochs,
        "train.learning_rate": recipe.train.learning_rate,
        "method.alpha": recipe.method.alpha,
    }
    for key, amount in amounts.items():
        if amount != "auto" and not 0 < amount < float("inf"):
            yield Problem(key, f"{amount} is not allowed", expected="number, above 0 | auto")


def _split(recipe: Recipe) -> Iterator[Problem]:
    split = recipe.data.split
    for key, size in (("data.split.validation", split.validation), ("data.split.test", split.test)):
        if size < 0 or (size >= 1 and size != int(size)) or size != size:
            yield Problem(key, f"{size} is not allowed", expected="a share from 0 up to 1, or a whole number of rows")
    shares = [
        size
        for size, file in ((split.validation, recipe.data.validation), (split.test, recipe.data.test))
        if file is None and 0 < size < 1
    ]
    if sum(shares) >= 1:
        yield Problem(
            "data.split", f"validation and test take {sum(shares):.0%} of the rows", expected="less than 100 % together"
        )


def _lists(recipe: Recipe) -> Iterator[Problem]:
    ks = {"evaluate.few_shot_k": recipe.evaluate.few_shot_k, "evaluate.retrieval_k": recipe.evaluate.retrieval_k}
    for key, numbers in ks.items():
        if not numbers or min(numbers) < 1:
            yield Problem(key, f"{numbers} is not allowed", expected="at least one integer, each at least 1")
    labels = recipe.task.labels
    if labels != "auto" and len(set(labels)) != len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        yield Problem("task.labels", f"given twice: {', '.join(twice)}", expected="distinct labels")
    if len(set(recipe.baselines)) != len(recipe.baselines):
        yield Problem("baselines", "a baseline is given twice", expected="distinct names")
    if recipe.method.type == "lora" and recipe.method.target_modules == []:
        yield Problem("method.target_modules", "no module would be tuned", expected="all-linear | list of text")
