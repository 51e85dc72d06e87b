"""Does the diagnosis find what is wrong, does its remedy help, and does it keep quiet where nothing is?

    python benchmarks/diagnosis.py [--seed N] [--jobs N] [--fresh] [--keep DIR] [NAME ...]
    python benchmarks/diagnosis.py --list | --quick

Ten runs are spoiled on purpose and ten are healthy (other tasks, sizes, methods, seeds), all on `embedded:base` with
small seeded tasks (`_diagnosis_cases.py`). A spoiled run must get its diagnosis and no other; then the remedy is
applied (the recipe changes that the diagnosis names, and the rows mended where only rows can be) and must give a
better task metric on the same test rows. A healthy run must get none, at any validation.

Runs are shared out among `--jobs` processes of `--threads` threads each. The result of every run is kept under
`build/diagnosis/` as soon as there is one: interrupted, the same command continues; what was made from another base,
other rows or other code of the diagnosis is made again. NAME (words of the names) takes these runs only. When all
twenty are there, they go to benchmarks/results/diagnosis-<date>.json, with the events of every run, and to
benchmarks/diagnosis.md. `--quick` takes a few runs of a few steps, without remedies. Ends with 5 where a run is not as
it must be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import _diagnosis_tasks as tasks
from _diagnosis_cases import BASE, Case, all_cases, quick
from _diagnosis_page import page
from _diagnosis_run import facts_from, judge, work
from tunesmith.models.load import base_folder
from tunesmith.runs import environment, write_text

__all__ = ["facts_from", "judge", "main", "page", "quick", "tasks"]

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "build" / "diagnosis"
SHOWN = ("name", "right", "codes", "told_at", "scores", "scores_after", "codes_after", "seconds", "seconds_after")


@dataclass(frozen=True)
class Kept:
    """The folder of results that are already there, each a file with the key of what it was made from."""

    folder: Path
    code: str

    def read(self, case: Case) -> dict[str, Any] | None:
        """The record of a case, where it was made from the same."""
        path = self._path(case)
        if not path.is_file():
            return None
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept["record"] if kept["key"] == self._key(case) else None

    def write(self, case: Case, record: Mapping[str, Any]) -> None:
        """Keep a record; a file that is there is whole."""
        write_text(self._path(case), json.dumps({"key": self._key(case), "record": record}))

    def _path(self, case: Case) -> Path:
        return self.folder / f"{slug(case)}.json"

    def _key(self, case: Case) -> list[str]:
        return [self.code, case.digest]


def slug(case: Case) -> str:
    """A case's name as one of a file."""
    return case.name.replace(" ", "-").replace("/", "-").replace("%", "percent")


def code_digest() -> str:
    """SHA-256 over the base's files, the diagnosis, and these scripts: with others, results are others."""
    base = base_folder(BASE)
    assert base is not None  # it ships with the package
    import tunesmith.training.diagnosis as room

    files = [base / "sha256.json", *HERE.glob("diagnosis*.py"), *Path(str(room.__file__)).parent.glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def expected_seconds(cases: Sequence[Case]) -> dict[str, float]:
    """How long each case took in the newest published results; others the mean of those."""
    files = sorted((HERE / "results").glob("diagnosis-*.json"))
    runs = json.loads(files[-1].read_text(encoding="utf-8"))["runs"] if files else []
    known = {r["name"]: r.get("wall_seconds", r["seconds"] + r.get("seconds_after", 0.0)) for r in runs}
    usual = mean(known.values()) if known else 60.0
    return {case.name: known.get(case.name, usual) for case in cases}


def carried_out(
    cases: Sequence[Case], expected: Mapping[str, float], root: Path, *, seed: int, few: bool, jobs: int
) -> Iterator[tuple[Case, dict[str, Any], float]]:
    """Cases with their records as they end, the longest begun first; and the seconds that are left, as far as known."""
    waiting = sorted(cases, key=lambda case: -expected[case.name])
    running: dict[Future[dict[str, Any]], tuple[Case, float]] = {}
    spent = foreseen = 0.0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                case = waiting.pop(0)
                running[pool.submit(work, seed, few, case.name, root / slug(case))] = (case, time.monotonic())
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                case, began = running.pop(done)
                record = done.result()
                spent += time.monotonic() - began
                foreseen += expected[case.name]
                pace = spent / foreseen
                left = [pace * expected[c.name] for c in waiting]
                left += [
                    max(0.0, pace * expected[c.name] - (time.monotonic() - since)) for c, since in running.values()
                ]
                yield case, record, max(sum(left) / jobs, max(left, default=0.0))


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="words of the runs wanted; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, without remedies")
    parser.add_argument("--fresh", action="store_true", help="run again what was kept")
    parser.add_argument("--list", action="store_true", help="name the runs and end")
    parser.add_argument("--keep", type=Path, help="folder for the runs' files; else they are removed")
    parser.add_argument("--results", type=Path, default=KEPT, help="folder for the results of single runs")
    arguments = parser.parse_args(given)
    cases = all_cases(arguments.seed, arguments.quick)
    wanted = [c for c in cases if not arguments.names or any(name in c.name for name in arguments.names)]
    if arguments.list or not wanted:
        print("\n".join(f"{c.name}: {c.expected or 'healthy'}" for c in cases))
        return 0 if arguments.list else 2
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by the processes, which begin after this
    kept = Kept(arguments.results / f"{'quick' if arguments.quick else 'seed'}-{arguments.seed}", code_digest())
    kept.folder.mkdir(parents=True, exist_ok=True)
    records = {} if arguments.fresh else {c.name: r for c in wanted if (r := kept.read(c)) is not None}
    for name, record in records.items():
        print(f"kept: {name}, {'right' if record['right'] else 'WRONG'}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        missing = [c for c in wanted if c.name not in records]
        for case, record, left in carried_out(
            missing,
            expected_seconds(cases),
            arguments.keep or Path(temporary),
            seed=arguments.seed,
            few=arguments.quick,
            jobs=arguments.jobs,
        ):
            kept.write(case, record)
            records[case.name] = record
            print(json.dumps({key: record[key] for key in SHOWN if key in record}), flush=True)
            print(f"{len(records)} of {len(wanted)} done, about {left / 60:.1f} min left", flush=True)
    if not arguments.names and not arguments.quick:
        publish([records[case.name] for case in cases], arguments.seed)
    wrong = [record["name"] for record in records.values() if not record["right"]]
    print(f"not as they must be: {', '.join(wrong) or 'none'}")
    return 5 if wrong else 0


def publish(records: Sequence[Mapping[str, Any]], seed: int) -> None:
    """Write the results and the page."""
    results = {"seed": seed, "date": str(date.today()), "environment": environment(), "runs": records}
    target = HERE / "results" / f"diagnosis-{date.today()}.json"
    target.write_text(json.dumps(results, separators=(",", ":")) + "\n", encoding="utf-8")
    (HERE / "diagnosis.md").write_text(page(records, seed), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
