"""Looking at a file while it is uploaded: every problem at once, with its line, instead of one at a time from a queue.

What a hosted service refuses at the upload (a name that is not .jsonl, lines that are no JSON objects) is refused here
with all lines. What it would find only later, and fail the job for, does not stop the upload: the file object has it as
`report`. Files of any size are looked at in pieces of a few megabytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import Flavour
from tunesmith.service.store.blobs import new_part

if TYPE_CHECKING:
    from tunesmith.data.hosted import HostedCheck, Method
    from tunesmith.data.types import Finding

PIECE = 8_000_000
"""Bytes that are looked at together; a longer line is a piece of its own."""
MOST_TOLD = 100
"""Problems told of one file in a refusal, and lines of one problem in a report; there may be more, and they are
counted."""
LONGEST_LINE = 20_000_000
"""Bytes."""
_KINDS: Mapping[type, str] = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
_IN_MESSAGE = 3
_SAMPLE_ROWS = 200
_MARK = b"\xef\xbb\xbf"
_HINT = 10
_NOT_LINES = (
    "Expected file to have JSONL format, where every line is a JSON dictionary. Line {line} is not a dictionary"
)
_WRONG_NAME = "Invalid file format for Fine-Tuning API. Must be .jsonl"


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Why a file is refused at the upload, on one line where it has one; `message` is OpenAI's where it has one."""

    message: str
    line: int | None = None
    reason: str = ""
    fix: str = ""

    def body(self) -> dict[str, Any]:
        """As one of a refusal's `details`."""
        return {
            "message": self.message,
            "param": "file",
            "code": None,
            "line": self.line,
            "reason": self.reason,
            "fix": self.fix,
        }


def look_at(path: Path, filename: str, purpose: str, flavour: Flavour = "openai") -> Mapping[str, Any] | None:
    """Everything about an uploaded file: raises `ApiError` where it is refused, else gives the report on training rows
    (None for other purposes).
    """
    refuse_unreadable(path, filename, purpose=purpose)
    return report_on(path, flavour) if purpose == "fine-tune" else None


def refuse_unreadable(path: Path, filename: str, *, purpose: str) -> None:
    """Raise `ApiError` 400 with everything that a file of `purpose` is refused for; only JSON lines have rules."""
    if path.stat().st_size == 0:
        raise ApiError(400, "File is empty.", param="file")
    if purpose not in ("fine-tune", "batch"):
        return
    problems = [] if purpose == "batch" or filename.lower().endswith(".jsonl") else [_wrong_name(filename)]
    count = len(problems)
    for problem in _broken_lines(path):
        count += 1
        if len(problems) < MOST_TOLD:
            problems.append(problem)
    if problems:
        raise _refusal(problems, count)


def report_on(path: Path, flavour: Flavour = "openai") -> Mapping[str, Any]:
    """What a job on this training file would be told, and everything else that was found; the file can be read.

    `errors` make a job fail, with the `error_code` and `message` it would fail with; `notes` do not. The method is
    guessed from the rows. `for_training`: only as a training file. Raises `ApiError` 400 for what cannot be taken.
    """
    method = _guessed_method(path)
    found, rows = _checked(path, method)
    return _report(found, rows, method, flavour)


def _wrong_name(filename: str) -> FileProblem:
    return FileProblem(
        _WRONG_NAME,
        reason=f"the file is called {filename[:80]!r}",
        fix="name it .jsonl if it is one; `tunesmith data convert FILE --to openai-chat` makes one of other rows",
    )


def _refusal(problems: Sequence[FileProblem], count: int) -> ApiError:
    """The first problem in OpenAI's words; up to three can be read in the message, and a hundred in the details."""
    message = problems[0].message
    others = [problem.message for problem in problems[1:_IN_MESSAGE]]
    others = [one.removeprefix(_NOT_LINES.split(" Line")[0]).strip() for one in others]
    if others:
        more = f" (and {count - len(others) - 1:,} more)" if count > len(others) + 1 else ""
        message += (
            ("" if message.endswith(".") else ".") + " Also: " + " ".join(_sentence(one) for one in others) + more
        )
    details = [problem.body() for problem in problems]
    if count > len(problems):
        details.append(
            {"message": f"{count - len(problems):,} more lines have problems.", "param": "file", "code": None}
        )
    return ApiError(400, message, param="file", details=tuple(details))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _broken_lines(path: Path) -> Iterator[FileProblem]:
    rows = 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        rows += 1
        reason = _fault(line)
        if reason is None:
            continue
        start = line.decode("utf-8", "replace").rstrip("\r\n")
        shown = start if len(start) <= _HINT else f"{start[:_HINT]}..."
        message = _NOT_LINES.format(line=number) + f' (HINT: line starts with: "{shown}")'
        yield FileProblem(message, number, reason, "write one complete JSON object on each line, in UTF-8")
    if rows == 0:
        yield FileProblem("File is empty.", reason="it has blank lines only", fix="write one JSON object on each line")


def _fault(line: bytes) -> str | None:
    """Why a line is no JSON object; None where it is one."""
    if len(line) > LONGEST_LINE:
        return f"it is longer than {LONGEST_LINE // 1_000_000} MB"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} of the line is not UTF-8"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.colno}"
    except (RecursionError, ValueError):
        return "not valid JSON: it is nested too deeply, or has a number of thousands of digits"
    return None if isinstance(value, dict) else f"a JSON {_KINDS.get(type(value), 'value')}, and not an object"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines from 1, without a byte-order mark before the first; of one that is too long only the beginning."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            yield number, line.removeprefix(_MARK) if number == 1 else line
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE + 1)


def _guessed_method(path: Path) -> Method:
    """What most of the first rows are written for; of two equal numbers the first here."""
    votes: Counter[Method] = Counter({"supervised": 0, "dpo": 0, "reinforcement": 0})
    for _, line in _lines(path):
        if not line.strip():
            continue
        row = json.loads(line)
        messages = row.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if "messages" not in row and "input" in row:
            votes["dpo"] += 1
        elif isinstance(last, dict) and last.get("role") == "user":
            votes["reinforcement"] += 1
        else:
            votes["supervised"] += 1
        if votes.total() >= _SAMPLE_ROWS:
            break
    return votes.most_common(1)[0][0]


def _checked(path: Path, method: Method) -> tuple[list[Finding], int]:
    """Findings of all pieces with their lines in the whole file, and the number of rows."""
    from tunesmith.data.findings import in_order

    merged: dict[tuple[str, str | None], Finding] = {}
    rows = 0
    for before, piece in _pieces(path):
        checked = _check_piece(piece, method)
        rows += checked.rows
        for one in checked.findings:
            if one.code in _OF_THE_WHOLE:
                continue
            lines = tuple(line + before for line in one.lines)
            known = merged.get((one.code, one.field))
            merged[(one.code, one.field)] = (
                replace(one, lines=lines)
                if known is None
                else replace(known, lines=(*known.lines, *lines), count=known.count + one.count)
            )
    return in_order([*map(_told_anew, merged.values()), *_of_the_whole(rows)]), rows


def _check_piece(piece: Path, method: Method) -> HostedCheck:
    from tunesmith.data.hosted import check_for_service

    try:
        return check_for_service(piece, method=method)
    except DataError as error:
        raise ApiError(400, f"The file cannot be read: {error.what}.", param="file") from error


_OF_THE_WHOLE = frozenset({"hosted_too_few_rows", "hosted_too_many_rows", "hosted_not_jsonl", "hosted_file_too_large"})
"""What a piece cannot know of its file."""


def _of_the_whole(rows: int) -> list[Finding]:
    from tunesmith.data.codes import CODES
    from tunesmith.data.findings import finding
    from tunesmith.data.hosted.errors import LEAST_ROWS

    code = "hosted_too_few_rows"
    return [finding(code, f"{CODES[code].title}: {rows:,}", count=rows)] if rows < LEAST_ROWS else []


def _told_anew(found: Finding) -> Finding:
    """With a message that names the lines of the whole file."""
    from tunesmith.data.codes import CODES

    if not found.lines:
        return found
    detail = f", {found.detail}" if found.detail else ""
    more = f" (and {len(found.lines) - 1:,} more)" if len(found.lines) > 1 else ""
    return replace(found, message=f"{CODES[found.code].title}: line {found.lines[0]:,}{detail}{more}", source=None)


def _pieces(path: Path) -> Iterator[tuple[int, Path]]:
    """Files of whole lines, beside the file, and how many lines stand before each."""
    with path.open("rb") as source:
        before = 0
        while lines := source.readlines(PIECE):
            if any(line.strip() for line in lines):
                piece, file = new_part(path.parent, ".jsonl")
                with file:
                    file.writelines(lines)
                    file.flush()
                    try:
                        yield before, piece
                    finally:
                        piece.unlink()
            before += len(lines)


def _report(found: Sequence[Finding], rows: int, method: Method, flavour: Flavour) -> Mapping[str, Any]:
    from tunesmith.data.hosted import service_error

    errors, notes, refused = [], [], []
    for one in found:
        told: dict[str, Any] = {
            "code": one.code,
            "severity": one.severity,
            "message": one.message,
            "fix": one.fix,
            "count": one.count,
            "lines": list(one.lines[:MOST_TOLD]),
        }
        said = service_error(one, service=flavour)
        if said is None:
            notes.append(told)
            continue
        if said.stage == "upload":
            line = one.lines[0] if one.lines else None
            refused.append(FileProblem(_sentence(said.message), line, one.message, one.fix))
            continue
        failing = {"message": said.message, "error_code": said.code, "param": said.param}
        for_training = one.code == "hosted_too_few_rows"
        errors.append({**told, "reason": one.message, **failing, "for_training": for_training})
    if refused:
        raise _refusal(refused, len(refused))
    return {"object": "file.report", "rows": rows, "method": method, "errors": errors, "notes": notes}
