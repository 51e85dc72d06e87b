"""A job as a recipe: what hosted services do, in the words of this house.

Exactly the epochs and the batch size of the job, no early stopping, and the last weights are the model, so nothing is
chosen on held-out rows. Rows are learnt as they stand: no instruction is added, chat rows through the base's chat
template, prompts and completions as plain text one after the other, ended by the end token.

A validation file's loss is measured on the way (some rows at every tenth step, all at the end of every epoch), and
afterwards its rows are the test. Without one, the model learns every row, and what it is worth is measured on a twin:
the same settings on 80 % of the rows, tested on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.recipe.schema import Base, Columns, Data, Evaluate, Goal, Method, Recipe, Split, Task, Train
from tunesmith.service.jobs.hyperparameters import NAMES, Resolved, resolve_hyperparameters
from tunesmith.service.jobs.operations import MOST_CHECKPOINTS, first_base, supervised
from tunesmith.service.jobs.rules import Checked, RowsKind
from tunesmith.service.store.nouns import Job

if TYPE_CHECKING:
    from tunesmith.data import Example

WATCH_EVERY, WATCHED_ROWS = 10, 8
"""Steps after which the loss of some validation rows is measured, and how many."""
TWIN_TEST = 0.2
SHOTS = 4
"""Examples in a prompt of the baselines: one fixed number, as there are no rows on which to choose it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a job's worth is measured on, and why: the validation file, or a twin without a part of the rows."""

    twin: bool
    reason: str


def settled(job: Job, checked: Checked, parameters: int) -> dict[str, Any]:
    """The fields of a job whose files are right: numbers for every `auto`, and what is really done.

    parameters: of the base that it begins with (`bases.parameters_of`).
    """
    numbers = resolve_hyperparameters(job.hyperparameters, checked.training_rows, parameters)
    return {
        "hyperparameters": numbers.hyperparameters(),
        "method": supervised(numbers.hyperparameters()),
        "rows": checked.kind,
        "resolved": _resolved(job, checked, numbers),
    }


def recipe_of(job: Job, training: Path, validation: Path | None, base: str) -> Recipe:
    """The recipe of a settled job. `base`: what it begins with (`bases.starting_base`). Reads the rows, to see which
    task they are. Raises `DataError` where they cannot be read.
    """
    rows = _rows_of(job)
    data = _data(job, training)
    if validation is not None:
        own = evidence_on(training, validation, rows)
        part = {"validation": str(validation)} if own.twin else {"test": str(validation)}
        data = data.model_copy(update=part)
    # Measured while training, and chosen by nothing.
    watch = "test" if data.test is not None else "validation"
    train = _train(job)
    train = train.model_copy(
        update={
            "loss_on": watch,
            "evaluations": int(float(train.epochs)) if validation is not None else 0,
            "watch_every": WATCH_EVERY if validation is not None else 0,
            "watch_rows": WATCHED_ROWS,
            "keep_epochs": MOST_CHECKPOINTS,
            "log_every": 1,
            "token_accuracy": True,
        }
    )
    return _whole(job, data, train, base)


def twin_recipe_of(job: Job, training: Path, base: str) -> Recipe:
    """The same on 80 % of the rows, tested on the rest: what a model trained so is worth."""
    data = _data(job, training)
    split = Split(validation=0, test=TWIN_TEST, seed=0)
    return _whole(job, data.model_copy(update={"split": split}), _train(job), base)


def evidence_on(training: Path, validation: Path | None, rows: RowsKind) -> Evidence:
    """Whether the validation file can test the model: not where half of its rows or more were learnt."""
    if validation is None:
        return Evidence(True, "there is no validation file: measured on a twin that learnt 80 % of the rows")
    from tunesmith.data.duplicates.leaks import SAME_FILE

    learnt = {one.id for one in _examples(training, rows)}
    held_out = _examples(validation, rows)
    seen = sum(one.id in learnt for one in held_out)
    if len(held_out) < 2 or seen >= SAME_FILE * len(held_out):
        why = f"{seen} of the {len(held_out)} validation rows are training rows" if seen else "one row shows no spread"
        return Evidence(True, f"{why}: measured on a twin that learnt 80 % of the training rows")
    return Evidence(False, "measured on the validation file, by which nothing was chosen")


def data_section(rows: RowsKind, training: Path) -> Data:
    """How the rows of a job's file are read."""
    if rows == "chat":
        return Data(train=str(training), format="chat")
    return Data(
        train=str(training), format="columns", columns=Columns(prompt="prompt", answer="completion")
    )  # other columns of the rows are left alone


def _whole(job: Job, data: Data, train: Train, base: str) -> Recipe:
    return Recipe(
        name=job.id,
        goal=Goal(when_reached="train"),
        task=Task(type=_task_type(Path(data.train), _rows_of(job)), instruction=""),
        data=data,
        base=Base(model=base, chat_template="raw" if _rows_of(job) == "completion" else "auto"),
        method=Method(),
        train=train,
        baselines=["zero_shot", "few_shot", "retrieval", "trivial"],
        evaluate=Evaluate(few_shot_k=[SHOTS], retrieval_k=[SHOTS], decoding=["free"], forgetting=False),
    )


def _data(job: Job, training: Path) -> Data:
    return data_section(_rows_of(job), training).model_copy(update={"split": Split(validation=0, test=0)})


def _train(job: Job) -> Train:
    """The settings that decide what is learnt."""
    numbers = job.hyperparameters
    if any(not isinstance(numbers.get(name), int | float) for name in NAMES):
        raise ValueError(f"the hyperparameters of {job.id} are not settled: {dict(numbers)}")
    return Train(
        epochs=float(numbers["n_epochs"]),
        batch_size=int(numbers["batch_size"]),
        learning_rate=float(job.resolved["learning_rate"]),
        seed=job.seed,
        loss="assistant",
        evaluations=0,
        eval_rows=0,
        patience=0,
        select_by="last",
        tensorboard=False,
    )


def _rows_of(job: Job) -> RowsKind:
    if job.rows not in ("chat", "completion"):
        raise ValueError(f"the rows of {job.id} have not been looked at")
    return job.rows  # type: ignore[return-value]


def _task_type(training: Path, rows: RowsKind) -> Any:
    """The task the rows seem to be; generation where that task would learn other answers than those written, or would
    not take every row.

    Some tasks learn one of several references, or want every answer in one form: right for a recipe, but a job learns
    what is in its file.
    """
    from tunesmith.data import check_examples, infer_task
    from tunesmith.tasks import fit_task

    examples = _examples(training, rows)
    kind: Any = infer_task(examples)
    if any(one.severity == "error" for one in check_examples(examples, task_type=kind, depth="quick")):
        return "generation"
    task = fit_task(Task(type=kind, instruction=""), kind, examples)
    same = all(task.reply(example.expected) == example.expected for example in examples)
    return kind if same else "generation"


def _examples(file: Path, rows: RowsKind) -> list[Example]:
    from tunesmith.data import load_examples

    return load_examples(data_section(rows, file), file, task_type="generation").examples


def _resolved(job: Job, checked: Checked, numbers: Resolved) -> dict[str, Any]:
    """What can be read on the job beside OpenAI's fields."""
    method, train = Method(), Train()
    alpha = 2 * method.rank if method.alpha == "auto" else method.alpha
    return {
        "base": first_base(job),
        "starts_from": job.extra.get("starts_from"),
        "method": method.type,
        "rank": method.rank,
        "alpha": alpha,
        "target_modules": method.target_modules,
        "learning_rate": numbers.learning_rate,
        "schedule": train.schedule,
        "warmup_ratio": train.warmup_ratio,
        "optimizer": train.optimizer,
        "weight_decay": train.weight_decay,
        "training_rows": checked.training_rows,
        "validation_rows": checked.validation_rows,
        "steps_per_epoch": numbers.steps_per_epoch,
        "total_steps": numbers.steps,
        "reasons": _plain(numbers.reasons),
    }


def _plain(reasons: Mapping[str, str]) -> dict[str, str]:
    return dict(reasons)
