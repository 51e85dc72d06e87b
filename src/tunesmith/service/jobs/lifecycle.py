"""The states of a job and what may be asked of it in each: a table, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from tunesmith.service.store.nouns import JobStatus

Action = Literal["cancel", "pause", "resume", "delete"]

FINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})

MOVES: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        "validating_files": frozenset({"queued", "failed", "cancelled"}),
        "queued": frozenset({"running", "paused", "failed", "cancelled"}),
        "running": frozenset({"paused", "succeeded", "failed", "cancelled"}),
        "paused": frozenset({"queued", "cancelled"}),
        "succeeded": frozenset(),
        "failed": frozenset(),
        "cancelled": frozenset(),
    }
)
"""From each state to which. A running job whose worker has died stays running until another takes it up."""

ALLOWED: Mapping[Action, frozenset[JobStatus]] = MappingProxyType(
    {
        "cancel": frozenset({"validating_files", "queued", "running", "paused"}),
        "pause": frozenset({"queued", "running"}),
        "resume": frozenset({"paused"}),
        "delete": FINAL,
    }
)
"""What a user may ask for, and in which states."""


def may_move(before: JobStatus, after: JobStatus) -> bool:
    """Whether a job may go from one state to the other."""
    return after in MOVES[before]
