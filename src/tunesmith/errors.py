"""What can go wrong, told to a person: what, where, what was expected, what to do.

Every error a user can cause is a `TunesmithError`. The command line prints it without a traceback and exits with
`exit_code`; a service maps it to its dialect's error body.
"""

from __future__ import annotations


class TunesmithError(Exception):
    """Base of all errors meant for people.

    Parameters
    ----------
    what: one sentence, what is wrong.
    where: file, line, field or setting.
    expected: what would have been right.
    fix: what to do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            parts.append(f"  expected: {self.expected}")
        if self.fix:
            parts.append(f"  to do: {self.fix}")
        return "\n".join(parts)


class RecipeError(TunesmithError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class DataError(TunesmithError):
    """The data cannot be used as it is."""

    exit_code = 3


class ResourceError(TunesmithError):
    """Memory, disk, permission or a device is missing."""

    exit_code = 4


class VerificationError(TunesmithError):
    """Something that was produced is not what it should be."""

    exit_code = 5


class EngineError(TunesmithError):
    """An inference engine, an endpoint or a base model failed."""

    exit_code = 6
