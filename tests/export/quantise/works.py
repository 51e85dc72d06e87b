"""A writer's work on a whole model's folder, for the tests of quantised exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests import tiny
from tunesmith.export.types import Work
from tunesmith.export.writers import writer_of
from tunesmith.models.artifact import Artifact, Kind, Target

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


@dataclass(frozen=True)
class Whole:
    """Stands for a source whose tuned model is a whole folder: what a quantising writer asks of one."""

    folder: Path

    def merged(self, scratch: Path) -> Path:
        return self.folder


def base(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """A small model of a family in a folder, with a tokenizer and a chat template."""
    tiny.build(family).to(dtype).save_pretrained(folder)
    tokenizer = tiny.byte_tokenizer(TEMPLATE)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int = 24, seed: int = 0) -> list[list[int]]:
    """Token ids of calibration rows."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 256, int(rng.integers(6, 40))).tolist() for _ in range(count)]


def write(
    source: Any,
    staged: Path,
    kind: Kind,
    precision: str,
    calibration: Sequence[Sequence[int]] = (),
    bits: Mapping[str, int] | None = None,
    mixed: float | None = None,
) -> SimpleNamespace:
    """Have a kind's writer fill `staged`; the artifact it makes, its facts, and what was told."""
    staged.mkdir(parents=True, exist_ok=True)
    told: list[str] = []
    target = Target(kind, precision)
    work = Work(source, target, staged, staged.parent / "scratch", told.append, calibration, bits or {}, mixed=mixed)
    facts = writer_of(kind)(work)
    artifact = Artifact(staged, target, {}, 0, "base", "", "auto", None, (256,), 512, facts=facts)
    return SimpleNamespace(artifact=artifact, facts=facts, told=told)
