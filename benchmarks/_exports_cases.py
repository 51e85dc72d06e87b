"""One export tried: made, verified, opened by others, and what came of it as JSON values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.pipeline.exporting.others import Reading, asked_ids, divergence, read_by_others

from tunesmith.errors import EngineError, VerificationError
from tunesmith.export.source import FolderSource
from tunesmith.export.types import StepError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.pipeline.exporting.types import Exported

CLOSE = 2e-3
"""Mean KL in nats between two programs that read the same file: llama.cpp rounds what it multiplies to 8 bits."""
_KEPT_FACTS = ("speed", "base_bytes", "bits_per_weight", "quantising", "method")


def attempt(make: Callable[[], Exported], sources: Mapping[str, FolderSource]) -> dict[str, Any]:
    """Make an export, have it verified, and opened by others. `sources`: by the adapters' names; "" for one model.

    The record's `outcome`: verified; failed (a check did); step (this model cannot have the format); not here (what
    makes or runs it is not installed). Raises what has another reason, such as a full
    disk.
    """
    began = time.monotonic()
    try:
        exported = make()
    except StepError as error:
        return {"outcome": "step", "step": error.step, "reason": error.reason, "instead": error.instead}
    except VerificationError as error:
        return {"outcome": "failed", "reason": error.what}
    except EngineError as error:
        return {"outcome": "not here", "reason": error.what}
    seconds = time.monotonic() - began
    facts = exported.artifact.facts
    return {
        "outcome": "verified",
        "bytes": exported.artifact.bytes,
        "facts": {key: facts[key] for key in _KEPT_FACTS if key in facts},
        "verifications": [one.to_dict() for one in exported.verifications],
        "others": [one for name, source in sources.items() for one in by_others(exported, name or None, source)],
        "seconds": round(seconds, 1),
    }


def by_others(exported: Exported, adapter: str | None, source: FolderSource) -> list[dict[str, Any]]:
    """What every independent program makes of an export.

    same_tokens: for a conversation it asks with the tokens that the tuned model is asked with. kl: of its next token
    from that of the verified engine, on the tokens it asks with. right: both are as they must be.
    """
    artifact = exported.artifact
    engine = open_artifact(artifact, adapter)
    expected = asked_ids(source.renderer)
    found: list[dict[str, Any]] = []
    for one in read_by_others(artifact.target.kind, exported.path, source.base_folder, adapter):
        if isinstance(one, Reading):
            same, kl = one.ids == expected, divergence(engine.logits(one.ids), one.logits)
            found.append({"tool": one.tool, "same_tokens": same, "kl": kl, "right": same and kl <= CLOSE})
        else:
            found.append({"said": one})
    return found
