"""The writer of ONNX models for ONNX Runtime GenAI: one model, what was learnt merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.export.onnx import builder
from tunesmith.export.onnx.builder import Built, build, builder_version, provider_of
from tunesmith.export.onnx.dressing import dress
from tunesmith.export.onnx.graph import bits_held, halve, halve_embeddings, load_graph
from tunesmith.export.onnx.mixed import plan
from tunesmith.export.onnx.trying import try_running
from tunesmith.export.onnx.view import builder_view
from tunesmith.export.types import Source, Work
from tunesmith.inference.genai_config import runtime
from tunesmith.models.artifact import Target


def write_onnx(work: Work) -> Mapping[str, Any]:
    """Write the tuned model for ONNX Runtime GenAI; see `export.types.Writer`.

    Its facts say how weights were cut and what was tried before (`quantising`, `failed`), the real bits per weight and
    the seconds the builder took. Raises `StepError` where the builder cannot make the model, or what it made cannot
    run.
    """
    provider_of(work.target.device)  # before the merge, which may take long
    builder_version()
    work.tell("merging what was learnt into the base")
    return write_graph(work.source, work.source.merged(work.scratch), work)


def write_graph(source: Source, model: Path, work: Work) -> dict[str, Any]:
    """Make the graph of a `transformers` folder in `work.staged`, with all that lies beside it; returns the facts.

    `source` says how the model is asked.
    """
    target = work.target
    work.tell(f"building the ONNX model in {target.precision}: {builder.architecture(model)}")
    made = _built(model, work)
    dress(source, model, work.staged)
    work.tell("running it on a few tokens")
    instead = builder.INSTEAD if target.precision == "fp32" else f"{builder.INSTEAD}, or try --precision fp32"
    try_running(work.staged, work.scratch, instead)
    absent = never_run_on(target)
    held = bits_held(load_graph(work.staged), parameters(model))
    return {
        "builder": f"{builder.PACKAGE} {'.'.join(map(str, builder_version()))}",
        "provider": provider_of(target.device),
        "quantising": made.scheme.name,
        "bits_per_weight": held.per_weight,
        "matrices_by_bits": {str(bits): count for bits, count in held.matrices.items()},
        "builder_seconds": round(made.seconds, 1),
        **({"failed": dict(made.failed)} if made.failed else {}),
        **({"computes_in": "fp32"} if _halved(target) else {}),
        **({"unverified": f"it was run on a CPU here, never on {absent}"} if absent else {}),
    }


def never_run_on(target: Target) -> str | None:
    """The device that an export was made for, where this machine cannot run it there: the CPU then stands in."""
    og = runtime()
    here = {"cpu": lambda: True, "cuda": og.is_cuda_available, "directml": og.is_dml_available}
    return None if here[target.device]() else target.device


def parameters(model: Path) -> int:
    """Values in the weight files of a `transformers` folder; tied ones are there once."""
    from tunesmith.export.merged.tensors import stored_tensors, weight_files

    count = 0
    for path in weight_files(model):
        for one in stored_tensors(path).values():
            values = 1
            for size in one.shape:
                values *= size
            count += values
    return count


def _built(model: Path, work: Work) -> Built:
    target = work.target
    precision = "fp32" if _halved(target) else target.precision
    provider = provider_of(target.device)
    wanted = plan(work.bits, precision, model) if work.bits else None
    made = build(builder_view(model, work.scratch), work.staged, work.scratch, precision, provider, wanted)
    if _halved(target):
        halve(work.staged)
    elif target.precision in ("int4", "int8"):
        halve_embeddings(work.staged)
    return made


def _halved(target: Target) -> bool:
    """Whether float16 is only how weights are held: GenAI's attention on a CPU reads no further text in float16."""
    return target.device == "cpu" and target.precision == "fp16"
