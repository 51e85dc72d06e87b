"""Which servers take a saved adapter, as facts and in words for its card."""

from __future__ import annotations

from typing import Any

from tunesmith.export.types import Source
from tunesmith.models.adapter import CONFIG, read_adapter
from tunesmith.models.servable import SERVER_NAMES, Servability, servable_file


def servers_of(source: Source) -> tuple[Servability, ...]:
    """What each known server makes of the adapter as it lies in its folder. Raises `EngineError` for a damaged one."""
    config, tensors = read_adapter(source.tuned)
    return servable_file(config, list(tensors), source.config)


def serving_facts(servers: tuple[Servability, ...]) -> dict[str, Any]:
    """As JSON values, by server."""
    return {
        one.server: {
            "ok": one.ok,
            "note": one.note if one.ok else "",
            "obstacles": [{"where": o.where, "reason": o.reason, "fix": o.fix} for o in one.obstacles],
        }
        for one in servers
    }


def serving_words(servers: tuple[Servability, ...]) -> str:
    """A section of a card."""
    lines = ["## Serving", "", f"By what `{CONFIG}` and the tensors' names say:", ""]
    for one in servers:
        name = SERVER_NAMES[one.server]
        if one.ok:
            lines.append(f"- {name}: yes" + (f"; {one.note}" if one.note else ""))
        else:
            fixes = "; ".join(dict.fromkeys(o.fix for o in one.obstacles))
            lines.append(f"- {name}: no: {'; '.join(one.reasons)}. To do: {fixes}")
    return "\n".join([*lines, ""])
