"""`auto` becomes a value, with the reason in plain words.

One function per decision; each returns `(value, reason)`. What they know of data, base and machine is in `Facts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.recipe.schema import ONE_LABEL, MetricName, Recipe, TaskType


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known before training: of the data (rows, tokens), the base (parameters, context) and the machine.

    `longest_answer_tokens` counts the expected answers of all splits. `labels` is empty unless the task is a
    classification, `answer_form` None unless it is an extraction. `data_format` and `encoding` are what reading found,
    `task_reason` why the rows were taken for their task.
    """

    task_type: TaskType
    answer_form: Literal["list", "object"] | None
    labels: tuple[str, ...]
    train_rows: int
    validation_rows: int
    parameters: int
    context: int
    longest_row_tokens: int
    mean_row_tokens: float
    longest_answer_tokens: int
    device: Literal["cpu", "cuda"]
    bf16_supported: bool
    has_chat_template: bool
    metric_default: MetricName
    data_format: str | None = None
    encoding: str | None = None
    task_reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One `auto` that was decided."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {shown(self.value)}: {self.reason}"


# Rows up to which a value holds; the last entry holds for all beyond.
_BATCH_SIZES = ((1_999, 8), (10_000, 16), (math.inf, 32))
_EPOCHS = ((99, 20), (199, 15), (499, 12), (999, 8), (1_999, 5), (20_000, 3), (50_000, 2), (math.inf, 1))

# Parameters below which a peak learning rate holds, by method. Smaller models bear larger steps; LoRA bears larger
# ones than full tuning because its update starts at zero and is of low rank. Other adapters begin where LoRA does.
_LEARNING_RATES = {
    "lora": ((50e6, 2e-3), (300e6, 5e-4), (1e9, 2e-4), (math.inf, 1e-4)),
    "full": ((50e6, 5e-4), (300e6, 1e-4), (1e9, 2e-5), (math.inf, 1e-5)),
}


def resolve(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[Choice]]:
    """A recipe without `auto` and the choices made, in the order of the recipe.

    Engine settings that need the loaded base (precision, tokens at once, recomputation, kept states) stay `auto`, to be
    settled by who has it. What does not apply stays `auto` too: labels where an answer is not one of them, the form
    without an extraction, format and encoding where `facts` do not know them. Later decisions see earlier ones.
    """
    choices: list[Choice] = []
    for key, decide in _DECISIONS.items():
        section_name, _, name = key.rpartition(".")
        if _get(recipe, key) != "auto":
            continue
        decision = decide(recipe, facts)
        if decision is None:
            continue
        value, reason = decision
        recipe = _set(recipe, section_name.split("."), name, value)
        choices.append(Choice(key, value, reason))
    return recipe, choices


def settle(recipe: Recipe, key: str, value: Any, reason: str) -> tuple[Recipe, Choice]:
    """A recipe in which the `auto` under a dotted key is decided from outside, and that decision."""
    section_name, _, name = key.rpartition(".")
    return _set(recipe, section_name.split("."), name, value), Choice(key, value, reason)


def shown(value: Any) -> str:
    """A value as people write it: 2e-3, not 0.002; long lists by their length."""
    if isinstance(value, float):
        return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 12 else f"{len(value)} values"
    return str(value)


Decision = Callable[[Recipe, Facts], tuple[Any, str] | None]


def _metric(_: Recipe, facts: Facts) -> tuple[Any, str]:
    return facts.metric_default, f"the first metric of {facts.task_type}"


def _task_type(_: Recipe, facts: Facts) -> tuple[Any, str]:
    return facts.task_type, facts.task_reason or "from the expected answers"


def _labels(_: Recipe, facts: Facts) -> tuple[Any, str] | None:
    if facts.task_type == "classification":
        return list(facts.labels), f"the {len(facts.labels)} distinct answers in the data"
    if facts.task_type == "ordinal":
        return list(facts.labels), f"the {len(facts.labels)} numbers in the data, by size"
    return None


def _answer_form(_: Recipe, facts: Facts) -> tuple[Any, str] | None:
    if facts.task_type != "extraction" or facts.answer_form is None:
        return None
    return facts.answer_form, f"the expected answers are JSON {facts.answer_form}s"


def _format(_: Recipe, facts: Facts) -> tuple[Any, str] | None:
    return (facts.data_format, "the shape of the rows") if facts.data_format else None


def _encoding(_: Recipe, facts: Facts) -> tuple[Any, str] | None:
    return (facts.encoding, "what the file is written in") if facts.encoding else None


def _split_method(_: Recipe, facts: Facts) -> tuple[Any, str]:
    if facts.task_type in ONE_LABEL:
        return "stratified", "every part gets every label in its share"
    return "random", f"{facts.task_type} has no labels to stratify by"


def _dtype(_: Recipe, facts: Facts) -> tuple[Any, str]:
    if facts.device == "cpu":
        return "float32", "the fast type on a CPU"
    if facts.bf16_supported:
        return "bfloat16", "this GPU computes in it"
    return "float32", "this GPU has no bfloat16"


def _chat_template(_: Recipe, facts: Facts) -> tuple[Any, str]:
    if facts.has_chat_template:
        return "tokenizer", "the tokenizer brings its own"
    return "plain", "the tokenizer brings none"


def _alpha(recipe: Recipe, _: Facts) -> tuple[Any, str]:
    return float(2 * recipe.method.rank), f"twice the rank of {recipe.method.rank}"


def _batch_size(_: Recipe, facts: Facts) -> tuple[Any, str]:
    rows = max(1, facts.train_rows)
    size = min(_below_or_at(rows, _BATCH_SIZES), rows)
    return size, f"for {rows:,} training rows"


def _epochs(recipe: Recipe, facts: Facts) -> tuple[Any, str] | None:
    rows = max(1, facts.train_rows)
    epochs = _below_or_at(rows, _EPOCHS)
    batch_size = recipe.train.batch_size
    if recipe.train.max_steps is not None:
        return float(epochs), f"not used: max_steps is {recipe.train.max_steps}"
    steps = math.ceil(rows * epochs / batch_size) if batch_size != "auto" else 0
    return float(epochs), f"{rows:,} training rows, about {steps:,} steps"


def usual_learning_rate(method: str, parameters: int) -> float:
    """The peak learning rate that `auto` means for a method (`method.type`) on a base of so many parameters."""
    return next(rate for limit, rate in _rates(method) if parameters < limit)


def _rates(method: str) -> tuple[tuple[float, float], ...]:
    return _LEARNING_RATES["full" if method == "full" else "lora"]


def _learning_rate(recipe: Recipe, facts: Facts) -> tuple[Any, str]:
    method = recipe.method.type
    table = _rates(method)
    limit, rate = next((limit, rate) for limit, rate in table if facts.parameters < limit)
    size = f"under {_count(limit)}" if limit < math.inf else f"of {_count(table[-2][0])} or more"
    name = {"lora": "LoRA", "full": "full tuning of", "bottleneck": "adapters"}.get(method, recipe.method.peft_type)
    return rate, f"{name} {'' if method == 'full' else 'on '}a base {size} parameters"


def _max_length(_: Recipe, facts: Facts) -> tuple[Any, str]:
    return facts.context, "the base's context"


def _max_new_tokens(_: Recipe, facts: Facts) -> tuple[Any, str]:
    wanted = 8 * math.ceil((facts.longest_answer_tokens * 1.25 + 8) / 8)
    limit = max(1, facts.context // 2)
    if wanted > limit:
        return limit, f"half of the context; the longest expected answer has {facts.longest_answer_tokens} tokens"
    return wanted, f"the longest expected answer has {facts.longest_answer_tokens} tokens, and a quarter more"


def _decoding(_: Recipe, facts: Facts) -> tuple[Any, str]:
    if facts.task_type in ONE_LABEL:
        return ["free", "scored"], "labels can be scored, which also gives their probabilities"
    return ["free"], f"a {facts.task_type} has no list of labels to score"


_DECISIONS: dict[str, Decision] = {
    "goal.metric": _metric,
    "task.type": _task_type,
    "task.labels": _labels,
    "task.answer_form": _answer_form,
    "data.format": _format,
    "data.encoding": _encoding,
    "data.split.method": _split_method,
    "base.dtype": _dtype,
    "base.chat_template": _chat_template,
    "method.alpha": _alpha,
    "train.batch_size": _batch_size,
    "train.epochs": _epochs,
    "train.learning_rate": _learning_rate,
    "train.max_length": _max_length,
    "evaluate.max_new_tokens": _max_new_tokens,
    "evaluate.decoding": _decoding,
}


def _below_or_at(rows: int, table: tuple[tuple[float, int], ...]) -> int:
    return next(value for limit, value in table if rows <= limit)


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:g} B" if parameters >= 1e9 else f"{parameters / 1e6:g} M"


def _get(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _set(model: Any, sections: list[str], name: str, value: Any) -> Any:
    """A copy of a recipe with one setting changed."""
    if not sections:
        return model.model_copy(update={name: value})
    inner = _set(getattr(model, sections[0]), sections[1:], name, value)
    return model.model_copy(update={sections[0]: inner})
