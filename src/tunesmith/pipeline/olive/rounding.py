"""Weights rounded to the nearest (`rtn`): in which kind of file they are kept."""

from __future__ import annotations

from importlib.util import find_spec

from tunesmith.models.artifact import Device, Kind
from tunesmith.pipeline.olive.draft import Draft


def rounded_kind(said: str, precision: str, device: Device, draft: Draft) -> Kind:
    """torchao's files where torchao can write them here, else GPTQ's, which need no library; a note says which.

    torchao has no layout of 4 bits for CPUs.
    """
    if find_spec("torchao") is None:
        why = "torchao is not installed (pip install 'tunesmith[quantise]')"
    elif precision == "int4" and device != "cuda":
        why = "torchao has no 4 bits for CPUs"
    else:
        return "torchao"
    draft.note(said, f"{why}: the weights are kept in GPTQ's format, fitted to training rows where a run has some")
    return "gptq"
