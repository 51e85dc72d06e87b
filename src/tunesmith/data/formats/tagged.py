"""Tagged tokens, as of CoNLL files and of columns `tokens` and `tags`: the answer is the JSON object of what is marked.

Tags are `B-TYPE`, `I-TYPE` and `O`, with `E` and `S` (or `L` and `U`) where somebody marks ends too. A stretch that
begins with `I` begins all the same, as conlleval counts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tunesmith.data.findings import FindingLog
from tunesmith.data.formats.types import Recognition, Sample
from tunesmith.data.types import Content, Message, Row

_TOKENS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "labels", "pos_tags")
_NO_SPACE_BEFORE = frozenset(",.;:!?)]}%'’”") | {"'s", "n't", "'re", "'ve", "'ll", "'m", "'d"}


class Tagged:
    """Sentences whose tokens carry tags."""

    name = "conll"
    title = "tagged tokens (CoNLL; tokens and tags)"
    columns = (*_TOKENS, *_TAGS)

    def recognise(self, sample: Sample) -> Recognition | None:
        """Rows with two lists of the same length."""
        tokens, tags = sample.any(*_TOKENS), sample.any(*_TAGS)
        if tokens is None or tags is None or sample.share(tokens, list) < 1 or sample.share(tags, list) < 1:
            return None
        return Recognition(0.95, f"lists of {tokens} and {tags}")

    def read(self, row: Row, log: FindingLog) -> Content | None:
        """The sentence, and what is marked in it as a JSON object of lists by type."""
        tokens, tags = _texts(row, _TOKENS), _texts(row, _TAGS)
        if tokens is None or tags is None or len(tokens) != len(tags):
            log.add("broken_tags", row.line, "tokens and tags are not two lists of texts of one length")
            return None
        if not any(token.strip() for token in tokens):
            log.add("empty_prompt", row.line, field="tokens")
            return None
        found: dict[str, list[str]] = {}
        for kind, first, last in spans(tags):
            found.setdefault(kind, []).append(joined(tokens[first:last]))
        answer = json.dumps(found, ensure_ascii=False)
        return Content((Message("user", joined(tokens)), Message("assistant", answer)), answer)


def _texts(row: Row, names: Sequence[str]) -> list[str] | None:
    """The list of texts under one of these names."""
    value = next((row.values[name] for name in names if name in row.values), None)
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def spans(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Type, first token and end of each marked stretch."""
    start, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        goes_on = mark in ("I", "E", "L", "M") and name == kind
        if kind and not goes_on:
            yield kind, start, i
            kind = ""
        if name and not kind:
            start, kind = i, name
        if kind and mark in ("E", "S", "L", "U"):
            yield kind, start, i + 1
            kind = ""


def joined(tokens: Sequence[str]) -> str:
    """Tokens as a text, without spaces where nobody writes them."""
    text = ""
    for token in tokens:
        tight = not text or token in _NO_SPACE_BEFORE or text[-1] in "([{“‘$#"
        text += token if tight else f" {token}"
    return text


FORMAT = Tagged()
