"""Training speed and memory: Tunesmith's engine against TRL's SFTTrainer with PEFT, on the same work.

    python benchmarks/train_speed.py                  # every row of the table, about 25 minutes on two idle cores
    python benchmarks/train_speed.py --workload lora,prefix --shapes 8M
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
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import startup
from _train_speed_cases import CASES, OURS, WORKLOADS, Case, our_settings, peer_settings, waiting
from _train_speed_job import Job, Setting
from _train_speed_page import page
from _training_work import SHAPES, make_rows, needed_flops, order_of, save_model

HERE = Path(__file__).resolve().parent
PARITY = 1e-3
"""Largest relative difference of a loss or gradient norm that still counts as the same computation (fp32)."""


@dataclass(frozen=True)
class Options:
    """What all measurements of a run have in common. `every`: settings are run that only inform."""

    rounds: int
    threads: int
    quick: bool = False
    every: bool = False


def run_job(job: Job, case: Case, threads: int) -> dict[str, Any]:
    """One measurement in a fresh process; ends the benchmark with the process's own message where it fails."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **quiet}
    environment.pop("OMP_WAIT_POLICY", None)
    if job.setting.wait_policy:
        environment["OMP_WAIT_POLICY"] = job.setting.wait_policy
    command = [sys.executable, str(HERE / "_train_speed_job.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.setting.trainer} {job.setting.name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said = f"{speed(result, case):8.0f} {case.unit}/s" if job.steps > case.warmup else ""
    print(f"  {job.setting.trainer:12} {job.setting.name:32} {said}", file=sys.stderr, flush=True)
    return result


def speed(result: Mapping[str, Any], case: Case) -> float:
    """Non-padding tokens (or examples) per second after the warm-up, from step end to step end.

    Loading of rows, collating, optimiser and logging are in it.
    """
    ends, warmup = result["ends"], case.warmup
    return float(sum(result[case.unit][warmup:]) / (ends[-1] - ends[warmup - 1]))


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference over the steps; infinite where something is not a number."""
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one, other, strict=True)]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.inf


def same(result: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a process learnt what ours did, and moved every tensor."""
    changed, there = result["tensors_changed"]
    return changed == there and all(difference(ours[k], result[k]) <= PARITY for k in ("losses", "grad_norms"))


def summary(results: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], case: Case) -> dict[str, Any]:
    """One side's line of a table, from its rounds and ours."""
    rates = [speed(r, case) for r in results]
    steps = [1000 * b for r in results for b in np.diff(r["ends"])[case.warmup - 1 :]]
    setting = results[0]["setting"]
    line = {
        **setting,
        "rounds": len(results),
        "speed": [statistics.median(rates), min(rates), max(rates)],
        "step_ms": [float(np.percentile(steps, 50)), float(np.percentile(steps, 95))],
        "peak_bytes": statistics.median(r["peak_bytes"] for r in results),
        "above_loaded_bytes": statistics.median(r["peak_bytes"] - r["loaded_bytes"] for r in results),
        "tensors_changed": results[0]["tensors_changed"],
        "facts": results[0]["facts"],
    }
    if setting["grouped"]:
        return line | {"loss_difference": None, "grad_norm_difference": None}
    pairs = list(zip(results, ours, strict=True))
    return line | {
        "loss_difference": max(difference(o["losses"], r["losses"]) for r, o in pairs),
        "grad_norm_difference": max(difference(o["grad_norms"], r["grad_norms"]) for r, o in pairs),
    }


def compare(case: Case, options: Options) -> dict[str, Any]:
    """Sweep the peer, then its fastest exact setting against ours in turns."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(SHAPES[case.shape], Path(folder) / "model")

        def run(setting: Setting, steps: int, exact_norms: bool) -> dict[str, Any]:
            return run_job(case.job(setting, model, steps, exact_norms), case, options.threads)

        print(f"{case.workload}, {case.shape}: every setting once", file=sys.stderr)
        sweep = [run(s, case.sweep_steps, True) for s in our_settings(options.every)]
        ours = sweep[0]
        sweep += [run(s, case.sweep_steps, True) for s in peer_settings(case, options.every)]
        best = _best(sweep, ours, case)
        if case.wide:
            sweep += [run(s, case.sweep_steps, True) for s in waiting(best)]
            best = _best(sweep, ours, case)
        print(f"{case.workload}, {case.shape}: {options.rounds} rounds against {best.name}", file=sys.stderr)
        both = [(run(OURS, case.steps, False), run(best, case.steps, False)) for _ in range(options.rounds)]
    chosen = next(result for result in sweep if Setting(**result["setting"]) == best)
    return report(case, both, (ours, chosen), sweep, _ceiling(options.threads))


def _best(sweep: Sequence[Mapping[str, Any]], ours: Mapping[str, Any], case: Case) -> Setting:
    """The fastest setting of the peer that computes what we do; where none does, the fastest, to be shown as such."""
    candidates = [r for r in sweep if r["setting"]["candidate"]]
    exact = [r for r in candidates if same(r, ours)]
    return Setting(**max(exact or candidates, key=lambda r: speed(r, case))["setting"])


def parity_only(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Five steps of each side, two processes at a time: what was computed, and no speed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        models = {name: save_model(SHAPES[name], Path(folder) / name) for name in {case.shape for case in cases}}
        jobs = []
        for case in cases:
            # Few rows, as it is not about speed; and epochs of two steps, so that what is kept for rows is used again.
            case = replace(case, rows=4, epoch_steps=case.epoch_steps and 2)
            peer = Setting("trl", f"{case.rows} x 1", case.rows, candidate=True)
            for setting in (OURS, peer):
                jobs.append((case.job(setting, models[case.shape], 5, True), replace(case, warmup=5), 1))
        results = list(pool.map(lambda arguments: run_job(*arguments), jobs))
    return [
        {
            "workload": case.workload,
            "shape": asdict(SHAPES[case.shape]),
            "same_work": same(peer, ours),
            "loss_difference": difference(ours["losses"], peer["losses"]),
            "grad_norm_difference": difference(ours["grad_norms"], peer["grad_norms"]),
            "raw": {"ours": ours, "peer": peer},
        }
        for case, ours, peer in zip(cases, results[::2], results[1::2], strict=True)
    ]


Pair = tuple[dict[str, Any], dict[str, Any]]


def report(
    case: Case, both: Sequence[Pair], exact: Pair, sweep: Sequence[dict[str, Any]], ceiling: Mapping[str, float]
) -> dict[str, Any]:
    """All that is published of a case. `exact`: ours and the peer's setting with norms computed in double."""
    ours, theirs = [o for o, _ in both], [p for _, p in both]
    lines = [summary(ours, ours, case), summary(theirs, ours, case)]
    # What the peer reports of norms is rounded; the comparison is with what they are.
    lines[1]["grad_norm_difference"] = difference(exact[0]["grad_norms"], exact[1]["grad_norms"])
    shape = SHAPES[case.shape]
    rows = make_rows(case.kind, case.rows * 200, shape.vocabulary)
    padded = sum(
        len(part) * max(len(r.ids) for r in part)
        for part in (rows[i : i + case.rows] for i in range(0, len(rows), case.rows))
    )
    tokens = sum(len(r.ids) for r in rows)
    ratios = [speed(o, case) / speed(p, case) for o, p in both]
    memory = lines[0]["above_loaded_bytes"] / lines[1]["above_loaded_bytes"]
    headline: dict[str, Any] = {
        "peer": lines[1]["name"],
        "speed_ratio": lines[0]["speed"][0] / lines[1]["speed"][0],
        "ratio_span": [min(ratios), max(ratios)],
        "peak_ratio": lines[0]["peak_bytes"] / lines[1]["peak_bytes"],
        "above_loaded_ratio": memory,
        "same_work": all(same({**p, "grad_norms": o["grad_norms"]}, o) for o, p in both) and same(exact[1], exact[0]),
    }
    if case.kind == "chat" and case.last_layers is None:
        # Of the steps that were timed, by ours and by theirs.
        share = [_needed_per_second(case, r) / ceiling["best"] for r in (*ours, *theirs)]
        headline["ceiling_share"] = statistics.median(share[: len(ours)])
        headline["peer_ceiling_share"] = statistics.median(share[len(ours) :])
    headline["reached"] = reached(case, headline)
    return {
        **{k: v for k, v in asdict(case).items() if k != "wide"},
        "shape": asdict(shape),
        "unit": case.unit,
        "fill_when_padded": tokens / padded,
        "learnt_share": sum(r.learnt for r in rows) / tokens,
        "gemm_ceiling": dict(ceiling),
        "headline": headline,
        "lines": lines,
        "sweep": [summary([r], sweep[:1], case) for r in sweep],
        "raw": {"rounds": [list(pair) for pair in both], "sweep": list(sweep)},
    }


def reached(case: Case, headline: Mapping[str, Any]) -> dict[str, str]:
    """Each thing asked of a case, and whether it was reached: goal, bar or neither."""
    ratio = headline["speed_ratio"]
    said = {"speed": "goal" if ratio >= case.goal else "bar" if ratio >= case.bar else "not reached"}
    if case.memory is not None:
        said["memory"] = "bar" if headline["above_loaded_ratio"] <= case.memory else "not reached"
    if case.ceiling_goal is not None:
        said["ceiling"] = "goal" if headline["ceiling_share"] >= case.ceiling_goal else "not reached"
    return said


def _needed_per_second(case: Case, result: Mapping[str, Any]) -> float:
    shape, steps = SHAPES[case.shape], len(result["ends"])
    rows = make_rows(case.kind, case.rows * steps, shape.vocabulary)
    timed = [rows[i] for step in order_of(len(rows), case.rows, steps, 0)[case.warmup :] for i in step]
    return needed_flops(shape, timed, case.method) / float(result["ends"][-1] - result["ends"][case.warmup - 1])


def _ceiling(threads: int) -> dict[str, float]:
    """The machine's fastest matrix product, measured beside the rounds it is compared with."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(HERE / "_gemm_ceiling.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def environment(threads: int) -> dict[str, Any]:
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
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in names},
    }


def physical_cores() -> int:
    """Cores that work for this process, hyper-threads counted once."""
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `cases` are those it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default=",".join(WORKLOADS), help="comma-separated: " + ", ".join(WORKLOADS))
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated: " + ", ".join(SHAPES))
    parser.add_argument("--rows", type=int, help="rows per optimiser step (default: by workload)")
    parser.add_argument("--steps", type=int, help="optimiser steps of each round (default: by workload)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--every-setting", action="store_true", help="settings that only inform, too")
    parser.add_argument("--quick", action="store_true", help="8M, five steps of four rows: parity only")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/train_speed-DATE.json)")
    parser.add_argument(
        "--table", type=Path, help="markdown (default, where all is measured: benchmarks/train_speed.md)"
    )
    options = parser.parse_args(arguments)
    whole = options.workload == parser.get_default("workload") and options.shapes == parser.get_default("shapes")
    for wanted, known, what in (
        (options.workload, WORKLOADS, "workload"),
        (options.shapes, tuple(SHAPES), "shape"),
    ):
        unknown = set(wanted.split(",")) - set(known)
        if unknown:
            parser.error(f"no {what} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    shapes = ["8M"] if options.quick else options.shapes.split(",")
    options.workload = options.workload.split(",")
    options.cases = [case for case in CASES if case.workload in options.workload and case.shape in shapes]
    if not options.cases and options.workload != ["startup"]:
        parser.error(f"{', '.join(options.workload)} is not measured with {', '.join(shapes)}")
    if options.rows is not None:
        if options.rows < 1 or not all(peer_settings(replace(c, rows=options.rows), False) for c in options.cases):
            parser.error("--rows must be a multiple of 2: the peer divides them into equal parts")
        options.cases = [replace(case, rows=options.rows) for case in options.cases]
    if options.steps is not None:
        if any(options.steps <= case.warmup for case in options.cases):
            parser.error(f"--steps must be more than the {max(c.warmup for c in options.cases)} of the warm-up")
        options.cases = [
            replace(case, steps=options.steps, sweep_steps=min(options.steps, case.sweep_steps))
            for case in options.cases
        ]
    if not options.quick:
        date = datetime.date.today().isoformat()
        options.out = options.out or HERE / "results" / f"train_speed-{date}.json"
        if whole and options.table is None:
            options.table = HERE / "train_speed.md"
    return options


def main() -> None:
    """Measure and publish; ends with 5 where the two sides did not compute the same."""
    options = parse()
    began = time.perf_counter()
    facts = environment(options.threads)
    if options.quick:
        parity = parity_only(options.cases)
        result: dict[str, Any] = {"environment": facts, "parity": parity}
        agree = all(one["same_work"] for one in parity)
        for one in parity:
            print(
                f"{one['workload']:12} loss differs by {one['loss_difference']:.0e}, "
                f"norm by {one['grad_norm_difference']:.0e}: {'the same' if one['same_work'] else 'NOT THE SAME'}"
            )
    else:
        if facts["load_before"] > 0.5:
            print("the machine is busy: compare the ratios, not the figures", file=sys.stderr)
        shared = Options(options.rounds, options.threads, every=options.every_setting)
        comparisons = [compare(case, shared) for case in options.cases]
        starting = startup.measure(options.rounds, options.threads) if "startup" in options.workload else None
        minutes = round((time.perf_counter() - began) / 60, 1)
        result = {"environment": facts, "comparisons": comparisons, "startup": starting, "minutes": minutes}
        agree = all(one["headline"]["same_work"] for one in comparisons)
        text = page(result)
        if options.table:
            options.table.write_text(text, encoding="utf-8")
        print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not agree:
        raise SystemExit(5)


if __name__ == "__main__":
    main()
