"""Rules a recipe's values must keep that types alone do not say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from tunesmith.recipe.problems import Problem
from tunesmith.recipe.schema import CLOSED_FORMS, METRIC_PATTERN, METRICS, ONE_LABEL, PAIR_METRICS, Recipe
from tunesmith.recipe.spaces import search_problems


def check_values(recipe: Recipe) -> list[Problem]:
    """Every value that is of the right type and still makes no sense."""
    return [
        *_positive(recipe),
        *_task(recipe),
        *_sources(recipe),
        *_split(recipe),
        *_lists(recipe),
        *_method(recipe),
        *_train(recipe),
        *_evaluate(recipe),
        *search_problems(recipe, check_values),
    ]


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


def _task(recipe: Recipe) -> Iterator[Problem]:
    task, wanted = recipe.task, recipe.goal.metric
    known = {name for kind, names in METRICS.items() if task.type in (kind, "auto") for name in names}
    if recipe.data.columns.second is not None:
        known = set(PAIR_METRICS)
    fields = task.type in ("extraction", "auto") and wanted.startswith("f1.")
    tries = task.type in ("code", "auto") and recipe.evaluate.samples > 1 and re.fullmatch(r"pass_at_[1-9]\d*", wanted)
    if wanted != "auto" and wanted not in known | set(task.metrics) and not fields and not tries:
        names = [*sorted(known), *task.metrics]
        near = difflib.get_close_matches(wanted, names, n=1)
        yield Problem(
            "goal.metric",
            f"{wanted} is no metric that can decide" + ("" if task.type == "auto" else f" for {task.type}"),
            expected=f"auto | {' | '.join(names)}",
            fix=f"did you mean {near[0]}?" if near else None,
        )
    for name, metric in task.metrics.items():
        if not re.fullmatch(METRIC_PATTERN, name) or "." in name or name == "auto":
            yield Problem(f"task.metrics.{name}", "not a name", expected="letters, digits and _, a letter first")
        if not abs(metric.best - metric.worst) > 0 or abs(metric.best - metric.worst) == float("inf"):
            yield Problem(f"task.metrics.{name}", "worst and best are no scale", expected="two different numbers")
    only: dict[str, tuple[bool, tuple[str, ...]]] = {
        "json_schema": (task.json_schema is not None, ("extraction",)),
        "tolerance": (task.tolerance is not None, ("regression", "maths")),
        "database": (task.database is not None, ("text_to_sql",)),
        "run_code": (task.run_code, ("code",)),
    }
    for key, (given, kinds) in only.items():
        if given and task.type != "auto" and task.type not in kinds:
            kind = " | ".join(kinds)
            yield Problem(f"task.{key}", f"has no meaning for task.type {task.type}", expected=f"task.type: {kind}")
    if task.type == "text_to_sql" and task.database is None:
        yield Problem("task.database", "missing", expected="the SQLite file on which queries are run")


def _sources(recipe: Recipe) -> Iterator[Problem]:
    """Recipes are kept in every run, shown and passed on: no password may stand in one."""
    for part in ("train", "validation", "test"):
        if re.match(r"\w+://[^/#]*:[^/#]*@", getattr(recipe.data, part) or ""):
            yield Problem(
                f"data.{part}",
                "a password in the address would be kept in every run",
                expected="postgresql://USER@HOST/DATABASE#QUERY",
                fix="put the password into PGPASSWORD or ~/.pgpass",
            )


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
    names = ("few_shot_k", "retrieval_k", "documents_k")
    ks = {f"evaluate.{name}": getattr(recipe.evaluate, name) for name in names}
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


_LORA_ONLY = ("use_rslora", "use_dora", "init", "rank_pattern", "alpha_pattern", "lora_plus_ratio")
_NOT_OF = {
    "full": (*_LORA_ONLY, "target_modules", "dropout"),
    "bottleneck": (*_LORA_ONLY, "target_modules"),
    "peft": (*_LORA_ONLY, "dropout"),
}
"""Settings that say nothing about a method: with `peft`, dropout is one of its options."""


def _method(recipe: Recipe) -> Iterator[Problem]:
    method = recipe.method
    if method.type == "peft" and method.peft_type is None:
        yield Problem("method.peft_type", "missing", expected="the name of a method of the peft library, such as VERA")
    if method.type != "peft":
        for key in ("peft_type", "peft_options"):
            if getattr(method, key):
                yield Problem(f"method.{key}", f"has no meaning for method.type {method.type}", expected="type: peft")
    defaults = type(method)()
    for key in _NOT_OF.get(method.type, ()):
        if getattr(method, key) != getattr(defaults, key):
            yield Problem(f"method.{key}", f"has no meaning for method.type {method.type}", expected="type: lora")
    if method.type == "full" and method.quantize != "none":
        yield Problem("method.quantize", "weights that are trained cannot be quantised", expected="none | type: lora")
    if method.quantize != "none" and method.init in ("pissa", "olora"):
        yield Problem(
            "method.init", f"{method.init} begins with directions of the full weights", expected="quantize: none"
        )
    patterns: dict[str, Mapping[str, float]] = {
        "method.rank_pattern": method.rank_pattern,
        "method.alpha_pattern": method.alpha_pattern,
    }
    for key, pattern in patterns.items():
        for name, value in pattern.items():
            if not 0 < value < float("inf"):
                yield Problem(f"{key}.{name}", f"{value} is not allowed", expected="a number above 0")


def _train(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if train.optimizer_in_backward and train.max_grad_norm:
        yield Problem(
            "train.optimizer_in_backward",
            "weights are updated before the whole gradient's norm is known, so it cannot be clipped",
            expected="train.max_grad_norm: 0",
        )
    if train.cpu_offload and train.sharding != "fsdp":
        yield Problem("train.cpu_offload", "has no meaning without sharding", expected="train.sharding: fsdp")
    if train.cache_trunk == "on" and recipe.method.last_layers is None:
        yield Problem("train.cache_trunk", "no layer below the tuned ones is known", expected="method.last_layers")
    if train.cache_trunk == "on" and (train.neftune_alpha or train.sharding != "none"):
        why = "the noise on embeddings would be lost" if train.neftune_alpha else "weights are divided"
        yield Problem("train.cache_trunk", f"kept states cannot be used: {why}", expected="auto | off")
    if train.sharding == "fsdp" and recipe.method.quantize != "none":
        yield Problem("train.sharding", "quantised weights cannot be divided", expected="none | method.quantize: none")
    plain = train.objective == "cross_entropy" and train.distillation is None
    if train.token_accuracy and not (plain and not train.label_smoothing and not train.z_loss):
        yield Problem("train.token_accuracy", "is counted with plain cross_entropy only", expected="false")
    if train.loss_on == "test" and train.select_by != "last":
        yield Problem(
            "train.loss_on", "a checkpoint would be chosen by test rows", expected="validation | train.select_by: last"
        )
    if train.loss_on == "test" and train.eval_rows:
        yield Problem("train.eval_rows", "test rows are not answered while training", expected="0")
    pair = recipe.data.columns.second is not None
    if train.objective == "contrastive" and not pair:
        yield Problem("data.columns.second", "missing", expected="the column with the second text of a pair")


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    evaluate, task = recipe.evaluate, recipe.task.type
    if evaluate.decoding != "auto":
        ways = evaluate.decoding
        if not ways or len(set(ways)) != len(ways):
            yield Problem("evaluate.decoding", f"{ways} is not allowed", expected="auto, or distinct ways to answer")
        for way, kinds in (("grammar", CLOSED_FORMS), ("scored", ONE_LABEL)):
            if way in ways and task not in (*kinds, "auto"):
                yield Problem("evaluate.decoding", f"{way} has no meaning for {task}", expected=" | ".join(kinds))
    if not evaluate.few_shot_choice:
        yield Problem("evaluate.few_shot_choice", "empty", expected="at least one of diverse, fixed")
    if evaluate.samples > 1 and task not in ("code", "auto"):
        yield Problem("evaluate.samples", f"has no meaning for task.type {task}", expected="task.type: code")
    if not evaluate.forgetting:
        for key in ("perplexity_rise", "skill_loss"):
            if getattr(recipe.verdict, key) is not None:
                yield Problem(
                    f"verdict.{key}", "nothing is measured to hold it against", expected="evaluate.forgetting"
                )
    for name in recipe.remotes:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            yield Problem(f"remotes.{name}", "not a name", expected="letters, digits and _, a letter first")
    if evaluate.seeds > 1 and recipe.data.columns.second is not None:
        yield Problem("evaluate.seeds", "pairs of texts are trained and not evaluated", expected="1")
