"""A job's result file: the numbers of every step as CSV, in either dialect."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.service.ids import Flavour
from tunesmith.service.settings import ResultsEncoding
from tunesmith.service.store.nouns import Event, Job

PURPOSE = "fine-tune-results"
_NAMES: Mapping[Flavour, str] = {"openai": "step_metrics.csv", "azure": "results.csv"}
_COLUMNS: Mapping[Flavour, Mapping[str, str]] = {
    "openai": {
        "step": "step",
        "train_loss": "train_loss",
        "train_accuracy": "train_mean_token_accuracy",
        "valid_loss": "valid_loss",
        "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    },
    "azure": {
        "step": "step",
        "train_loss": "train_loss",
        "train_mean_token_accuracy": "train_mean_token_accuracy",
        "valid_loss": "valid_loss",
        "validation_mean_token_accuracy": "valid_mean_token_accuracy",
        "full_valid_loss": "full_valid_loss",
        "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    },
}
"""Columns, and the name of each in the data of a step."""


def results_name(flavour: Flavour) -> str:
    """What the file is called."""
    return _NAMES[flavour]


def results_csv(steps: Iterable[Mapping[str, Any]], flavour: Flavour) -> bytes:
    """The file; `steps` are the data of the steps' events, in order. What was not measured is an empty cell."""
    columns = _COLUMNS[flavour]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for data in steps:
        writer.writerow([_cell(data.get(name)) for name in columns.values()])
    return text.getvalue().encode()


def results_of(events: Iterable[Event], flavour: Flavour) -> bytes:
    """The file of a job by its events, oldest first."""
    return results_csv((event.data or {} for event in events if event.type == "metrics"), flavour)


def encoded(data: bytes, job: Job, wanted: ResultsEncoding) -> bytes:
    """The file as its content is read by a client.

    OpenAI's newer jobs give it in base64 and their notebook on tools expects that; the older one on prompts and
    completions, and Azure, expect plain text. `auto` goes by the training rows.
    """
    if job.flavour == "azure" or wanted == "plain" or (wanted == "auto" and job.rows == "completion"):
        return data
    return base64.b64encode(data)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.5f}"
