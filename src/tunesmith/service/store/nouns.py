"""What the service keeps: one frozen record for each noun of the two dialects, as it is and not as it is shown.

Times are seconds since 1970, whole. JSON fields hold what JSON holds. The tables are made from these records: a change
here needs a migration, which `python -m tunesmith.service.store.migrations NAME` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.service.ids import Flavour

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Wish = Literal["cancel", "pause"]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """A file. `blob` is the SHA-256 of its bytes (None while it is being imported); `report` what the checks found."""

    id: str
    created_at: int
    filename: str
    purpose: str
    bytes: int
    blob: str | None
    status: str = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    report: Json | None = None
    flavour: Flavour = "openai"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts. `file_id` is the name that the file will have, `part_ids` what it was made of."""

    id: str
    created_at: int
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    status: str
    expires_at: int
    file_id: str
    file_expires_after: int | None = None
    part_ids: tuple[str, ...] = ()
    flavour: Flavour = "openai"


@dataclass(frozen=True, slots=True)
class UploadPart:
    id: str
    created_at: int
    upload_id: str
    blob: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """A fine-tuning job.

    Attributes
    ----------
    model: the name that was asked for; `base`: the local base that stands for it (`embedded:base`, a folder).
    method: as in the request, `auto` values replaced by numbers once the files are validated.
    resolved: what is really done: learning rate, rank, target modules, steps, with the reason of each.
    wish: what a user has asked for and the worker has not done yet.
    run: name of the run's folder under `home/runs`.
    evidence: `none` (not asked for), `pending`, `running`, `ready`, `failed`; `evidence_error` says why.
    rows: how the training rows are written: `chat` or `completion`.
    """

    id: str
    created_at: int
    model: str
    base: str
    training_file: str
    validation_file: str | None
    status: JobStatus
    seed: int
    organization_id: str
    method: Json
    suffix: str | None = None
    metadata: Json | None = None
    integrations: tuple[Json, ...] = ()
    hyperparameters: Json = field(default_factory=dict)
    resolved: Json = field(default_factory=dict)
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()
    error: Json | None = None
    wish: Wish | None = None
    run: str | None = None
    rows: str | None = None
    evidence: str = "pending"
    evidence_error: str | None = None
    attempts: int = 0
    flavour: Flavour = "openai"
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job; `seq` counts from 1 within the job, so that none is written twice."""

    id: str
    created_at: int
    job_id: str
    seq: int
    level: str
    message: str
    type: str = "message"
    data: Json | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    id: str
    created_at: int
    job_id: str
    name: str
    step: int
    metrics: Json


@dataclass(frozen=True, slots=True)
class Permission:
    id: str
    created_at: int
    checkpoint: str
    project_id: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model that answers under `id`. `base` and `adapter` are what `inference.serving.types.ModelRef` is made of;
    `adapter` is relative to the home folder. `kind`: tuned, checkpoint, copied, registered. `copies` are the accounts
    and regions that Azure's copying was asked for; all of them are this server.
    """

    id: str
    created_at: int
    owned_by: str
    kind: str
    base: str
    adapter: str | None = None
    chat_template: str = "auto"
    job_id: str | None = None
    step: int | None = None
    root: str | None = None
    engine: str = "torch"
    copies: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """An Azure deployment: `id` is the lower-case path `subscription/group/account/name`."""

    id: str
    created_at: int
    name: str
    model: str
    sku: Json
    properties: Json


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    id: str
    created_at: int
    model: str
    request: Json
    answer: Json
    metadata: Json | None = None


@dataclass(frozen=True, slots=True)
class StoredResponse:
    id: str
    created_at: int
    model: str
    request: Json
    answer: Json
    metadata: Json | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Many requests in a file. `moments`: when it came into each state (`in_progress_at`, `expires_at`, …); `model`:
    the one its rows ask, None for several; `output_seconds`: how long its result files are kept, None for ever.
    """

    id: str
    created_at: int
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Json | None = None
    request_counts: Json = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    metadata: Json | None = None
    moments: Json = field(default_factory=dict)
    model: str | None = None
    usage: Json | None = None
    output_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Eval:
    id: str
    created_at: int
    name: str | None
    data_source_config: Json
    testing_criteria: tuple[Json, ...]
    metadata: Json | None = None


@dataclass(frozen=True, slots=True)
class EvalRun:
    """`items` is the SHA-256 of the rows as they were when the run was made, a JSON object with `item` and `sample` on
    each line: what happens to a file or to stored completions afterwards changes nothing.
    """

    id: str
    created_at: int
    eval_id: str
    name: str | None
    model: str | None
    status: str
    data_source: Json
    result_counts: Json = field(default_factory=dict)
    per_testing_criteria_results: tuple[Json, ...] = ()
    per_model_usage: tuple[Json, ...] = ()
    error: Json | None = None
    metadata: Json | None = None
    items: str | None = None


@dataclass(frozen=True, slots=True)
class OutputItem:
    id: str
    created_at: int
    run_id: str
    place: int
    status: str
    datasource_item: Json
    results: tuple[Json, ...]
    sample: Json


@dataclass(frozen=True, slots=True)
class Key:
    """A key; only the SHA-256 of its secret is kept. `scopes` of read, infer, train, admin."""

    id: str
    created_at: int
    name: str
    digest: str
    scopes: tuple[str, ...]
    revoked_at: int | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    id: str
    created_at: int
    key_id: str | None
    action: str
    target: str
    status: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """The answer to a request that made something, for when the same request comes again. `id` is the SHA-256 of who
    asked for what under which key of repetition; `request` that of the body, empty where it is part of `id`.
    """

    id: str
    created_at: int
    request: str
    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on what until when; `id` names the thing (`job:ftjob-…`, `device:host:cpu`)."""

    id: str
    created_at: int
    holder: str
    until: float
    token: int
