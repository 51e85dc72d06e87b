"""The nouns of exporting: the tuned model as writers get it, one writer's work, and what stops one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import EngineError
from tunesmith.models.artifact import Target


class StepError(EngineError):
    """A format that this model cannot have: the step that failed, why, and what works instead."""

    def __init__(self, step: str, reason: str, instead: str, *, where: str | None = None) -> None:
        self.step, self.reason, self.instead = step, reason, instead
        super().__init__(f"{step}: {reason}", where=where, fix=instead)


class Source(Protocol):
    """A tuned model on its way out (`export.source.open_source`): what it was tuned on, how, and how it is asked."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def recipe(self) -> Any:
        """The run's resolved `Recipe`."""
        ...

    @property
    def tuned(self) -> Path:
        """The adapter's folder, or the whole tuned model's."""
        ...

    @property
    def is_adapter(self) -> bool: ...

    @property
    def base_folder(self) -> Path:
        """Where the base's files lie; a hub's base lies in its cache. Raises `RecipeError` where it is not there."""
        ...

    @property
    def base_sha256(self) -> str: ...

    @property
    def template(self) -> str | None:
        """The chat template's Jinja text; None where nothing is asked by one."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def context(self) -> int: ...

    @property
    def config(self) -> Any:
        """The base's `transformers` configuration, with the vocabulary's size after tokens were added."""
        ...

    def open(self) -> tuple[Any, Any]:
        """A fresh `LoadedBase` that is the tuned model, and its `Tuning`."""
        ...

    def merged(self, scratch: Path) -> Path:
        """A plain `transformers` folder of the tuned model with tokenizer, template and generation settings, in the
        dtype that the run computes in; written into `scratch` once, and the same folder when asked again."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """What one writer is to do.

    Attributes
    ----------
    staged: an empty folder to fill; it gets its name, and its manifest, from the caller.
    scratch: a folder for large intermediate files, removed afterwards.
    tell: one line of progress for a person.
    calibration: token ids of training rows, rendered as they were learnt; empty where a kind needs none.
    bits: bits per weight that a plan of mixed precision gives to modules by their path in the model; others get the
        target's precision.
    sources: of an artifact that holds several adapters, each one's source by the name it gets there, `source` being
        the first; empty where the artifact is one model.
    mixed: mean KL in nats per token within which the writer is to plan `bits` itself; None for no plan of its own.
    """

    source: Source
    target: Target
    staged: Path
    scratch: Path
    tell: Callable[[str], None]
    calibration: Sequence[Sequence[int]] = ()
    bits: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    mixed: float | None = None


class Writer(Protocol):
    """Writes one kind of artifact into `work.staged` and returns facts worth keeping in its manifest.

    Raises `StepError` where this model cannot have this format, `ResourceError` where memory or disk end.
    """

    def __call__(self, work: Work) -> Mapping[str, Any]: ...
