"""k-quants, made of a written file by a llama.cpp that is installed: llama-cpp-python, or `llama-quantize` on the PATH.

Neither is ever downloaded. It runs in a process of its own, so that what it prints and how it ends stay there. Rows
that do not fill blocks of 256 get another type, about which llama.cpp only writes a line to its log: the bits per
weight that are reported are counted in the finished file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Type

from tunesmith.export.gguf.precision import bits_per_weight, counted
from tunesmith.export.types import StepError
from tunesmith.inference.gguf_file import GgufFile

_BLOCK = 256
_INSTEAD = "use --precision q8_0 or q4_0, which need no llama.cpp; or pip install llama-cpp-python"
_CHILD = """
import sys, llama_cpp
source, path, kind = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.allow_requantize = int(kind), False
sys.exit(llama_cpp.llama_model_quantize(source.encode(), path.encode(), options))
"""


@dataclass(frozen=True, slots=True)
class KQuant:
    """A mix of k-quants: its number and its name in llama.cpp."""

    file_type: int
    name: str

    def source(self, config: Any) -> str:
        """The precision that loses nothing of a model's own, to quantise from."""
        own = str(getattr(config, "dtype", None)).removeprefix("torch.")
        return {"bfloat16": "bf16", "float16": "f16"}.get(own, "f32")


KQUANTS: Mapping[str, KQuant] = {
    "q4_k_m": KQuant(int(gguf.LlamaFileType.MOSTLY_Q4_K_M), "Q4_K_M"),
    "q5_k_m": KQuant(int(gguf.LlamaFileType.MOSTLY_Q5_K_M), "Q5_K_M"),
    "q6_k": KQuant(int(gguf.LlamaFileType.MOSTLY_Q6_K), "Q6_K"),
}


def quantise_file(source: Path, path: Path, precision: str) -> dict[str, Any]:
    """Make of an unquantised file a quantised one; returns what is worth knowing of it.

    Raises `StepError` where no llama.cpp is here, or it fails.
    """
    kind, tool = KQUANTS[precision], require_quantiser(precision)
    if tool == "llama-cpp-python":
        command = [sys.executable, "-c", _CHILD, str(source), str(path), str(kind.file_type)]
    else:
        command = [tool, str(source), str(path), kind.name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not path.is_file():
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = said[-1] if said else f"it ended with code {done.returncode}"
        raise StepError(f"quantising to {precision}", f"llama.cpp failed: {last}", _INSTEAD)
    return _facts(path, "llama-quantize" if tool != "llama-cpp-python" else tool)


def require_quantiser(precision: str) -> str:
    """What makes k-quants here: "llama-cpp-python", or the path of `llama-quantize`. Raises `StepError` for neither."""
    if find_spec("llama_cpp") is not None:
        return "llama-cpp-python"
    if (tool := shutil.which("llama-quantize")) is None:
        raise StepError(
            f"quantising to {precision}", "neither llama-cpp-python nor llama-quantize is installed", _INSTEAD
        )
    return tool


def _facts(path: Path, tool: str) -> dict[str, Any]:
    tensors = [(one.shape, Type(one.type)) for one in GgufFile(path).tensors.values()]
    matrices = [shape for shape, kind in tensors if len(shape) > 1 and kind is not Type.F32]
    fallback = [shape for shape in matrices if shape[-1] % _BLOCK]
    said = (
        f"{len(fallback)} of {len(matrices)} matrices have rows that do not fill blocks of {_BLOCK} "
        "and got a larger type"
    )
    return {
        "bits_per_weight": round(bits_per_weight(tensors), 3),
        "tensor_types": counted(kind for _, kind in tensors),
        "fallback_tensors": len(fallback),
        "quantised_by": tool,
        "notes": [said] if fallback else [],
    }
