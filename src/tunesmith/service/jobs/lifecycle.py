"""The states of a job and what may be asked of it in each: a table, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from tunesmith.service.store.nouns import JobStatus

Action = Literal["cancel", "pause", "resume", "delete"]

FINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})

ALLOWED: Mapping[Action, frozenset[JobStatus]] = MappingProxyType(
    {
        "cancel": frozenset({"validating_files", "queued", "running", "paused"}),
        "pause": frozenset({"queued", "running"}),
        "resume": frozenset({"paused"}),
        "delete": FINAL,
    }
)
"""What a user may ask for, and in which states."""
