"""Is the verdict right? Thousands of worlds whose truth is known, decided by the code that decides every run.

    python benchmarks/verdict.py [--worlds N] [--seed N] [--jobs N] [--resamples N] [--log FILE]

Draws worlds (half of them with no true winner), a test set of 50 to 2,000 rows in each, and asks for a verdict. Where
it says "cannot tell", as many rows as it asks for are added, and it is asked again. Writes the outcome of every world
to benchmarks/results/verdict-<date>.json and the table to benchmarks/verdict.md; ends with 1 where a bar is missed.
With --log every outcome is written to a file at once, and the same command continues from it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from _verdict_page import BARS, page
from _verdict_worlds import detectable_gain, draw_rows, draw_world, joined, verdict_on

HERE = Path(__file__).resolve().parent
MOST_ROWS = 200_000
"""A world that asks for more rows than this counts as not decided by them."""

Record = Mapping[str, Any]


def run_world(number: int, *, seed: int, resamples: int) -> dict[str, Any]:
    """One world: its truth, its verdict, and the verdict after the rows asked for."""
    world = draw_world(number, seed)
    rows = draw_rows(world, world.rows, (seed, number, 0))
    verdict = verdict_on(world, rows, resamples=resamples, seed=number)
    record = {
        "world": number,
        "metric": world.metric,
        "rows": world.rows,
        "alternatives": len(world.alternatives),
        "values": {name: round(value, 6) for name, value in world.values.items()},
        "gain": world.gain,
        "detectable": detectable_gain(world, seed),
        "min_gain": world.min_gain,
        "target": world.target,
        "margin": world.margin,
        "truth": world.truth,
        "acceptable": sorted(world.acceptable()),
        "decision": verdict.decision,
        "candidate": verdict.candidate,
        "rule": verdict.rule,
        "tied": list(verdict.tied),
        "right": None if verdict.decision == "cannot_tell" else world.is_right(verdict),
        "rows_needed": verdict.rows_needed,
    }
    needed = verdict.rows_needed
    if needed is not None and needed <= MOST_ROWS:
        more = draw_rows(world, needed - world.rows, (seed, number, 1))
        later = verdict_on(world, joined(rows, more), resamples=resamples, seed=number)
        decided = later.decision != "cannot_tell"
        record |= {"later": later.decision, "later_right": world.is_right(later) if decided else None}
    return record


def figures(records: Sequence[Record]) -> dict[str, float]:
    """The shares that are promised, and those beside them."""
    undecided = [r for r in records if r["right"] is None and r["rows_needed"] is not None]
    clear = [r for r in records if abs(r["gain"]) >= 1.5 * r["detectable"]]
    later = [r for r in undecided if r.get("later", "cannot_tell") != "cannot_tell"]
    return {
        "right_or_cannot_tell": _share(records, lambda r: r["right"] is not False),
        "right": _share(records, lambda r: r["right"] is True),
        "cannot_tell": _share(records, lambda r: r["right"] is None),
        "wrong_ship": _share(records, lambda r: r["decision"] == "ship_tuned" and not r["right"]),
        "no_true_winner": _share(records, lambda r: r["truth"] != "ship"),
        "clear_worlds": len(clear),
        "cannot_tell_in_clear_worlds": _share(clear, lambda r: r["right"] is None),
        "asked_for_rows": len(undecided),
        "decided_by_rows_needed": len(later) / len(undecided) if undecided else 1.0,
        "then_right": _share(later, lambda r: r["later_right"]),
    }


def missed(found: Mapping[str, float]) -> list[str]:
    """Bars that are not met."""
    return [name for name, (_, bar, least) in BARS.items() if (found[name] < bar if least else found[name] > bar)]


def _share(records: Sequence[Record], condition: Callable[[Record], bool]) -> float:
    return sum(map(condition, records)) / len(records) if records else 0.0


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All worlds in order, several at once; those in the log are not run again."""
    log: Path | None = options.log
    records = [json.loads(line) for line in log.read_text().splitlines()] if log and log.is_file() else []
    known = {record["world"] for record in records}
    left = [number for number in range(options.worlds) if number not in known]
    one = partial(run_world, seed=options.seed, resamples=options.resamples)
    start = time.perf_counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        for done, record in enumerate(pool.map(one, left, chunksize=2), 1):
            records.append(record)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            if done % 100 == 0:
                minutes = (time.perf_counter() - start) / done * (len(left) - done) / 60
                print(f"{done} of {len(left)} worlds, about {minutes:.0f} min left", file=sys.stderr)
    return sorted(records[: options.worlds], key=lambda record: record["world"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2, help="1 was used in development")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the page and of results/")
    parser.add_argument("--log", type=Path, help="file with one outcome a line, to continue from")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    records = run_all(options)
    settings = {
        "worlds": options.worlds,
        "seed": options.seed,
        "resamples": options.resamples,
        "jobs": options.jobs,
        "minutes": (time.perf_counter() - start) / 60,
        "most_rows": MOST_ROWS,
    }
    found = figures(records)
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    written = results / f"verdict-{date.today().isoformat()}.json"
    written.write_text(json.dumps({**settings, "figures": found, "outcomes": records}, separators=(",", ":")) + "\n")
    (options.out / "verdict.md").write_text(page(records, found, settings))
    print(json.dumps(found, indent=1))
    for name in missed(found):
        print(f"missed: {BARS[name][0]}: {100 * found[name]:.1f} %", file=sys.stderr)
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
