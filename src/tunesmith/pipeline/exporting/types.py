"""What is found out about an export: one check, all of them, and the export with what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.models.artifact import Artifact

VERIFICATION = "verification.json"
"""What was found, for programs, in the export's folder."""

Status = Literal["passed", "failed", "unsure", "not possible"]
"""`unsure`: nothing speaks against it, but there are too few rows to be sure. Neither it nor `not possible` stops an
export; both are said wherever the export is shown."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question about an export, with its answer in a sentence; `value` was measured, `bound` was allowed."""

    name: str
    status: Status
    text: str
    value: float | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found out about an export, or about one adapter of a pack.

    numbers: measured facts by name, such as `mean_kl`; what `Scores` holds of the test rows under `scores`.
    """

    artifact: str
    checks: tuple[Check, ...]
    adapter: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def check(self, name: str) -> Check:
        """One check by its name. Raises `KeyError`."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with `passed`."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Verification:
        """What `to_dict` gave. Raises `KeyError` or `TypeError` for something else."""
        checks = tuple(Check(**check) for check in kept["checks"])
        return cls(kept["artifact"], checks, kept["adapter"], kept["numbers"])


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export; of a pack there is a verification for each adapter."""

    artifact: Artifact
    verifications: tuple[Verification, ...]

    @property
    def path(self) -> Path:
        """The export's folder."""
        return self.artifact.folder

    @property
    def verification(self) -> Verification:
        """The first one, which is the only one where the export is one model."""
        return self.verifications[0]

    def to_dict(self) -> dict[str, Any]:
        """As `tunesmith export --json` prints it."""
        return {
            "to": self.artifact.target.kind,
            "precision": self.artifact.target.precision,
            "path": str(self.artifact.folder),
            "bytes": self.artifact.bytes,
            "facts": {k: v for k, v in self.artifact.facts.items() if k != "verification"},
            "verification": [one.to_dict() for one in self.verifications],
        }
