"""The recipe: everything a run is, as one typed object.

A setting exists once, here, with its type, default, unit, one sentence of help and (where it matters) the reason for
its default. The command line, the JSON schema, the documentation and forms are generated from these fields.
`"auto"` means: decided from data and base, explained, and written into the run's resolved recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
TaskType = Literal["classification", "extraction", "generation"]
BaselineName = Literal["zero_shot", "few_shot", "retrieval", "trivial"]
ALL_BASELINES: tuple[BaselineName, ...] = ("zero_shot", "few_shot", "retrieval", "trivial")
MetricName = Literal["accuracy", "macro_f1", "entity_f1", "valid_json", "exact_match", "rouge_l"]


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, objects cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Goal(Section):
    """Why this is done at all."""

    use_case: str | None = Field(None, description="The use case in words: who asks what, and what for.")
    improve: str | None = Field(None, description="What should become better than it is now.")
    metric: MetricName | Auto = Field("auto", description="The metric that decides; auto is the task's first one.")
    target: float | None = Field(None, ge=0, le=1, description="The value (0-1) below which nothing is good enough.")
    requests_per_month: int = Field(10_000, ge=1, description="Expected requests per month; for cost and break-even.")


class Task(Section):
    """What a model is asked to do."""

    type: TaskType | Auto = Field("auto", description="The kind of task.")
    instruction: str | None = Field(
        None, description="The instruction put before every input as a system message; the task has a default."
    )
    labels: list[str] | Auto = Field("auto", description="Labels of a classification; auto takes those in the data.")
    answer_form: Literal["auto", "list", "object"] = Field(
        "auto", description="JSON form of an extraction's answer; auto looks at the data."
    )


class Columns(Section):
    """Which column of a table is what."""

    prompt: str | None = Field(None, description="Column with the input.")
    answer: str | None = Field(None, description="Column with the expected answer.")


class Split(Section):
    """How rows are divided when validation or test files are not given."""

    method: Literal["auto", "random", "stratified", "order"] = Field(
        "auto",
        description="auto stratifies classification by label and draws others at random; "
        "order keeps the file's order: the last rows are the test.",
    )
    validation: float | int = Field(0.1, description="Validation rows: a share under 1, or a number of rows.")
    test: float | int = Field(0.2, description="Test rows: a share under 1, or a number of rows.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")


class Data(Section):
    """Where the rows come from and how they are read."""

    train: str = Field(description="File with rows: JSONL (chat or prompt/completion), JSON array, CSV or TSV.")
    validation: str | None = Field(None, description="File with validation rows; else they are split off.")
    test: str | None = Field(None, description="File with test rows; else they are split off.")
    format: Literal["auto", "chat", "prompt_completion", "columns"] = Field("auto", description="Shape of a row.")
    columns: Columns = Field(default_factory=lambda: Columns(), description="Mapping of columns, for format columns.")
    template: str | None = Field(
        None,
        description='Text with {column} placeholders, such as "{phrase}" → "{tone}"; '
        "everything from the last placeholder on is the answer to learn.",
    )
    span_types: list[str] | None = Field(
        None, description="The answer column holds JSON spans; the answer becomes the list of texts of these types."
    )
    system: str | None = Field(None, description="A system message put before rows that have none.")
    encoding: str = Field("auto", description="Text encoding; auto takes UTF-8, with or without byte-order mark.")
    max_rows: int | None = Field(None, ge=1, description="Use at most so many rows of the training file, by seed.")
    split: Split = Field(default_factory=lambda: Split(), description="How rows are divided.")


class Base(Section):
    """The base model."""

    model: str = Field("embedded:base", description="Hub id, local folder, or embedded:NAME.")
    revision: str | None = Field(None, description="Revision of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type in memory; auto is float32 on CPU and bfloat16 on a GPU that has it."
    )
    chat_template: str = Field(
        "auto",
        description="auto is the tokenizer's own, or plain where it has none; "
        "or one of plain, chatml, raw, or a path to a Jinja file.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Dangerous; off.")


class Method(Section):
    """How the base is tuned."""

    type: Literal["lora", "full"] = Field("lora", description="LoRA adapters, or all weights.")
    rank: int = Field(16, ge=1, description="Rank of the LoRA matrices.")
    alpha: float | Auto = Field("auto", description="LoRA scaling numerator; auto is twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input; 0 keeps the exact fast path.")
    use_rslora: bool = Field(False, description="Scale by alpha/sqrt(rank) instead of alpha/rank.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Modules that get an adapter: all-linear, or (ends of) module names."
    )
    modules_to_save: list[str] = Field(default_factory=list, description="Modules trained and saved in full.")


class Train(Section):
    """Optimisation."""

    epochs: float | Auto = Field("auto", description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int | Auto = Field("auto", description="Rows per optimiser step.")
    learning_rate: float | Auto = Field("auto", description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay on matrices.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta2.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient norm is clipped to this; 0 does not clip.")
    seed: int = Field(0, ge=0, description="Seed of adapter initialisation, row order and dropout.")
    max_length: int | Auto = Field("auto", description="Longest row in tokens; auto is the base's context.")
    loss: Literal["assistant", "last", "all"] = Field(
        "assistant", description="Learn every assistant turn, only the last one, or every token."
    )
    micro_batch_tokens: int | Auto = Field("auto", description="Tokens computed at once; memory, not results.")
    evaluations: int = Field(8, ge=0, description="How often validation is measured during training.")
    eval_rows: int = Field(64, ge=0, description="Validation rows answered (generated) at each evaluation.")
    patience: int = Field(3, ge=0, description="Evaluations without improvement before stopping; 0 never stops.")
    select_by: Literal["metric", "loss"] = Field("metric", description="What chooses the best checkpoint.")
    keep_checkpoints: int = Field(2, ge=1, description="Recent checkpoints kept, beside the best.")
    tensorboard: bool = Field(True, description="Write TensorBoard files into the run.")


class Evaluate(Section):
    """How candidates are scored on the frozen test set."""

    max_new_tokens: int | Auto = Field("auto", description="Longest answer in tokens; auto covers those expected.")
    batch_size: int = Field(32, ge=1, description="Answers generated at once.")
    few_shot_k: list[int] = Field([1, 2, 4, 8], description="Numbers of examples tried on validation, for few-shot.")
    retrieval_k: list[int] = Field([1, 2, 4, 8], description="Numbers of examples tried on validation, for retrieval.")
    selection_rows: int = Field(48, ge=1, description="Validation rows used to choose k.")
    bootstrap: int = Field(10_000, ge=100, description="Bootstrap resamples.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of every interval.")
    latency_rows: int = Field(12, ge=1, description="Test rows asked one at a time to measure latency.")


class Prices(Section):
    """Money; every figure is the user's, the defaults are examples and shown as assumptions."""

    currency: str = Field("USD", description="Currency of all amounts.")
    hardware_per_hour: float = Field(0.10, ge=0, description="Price of one hour of this machine.")
    hours_of_work: float = Field(4.0, ge=0, description="Human hours for data and review of a tuned model.")
    work_per_hour: float = Field(60.0, ge=0, description="Price of one human hour.")


class Verdict(Section):
    """When tuning counts as worth it. Only these numbers decide."""

    min_gain: float = Field(0.01, ge=0, le=1, description="Smallest gain of the metric (0-1) worth shipping for.")
    power: float = Field(0.8, gt=0.5, lt=1, description="Power assumed when test rows needed are computed.")
    prices: Prices = Field(default_factory=lambda: Prices(), description="Prices for costs and break-even.")


class Output(Section):
    """Where runs go."""

    dir: str = Field("runs", description="Folder in which a run makes its own folder.")


def _short(key: str) -> BeforeValidator:
    """Accept a bare string where a section is expected: `method: lora` means `method: {type: lora}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Recipe(Section):
    """One run of Tunesmith, as an object."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run.")
    goal: Annotated[Goal, _short("use_case")] = Field(default_factory=lambda: Goal(), description="Why.")
    task: Annotated[Task, _short("type")] = Field(default_factory=lambda: Task(), description="What is asked.")
    data: Annotated[Data, _short("train")] = Field(description="Rows.")
    base: Annotated[Base, _short("model")] = Field(default_factory=lambda: Base(), description="Base model.")
    method: Annotated[Method, _short("type")] = Field(default_factory=lambda: Method(), description="Tuning method.")
    train: Train = Field(default_factory=lambda: Train(), description="Optimisation.")
    baselines: list[BaselineName] = Field(
        default_factory=lambda: list(ALL_BASELINES),
        description="Alternatives measured on the same test rows; [] measures none.",
    )
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate(), description="Scoring.")
    verdict: Verdict = Field(default_factory=lambda: Verdict(), description="When it is worth it.")
    output: Annotated[Output, _short("dir")] = Field(default_factory=lambda: Output(), description="Where runs go.")

    @classmethod
    def from_yaml(cls, path: Any, overrides: list[str] | None = None) -> Recipe:
        """Read a recipe file; paths inside it are relative to it. Raises `RecipeError` naming every problem."""
        from tunesmith.recipe.io import load_recipe

        return load_recipe(path, overrides or [])
