"""The recipe: everything a run is, as one typed object.

A setting exists once, here, with its type, default, unit, one sentence of help and (where it matters) the reason for
its default. The command line, the JSON schema, the documentation and forms are generated from these fields.
`"auto"` means: decided from data and base, explained, and written into the run's resolved recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.recipe.evidence import ALL_BASELINES, BaselineName, Decoding, Evaluate, Goal, Prices, Remote, Verdict
from tunesmith.recipe.searching import Search, Space
from tunesmith.recipe.section import METRIC_PATTERN, NAME_PATTERN, SIZE_PATTERN, Auto, Section
from tunesmith.recipe.tasks import (
    CLOSED_FORMS,
    METRICS,
    ONE_LABEL,
    PAIR_METRICS,
    CustomMetric,
    MetricName,
    Task,
    TaskType,
)
from tunesmith.recipe.tuning import Distillation, Method, Train

__all__ = [
    "ALL_BASELINES",
    "CLOSED_FORMS",
    "METRICS",
    "METRIC_PATTERN",
    "NAME_PATTERN",
    "ONE_LABEL",
    "PAIR_METRICS",
    "SIZE_PATTERN",
    "Auto",
    "Base",
    "BaselineName",
    "Columns",
    "CustomMetric",
    "Data",
    "Decoding",
    "Distillation",
    "Evaluate",
    "Goal",
    "Method",
    "MetricName",
    "Output",
    "Prices",
    "Recipe",
    "Remote",
    "Search",
    "Section",
    "Space",
    "Split",
    "Task",
    "TaskType",
    "Train",
    "Verdict",
]


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
        description="Rows: a file (JSONL, JSON, CSV, TSV, YAML, Parquet, Arrow, text; also gz, xz, zst), a `datasets` "
        "folder, hf://ORG/NAME#SPLIT, or sqlite:///FILE#QUERY or postgresql://…#QUERY."
    )
    validation: str | None = Field(None, description="Validation rows, as train; else they are split off.")
    test: str | None = Field(None, description="Test rows, as train; else they are split off.")
    documents: str | None = Field(
        None,
        description="Documents that may hold the answers: a folder or file (text, Markdown, HTML, JSONL), for the "
        "baseline of that name.",
    )
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
    remotes: dict[str, Remote] = Field(
        default_factory=dict, description="Models behind endpoints, by a name of yours, measured as alternatives."
    )
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate(), description="Scoring.")
    verdict: Verdict = Field(default_factory=lambda: Verdict(), description="When it is worth it.")
    search: Search | None = Field(None, description="Settings to try, for `tunesmith search`.")
    output: Annotated[Output, _short("dir")] = Field(default_factory=lambda: Output(), description="Where runs go.")

    @classmethod
    def from_yaml(cls, path: Any, overrides: list[str] | None = None) -> Recipe:
        """Read a recipe file; paths inside it are relative to it. Raises `RecipeError` naming every problem."""
        from tunesmith.recipe.io import load_recipe

        return load_recipe(path, overrides or [])
