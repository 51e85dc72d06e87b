"""The recipe: everything a run is, as one typed object.

A setting exists once, here, with its type, default, unit, one sentence of help and (where it matters) the reason for
its default. The command line, the JSON schema, the documentation and forms are generated from these fields.
`"auto"` means: decided from data and base, explained, and written into the run's resolved recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
TaskType = Literal[
    "classification",
    "multi_label",
    "ordinal",
    "regression",
    "extraction",
    "token_classification",
    "summarisation",
    "translation",
    "question_answering",
    "maths",
    "text_to_sql",
    "tool_calls",
    "code",
    "generation",
]
BaselineName = Literal["zero_shot", "few_shot", "retrieval", "trivial"]
ALL_BASELINES: tuple[BaselineName, ...] = ("zero_shot", "few_shot", "retrieval", "trivial")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SIZE_PATTERN = r"^(auto|[0-9]+(\.[0-9]+)?\s*(GB|GiB|MB|MiB))$"
METRIC_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*(\..+)?$"
MetricName = str
"""A metric of the task, or one of the recipe's own."""
METRICS: dict[TaskType, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
    "ordinal": ("quadratic_kappa", "accuracy", "adjacent_accuracy", "mae_score", "macro_f1"),
    "regression": ("mae_score", "r2", "within_tolerance"),
    "extraction": ("entity_f1", "valid_json", "exact_match", "schema_valid", "entity_precision", "entity_recall"),
    "token_classification": ("entity_f1", "entity_precision", "entity_recall", "token_accuracy"),
    "summarisation": ("rouge_l", "rouge_1", "rouge_2", "length_ratio"),
    "translation": ("chrf", "bleu"),
    "question_answering": ("token_f1", "exact_match"),
    "maths": ("accuracy",),
    "text_to_sql": ("execution_accuracy", "valid_sql", "exact_match"),
    "tool_calls": ("call_accuracy", "name_accuracy", "argument_f1", "decision_accuracy"),
    "code": ("pass_at_1", "valid_python", "exact_match"),
    "generation": ("rouge_l", "exact_match"),
}
"""Metrics that may decide, by task. An extraction of objects has `f1.FIELD` for each field besides."""
PAIR_METRICS = ("pair_accuracy", "spearman")
"""Those of pairs of texts (`data.columns.second`): with two labels, with graded ones."""


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused, objects cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Goal(Section):
    """Why this is done at all."""

    use_case: str | None = Field(None, description="The use case in words: who asks what, and what for.")
    improve: str | None = Field(None, description="What should become better than it is now.")
    metric: str = Field(
        "auto",
        pattern=METRIC_PATTERN,
        description="The metric that decides: one of the task's, or of `task.metrics`; auto is the task's first one.",
    )
    target: float | None = Field(None, ge=0, le=1, description="The value (0-1) below which nothing is good enough.")
    requests_per_month: int = Field(10_000, ge=1, description="Expected requests per month; for cost and break-even.")


class CustomMetric(Section):
    """A metric of the user's own: what an answer is worth, on a scale from the worst to the best value."""

    formula: str = Field(
        min_length=1,
        description="An expression over `answer` and `expected`, or file.py:function with these two arguments.",
    )
    worst: float = Field(0.0, description="The value that counts as 0; what lies beyond counts so too.")
    best: float = Field(1.0, description="The value that counts as 1; smaller than `worst` where less is better.")


class Task(Section):
    """What a model is asked to do."""

    type: TaskType | Auto = Field("auto", description="The kind of task.")
    instruction: str | None = Field(
        None, description="The instruction put before every input as a system message; the task has a default."
    )
    labels: list[str] | Auto = Field(
        "auto", description="Labels of a classification (of an ordinal one in order); auto takes those in the data."
    )
    answer_form: Literal["auto", "list", "object"] = Field(
        "auto", description="JSON form of an extraction's answer; auto looks at the data."
    )
    json_schema: str | None = Field(None, description="File with a JSON schema for an extraction's answers.")
    tolerance: float | None = Field(
        None, ge=0, description="Largest error of a number that still is right, for regression and maths."
    )
    database: str | None = Field(None, description="SQLite file on which queries are run, for text_to_sql.")
    run_code: bool = Field(
        False, description="Run the code a model writes, in a process with limits, to test it. Off: code is not scored."
    )
    time_limit: float = Field(5.0, gt=0, le=600, description="Seconds a query, or code with its tests, may take.")
    metrics: dict[str, CustomMetric] = Field(
        default_factory=dict, description="Metrics of your own by name, each with a formula and its scale."
    )


class Columns(Section):
    """Which column of a table is what."""

    prompt: str | None = Field(None, description="Column with the input; a.b and a[0] look inside a cell.")
    second: str | None = Field(None, description="Column with the second text of a pair, for a pair objective.")
    answer: str | list[str] | None = Field(
        None, description="Column with the expected answer; several columns make a JSON object of them."
    )
    rejected: str | None = Field(None, description="Column with an answer that is not wanted, for preferences.")


class Split(Section):
    """How rows are divided when validation or test files are not given."""

    method: Literal["auto", "random", "stratified", "order", "time"] = Field(
        "auto",
        description="auto stratifies classification by label and draws others at random; order keeps the file's "
        "order: the last rows are the test; time takes the latest rows by split.time.",
    )
    group_by: str | None = Field(
        None, description="Column whose equal values stay in one part: a customer, a conversation, a template."
    )
    time: str | None = Field(
        None, description="Column with dates, times or numbers: the latest rows are the test, those before validation."
    )
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Rows that are nearly the same stay in one part, or are drawn like any others."
    )
    validation: float | int = Field(0.1, description="Validation rows: a share under 1, or a number of rows.")
    test: float | int = Field(0.2, description="Test rows: a share under 1, or a number of rows.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")


class Data(Section):
    """Where the rows come from and how they are read."""

    train: str = Field(
        description="Rows: a file (JSONL, JSON, CSV, TSV, Parquet, Arrow, text; also gz, xz, zst), a `datasets` "
        "folder, hf://ORG/NAME#SPLIT, or sqlite:///FILE#QUERY or postgresql://…#QUERY."
    )
    validation: str | None = Field(None, description="Validation rows, as train; else they are split off.")
    test: str | None = Field(None, description="Test rows, as train; else they are split off.")
    format: str = Field(
        "auto",
        description="Shape of a row: auto, columns, prompt_completion, or a format by name "
        "(`tunesmith data formats` lists them).",
    )
    columns: Columns = Field(default_factory=lambda: Columns(), description="Mapping of columns, for format columns.")
    template: str | None = Field(
        None,
        description='Text with {column} placeholders, such as "{phrase}" → "{tone}"; '
        "everything from the last placeholder on is the answer to learn.",
    )
    answer: list[str] = Field(
        default_factory=list,
        description="With a template: the placeholders that are the answer, where it is more than the last one.",
    )
    defaults: dict[str, str] = Field(
        default_factory=dict, description="Texts for placeholders or columns that a row leaves out or empty."
    )
    span_types: list[str] | None = Field(
        None, description="The answer column holds JSON spans; the answer becomes the list of texts of these types."
    )
    system: str | None = Field(None, description="A system message put before rows that have none.")
    encoding: str = Field("auto", description="Text encoding; auto takes UTF-8, with or without byte-order mark.")
    max_rows: int | None = Field(None, ge=1, description="Use at most so many rows of the training file, by seed.")
    split: Split = Field(default_factory=lambda: Split(), description="How rows are divided.")
    learning_curve: bool = Field(
        False, description="After the run, train on parts of the rows too and say what more rows would buy."
    )
    learning_curve_shares: list[float] = Field(
        [0.25, 0.5, 1.0], description="Shares of the training rows for the learning curve, each above 0 and at most 1."
    )


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
    add_tokens: list[str] = Field(
        default_factory=list,
        description="Tokens added to the vocabulary; embeddings and head grow and are trained. "
        "chatml adds its two by itself where they are missing.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model. Dangerous; off.")


class Method(Section):
    """How the base is tuned. `qlora` and `dora` are short for LoRA on NF4 weights and LoRA with magnitudes."""

    type: Literal["lora", "full", "bottleneck", "peft"] = Field(
        "lora",
        description="LoRA adapters, all weights, bottleneck adapters, or any other method of the peft library.",
    )
    rank: int = Field(16, ge=1, description="Rank of the LoRA matrices.")
    alpha: float | Auto = Field("auto", description="LoRA scaling numerator; auto is twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input; 0 keeps the exact fast path.")
    use_rslora: bool = Field(False, description="Scale by alpha/sqrt(rank) instead of alpha/rank.")
    use_dora: bool = Field(False, description="Learn the weights' magnitudes beside the low-rank direction (DoRA).")
    init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default", description="First values of A and B; pissa and olora begin with the main directions of the weights."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict,
        description="Other ranks for modules whose names end so or match as regular expression.",
    )
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="Other alphas, as rank_pattern.")
    lora_plus_ratio: float = Field(
        1.0, ge=1, description="Learning rate of B over that of A (LoRA+); its authors suggest 16."
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Modules that get an adapter: all-linear, or (ends of) module names."
    )
    modules_to_save: list[str] = Field(default_factory=list, description="Modules trained and saved in full.")
    last_layers: int | None = Field(
        None,
        ge=1,
        description="Tune only the last so many layers; those below stay frozen and need no backward pass.",
    )
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none", description="Hold the frozen weights in 4 or 8 bits; nf4 with LoRA is QLoRA."
    )
    double_quantize: bool = Field(True, description="Quantise the scales of nf4 too: 0.4 bits less per weight.")
    bottleneck_size: int = Field(64, ge=1, description="Width of bottleneck adapters.")
    peft_type: str | None = Field(None, description="For type peft: the method's name there, such as VERA.")
    peft_options: dict[str, Any] = Field(default_factory=dict, description="For type peft: options of its config.")
    must_serve: list[Literal["vllm", "gguf"]] = Field(
        default_factory=list, description="Servers that must be able to load the adapter; else training is refused."
    )


class Distillation(Section):
    """Learning from a teacher's probabilities beside the rows' tokens."""

    teacher: str = Field(description="The teacher: hub id, local folder, embedded:NAME, or a run's folder.")
    weight: float = Field(0.5, gt=0, le=1, description="Share of the teacher in the loss; the rest is cross-entropy.")
    temperature: float = Field(1.0, gt=0, description="Temperature of both distributions.")


class Train(Section):
    """Optimisation."""

    epochs: float | Auto = Field("auto", description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int | Auto = Field("auto", description="Rows per optimiser step.")
    learning_rate: float | Auto = Field("auto", description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = Field(
        "cosine", description="Learning rate after the warm-up."
    )
    decay_ratio: float = Field(
        0.2, gt=0, le=1, description="Share of the steps in which warmup_stable_decay falls to zero, at the end."
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = Field(
        "adamw", description="adamw; with its states in 8 bits; or Muon on hidden matrices and AdamW on the rest."
    )
    optimizer_in_backward: bool = Field(
        False, description="Update each tensor as soon as its gradient is there: less memory, no clipping by norm."
    )
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
    objective: str = Field(
        "cross_entropy",
        description="What is minimised: cross_entropy, contrastive, or your own as file.py:function or file.py:Class.",
    )
    objective_options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the objective: of the class's __init__, or further keywords."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Probability mass spread over all tokens.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log-partition; keeps logits small.")
    neftune_alpha: float = Field(0.0, ge=0, description="Uniform noise on the embeddings while training (NEFTune).")
    distillation: Distillation | None = Field(None, description="Learn from a teacher's probabilities too.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Type of matrix products; auto is what the device computes fastest without loss scaling.",
    )
    recompute: Literal["auto", "on", "off"] | int = Field(
        "auto",
        description="Compute layers again in the backward pass instead of keeping their activations: all (on), none "
        "(off), or how many of the lowest tuned ones; auto only where memory asks for it.",
    )
    share_prefixes: bool = Field(
        True, description="Compute what rows of a step begin with alike once; exact, off with dropout or noise."
    )
    cache_trunk: Literal["auto", "on", "off"] = Field(
        "auto", description="With last_layers: keep what the frozen layers compute on disk, for the next epochs."
    )
    micro_batch_tokens: int | Auto = Field("auto", description="Tokens computed at once; memory, not results.")
    memory_limit: str = Field(
        "auto",
        pattern=SIZE_PATTERN,
        description="Memory the training may take, such as 6GB; auto is nine tenths of what is free.",
    )
    evaluations: int = Field(8, ge=0, description="How often validation is measured during training.")
    eval_rows: int = Field(64, ge=0, description="Validation rows answered (generated) at each evaluation.")
    patience: int = Field(3, ge=0, description="Evaluations without improvement before stopping; 0 never stops.")
    select_by: Literal["metric", "loss"] = Field("metric", description="What chooses the best checkpoint.")
    keep_checkpoints: int = Field(2, ge=1, description="Recent checkpoints kept, beside the best.")
    tensorboard: bool = Field(True, description="Write TensorBoard files into the run.")
    trackers: list[Literal["mlflow", "wandb", "trackio"]] = Field(
        default_factory=list, description="Where curves are sent beside the run's own events; must be installed."
    )
    sharding: Literal["none", "fsdp", "layers"] = Field(
        "none",
        description="With several devices: each holds all weights (none), a share of every tensor (fsdp), "
        "or some of the layers (layers, in one process).",
    )
    cpu_offload: bool = Field(False, description="With fsdp: keep weights and optimiser in the CPU's memory.")


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
    power_watts: float | None = Field(
        None, gt=0, description="Power this machine draws while it trains; then electricity is shown too."
    )
    electricity_per_kwh: float = Field(0.30, ge=0, description="Price of a kilowatt-hour.")
    devices: dict[str, float] = Field(
        default_factory=dict,
        description="Prices of an hour of other machines, by name, in place of those `tunesmith data preview` knows.",
    )
    services: dict[str, float] = Field(
        default_factory=dict,
        description="Prices of a million training tokens of tuning services, by name, in place of those known.",
    )
    hours_of_work: float = Field(4.0, ge=0, description="Human hours for data and review of a tuned model.")
    work_per_hour: float = Field(60.0, ge=0, description="Price of one human hour.")


class Verdict(Section):
    """When tuning counts as worth it. Only these numbers decide."""

    min_gain: float = Field(0.01, ge=0, le=1, description="Smallest gain of the metric (0-1) worth shipping for.")
    power: float = Field(0.8, gt=0.5, lt=1, description="Power assumed when test rows needed are computed.")
    margin: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Loss of the metric (0-1) that does not matter where the worse is cheaper: tuned then replaces "
        "what costs more if it surely is not worse by more than this. Without it, costs do not decide.",
    )
    months: float = Field(12, gt=0, description="Months over which costs are added up, to say what is cheaper.")
    gates: dict[str, float] = Field(
        default_factory=dict,
        description="The least (0-1) that tuned must have of other metrics, by name; below it, it is not shipped.",
    )
    slice_loss: float | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Loss (0-1) against the best alternative on one slice of the test rows, such as one label, from "
        "which on tuned is not shipped where the loss is sure; none looks at no slices.",
    )
    prices: Prices = Field(default_factory=lambda: Prices(), description="Prices for costs and break-even.")


class Output(Section):
    """Where runs go."""

    dir: str = Field("runs", description="Folder in which a run makes its own folder.")


def _short(key: str) -> BeforeValidator:
    """Accept a bare string where a section is expected: `method: lora` means `method: {type: lora}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


_METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"type": "lora", "quantize": "nf4"},
    "dora": {"type": "lora", "use_dora": True},
}


def _method(value: Any) -> Any:
    """`method: qlora` and `{type: dora, ...}` are spelled out; a bare string is a type."""
    given = {"type": value} if isinstance(value, str) else value
    if isinstance(given, dict) and given.get("type") in _METHODS:
        return _METHODS[given["type"]] | {k: v for k, v in given.items() if k != "type"}
    return given


class Recipe(Section):
    """One run of Tunesmith, as an object."""

    name: str | None = Field(None, pattern=NAME_PATTERN, description="Name of the run.")
    goal: Annotated[Goal, _short("use_case")] = Field(default_factory=lambda: Goal(), description="Why.")
    task: Annotated[Task, _short("type")] = Field(default_factory=lambda: Task(), description="What is asked.")
    data: Annotated[Data, _short("train")] = Field(description="Rows.")
    base: Annotated[Base, _short("model")] = Field(default_factory=lambda: Base(), description="Base model.")
    method: Annotated[Method, BeforeValidator(_method)] = Field(
        default_factory=lambda: Method(), description="Tuning method."
    )
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
