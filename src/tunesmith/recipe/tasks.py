"""The tasks a recipe can name, the metrics that may decide each, and the section `task`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.recipe.section import Auto, Section

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
    "generation": ("rouge_l", "exact_match", "normalised_match"),
}
"""Metrics that may decide, by task. An extraction of objects has `f1.FIELD` for each field besides."""
ONE_LABEL: tuple[TaskType, ...] = ("classification", "ordinal")
"""Tasks whose answer is one label: it can be scored, taken for another one, and parts be stratified by it."""
CLOSED_FORMS: tuple[TaskType, ...] = (*ONE_LABEL, "multi_label", "extraction", "token_classification")
"""Tasks whose answers have a form that a grammar can hold them to."""
PAIR_METRICS = ("pair_accuracy", "spearman")
"""Those of pairs of texts (`data.columns.second`): with two labels, with graded ones."""


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
