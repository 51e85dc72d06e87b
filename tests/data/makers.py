"""Small makers of files, examples and recipes for the tests of this room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data import Example, Finding, Message
from tunesmith.data.making import content_key
from tunesmith.recipe.schema import Data


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
    return write(folder, name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def spec(path: Path, **keys: Any) -> Data:
    return Data.model_validate({"train": str(path), **keys})


def examples(pairs: Sequence[tuple[str, str]], source: str = "train.csv") -> list[Example]:
    """Examples of (input, answer) pairs on lines 2, 3, … with ids as the room gives them."""
    made: list[Example] = []
    seen: dict[str, int] = {}
    for line, (prompt, answer) in enumerate(pairs, 2):
        messages = (Message("user", prompt), Message("assistant", answer))
        key = content_key(messages)
        seen[key] = seen.get(key, 0) + 1
        identity = key if seen[key] == 1 else f"{key}-{seen[key]}"
        made.append(Example(identity, messages, answer, line, source))
    return made


def by_code(findings: Iterable[Finding]) -> Mapping[str, Finding]:
    """Findings by code; a code that comes twice is a mistake in the test."""
    found: dict[str, Finding] = {}
    for finding in findings:
        assert finding.code not in found, finding.code
        found[finding.code] = finding
    return found


def plain_text(number: int) -> str:
    """A text of six made-up words, different for every number and nearly the same as none other."""
    letters = hashlib.sha256(str(number).encode()).hexdigest().translate(str.maketrans("0123456789", "ghijklmnop"))
    return " ".join(letters[place : place + 5] for place in range(0, 30, 5))
