"""Rows of YAML: a list of them, or a config of promptfoo with its list of tests, each with the line it begins on.

Values stay as they are written: `no`, `12:30`, `007` and `2026-01-02` are texts, and only what JSON would call a
number, `true`, `false` or `null` is one. (YAML 1.1 makes False, 750, 7 and a date of them, which nobody who writes an
answer means.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from yaml.reader import ReaderError

from tunesmith.data.findings import FindingLog
from tunesmith.data.json_rows import JsonParser
from tunesmith.data.sources.decoding import line_ends
from tunesmith.data.types import Row
from tunesmith.errors import DataError

_MAX_DEPTH = 64
_MAX_VALUES = 100_000
"""Values in one row, aliases written out."""
_MAX_TEXT = 16 << 20
"""Characters of a document: YAML has to be held whole, at several hundred bytes a value, and is slow to read."""
_TESTS, _SHARED = "tests", "defaultTest"
CONFIG = "prompts"
"""Where a row of a config has the config's prompts."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACE = re.compile(r"[\s,:]*")


class _Loader(yaml.SafeLoader):
    """Safe, with fewer kinds of plain values; see the module."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9]\d*)", list("-0123456789")),
    ("float", r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", list("-0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z", re.ASCII), _first)


def read_yaml(text: str, log: FindingLog, bad_byte: str | None = None) -> Iterator[Row]:
    """Rows of a YAML document. Of a config, what its `defaultTest` says is in every row, and its prompts are beside.

    Elements that are no mappings are left out and noted. `bad_byte` describes the first byte that is not text, if any.
    Raises `DataError` for a text that is no YAML, and for one without a list of rows.
    """
    if len(text) > _MAX_TEXT:
        raise DataError(
            f"YAML of {len(text):,} characters is too much to be held at once",
            where=log.source,
            expected=f"at most {_MAX_TEXT:,} characters",
            fix="write the rows as JSONL, which is read piece by piece",
        )
    config, elements = _json_elements(text, log) or _yaml_elements(text, log, bad_byte)
    shared = _shared(config, log)
    for value, line in elements:
        if not isinstance(value, dict):
            log.leave_out("row_not_object", line, f"found {_shown(value)}")
        elif _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            log.leave_out("unpaired_surrogate", line)
        else:
            yield Row(_with(config, shared, value), line, log.source)


_Elements = tuple[Mapping[str, Any], Iterator[tuple[Any, int]]]
"""The config around the rows, and rows as they are written, each with its line."""


def _json_elements(text: str, log: FindingLog) -> _Elements | None:
    """Of a config that is JSON: most of that is YAML too, but not where it is indented by tabs."""
    if not text.lstrip().startswith("{"):
        return None
    parsed = JsonParser().parse(text)
    document = parsed.value
    if not isinstance(document, dict) or not isinstance(document.get(_TESTS), list):
        return None
    if parsed.duplicate == _TESTS:
        raise DataError(f"there are two lists {_TESTS!r}", where=log.source, expected="one list of tests")
    return {name: value for name, value in document.items() if name != _TESTS}, _json_tests(text, log)


def _json_tests(text: str, log: FindingLog) -> Iterator[tuple[Any, int]]:
    """The elements of the list `tests` of a text that is a JSON object with such a list."""
    parser = JsonParser()
    place, line, counted = _after_space(text, text.index("{") + 1), 1, 0
    while True:
        name = parser.parse(text, place)
        place = _after_space(text, name.end)
        if name.value == _TESTS and text[place] == "[":
            break
        place = _after_space(text, parser.parse(text, place).end)
    place = _after_space(text, place + 1)
    while text[place] != "]":
        line, counted = line + line_ends(text[counted:place]), place
        element = parser.parse(text, place)
        if element.duplicate is not None:
            log.add("duplicate_key", line, repr(element.duplicate))
        yield element.value, line
        place = _after_space(text, element.end)


def _after_space(text: str, place: int) -> int:
    """The next place that is neither space nor a comma or colon."""
    found = _SPACE.match(text, place)
    return found.end() if found is not None else place


def _yaml_elements(text: str, log: FindingLog, bad_byte: str | None) -> _Elements:
    try:
        loader = _Loader(text)
    except ReaderError as error:
        line = line_ends(text[: error.position]) + 1
        problem = bad_byte or f"it holds the character U+{ord(text[error.position]):04X}"
        raise DataError(f"this is not YAML: {problem}", where=f"{log.source}, line {line}") from error
    with _told(log):
        found, config = _list_of(loader, loader.get_single_node(), log.source)
    return config, _constructed(loader, found, log)


def _constructed(loader: yaml.SafeLoader, found: yaml.SequenceNode, log: FindingLog) -> Iterator[tuple[Any, int]]:
    for node in found.value:
        with _told(log):
            value = _plain(loader.construct_object(node, deep=True))
        if isinstance(value, dict):
            _note_twice(node, log)
        yield value, node.start_mark.line + 1


@contextmanager
def _told(log: FindingLog) -> Iterator[None]:
    """What the library says of a text, as an error that names the line."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{log.source}, line {mark.line + 1}" if mark is not None else log.source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"this is not YAML: {problem}", where=where, expected="a list of rows") from error
    except RecursionError as error:
        raise DataError("this YAML is nested too deeply, or too large a row", where=log.source) from error


def _list_of(loader: yaml.SafeLoader, document: Any, where: str) -> tuple[yaml.SequenceNode, Mapping[str, Any]]:
    """The node with the rows, and the rest of a config around it."""
    if isinstance(document, yaml.SequenceNode):
        return document, {}
    if isinstance(document, yaml.MappingNode):
        parts = {key.value: node for key, node in document.value if isinstance(key, yaml.ScalarNode)}
        tests = parts.get(_TESTS)
        if isinstance(tests, yaml.SequenceNode):
            kept = {name: parts[name] for name in (CONFIG, _SHARED, "scenarios") if name in parts}
            return tests, {name: _plain(loader.construct_object(node, deep=True)) for name, node in kept.items()}
        if isinstance(tests, yaml.ScalarNode):
            raise DataError(
                f"the tests of this config are in {str(tests.value).removeprefix('file://')}",
                where=where,
                fix="name that file; where its tests have several variables, set data.template",
            )
    raise DataError("there is no list of rows", where=where, expected="a list of mappings, or tests: with such a list")


def _shared(config: Mapping[str, Any], log: FindingLog) -> Mapping[str, Any]:
    """What all tests of a config share; what a config says elsewhere is named, as tests would read otherwise."""
    shared = config.get(_SHARED)
    if shared is not None and not isinstance(shared, dict):
        raise DataError(
            f"what all tests share is not in this config but in {_shown(shared)}",
            where=f"{log.source}, {_SHARED}",
            expected="a mapping",
            fix="write it out in the config",
        )
    if config.get("scenarios"):
        log.add("tests_elsewhere", 1, "scenarios", field="scenarios")
    return shared or {}


def _with(config: Mapping[str, Any], shared: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A test with what all tests of its config share; its own variables and options go before shared ones."""
    made = dict(row)
    for name in ("vars", "options"):
        if isinstance(shared.get(name), dict) and isinstance(row.get(name, {}), dict):
            made[name] = {**shared[name], **row.get(name, {})}
    if isinstance(shared.get("assert"), list) and isinstance(row.get("assert", []), list):
        made["assert"] = [*row.get("assert", []), *shared["assert"]]
    if CONFIG in config:  # a test's own `prompts` only names some of them
        made[CONFIG] = config[CONFIG]
    return made


def _note_twice(node: Any, log: FindingLog) -> None:
    """Keys given twice, of which YAML takes the last."""
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        log.add("duplicate_key", node.start_mark.line + 1, repr(name))


def _plain(value: Any) -> Any:
    """JSON values only: keys as texts, what an explicit tag made as a text. Raises `RecursionError` for what is nested
    too deeply, or is too much once its aliases are written out."""
    left = _MAX_VALUES

    def plain(inner: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _MAX_DEPTH or left < 0:
            raise RecursionError
        if isinstance(inner, dict):
            return {str(key): plain(part, depth + 1) for key, part in inner.items()}
        if isinstance(inner, list | tuple | set):
            return [plain(part, depth + 1) for part in inner]
        if inner is None or isinstance(inner, bool | int | str):
            return inner
        if isinstance(inner, float):
            return inner if inner - inner == 0 else str(inner)
        return inner.isoformat() if hasattr(inner, "isoformat") else str(inner)

    return plain(value, 0)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
