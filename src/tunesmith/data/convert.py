"""Rows of one format written in another, with everything that would be lost said first.

    convert(Data(train="tools.json"), "openai-chat", Path("tools.jsonl"))

Every row is read as an example, which has a place for all that any of our formats says, and written by the format
that takes its kind. What a format has no place for is a loss: it is named with its rows, and nothing is written unless
losses are accepted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.examples import EVERYTHING, LoadResult, load_examples
from tunesmith.data.findings import shortened
from tunesmith.data.formats import Writer, formats
from tunesmith.data.types import Finding
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import Data
from tunesmith.runs.atomic import staged_file

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "openai-chat": ("chat", "openai_dpo", "openai_rft"),
    "trl": ("trl", "trl_completion"),
    "alpaca": ("alpaca",),
    "sharegpt": ("sharegpt",),
}
"""What `--to` is called, and the formats that write it: of those that take the rows' kind, the one that loses least."""
_KINDS = {
    "answer": "conversations with an answer",
    "preference": "preferences",
    "rated": "rated answers",
    "text": "texts without a question",
    "prompt": "questions without an answer",
}
_ENDINGS = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that the target cannot say, or a row that could not be read, with the lines it concerns."""

    what: str
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What came of a file: `rows` were in it, `written` are in `out`, and `losses` says what is not."""

    out: Path
    rows: int
    written: int
    format: str
    reason: str
    losses: tuple[Loss, ...]
    findings: tuple[Finding, ...]


def targets() -> list[str]:
    """What rows can be converted to: families, then single formats."""
    single = [name for name, format in formats().items() if isinstance(format, Writer)]
    return [*FAMILIES, *(name for name in single if name not in FAMILIES)]


def convert(spec: Data, to: str, out: Path, *, lossy: bool = False) -> Conversion:
    """Write the rows of `spec.train` to `out` (JSON Lines, or a JSON array) in the format `to`.

    Raises `DataError` where something would be lost and `lossy` is not set, where no row can be read, and where `out`
    exists; then nothing is written.
    """
    writers = _writers(to)
    if out.suffix.lower() not in _ENDINGS:
        raise RecipeError(
            f"files that end with {out.suffix or 'nothing'} are not written",
            where=str(out),
            expected=" or ".join(_ENDINGS),
        )
    if out.exists():
        raise RecipeError("this file exists and is never overwritten", where=str(out), fix="choose another name")
    loaded = load_examples(spec, spec.train, learns=EVERYTHING)
    rows, losses = plan(loaded, writers, to)
    if losses and not lossy:
        raise _refusal(losses, spec.train, to)
    if not rows:
        raise DataError("no row would be written", where=spec.train, fix="see the findings: tunesmith check")
    with staged_file(out) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as stream:
        for piece in _pieces(rows, array=out.suffix.lower() == ".json"):
            stream.write(piece)
    return Conversion(out, loaded.rows, len(rows), loaded.format, loaded.reason, losses, tuple(loaded.findings))


def plan(loaded: LoadResult, writers: Sequence[Writer], to: str) -> tuple[list[dict[str, Any]], tuple[Loss, ...]]:
    """The rows to write, and all that they leave out. One file holds one kind of row: that which most rows are."""
    lost: dict[str, list[int]] = defaultdict(list)
    kinds = Counter(example.kind for example in loaded.examples)
    usual = kinds.most_common(1)[0][0] if kinds else "answer"
    able = [writer for writer in writers if usual in writer.kinds]
    mine = [example for example in loaded.examples if example.kind == usual]
    writer = min(able, key=lambda w: sum(bool(w.losses(example)) for example in mine), default=None)
    rows = []
    for example in loaded.examples:
        if writer is None:
            lost[f"{_KINDS[example.kind]}, which {to} has no place for; the rows are left out"].append(example.line)
            continue
        if example.kind != usual:
            lost[f"{_KINDS[example.kind]} among {_KINDS[usual]}; the rows are left out"].append(example.line)
            continue
        for what in writer.losses(example):
            lost[what].append(example.line)
        row = dict(writer.write(example))
        for name, value in example.values.items():
            if name in loaded.used:
                continue
            if writer.keeps_others and name not in row and name not in writer.columns:
                row[name] = value
            else:
                lost[f"the column {name!r}"].append(example.line)
        rows.append(row)
    losses = [*_unread(loaded), *(Loss(what, tuple(lines)) for what, lines in lost.items())]
    return rows, tuple(losses)


def _writers(to: str) -> list[Writer]:
    known = formats()
    found = [known[name] for name in FAMILIES.get(to, (to,)) if name in known]
    writers = [format for format in found if isinstance(format, Writer)]
    if not writers:
        raise RecipeError(f"rows cannot be written as {to!r}", where="--to", expected=", ".join(targets()))
    return writers


def _unread(loaded: LoadResult) -> Iterator[Loss]:
    """Rows that are only in findings, and keys of messages that no example has a place for."""
    if loaded.left_out:
        kept = {example.line for example in loaded.examples}
        for finding in loaded.findings:
            lines = tuple(line for line in finding.lines if line not in kept)
            if finding.severity != "info" and lines:
                yield Loss(f"rows that cannot be used: {finding.message}", lines)
    for finding in loaded.findings:
        if finding.code == "unknown_message_key":
            yield Loss(finding.message, finding.lines)


def _refusal(losses: Sequence[Loss], where: str, to: str) -> DataError:
    listed = "\n".join(f"  {loss.what} ({len(loss.lines):,} rows: {shortened(loss.lines)})" for loss in losses)
    return DataError(
        f"written as {to}, these rows would lose something:\n{listed}",
        where=where,
        expected="a conversion that loses nothing",
        fix="mend the rows, choose another format, or accept this with --lossy",
    )


def _pieces(rows: Sequence[Mapping[str, Any]], *, array: bool) -> Iterator[str]:
    """The text of the file."""
    for i, row in enumerate(rows):
        text = json.dumps(row, ensure_ascii=False)
        if array:
            yield ("[\n" if i == 0 else ",\n") + text
        else:
            yield text + "\n"
    if array:
        yield "\n]\n"
