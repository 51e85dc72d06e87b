"""Rows of YAML: a list of them, or a config of promptfoo with its list of tests, each with the line it begins on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Row
from tunesmith.errors import DataError

_MAX_DEPTH = 64
_MAX_VALUES = 100_000
"""Values in one row, aliases written out."""
_TESTS, _SHARED = "tests", "defaultTest"
CONFIG = "prompts"
"""Where a row of a config has the config's prompts."""


def read_yaml(text: str, log: FindingLog) -> Iterator[Row]:
    """Rows of a YAML document. Of a config, what its `defaultTest` says is in every row, and its prompts are beside.

    Elements that are no mappings are left out and noted. Raises `DataError` for a text that is no YAML, and for one
    without a list of rows.
    """
    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        found, config = _list_of(loader, document, log.source)
        for node in found.value:
            line = node.start_mark.line + 1
            value = _plain(loader.construct_object(node, deep=True))
            if not isinstance(value, dict):
                log.leave_out("row_not_object", line, f"found {_shown(value)}")
                continue
            _note_twice(node, log)
            yield Row(_with(config, value), line, log.source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{log.source}, line {mark.line + 1}" if mark is not None else log.source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"this is not YAML: {problem}", where=where, expected="a list of rows") from error
    except RecursionError as error:
        raise DataError("this YAML is nested too deeply, or too large a row", where=log.source) from error
    finally:
        loader.dispose()


def _list_of(loader: yaml.SafeLoader, document: Any, where: str) -> tuple[yaml.SequenceNode, Mapping[str, Any]]:
    """The node with the rows, and the rest of a config around it."""
    if isinstance(document, yaml.SequenceNode):
        return document, {}
    if isinstance(document, yaml.MappingNode):
        parts = {key.value: node for key, node in document.value if isinstance(key, yaml.ScalarNode)}
        tests = parts.get(_TESTS)
        if isinstance(tests, yaml.SequenceNode):
            kept = {name: parts[name] for name in (CONFIG, _SHARED) if name in parts}
            return tests, {name: _plain(loader.construct_object(node, deep=True)) for name, node in kept.items()}
        if isinstance(tests, yaml.ScalarNode):
            raise DataError(
                f"the tests of this config are in {str(tests.value).removeprefix('file://')}",
                where=where,
                fix="name that file; where its tests have several variables, set data.template",
            )
    raise DataError("there is no list of rows", where=where, expected="a list of mappings, or tests: with such a list")


def _with(config: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A test with what all tests of its config share; its own variables go before shared ones."""
    shared = config.get(_SHARED)
    made = dict(row)
    if isinstance(shared, dict):
        if isinstance(shared.get("vars"), dict) and isinstance(row.get("vars", {}), dict):
            made["vars"] = {**shared["vars"], **row.get("vars", {})}
        if isinstance(shared.get("assert"), list) and isinstance(row.get("assert", []), list):
            made["assert"] = [*row.get("assert", []), *shared["assert"]]
    if CONFIG in config:
        made.setdefault(CONFIG, config[CONFIG])
    return made


def _note_twice(node: Any, log: FindingLog) -> None:
    """Keys given twice, of which YAML takes the last."""
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        log.add("duplicate_key", node.start_mark.line + 1, repr(name))


def _plain(value: Any) -> Any:
    """JSON values only: keys as texts, dates as they are written. Raises `RecursionError` for what is nested too
    deeply, or is too much once its aliases are written out."""
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
