"""What one optimiser step on a CPU is made of: matrix products, attention, pointwise work, optimiser, and the rest.

    python benchmarks/step_profile.py                 # 8M and 135M, LoRA and full; some five minutes on two idle cores
    python benchmarks/step_profile.py --shapes 8M --steps 5

Two forms of our engine, each in a process of its own, on the rows of `train_speed.py`: `fused`, as a user gets it, and
`plain`, the model's own layers with adapters in their linear ones and torch in place of the C functions, as it was
before fused layers. Streams, matrix library and optimiser are the same. First the steps are timed as they are; then as
many are run under `torch.profiler`.

How time is divided: the profiler gives each operation's own time, without that of operations it calls. The C
functions, which it does not see, are wrapped in a named range each, and so are the norm, the update and the reset of
gradients; what is inside these three is `optimiser`. All other operations are told by their names (`kind_of`). What no
operation accounts for (Python, autograd's bookkeeping, the profiler itself) is `other`. Writes JSON and
`step_profile.md`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _train_speed_job import Job, Setting
from _training_work import SHAPES, make_rows, needed_flops, order_of, save_model

HERE = Path(__file__).resolve().parent
WARMUP = 3
KINDS = ("matrix products", "attention", "pointwise", "optimiser", "other")
FORMS = ("fused", "plain")
_OPTIMISER = "step: "
_NATIVE = "C: "
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::_addmm_activation", "mkldnn::", "aten::mkldnn")
_ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::scaled_dot_product", f"{_NATIVE}attend")
"""Beginnings of names. Batched products occur in attention only (and, tiny, in rotary positions)."""


def kind_of(name: str) -> str:
    """What an operation outside the optimiser is: a product, attention, or pointwise (all else that is one)."""
    if name.startswith(_PRODUCTS):
        return "matrix products"
    if name.startswith(_ATTENTION):
        return "attention"
    return "pointwise" if name.startswith(("aten::", _NATIVE)) else "other"


@dataclass(frozen=True)
class Operation:
    """One call: its own microseconds, its name, and the names of the calls it was part of, innermost first."""

    name: str
    microseconds: float
    within: tuple[str, ...] = ()


def divide(operations: Iterable[Operation], wall_microseconds: float) -> dict[str, float]:
    """Microseconds by kind; they sum up to the wall time, unless operations ran beside each other for longer."""
    spent = dict.fromkeys(KINDS, 0.0)
    for operation in operations:
        names = (operation.name, *operation.within)
        kind = "optimiser" if any(n.startswith(_OPTIMISER) for n in names) else kind_of(operation.name)
        spent[kind] += operation.microseconds
    known = sum(time for kind, time in spent.items() if kind != "other")
    spent["other"] = max(0.0, wall_microseconds - known)
    return spent


def measure(job: Job, form: str) -> dict[str, Any]:
    """Time and profile the steps of one form. Runs in the child."""
    import _train_speed_ours as side
    from tunesmith.models.forward import LanguageModel
    from tunesmith.models.fused_layers import use_fused_layers
    from tunesmith.models.lora import trainable_parameters
    from tunesmith.pipeline.training import training_plan
    from tunesmith.training.objectives import cross_entropy
    from tunesmith.training.optimizers import make_optimizer
    from tunesmith.training.resources import keep_freed_memory
    from tunesmith.training.step import Stepper

    loaded = side.load(job)
    rows = make_rows(job.kind, job.rows, side.vocabulary(loaded), job.seed)
    training = side.training_job(loaded, rows)
    side.tune(loaded, job)
    model, plan = LanguageModel(training.base.model), training_plan(training)
    fused = use_fused_layers(training.base.model) if form == "fused" else ()
    optimizer = make_optimizer(trainable_parameters(training.base.model), plan)
    stepper = Stepper(model, optimizer, plan, cross_entropy, lambda event: None)
    keep_freed_memory()
    order = order_of(job.rows, job.rows_per_step, job.steps, job.seed)
    timed = (job.steps - WARMUP) // 2

    def step(number: int) -> None:
        stepper.step([training.rows[i] for i in order[number]], number)

    for number in range(WARMUP):
        step(number)
    seconds = []
    for number in range(WARMUP, WARMUP + timed):
        began = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - began)
    _name_c_functions()
    _name_optimiser(optimizer)
    operations, profiled = _profiled(step, range(WARMUP + timed, WARMUP + 2 * timed))
    learnt = [[rows[i] for i in step] for step in order[WARMUP : WARMUP + timed]]
    return {
        "fused_layers": len(fused),
        "seconds": seconds,
        "profiled_seconds": profiled / timed,
        "microseconds": {k: v / timed for k, v in divide(operations, profiled * 1e6).items()},
        "most": _most(operations, timed),
        "needed_flops": [needed_flops(_shape(job), step, job.method) for step in learnt],
    }


def _profiled(step: Callable[[int], None], numbers: range) -> tuple[list[Operation], float]:
    """What steps call, and the seconds they take together."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for number in numbers:
            step(number)
        seconds = time.perf_counter() - began
    return [_operation(event) for event in profiler.events()], seconds


def _shape(job: Job) -> Any:
    return SHAPES[Path(job.model).name]


def _operation(event: Any) -> Operation:
    within, parent = [], event.cpu_parent
    while parent is not None:
        within.append(parent.name)
        parent = parent.cpu_parent
    return Operation(event.name, event.self_cpu_time_total, tuple(within))


def _most(operations: Sequence[Operation], steps: int) -> list[tuple[str, float]]:
    """The 15 names that take longest, and their milliseconds per step."""
    spent: dict[str, float] = {}
    for operation in operations:
        spent[operation.name] = spent.get(operation.name, 0.0) + operation.microseconds / 1000 / steps
    return sorted(spent.items(), key=lambda item: -item[1])[:15]


def _name_c_functions() -> None:
    """Have the profiler see each C function as a range of its own."""
    from tunesmith.ops import pointwise_native

    library = pointwise_native.library()
    for name in pointwise_native._SIGNATURES if library is not None else ():
        setattr(library, name, _named(_NATIVE + name, getattr(library, name)))


def _name_optimiser(optimizer: Any) -> None:
    for name in ("clip", "step", "zero_grad"):
        setattr(optimizer, name, _named(_OPTIMISER + name, getattr(optimizer, name)))


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @functools.wraps(function, assigned=())
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(name):
            return function(*args, **kwargs)

    return call


def run(job: Job, form: str, threads: int) -> dict[str, Any]:
    """One form in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment["TUNESMITH_NATIVE"] = "1" if form == "fused" else "0"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", form, json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{form} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {form:6} {1000 * statistics.median(result['seconds']):8.0f} ms", file=sys.stderr, flush=True)
    return result


def ceiling(threads: int) -> float:
    """Floating-point operations per second of the machine's fastest matrix product."""
    command = [sys.executable, str(HERE / "_gemm_ceiling.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["best"])


def line(result: Mapping[str, Any], best: float) -> dict[str, Any]:
    """What is published of a form. `best`: operations per second of the ceiling.

    `needed` is arithmetic that cannot be avoided: it over the whole step is the step's share of the ceiling, and over
    the time in products and attention that of the matrix work alone.
    """
    spent = result["microseconds"]
    whole = sum(spent.values())
    rate = sum(result["needed_flops"]) / sum(result["seconds"])
    matrix = (spent["matrix products"] + spent["attention"]) / whole
    return {
        "step_ms": 1000 * statistics.median(result["seconds"]),
        "profiled_step_ms": 1000 * result["profiled_seconds"],
        "shares": {kind: spent[kind] / whole for kind in KINDS},
        "matrix_share": matrix,
        "ceiling_share": rate / best,
        "matrix_work_ceiling_share": rate / matrix / best,
        "fused_layers": result["fused_layers"],
        "most": result["most"],
    }


def page(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# What one training step on a CPU is made of",
        "",
        "Written by `python benchmarks/step_profile.py`; do not edit. How it is measured stands at the top of it.",
        "",
        f"{report['threads']} threads, fp32, eight ragged chat rows (about 975 tokens) per step; load before the run "
        f"{report['load_before']}; {report['date']}. The ceiling is the machine's fastest matrix product, "
        f"{report['ceiling'] / 1e9:.0f} GFLOP/s. `plain` is the engine without its fused layers and C functions.",
        "",
        f"| shape | method | form | step | {' | '.join(KINDS)} | matrix work | of the ceiling | matrix work alone |",
        "|---" * (7 + len(KINDS)) + "|",
    ]
    for one in report["profiles"]:
        for form in FORMS[::-1]:
            e = one[form]
            shares = " | ".join(f"{e['shares'][kind]:.0%}" for kind in KINDS)
            lines.append(
                f"| {one['shape']} | {one['method']} | {form} | {e['step_ms']:,.0f} ms | {shares} "
                f"| **{e['matrix_share']:.0%}** | {e['ceiling_share']:.0%} | {e['matrix_work_ceiling_share']:.0%} |"
            )
    for one in report["profiles"]:
        names = ", ".join(f"`{name}` {ms:.1f} ms" for name, ms in one["fused"]["most"][:8])
        lines += ["", f"{one['shape']}, {one['method']}, fused, longest: {names}."]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated: " + ", ".join(SHAPES))
    parser.add_argument("--methods", default="lora,full", help="comma-separated: lora, full")
    parser.add_argument("--rows", type=int, default=8, help="rows per optimiser step")
    parser.add_argument("--steps", type=int, help="steps timed, and as many profiled (default: 12 of 8M, 4 of 135M)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    date = datetime.date.today().isoformat()
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"step_profile-{date}.json")
    parser.add_argument("--table", type=Path, help="markdown (default, where all is measured: step_profile.md)")
    options = parser.parse_args(arguments)
    whole = all(getattr(options, name) == parser.get_default(name) for name in ("shapes", "methods"))
    for wanted, known in ((options.shapes, SHAPES), (options.methods, ("lora", "full"))):
        unknown = set(wanted.split(",")) - set(known)
        if unknown:
            parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if whole and options.table is None:
        options.table = HERE / "step_profile.md"
    return options


def main() -> None:
    """Measure both forms of each case and publish; or, as a child, measure one."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(Job.from_json(sys.argv[3]), sys.argv[2])))
        return
    options = parse()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "threads": options.threads,
        "load_before": round(os.getloadavg()[0], 2),
        "profiles": [],
    }
    results = []
    ceilings = [ceiling(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shapes.split(","):
            model = save_model(SHAPES[name], Path(folder) / name)
            steps = WARMUP + 2 * (options.steps or {"8M": 12, "135M": 4}[name])
            for method in options.methods.split(","):
                print(f"{name}, {method}", file=sys.stderr)
                job = Job(
                    setting=Setting("tunesmith", "defaults"),
                    model=str(model),
                    method=method,
                    kind="chat",
                    rows=options.rows * steps,
                    rows_per_step=options.rows,
                    steps=steps,
                    learning_rate=1e-4,
                )
                results.append((name, method, {form: run(job, form, options.threads) for form in FORMS}))
                ceilings.append(ceiling(options.threads))
    report["ceiling"] = best = max(ceilings)
    for name, method, forms in results:
        lines = {form: line(result, best) for form, result in forms.items()}
        report["profiles"].append({"shape": name, "method": method, **lines, "raw": forms})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = page(report)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
