"""Whether a job's files can be trained on: every fault of both at once, in OpenAI's words where they are known.

First the hosted services' own rules (`data.hosted`), then what Tunesmith itself cannot train on. Everything is looked
at before anything is refused; the first fault is the job's error, all of them are told as events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import DataError
from tunesmith.service.jobs.request import MethodType
from tunesmith.service.store.nouns import Job

if TYPE_CHECKING:
    from tunesmith.data.types import Finding

RowsKind = Literal["chat", "completion"]
Part = Literal["training", "validation"]
MOST_LINES = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a file: as OpenAI says it, on which lines, and what to do."""

    code: str
    message: str
    param: str
    lines: tuple[int, ...] = ()
    fix: str = ""

    def told(self) -> str:
        """The message of the job's event: with every line, and the remedy."""
        where = f" (lines {_shortened(self.lines)})" if len(self.lines) > 1 else ""
        return _sentence(f"{self.message}{where}") + (f" To do: {self.fix}." if self.fix else "")

    def body(self) -> dict[str, Any]:
        """As it stands in `error.details`."""
        return {
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "lines": list(self.lines[:MOST_LINES]),
            "fix": self.fix or None,
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a job's files. `kind` is None where a fault leaves it open; rows are counted in any case."""

    faults: tuple[Fault, ...]
    kind: RowsKind | None
    training_rows: int
    validation_rows: int

    def error(self) -> dict[str, Any] | None:
        """The job's `error`: the first fault, with all of them as `details`; None where there is none."""
        if not self.faults:
            return None
        first = self.faults[0]
        return {
            "code": first.code,
            "message": first.message,
            "param": first.param,
            "details": [fault.body() for fault in self.faults],
        }


def validate_job(job: Job, training: Path, validation: Path | None) -> Checked:
    """Look at a job's files; `training` and `validation` end in `.jsonl`, and are named after their ids if they can be.

    Never raises for what is in them.
    """
    return check_files(
        training, validation, training_id=job.training_file, validation_id=job.validation_file, azure=_azure(job)
    )


def check_files(
    training: Path,
    validation: Path | None,
    *,
    training_id: str,
    validation_id: str | None = None,
    method: MethodType = "supervised",
    azure: bool = False,
) -> Checked:
    """The same for files of any method."""
    validated = validation is not None
    faults, rows, kinds = _check_file(training, "training", training_id, method, azure, validated)
    more: list[Fault] = []
    held_out = 0
    if validation is not None:
        more, held_out, others = _check_file(validation, "validation", validation_id or "", method, azure, validated)
        if not faults and not more and kinds != others:
            more = [
                Fault(
                    "invalid_validation_file",
                    f"The job failed due to an invalid validation file. It holds {_named(others)} rows, but the "
                    f"training file holds {_named(kinds)} rows.",
                    "validation_file",
                    fix="write both files in the same form",
                )
            ]
    kind: RowsKind | None = None
    if len(kinds) == 1 and method == "supervised" and not faults and not more:
        kind = "chat" if "chat" in kinds else "completion"
    return Checked((*faults, *more), kind, rows, held_out)


@contextmanager
def readable(blobs: Sequence[Path]) -> Iterator[list[Path]]:
    """Paths to the same files that say that they are JSON lines; gone afterwards."""
    with TemporaryDirectory(prefix="tunesmith-") as folder:
        paths = [Path(folder) / f"{number}.jsonl" for number in range(len(blobs))]
        for path, blob in zip(paths, blobs, strict=True):
            path.symlink_to(blob.resolve())
        yield paths


def _check_file(
    path: Path, part: Part, id: str, method: MethodType, azure: bool, validated: bool
) -> tuple[list[Fault], int, frozenset[str]]:
    """Faults, rows, and the kinds of rows (chat, completion, preference) of one file."""
    from tunesmith.data.hosted import check_for_service
    from tunesmith.data.reading import read_rows

    param, code = f"{part}_file", f"invalid_{part}_file"
    try:
        checked = check_for_service(
            path, service="azure" if azure else "openai", method=method, part=part, validated=validated
        )
        kinds = frozenset(_kind(row.values) for row in read_rows(path).rows)
    except DataError as error:
        message = f"The job failed due to an invalid {part} file. {_sentence(error.what)}"
        return [Fault(code, message, param, fix=error.fix or "")], 0, frozenset()
    faults = [
        Fault(
            said.code or code,
            (said.message if said.known else _sentence(said.message)).replace(path.name, id),
            said.param if said.param not in (None, "file") else param,
            found.lines,
            found.fix,
        )
        for found, said in checked.refusals
    ]
    if not faults and method == "supervised":
        faults = _untrainable(path, part, next(iter(kinds)))
    return faults, checked.rows, kinds


def _untrainable(path: Path, part: Part, kind: str) -> list[Fault]:
    """What a hosted service would take, and no training here can: nothing to learn, the same row again and again."""
    from tunesmith.data import check_examples, load_examples
    from tunesmith.service.jobs.recipe import data_section

    loaded = load_examples(data_section("chat" if kind == "chat" else "completion", path), path, task_type="generation")
    found = loaded.findings
    if part == "training":
        found = [*found, *check_examples(loaded.examples, task_type="generation", depth="quick")]
    return [fault_of_rows(one, part) for one in found if one.severity == "error" or (one.lines and not loaded.examples)]


def fault_of_rows(found: Finding, part: Part) -> Fault:
    """A finding of our own as a fault of a job's file, opened as OpenAI opens its own."""
    message = f"The job failed due to an invalid {part} file. {_sentence(found.message)}"
    return Fault(f"invalid_{part}_file", message, f"{part}_file", found.lines, found.fix)


def _kind(values: Any) -> str:
    if "messages" in values:
        return "chat"
    return "preference" if "input" in values else "completion"


def _named(kinds: frozenset[str]) -> str:
    return " and ".join(sorted("prompt/completion" if kind == "completion" else kind for kind in kinds))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _shortened(lines: tuple[int, ...]) -> str:
    more = f" and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return ", ".join(map(str, lines[:MOST_LINES])) + more


def _azure(job: Job) -> bool:
    return job.flavour == "azure"
