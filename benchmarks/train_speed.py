"""Training speed and memory: Tunesmith's engine against TRL's SFTTrainer with PEFT, on the same work.

    python benchmarks/train_speed.py                  # both shapes, about a quarter of an hour on two idle cores
    python benchmarks/train_speed.py --shapes 8M --method full
    python benchmarks/train_speed.py --quick          # do both run, and do they learn the same? A minute; no speed

Both sides get the same weights (random, of true shapes), the same tokenised rows in the same order, the same initial
adapter, the same AdamW, and learn exactly the same tokens. Every measurement is a process of its own. First every
setting of the peer runs once; then its fastest exact one runs against ours, in turns, and the medians are compared.
A speed counts only beside what was computed: loss and gradient norm of every step of both sides are compared.
`README.md` says what is measured and how to read it. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from train_speed_job import Job, Setting, Shape, make_rows, save_model

HERE = Path(__file__).resolve().parent
WARMUP = 3
"""Optimiser steps whose time is left out, on both sides."""
PARITY = 1e-3
"""Largest relative difference of a loss or gradient norm that still counts as the same computation (fp32)."""


@dataclass(frozen=True)
class Case:
    """A shape, and how much of it two cores measure in a few minutes.

    `rows`: rows per optimiser step; `steps` of a round and `sweep_steps` of a setting's single run; `wide`: every
    setting of the peer is run, not only those that are likely to win.
    """

    shape: Shape
    rows: tuple[int, ...]
    steps: int
    sweep_steps: int
    wide: bool


CASES = {
    "8M": Case(Shape("8M", 8_192, 256, 8, 8, 4, 704), rows=(8, 16), steps=18, sweep_steps=9, wide=True),
    # SmolLM2-135M's shape
    "135M": Case(Shape("135M", 49_152, 576, 30, 9, 3, 1_536), rows=(8,), steps=6, sweep_steps=5, wide=False),
}


OURS = Setting("tunesmith", "defaults")


def our_settings() -> list[Setting]:
    """Ours as a user gets it, and with less computed at once: memory against speed."""
    return [OURS, *(Setting("tunesmith", f"{tokens} tokens at once", tokens) for tokens in (256, 512, 1024))]


def peer_settings(rows: int, wide: bool) -> list[Setting]:
    """What SFTTrainer can do on a CPU without changing the result, and what is worth knowing beside it.

    Its head and loss are the same for every `loss_type` that is exact; packing needs flash attention to be exact.
    """
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= rows and (wide or size in (1, 2, rows))]
    settings = [Setting("trl", f"{size} x {rows // size}", size, candidate=True) for size in sizes]
    settings.append(Setting("trl", f"{rows} x 1, checkpointing", rows, candidate=True, checkpointing=True))
    settings.append(Setting("transformers", f"1 x {rows}", 1))
    if wide:
        settings.append(Setting("transformers", f"{rows} x 1", rows))
        settings.append(Setting("trl", f"{rows} x 1, grouped by length", rows, grouped=True))
        settings.append(Setting("trl", f"1 x {rows}, our allocator", 1, allocator=True))
    return settings


def run_job(job: Job, threads: int, wait_policy: str) -> dict[str, Any]:
    """One measurement in a fresh process; ends the benchmark with the process's own message where it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": wait_policy,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, str(HERE / "train_speed_job.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.setting.trainer} {job.setting.name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rate = speed(result)
    print(f"  {job.setting.trainer:12} {job.setting.name:28} {rate:8.0f} tokens/s", file=sys.stderr, flush=True)
    return result


def speed(result: Mapping[str, Any]) -> float:
    """Non-padding tokens per second after the warm-up, from step end to step end: loading and logging included."""
    return float(sum(result["tokens"][WARMUP:]) / (result["ends"][-1] - result["ends"][WARMUP - 1]))


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference over the steps."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one, other, strict=True))


def summary(results: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One side's line of a table, from its rounds and ours."""
    rates = [speed(r) for r in results]
    steps = [1000 * b for r in results for b in np.diff(r["ends"])[WARMUP - 1 :]]
    setting = results[0]["setting"]
    line = {
        **setting,
        "rounds": len(results),
        "tokens_per_second": [statistics.median(rates), min(rates), max(rates)],
        "step_ms": [float(np.percentile(steps, 50)), float(np.percentile(steps, 95))],
        "peak_bytes": statistics.median(r["peak_bytes"] for r in results),
        "above_loaded_bytes": statistics.median(r["peak_bytes"] - r["loaded_bytes"] for r in results),
        "tensors_changed": results[0]["tensors_changed"],
    }
    if setting["grouped"]:
        return line | {"loss_difference": None, "grad_norm_difference": None}
    pairs = list(zip(results, ours, strict=True))
    return line | {
        "loss_difference": max(difference(o["losses"], r["losses"]) for r, o in pairs),
        "grad_norm_difference": max(difference(o["grad_norms"], r["grad_norms"]) for r, o in pairs),
    }


@dataclass(frozen=True)
class Options:
    """What all measurements of a run have in common."""

    method: str
    steps: int | None
    rounds: int
    threads: int
    wait_policy: str
    quick: bool


def compare(case: Case, rows: int, options: Options) -> dict[str, Any]:
    """Sweep the peer, then its fastest exact setting against ours in turns."""
    shape, method, rounds = case.shape, options.method, options.rounds
    rate = 2e-4 if method == "lora" else 5e-5
    steps = options.steps or case.steps
    sweep_steps = min(steps, case.sweep_steps)
    name = f"{shape.name}, {rows} rows per step, {method}"
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(shape, Path(folder) / "model")

        def run(setting: Setting, count: int) -> dict[str, Any]:
            return run_job(Job(setting, str(model), method, rows, count, rate), options.threads, options.wait_policy)

        best, sweep = Setting("trl", f"{rows} x 1", rows, candidate=True), []
        if not options.quick:
            print(f"{name}: every setting once", file=sys.stderr)
            settings = [*our_settings(), *peer_settings(rows, case.wide)]
            sweep = [run(setting, sweep_steps) for setting in settings]
            rates = {setting: speed(result) for setting, result in zip(settings, sweep, strict=True)}
            best = max((s for s in settings if s.candidate), key=lambda s: rates[s])
        print(f"{name}: {rounds} rounds against {best.name}", file=sys.stderr)
        both = [(run(OURS, steps), run(best, steps)) for _ in range(rounds)]
    lines = [summary([o for o, _ in both], [o for o, _ in both]), summary([p for _, p in both], [o for o, _ in both])]
    sample = make_rows(rows * 200, shape.vocabulary)
    padded = sum(rows * max(len(r.ids) for r in sample[i : i + rows]) for i in range(0, len(sample), rows))
    tokens = sum(len(r.ids) for r in sample)
    return {
        "shape": asdict(shape),
        "rows_per_step": rows,
        "method": method,
        "steps": steps,
        "sweep_steps": sweep_steps,
        "learning_rate": rate,
        "fill_when_padded": tokens / padded,
        "supervised_share": sum(len(r.ids) - r.answer_at for r in sample) / tokens,
        "headline": {
            "peer": best.name,
            "speed_ratio": lines[0]["tokens_per_second"][0] / lines[1]["tokens_per_second"][0],
            "peak_ratio": lines[0]["peak_bytes"] / lines[1]["peak_bytes"],
            "above_loaded_ratio": lines[0]["above_loaded_bytes"] / lines[1]["above_loaded_bytes"],
            "same_work": max(lines[1]["loss_difference"], lines[1]["grad_norm_difference"]) <= PARITY
            and all(changed == there for changed, there in (line["tensors_changed"] for line in lines)),
        },
        "lines": lines,
        "sweep": [summary([r], sweep[:1]) for r in sweep],
        "raw": {"rounds": both, "sweep": sweep},
    }


def environment(threads: int, wait_policy: str) -> dict[str, Any]:
    """What the numbers depend on."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    info = Path("/proc/cpuinfo")
    processor = next(
        (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor,
        "threads": threads,
        "omp_wait_policy": wait_policy,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in names},
    }


def table(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    facts = report["environment"]
    libraries = ", ".join(f"{n} {facts[n]}" for n in ("torch", "transformers", "trl", "peft"))
    lines = [
        "# Training speed against TRL's SFTTrainer",
        "",
        "Written by `python benchmarks/train_speed.py`; do not edit. How it is measured: `README.md`.",
        "",
        f"{facts['processor']}, {facts['threads']} threads, OMP_WAIT_POLICY={facts['omp_wait_policy']}, fp32; "
        f"{libraries}; load before the run {facts['load_before']}; {facts['date'][:10]}.",
        "",
    ]
    for one in report["comparisons"]:
        head = one["headline"]
        lines += [
            f"## {one['shape']['name']}, {one['method']}, {one['rows_per_step']} rows per optimiser step",
            "",
            f"**{head['speed_ratio']:.2f} times the tokens per second, {head['peak_ratio']:.2f} times the peak memory "
            f"({head['above_loaded_ratio']:.2f} times above the loaded model)** of TRL at its fastest exact setting "
            f"(`{head['peer']}`: rows at once x accumulation). "
            + ("Both computed the same." if head["same_work"] else "**The two did not compute the same.**"),
            "",
            f"Rows padded together are {one['fill_when_padded']:.0%} real tokens, {one['supervised_share']:.0%} are "
            f"learnt. {one['steps']} steps, the first {WARMUP} not timed; median of the rounds (min to max).",
            "",
            *_lines(one["lines"]),
            "",
        ]
        if one["sweep"]:
            lines += [f"Every setting once, {one['sweep_steps']} steps:", "", *_lines(one["sweep"]), ""]
    return "\n".join(lines)


def _lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| trainer | setting | tokens/s | step p50 / p95 | peak | above loaded | loss differs by | norm differs by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        median, low, high = e["tokens_per_second"]
        span = f" ({low:,.0f} to {high:,.0f})" if e["rounds"] > 1 else ""
        ours = e["trainer"] == "tunesmith"
        loss, norm = (
            "" if ours else "other order" if e[k] is None else f"{e[k]:.0e}"
            for k in ("loss_difference", "grad_norm_difference")
        )
        typical, slow = e["step_ms"]
        rows.append(
            f"| {e['trainer']} | {e['name']} | {median:,.0f}{span} | {typical:,.0f} / {slow:,.0f} ms "
            f"| {e['peak_bytes'] / 2**20:,.0f} MiB | {e['above_loaded_bytes'] / 2**20:,.0f} MiB | {loss} | {norm} |"
        )
    return rows


def physical_cores() -> int:
    """Cores that work for this process, hyper-threads counted once."""
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8M,135M", help="comma-separated: " + ", ".join(CASES))
    parser.add_argument("--rows", type=int, nargs="*", help="rows per optimiser step (default: by shape)")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--steps", type=int, help="optimiser steps of each measurement (default: by shape)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--wait-policy", choices=("PASSIVE", "ACTIVE"), default="PASSIVE", help="of OpenMP, both sides")
    parser.add_argument("--quick", action="store_true", help="8M, 8 rows, one round of five steps: parity only")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/train_speed-DATE.json)")
    parser.add_argument("--table", type=Path, help="markdown (default: benchmarks/train_speed.md; none with --quick)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.shapes, options.rows, options.steps, options.rounds = "8M", [8], 5, 1
    unknown = set(options.shapes.split(",")) - set(CASES)
    if unknown:
        parser.error(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if any(rows < 1 or rows % size for rows in options.rows or () for size in (1, 2, 4) if size <= rows):
        parser.error("--rows must be 1, 2, or a multiple of 4: the peer divides them into equal micro-batches")
    if options.steps is not None and options.steps <= WARMUP:
        parser.error(f"--steps must be more than the {WARMUP} of the warm-up")
    if not options.quick:
        date = datetime.date.today().isoformat()
        options.out = options.out or HERE / "results" / f"train_speed-{date}.json"
        options.table = options.table or HERE / "train_speed.md"
    return options


def main() -> None:
    """Measure and publish; ends with 5 where the two sides did not compute the same."""
    options = parse()
    began = time.perf_counter()
    report: dict[str, Any] = {"environment": environment(options.threads, options.wait_policy), "comparisons": []}
    if report["environment"]["load_before"] > 0.5:
        print("the machine is busy: compare the ratios, not the figures", file=sys.stderr)
    shared = Options(options.method, options.steps, options.rounds, options.threads, options.wait_policy, options.quick)
    for name in options.shapes.split(","):
        for rows in options.rows or CASES[name].rows:
            report["comparisons"].append(compare(CASES[name], rows, shared))
    report["minutes"] = round((time.perf_counter() - began) / 60, 1)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = table(report)
    if options.table:
        options.table.write_text(page, encoding="utf-8")
    print(page)
    if not all(one["headline"]["same_work"] for one in report["comparisons"]):
        raise SystemExit(5)


if __name__ == "__main__":
    main()
