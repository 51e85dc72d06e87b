"""How quickly the command line answers: `tunesmith --help`, and `tunesmith check` on a large table.

    python benchmarks/check_speed.py [--rows 100000] [--base MODEL]

The table is written by the script (seeded): two text columns, 20 labels, every row different. `check` is measured with
a recipe, that is with the base loaded and every row tokenised as training would. Each measurement is a process of its
own: wall seconds from start to exit, and its largest resident memory. About a minute; ends with 1 over a limit.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
HELP_LIMIT = 0.3
CHECK_SECONDS, CHECK_BYTES = 20.0, 1_000_000_000
LABELS = 20


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds, largest resident bytes, and what it wrote to standard output."""

    seconds: float
    peak_bytes: int
    output: str


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """A CSV of `rows` different texts of 4 to 24 words, each with one of 20 labels."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(2, 10, 4_000)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number, length in enumerate(rng.integers(4, 25, rows)):
            text = " ".join(words[i] for i in rng.integers(0, len(words), length))
            writer.writerow([f"{text} {number}", f"label {number % LABELS:02}"])


def measure(arguments: Sequence[str]) -> Measured:
    """Run `tunesmith` with these arguments; ends the benchmark with the command's own message where it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli", *arguments], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"tunesmith {arguments[0]} ended with {process.returncode}:\n{errors.read()[-2000:]}")
        kibibyte = 1 if sys.platform == "darwin" else 1024
        return Measured(seconds, usage.ru_maxrss * kibibyte, output.read())


def measure_help(times: int = 10) -> dict[str, Any]:
    """Seconds of `tunesmith --help`."""
    seconds = [measure(["--help"]).seconds for _ in range(times)]
    return {
        "best_seconds": round(min(seconds), 3),
        "median_seconds": round(statistics.median(seconds), 3),
        "limit_seconds": HELP_LIMIT,
        "met": min(seconds) <= HELP_LIMIT,
    }


def measure_check(rows: int, base: str, rounds: int) -> dict[str, Any]:
    """Seconds and memory of `tunesmith check` on a table of `rows` rows."""
    with tempfile.TemporaryDirectory() as folder:
        table, recipe = Path(folder) / "rows.csv", Path(folder) / "recipe.yaml"
        write_table(table, rows)
        recipe.write_text(
            f"data:\n  train: {table.name}\n  columns: {{prompt: text, answer: label}}\nbase: {json.dumps(base)}\n"
        )
        done = [measure(["check", str(recipe), "--json"]) for _ in range(rounds)]
        size = table.stat().st_size
    report = json.loads(done[0].output)
    seconds, peak = statistics.median(m.seconds for m in done), max(m.peak_bytes for m in done)
    return {
        "rows": rows,
        "bytes": size,
        "base": base,
        "rounds": [round(m.seconds, 2) for m in done],
        "median_seconds": round(seconds, 2),
        "limit_seconds": CHECK_SECONDS,
        "peak_bytes": peak,
        "limit_bytes": CHECK_BYTES,
        "met": seconds <= CHECK_SECONDS and peak <= CHECK_BYTES,
        "training_rows_measured": len(report["lengths"]),
        "findings": [f["code"] for f in report["findings"]],
        "estimate": report["estimate"],
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="how often `check` is measured")
    parser.add_argument("--base", default="embedded:base", help="base model of the recipe")
    default = HERE / "results" / f"check_speed-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    base = str(Path(options.base).resolve()) if Path(options.base).is_dir() else options.base
    load = round(os.getloadavg()[0], 2)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
        "load_before": load,
        "help": measure_help(),
        "check": measure_check(options.rows, base, options.rounds),
    }
    text = json.dumps(report, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    if not (report["help"]["met"] and report["check"]["met"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
