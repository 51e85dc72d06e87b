"""Every rule that a hosted service has for a file, checked at once and before the upload.

What the formats' own readers find is found by them; here stand the rules that Tunesmith does not need itself: how many
rows and bytes, how a file is called, arguments as text, weights of 0 or 1, one answer per side. Rows are as
`openai_chat`, `openai_preference` and `prompts` describe them, or `{"prompt": …, "completion": …}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.codes import CODES
from tunesmith.data.findings import FindingLog, finding, in_order
from tunesmith.data.formats import Format, format_named
from tunesmith.data.formats.openai_preference import CHOSEN, REJECTED
from tunesmith.data.hosted.errors import LEAST_ROWS, Part, Service, ServiceError, service_error
from tunesmith.data.making import ExampleMaker
from tunesmith.data.quality import text_findings
from tunesmith.data.reading import read_rows
from tunesmith.data.types import Example, Finding, Row

Method = Literal["supervised", "dpo", "reinforcement"]
LARGEST_FILE = 512_000_000
"""Bytes."""
_MOST_ROWS: Mapping[Part, int] = {"training": 50_000, "validation": 1_000}
"""Of reinforcement."""
_MARK = b"\xef\xbb\xbf"
_FORMATS: Mapping[Method, str] = {"supervised": "chat", "dpo": "openai_dpo", "reinforcement": "openai_rft"}
_KINDS: Mapping[Method, tuple[str, ...]] = {
    "supervised": ("chat", "completion"),
    "dpo": ("preference",),
    "reinforcement": ("chat",),
}


@dataclass(frozen=True, slots=True)
class HostedCheck:
    """What a service would say of a file. `refusals` are the findings it has a rule for, with its own words for each;
    of the other findings it knows nothing.
    """

    findings: tuple[Finding, ...]
    refusals: tuple[tuple[Finding, ServiceError], ...]
    rows: int

    @property
    def accepted(self) -> bool:
        """Whether the service would take the file, as far as its rules are known."""
        return not self.refusals


def check_for_service(
    file: Path,
    *,
    service: Service = "openai",
    method: Method = "supervised",
    part: Part = "training",
    validated: bool = True,
) -> HostedCheck:
    """All that a service would refuse a file for, in one go.

    `validated` says whether a validation file comes with it, which reinforcement needs. Raises `DataError` where the
    file cannot be read at all.
    """
    read = read_rows(file)
    log = FindingLog(str(file))
    by = format_named(_FORMATS[method])
    maker = ExampleMaker(None)
    examples = [made for row in read.rows if (made := _example(row, by, method, maker, log)) is not None]
    _mixed(read.rows, method, log)
    rows = len(read.rows) + read.left_out
    whole = _about_the_file(file, service)
    if part == "training" and rows < LEAST_ROWS:
        whole.append(_counted("hosted_too_few_rows", rows, file))
    if method == "reinforcement":
        if rows > _MOST_ROWS[part]:
            whole.append(_counted("hosted_too_many_rows", rows, file))
        if not validated and part == "training":
            whole.append(finding("hosted_no_validation", CODES["hosted_no_validation"].title, count=1))
    tokens = [found for found in text_findings(str(file), examples) if found.code == "special_tokens"]
    found = in_order([*read.findings, *log.findings(), *whole, *tokens])
    answers = ((one, service_error(one, part=part, service=service, file=file)) for one in found)
    return HostedCheck(tuple(found), tuple((one, said) for one, said in answers if said is not None), rows)


def _about_the_file(file: Path, service: Service) -> list[Finding]:
    found = []
    if file.suffix.lower() != ".jsonl":
        found.append(_about("hosted_not_jsonl", file, file.name))
    if (size := file.stat().st_size) > LARGEST_FILE:
        found.append(_about("hosted_file_too_large", file, f"{size / 1e6:,.0f} MB"))
    if service == "azure":
        with file.open("rb") as stream:
            if stream.read(len(_MARK)) != _MARK:
                found.append(_about("hosted_no_mark", file, file.name))
    return found


def _about(code: str, file: Path, detail: str) -> Finding:
    return finding(code, f"{CODES[code].title}: {detail}", count=1, source=str(file), detail=detail)


def _counted(code: str, rows: int, file: Path) -> Finding:
    return finding(code, f"{CODES[code].title}: {rows:,}", count=rows, source=str(file))


def _example(row: Row, by: Format, method: Method, maker: ExampleMaker, log: FindingLog) -> Example | None:
    """The row as an example, or None with every reason noted; what is strict about it is noted in any case."""
    kind = _kind(row.values)
    if kind is None:
        log.add("hosted_not_its_format", row.line)
        return None
    if kind not in _KINDS[method]:
        log.add("hosted_wrong_method", row.line, f"{kind} rows for the method {method}")
        return None
    if kind == "completion":
        return _completion(row, maker, log)
    given = row.values.get("input") if kind == "preference" else row.values
    _strict(row, given if isinstance(given, Mapping) else {}, log)
    content = by.read(row, log)
    return maker.make(content, row) if content is not None else None


def _kind(values: Mapping[str, Any]) -> str | None:
    """What a service takes a row for, by its keys."""
    if "messages" in values:
        return "chat"
    if "input" in values and any(name in values for name in (*CHOSEN, *REJECTED)):
        return "preference"
    return "completion" if "prompt" in values and "completion" in values else None


def _mixed(rows: Iterable[Row], method: Method, log: FindingLog) -> None:
    """Note the rows of the rarer form where a file has both that the method takes; of equal numbers the later form."""
    lines: dict[str, list[int]] = {}
    for row in rows:
        if (kind := _kind(row.values)) in _KINDS[method]:
            lines.setdefault(kind, []).append(row.line)
    if len(lines) > 1:
        for line in min(reversed(lines.values()), key=len):
            log.add("hosted_mixed", line)


def _completion(row: Row, maker: ExampleMaker, log: FindingLog) -> Example | None:
    """Prompt and completion as a conversation of two turns: two texts."""
    texts = {name: row.values[name] for name in ("prompt", "completion")}
    for name, value in texts.items():
        if not isinstance(value, str):
            log.add("hosted_not_its_format", row.line, f"{name} is not a text", field=name)
            return None
    messages = [
        {"role": "user", "content": texts["prompt"]},
        {"role": "assistant", "content": texts["completion"]},
    ]
    content = format_named("chat").read(Row({"messages": messages}, row.line, row.source), log)
    return maker.make(content, row) if content is not None else None


def _strict(row: Row, given: Mapping[str, Any], log: FindingLog) -> None:
    """What Tunesmith reads and a service does not."""
    parallel = given.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        log.add("hosted_parallel", row.line, repr(parallel)[:20])
    for names in (CHOSEN, REJECTED) if "input" in row.values else ():
        side = next((row.values[name] for name in names if name in row.values), None)
        if not _one_answer(side):
            log.add("hosted_sides", row.line, field=next((name for name in names if name in row.values), names[0]))
    for number, message in enumerate(_messages(row.values, given), 1):
        weight = message.get("weight")
        if isinstance(weight, float) and 0 < weight < 1:
            log.add("hosted_weight", row.line, f"message {number} has weight {weight}")
        for inner in _called(message):
            if isinstance(inner.get("arguments"), Mapping):
                log.add("hosted_arguments", row.line, f"message {number}")
                break


def _one_answer(side: Any) -> bool:
    one = isinstance(side, list) and len(side) == 1 and isinstance(side[0], Mapping)
    return one and side[0].get("role") == "assistant"


def _messages(values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    lists = [given.get("messages"), *(values.get(name) for name in (*CHOSEN, *REJECTED))]
    return [turn for turns in lists if isinstance(turns, list) for turn in turns if isinstance(turn, Mapping)]


def _called(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The functions that a message calls, in the new way and in the old."""
    calls = message.get("tool_calls")
    found = [call.get("function") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    return [inner for inner in [*found, message.get("function_call")] if isinstance(inner, Mapping)]
