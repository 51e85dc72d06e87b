"""What a bundle is made for, and what its card tells of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import RecipeError
from tunesmith.models.artifact import Artifact, Kind

Server = Literal["vllm", "llama.cpp", "ollama", "tunesmith"]

SERVERS: Mapping[Kind, tuple[Server, ...]] = {
    "adapter": ("vllm",),
    "merged": ("vllm", "tunesmith"),
    "gptq": ("vllm",),
    "awq": ("vllm",),
    "fp8": ("vllm",),
    "onnx": ("tunesmith",),
    "onnx-multi": ("tunesmith",),
    "gguf": ("llama.cpp", "ollama"),
}
"""Which servers take which kind of export, the usual one first. Kinds that are not here are opened by programs."""


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the card's table: a candidate's metric as fractions 0-1, with its interval."""

    candidate: str
    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a model beside its files, for the card and the SBOM; a model without a run has little of it.

    Attributes
    ----------
    name: what clients call the model.
    purpose: the use case, in the words of whoever asked for it.
    licence: of the base, by name, and what it asks for; `licence_id` as model cards write it, None where unknown.
    data: SHA-256 of every source file by its part; rows by split.
    method: how it was tuned, in words.
    verdict: its line; `metric` and `scores` the comparison behind it, the model itself being `subject`, with intervals
        of this `confidence`.
    checks: of the export: name, outcome, and what was measured.
    limits: sentences.
    """

    name: str
    purpose: str | None = None
    licence: str = "not found"
    licence_id: str | None = None
    licence_terms: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    method: str | None = None
    verdict: str | None = None
    metric: str | None = None
    scores: Sequence[Score] = ()
    subject: str = "tuned"
    confidence: float = 0.95
    checks: Sequence[tuple[str, str, str]] = ()
    limits: Sequence[str] = ()
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundled:
    """A finished bundle: where it is, for which server, and the line that starts it."""

    folder: Path
    server: Server
    start: str
    bytes: int


def server_for(artifact: Artifact, wanted: str | None) -> Server:
    """The server a bundle is made for. Raises `RecipeError` where it cannot serve this kind, saying what can."""
    kind = artifact.target.kind
    able = SERVERS.get(kind, ())
    if not able:
        raise RecipeError(
            f"no server that is known here takes {kind} exports; they are opened by programs",
            where=str(artifact.folder),
            expected=f"an export of kind {', '.join(SERVERS)}",
            fix=f"tunesmith export RUN --to {'onnx' if kind in ('onnx-plain', 'openvino') else 'merged'}",
        )
    if wanted is None:
        return able[0]
    if wanted not in able:
        raise RecipeError(
            f"{wanted} cannot serve {kind} exports",
            where="--for",
            expected=" or ".join(able),
            fix=_instead(wanted),
        )
    return next(server for server in able if server == wanted)


def _instead(server: str) -> str | None:
    kinds = [kind for kind, servers in SERVERS.items() if server in servers]
    if not kinds:
        return f"known servers are {', '.join(get_args(Server))}"
    return f"export for it: tunesmith export RUN --to {kinds[0]}"
