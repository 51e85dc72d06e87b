"""YAML as people mean it: `yes` is a word, `2e-4` is a number, a key given twice is a mistake.

PyYAML follows YAML 1.1, where `labels: [yes, no]` are booleans, `12:30` is a number in base 60 and `2e-4` is text.
Recipes are read by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) and written so that both
readings agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_WIDTH = 110

_CORE = (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """Safe loading by the core schema; duplicate keys are refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way of declaring a schema

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                problem = f"the key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        # The inherited constructor reads a leading zero as octal.
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Safe dumping; quotes text that either version of YAML would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as above
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        lines = text.removesuffix("\n").split("\n")
        if "\n" not in text and text.isprintable():
            style = None
        elif lines[0] and lines[-1] and all(line.isprintable() and line == line.strip() for line in lines):
            style = "|"  # several plain lines stand as a block, as a person would write them
        else:
            style = '"'  # with escapes: PyYAML would fold U+0085 and U+2028 away
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def load_yaml(text: str) -> Any:
    """The value in a YAML text. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only


def dump_yaml(data: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """A nested mapping as YAML in its own order; `comments` by dotted key stand above their key."""
    return "\n".join(_lines(data, comments or {}, "", 0)) + "\n"


def _lines(data: Mapping[str, Any], comments: Mapping[str, str], prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, value in data.items():
        dotted = f"{prefix}{key}"
        for comment in comments.get(dotted, "").splitlines():
            yield f"{indent}# {comment}".rstrip()
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{dotted}.", depth + 1)
        else:
            yield from (f"{indent}{line}" for line in _leaf(key, value))


def _leaf(key: str, value: Any) -> list[str]:
    """One `key: value`, lists on one line where they fit."""
    if isinstance(value, list):
        flow = _dump(value, flow=True)
        if len(flow) == 1 and len(key) + len(flow[0]) < _WIDTH:
            return [f"{key}: {flow[0]}"]
    return _dump({key: value}, flow=False)


def _dump(value: Any, *, flow: bool) -> list[str]:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=10**6)
    # Only "\n" ends a line here: str.splitlines would also cut at characters that YAML keeps inside quotes.
    return text.removesuffix("\n").split("\n")
