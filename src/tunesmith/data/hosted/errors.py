"""A finding as a hosted service would put it: its code, its words, the field it names.

Where the words of a service are known they are the same, so a program that reads them goes on working. Where only its
code is known, the code is the same and the words are its usual opening with our reason. A finding that no service has
(a copy, a leak) has no such form. Beside it our own explanation and fix always stand in the `Finding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from tunesmith.data.codes import CODES
from tunesmith.data.types import Finding

Service = Literal["openai", "azure"]
Part = Literal["training", "validation"]
Stage = Literal["upload", "job"]
LEAST_ROWS = 10
_HINT = 10
"""Characters of a line that are shown as its beginning."""

COOKBOOK: Mapping[str, str] = MappingProxyType(
    {
        "row_not_object": "data_type",
        "messages_not_list": "missing_messages_list",
        "role_missing": "message_missing_key",
        "unknown_message_key": "message_unrecognized_key",
        "unknown_role": "unrecognized_role",
        "content_not_text": "missing_content",
        "no_final_answer": "example_missing_assistant_message",
    }
)
"""Our codes, and the names of the same checks in OpenAI's notebook for preparing chat data."""
_FILE_FORM = (
    "Expected file to have JSONL format, where every line is a JSON dictionary. Line {line} is not a dictionary{hint}"
)
_OPENING = "The job failed due to an invalid {part} file. Invalid file format. Example {line}, {detail}"
_FORMAT = "Unexpected file format, expected either prompt/completion pairs or chat messages."
_NOT_LINES = frozenset({"broken_json", "row_not_object", "nul_byte"})
_NOT_ROWS = frozenset({"messages_not_list", "missing_column", "hosted_not_its_format", "hosted_mixed"})
_BROKEN_ROWS = frozenset(
    {
        "message_not_object",
        "unknown_role",
        "content_not_text",
        "unknown_message_key",
        "bad_weight",
        "no_final_answer",
        "no_final_question",
        "empty_answer",
        "tool_call_broken",
        "tool_result_unmatched",
        "tools_broken",
        "preference_apart",
        "hosted_arguments",
        "hosted_weight",
        "hosted_parallel",
        "hosted_sides",
    }
)
"""Faults of a row that make a service call the file invalid."""
_OTHER_JOB_FAULTS = frozenset({"hosted_too_many_rows", "hosted_wrong_method"})
_OTHER_UPLOAD_FAULTS = frozenset({"hosted_file_too_large", "hosted_not_jsonl", "wrong_encoding", "unpaired_surrogate"})


@dataclass(frozen=True, slots=True)
class ServiceError:
    """What a service answers. `stage` says whether the upload is refused (with `status`) or the job fails later.

    `known` says whether the message is the service's own, word by word, as far as it is known.
    """

    stage: Stage
    code: str | None
    message: str
    param: str | None
    known: bool
    status: int = 400
    kind: str = "invalid_request_error"

    def body(self) -> dict[str, object]:
        """The object under `error`."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def service_error(
    finding: Finding, *, part: Part = "training", service: Service = "openai", file: Path | None = None
) -> ServiceError | None:
    """The first occurrence of a finding as a service puts it; None where the service has no such rule.

    `file` is the uploaded file, from which the beginning of a line is shown where the service shows it.
    """
    made = _openai(finding, part, file)
    if made is None or service == "openai":
        return made
    code = "jsonlValidationFailed" if made.stage == "job" or finding.code in _NOT_LINES else "invalidPayload"
    return replace(made, code=code)


def wrong_method_error(file_id: str, method: str) -> ServiceError:
    """The answer to a job of `method` (dpo, reinforcement) for a file of conversations."""
    message = (
        f"Input file {file_id} is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        f"'supervised' as the training method (provided method={method})."
    )
    return ServiceError("job", "invalid_training_file", message, "training_file", known=True)


def _openai(finding: Finding, part: Part, file: Path | None) -> ServiceError | None:
    line = finding.lines[0] if finding.lines else 1
    param, invalid = f"{part}_file", f"invalid_{part}_file"
    if finding.code in _NOT_LINES:
        start = _beginning(file, line) if file is not None else None
        hint = f' (HINT: line starts with: "{start}")' if start is not None else ""
        return ServiceError("upload", None, _FILE_FORM.format(line=line, hint=hint), "file", known=True)
    if finding.code in _NOT_ROWS:
        return ServiceError("job", invalid, _FORMAT, param, known=True)
    if finding.code == "hosted_too_few_rows" or (finding.code == "too_few_rows" and finding.count < LEAST_ROWS):
        message = (
            f"{part.capitalize()} file has {finding.count} example(s), but must have at least {LEAST_ROWS} examples"
        )
        return ServiceError("job", "invalid_n_examples", message, param, known=True)
    if finding.code == "hosted_wrong_method" and finding.detail.startswith("chat"):
        return wrong_method_error(Path(finding.source or "").name, finding.detail.rpartition(" ")[2])
    if finding.code == "special_tokens":
        return ServiceError("job", invalid, f"Example {line} {finding.detail}.", param, known=True)
    if finding.code == "role_missing":
        detail = f"{finding.detail} Discriminator 'role' is missing in value"
        message = _OPENING.format(part=part, line=line, detail=detail)
        return ServiceError("job", invalid, message, param, known=True)
    if finding.code in _BROKEN_ROWS:
        detail = (finding.detail or CODES[finding.code].title).removesuffix("; the row is left out")
        return ServiceError("job", invalid, _OPENING.format(part=part, line=line, detail=detail), param, known=False)
    if finding.code == "hosted_no_validation":
        missing = "Missing required parameter: 'validation_file'."
        return ServiceError("job", "missing_required_parameter", missing, "validation_file", known=False)
    if finding.code in _OTHER_JOB_FAULTS:
        return ServiceError("job", invalid, finding.message, param, known=False)
    if finding.code in _OTHER_UPLOAD_FAULTS:
        return ServiceError("upload", None, finding.message, "file", known=False)
    return None


def _beginning(file: Path, line: int) -> str | None:
    """The first characters of a line of a file; None where it has no such line."""
    with file.open("rb") as stream:
        found = next(islice(stream, line - 1, line), None)
    if found is None:
        return None
    text = found.decode("utf-8-sig", "replace").rstrip("\r\n")
    return text if len(text) <= _HINT else f"{text[:_HINT]}..."
