"""ONNX Runtime GenAI's model builder, run as a process of its own.

It is never imported: it brings a whole `torch` model and several copies of its weights into memory, which are gone with
the process, and its Python interface changes with every release while its command line hardly does. It is told not to
ask any network, and keeps its cache and temporary files in the export's scratch folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from tunesmith.errors import EngineError, ResourceError
from tunesmith.export.types import StepError
from tunesmith.models.artifact import Device

PACKAGE = "onnxruntime-genai"
EXTRA = "pip install 'tunesmith[onnx]'"
INSTEAD = "export to onnx-plain, gguf or merged: --to onnx-plain"
_PREFIXED_BEFORE = (0, 17)
"""Until this version the options of quantising were called `int4_...`, and unknown ones are ignored silently."""
_STRUCTURED_SINCE = (0, 17)
"""Since this version single layers can be given bits of their own."""
_WHOLE_MEMORY = {"windowed_kv_cache": "false"}
"""Layers with a sliding window keep all keys and values too: a row can then be rewound, and prompts longer than the
window be read in one piece, which the runtime's own windows do not allow in every model."""
_PROVIDERS: Mapping[Device, str] = {"cpu": "cpu", "cuda": "cuda", "directml": "dml"}
_NO_MEMORY = re.compile(r"\bMemoryError\b|bad_alloc|std::bad_alloc|Cannot allocate memory|can't allocate memory")
_NO_DISK = re.compile(r"No space left on device|Disk quota exceeded")
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit)|KeyError)\b:? ?(.*)$")
_TRACEBACK = "Traceback (most recent call last)"
_QUANTISING = ("matmul_nbits_quantizer", "weight_only", "to_nbits", "make_algo_config")
"""Places of the builder that a failure of quantising passes."""
_LOG = "builder.log"
_NO_CODE = {"hf_remote": "false"}
"""Code that lies in a model's folder is not run; some versions would, unless they are told."""
_SIGNAL_OF_PARENTS_DEATH = 1
"""`PR_SET_PDEATHSIG` of Linux."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are cut: options for the builder, and `name` for the manifest."""

    name: str
    options: Mapping[str, str]


SCHEMES: Mapping[str, tuple[Scheme, ...]] = {
    "int4": (
        Scheme("k_quant_mixed", {"algo_config": "k_quant_mixed"}),
        # Zero points are packed in pairs, which fails for layers of an odd number of blocks; half-sized ones are even.
        Scheme("k_quant_mixed, blocks of 16", {"algo_config": "k_quant_mixed", "block_size": "16"}),
        Scheme("round to nearest", {"algo_config": "default"}),
    ),
    "int8": (Scheme("round to nearest", {"algo_config": "default"}),),
    "fp16": (Scheme("none", {}),),
    "fp32": (Scheme("none", {}),),
}
"""What is tried for a precision, the best first: the mixed scheme keeps the layers that lose most at 8 bits."""


@dataclass(frozen=True, slots=True)
class Built:
    """What the builder made: the scheme that worked, those that did not with the reason, and the seconds of all."""

    scheme: Scheme
    failed: Mapping[str, str]
    seconds: float


class BuilderError(Exception):
    """The builder ended with an error: the exception it raised, in one line, and whether quantising raised it."""

    def __init__(self, line: str, quantising: bool) -> None:
        self.line, self.quantising = line, quantising
        super().__init__(line)


def provider_of(device: Device) -> str:
    """What the builder calls a device. Raises `StepError` for one that it has no provider for."""
    if device not in _PROVIDERS:
        raise StepError(
            "choosing the provider",
            f"the model builder of ONNX Runtime GenAI makes nothing for the device {device}",
            "--to openvino for an NPU of Intel's, or --to onnx-plain, which the tools of other makers read",
        )
    return _PROVIDERS[device]


def builder_version() -> tuple[int, ...]:
    """Of the package, as numbers. Raises `EngineError` where it is not installed."""
    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise missing() from error
    return tuple(int(part) for part in re.findall(r"\d+", found)[:3])


def missing() -> EngineError:
    """ONNX Runtime GenAI is not installed."""
    return EngineError("ONNX Runtime GenAI is not installed", where="export to onnx", fix=EXTRA)


def build(
    model: Path, out: Path, scratch: Path, precision: str, provider: str, quantising: Mapping[str, Any] | None = None
) -> Built:
    """Make an ONNX model of a `transformers` folder in `out`, by the first scheme of the precision that works.

    quantising: bits of single layers (see `mixed.plan`), which go with k-quants only.
    Raises `StepError` where the builder cannot make this model, `ResourceError` where memory or disk end.
    """
    began, failed, by_precision = monotonic(), dict[str, str](), False
    schemes = SCHEMES[precision] if not quantising else (Scheme("k_quant, bits by layer", {}),)
    for scheme in schemes:
        _clear(out)
        options = _named(scheme.options, builder_version()) if not quantising else {}
        options |= _NO_CODE
        options |= _WHOLE_MEMORY if builder_version()[:2] >= _STRUCTURED_SINCE else {}
        try:
            _run(model, out, scratch, precision, provider, options, quantising)
        except BuilderError as failure:
            failed[scheme.name], by_precision = failure.line, failure.quantising
            if not failure.quantising:
                break
            continue
        return Built(scheme, failed, monotonic() - began)
    _clear(out)
    *_, last = failed.values()
    raise StepError(
        "quantising the graph" if len(failed) == len(schemes) > 1 else "building the graph",
        f"the model builder of ONNX Runtime GenAI cannot make this model ({architecture(model)}): {last}",
        f"{INSTEAD}, or try --precision fp32" if by_precision else INSTEAD,
    )


def architecture(model: Path) -> str:
    """The class of a `transformers` folder's model, as its configuration says."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return str((config.get("architectures") or [config.get("model_type", "unknown")])[0])


def can_set_bits() -> bool:
    """Whether the installed builder lets single layers have bits of their own."""
    return builder_version()[:2] >= _STRUCTURED_SINCE


def run_apart(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> int:
    """Run a command in a group of its own, its output in a file; returns its exit status.

    Whatever ends this call ends the command too, with all processes that it started; where this process is killed, the
    kernel (Linux) ends it.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # not after the fork, where little is safe
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None, start_new_session=True,
            preexec_fn=(lambda: libc.prctl(_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL)) if libc is not None else None,
        )  # fmt: skip
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def apart_environment(scratch: Path) -> dict[str, str]:
    """The environment of such a command: offline, silent towards everybody, temporary files in `scratch`."""
    cache = scratch / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(cache),
        "TMPDIR": str(cache),
        "PYTHONSAFEPATH": "1",  # what lies in the folder where somebody works is none of its modules
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _run(
    model: Path,
    out: Path,
    scratch: Path,
    precision: str,
    provider: str,
    options: Mapping[str, str],
    quantising: Mapping[str, Any] | None,
) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder",
        "--input", str(model.resolve()), "--output", str(out.resolve()), "--precision", precision,
        "--execution_provider", provider, "--cache_dir", str((scratch / "cache" / "builder").resolve()),
    ]  # fmt: skip
    if quantising:
        path = scratch / "target_options.json"
        path.write_text(json.dumps({"quant_config": quantising}), encoding="utf-8")
        command += ["--target_options", str(path.resolve())]
    if options:
        command += ["--extra_options", *(f"{key}={value}" for key, value in options.items())]
    log = scratch / _LOG
    status = run_apart(command, log, apart_environment(scratch))
    if status == 0 and (out / "model.onnx").is_file() and (out / "genai_config.json").is_file():
        return
    text = log.read_text(encoding="utf-8", errors="replace")
    if _NO_DISK.search(text):
        raise ResourceError("the disk is full", where=str(out), fix="make room, or name another folder with --out")
    if status == -signal.SIGKILL or _NO_MEMORY.search(text):
        raise ResourceError(
            "the memory does not suffice to build the ONNX model",
            expected="about six times the size of the model's weights in float32",
            fix="close other programs, or export to gguf, which needs less",
        )
    line = failure_line(text) or f"it ended with status {status} and said nothing"
    passed = text.rpartition(_TRACEBACK)[2]
    raise BuilderError(line.replace(str(model.resolve()), "model"), any(part in passed for part in _QUANTISING))


def failure_line(text: str) -> str:
    """The exception that ended a Python program, from what it printed; its last line where none is found."""
    lines: list[str] = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    for line in reversed(lines):
        if _RAISED.match(line):
            return line[:400]
    return lines[-1][:400] if lines else ""


def _named(options: Mapping[str, str], found: tuple[int, ...]) -> dict[str, str]:
    """The options under the names that a version of the builder knows them by."""
    prefix = "int4_" if found[:2] < _PREFIXED_BEFORE else ""
    return {f"{prefix}{key}": value for key, value in options.items()}


def _clear(folder: Path) -> None:
    """Remove what a failed attempt left."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
