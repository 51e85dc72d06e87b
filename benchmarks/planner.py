"""Predicted against measured: peak memory and time of trainings, each in a process of its own.

    python benchmarks/planner.py                   # twelve runs and two under a limit, about 20 minutes on two cores
    python benchmarks/planner.py --runs 8M-lora-short,8M-full-long
    python benchmarks/planner.py --quick           # one short run and a refusal, a minute: does it work?

Two shapes, three methods, two kinds of rows. For each, a first process measures the machine as `check` does; a second
predicts memory from shapes and time from that measurement, trains with evaluations, and tells what it took. One run
more gets a limit that it can meet with less computed at once, and one a limit below what it needs: that must be refused
before its first step. Writes `results/planner-DATE.json` and `planner.md`; ends with 1 where the refusal fails.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _planner_job import Job
from _training_work import SHAPES, Shape, save_model

HERE = Path(__file__).resolve().parent
MEMORY_WITHIN, TIME_WITHIN = 0.15, 0.20
"""Largest error of a predicted peak, and of the predicted times' median, that counts as met."""
ALL_SHAPES = {"8M": SHAPES["8M"], "30M": Shape("30M", 16_384, 512, 8, 8, 4, 1_408)}
METHODS = ("lora", "full", "qlora")
# Rows per step, and steps by shape: enough for the heap to have grown to what it will be.
DATA = {"short": (8, {"8M": 60, "30M": 24}), "long": (4, {"8M": 16, "30M": 8})}


@dataclass(frozen=True)
class Run:
    """One training. `limit`: of memory, as the recipe has it."""

    shape: str
    method: str
    data: str
    limit: str = "auto"

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.method}-{self.data}" + ("" if self.limit == "auto" else f", limit {self.limit}")

    def job(self, model: Path, steps: int | None) -> Job:
        rows, by_shape = DATA[self.data]
        return Job(str(model), self.method, self.data, rows, steps or by_shape[self.shape], self.limit)


RUNS = [Run(shape, method, data) for shape in ALL_SHAPES for method in METHODS for data in DATA]


def carry_out(job: Job, threads: int, cache: Path) -> dict[str, Any]:
    """One process; ends the benchmark with the process's own message where it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TUNESMITH_CACHE": str(cache),
    }
    command = [sys.executable, str(HERE / "_planner_job.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.method}, {job.data} rows failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(run: Run, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table, from what a process told."""
    facts = {"run": run.name, **asdict(run), "rows_per_step": job.rows_per_step, "steps": job.steps}
    if "refused" in result:
        return facts | {"refused": result["refused"], "steps_done": result["steps_done"]}
    memory, time = result["memory"], result["time"]
    predicted = time["training_seconds"] + time["validation_seconds"] + time["answering_seconds"]
    return facts | {
        "micro_batch_tokens": memory["micro_batch_tokens"],
        "recomputed_layers": len(memory["recompute"]),
        "predicted_bytes": memory["predicted_peak_bytes"],
        "measured_bytes": result["peak_bytes"],
        "memory_error": memory["predicted_peak_bytes"] / result["peak_bytes"] - 1,
        "limit_bytes": memory["limit_bytes"],
        "predicted_seconds": predicted,
        "measured_seconds": result["seconds"],
        "time_error": predicted / result["seconds"] - 1,
        "predicted_steps_seconds": time["training_seconds"],
        "measured_steps_seconds": result["training_seconds"],
        "predicted_answering_seconds": time["answering_seconds"],
        "measured_answering_seconds": result["answering_seconds"],
        "planning_seconds": result["planning_seconds"],
        # Below 1 per thread other programs had a share of the processor.
        "processor_share": result["cpu_seconds"] / result["seconds"],
        "tokens_per_second": result["tokens"] / result["training_seconds"],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors over all runs that were predicted and carried out."""
    done = [r for r in rows if "refused" not in r]
    memory, time = ([abs(r[key]) for r in done] for key in ("memory_error", "time_error"))
    refused = [r for r in rows if "refused" in r]
    return {
        "runs": len(done),
        "memory_error": {"median": statistics.median(memory), "worst": max(memory), "within": MEMORY_WITHIN},
        "time_error": {"median": statistics.median(time), "worst": max(time), "median_within": TIME_WITHIN},
        "memory_met": max(memory) <= MEMORY_WITHIN,
        "time_met": statistics.median(time) <= TIME_WITHIN,
        "refused_before_step_1": bool(refused) and all(r["steps_done"] == 0 for r in refused),
    }


def limits_for(parts: Mapping[str, int]) -> tuple[str, str]:
    """A limit that a run meets with less computed at once, and one that it cannot meet at all, as a recipe has them.

    `parts` of its predicted peak: more than half of what a step adds, and next to nothing of it.
    """
    added = sum(size for name, size in parts.items() if name in ("activations", "temporary", "answers", "heap"))
    static = sum(parts.values()) - added
    return f"{round((static + 0.6 * added) / 1e6)}MB", f"{round((static + 0.01 * added) / 1e6)}MB"


def environment(threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
    }


def table(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    facts, said = report["environment"], report["summary"]
    memory, time = said["memory_error"], said["time_error"]
    lines = [
        "# Predicted memory and time",
        "",
        "Written by `python benchmarks/planner.py`; do not edit. Memory is predicted from shapes before the first "
        "step, time from a few micro-batches that an earlier process measured.",
        "",
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}; load before the runs "
        f"{facts['load_before']}; {facts['date'][:10]}.",
        "",
        f"**Memory: median error {memory['median']:.0%}, worst {memory['worst']:.0%}** (each should be within "
        f"{memory['within']:.0%}). **Time: median error {time['median']:.0%}, worst {time['worst']:.0%}** (the median "
        f"should be within {time['median_within']:.0%}). {said['runs']} runs.",
        "",
        "| run | tokens at once | layers again | memory predicted | measured | error | time predicted | measured "
        "| error | of it answering | processor share |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        if "refused" in r:
            continue
        lines.append(
            f"| {r['run']} | {r['micro_batch_tokens']:,} | {r['recomputed_layers']} "
            f"| {r['predicted_bytes'] / 1e6:,.0f} MB | {r['measured_bytes'] / 1e6:,.0f} MB | {r['memory_error']:+.0%} "
            f"| {r['predicted_seconds']:.1f} s | {r['measured_seconds']:.1f} s | {r['time_error']:+.0%} "
            f"| {r['measured_answering_seconds']:.1f} s | {r['processor_share'] / facts['threads']:.0%} |"
        )
    for r in report["rows"]:
        if "refused" in r:
            lines += ["", f"Refused before step 1: {r['run']}.", "", "```text", r["refused"], "```"]
    lines += ["", "A processor share well below 100 % means that other programs worked beside the run.", ""]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", help="comma-separated names (default: all): " + ", ".join(r.name for r in RUNS))
    parser.add_argument("--steps", type=int, help="optimiser steps of each run (default: by shape and rows)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="one short run and the refusal; nothing is published")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/planner-DATE.json)")
    parser.add_argument("--table", type=Path, help="markdown (default: benchmarks/planner.md)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs, options.steps = "8M-lora-short", options.steps or 4
    else:
        options.out = options.out or HERE / "results" / f"planner-{datetime.date.today().isoformat()}.json"
        options.table = options.table or HERE / "planner.md"
    known = {run.name: run for run in RUNS}
    names = options.runs.split(",") if options.runs else list(known)
    if unknown := set(names) - set(known):
        parser.error(f"no run {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    options.chosen = [known[name] for name in names]
    return options


def main() -> None:
    """Measure and publish."""
    options = parse()
    report: dict[str, Any] = {"environment": environment(options.threads), "rows": [], "raw": []}

    def run(one: Run, folder: Path, calibrated: bool = False) -> dict[str, Any]:
        model = folder / one.shape
        if not model.exists():
            save_model(ALL_SHAPES[one.shape], model)
        job = one.job(model, options.steps)
        if not calibrated:
            carry_out(replace(job, calibrate=True), options.threads, folder / "cache")
        result = carry_out(job, options.threads, folder / "cache")
        report["rows"].append(row(one, job, result))
        report["raw"].append({"job": {**asdict(job), "model": one.shape}, **result})
        print(json.dumps(report["rows"][-1]), file=sys.stderr, flush=True)
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first, *_ = [run(one, folder) for one in options.chosen]
        meets, cannot = limits_for(first["memory"]["parts"])
        if not options.quick:
            run(replace(options.chosen[0], limit=meets), folder)
        refused = run(replace(options.chosen[0], limit=cannot), folder, calibrated=True)
    report["summary"] = summary(report["rows"])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.table:
        options.table.write_text(table(report), encoding="utf-8")
    print(json.dumps(report["summary"], indent=1))
    if "refused" not in refused:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
