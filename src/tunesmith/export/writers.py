"""Which function writes which kind of artifact; each is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from tunesmith.export.types import Writer
from tunesmith.models.artifact import Kind

_WRITERS: Mapping[Kind, str] = {
    "adapter": "tunesmith.export.adapter.write:write_adapter",
    "merged": "tunesmith.export.merged.write:write_merged",
    "torchao": "tunesmith.export.quantise.torchao:write_torchao",
    "gptq": "tunesmith.export.quantise.gptq:write_gptq",
    "awq": "tunesmith.export.quantise.awq:write_awq",
    "fp8": "tunesmith.export.quantise.fp8:write_fp8",
    "onnx": "tunesmith.export.onnx.write:write_onnx",
    "onnx-multi": "tunesmith.export.onnx.multi:write_multi",
    "onnx-plain": "tunesmith.export.onnx_plain.write:write_plain",
    "openvino": "tunesmith.export.onnx_plain.openvino:write_openvino",
    "gguf": "tunesmith.export.gguf.write:write_gguf",
}


def writer_of(kind: Kind) -> Writer:
    """The function that writes artifacts of a kind."""
    module, _, name = _WRITERS[kind].partition(":")
    return cast(Writer, getattr(import_module(module), name))
