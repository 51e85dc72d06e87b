"""How fast, how large and how near the original exports are: every engine in turns, against `transformers` in fp32.

    python benchmarks/export.py [--models embedded 135M-untied 135M-tied 0.5B] [--threads N] [--rounds N]
                                [--work DIR] [--llama-python PYTHON] [--cost 135M-untied] [--add]

A model is a base (the embedded one, or a true shape with random weights) with an adapter of rank 16 on all linear
layers, merged where an export does so. Each export is opened in a process of its own by the engine that Tunesmith asks
it with; `transformers` generates with its cache, on one thread and on all, and the better counts. In every round each
process reads the same tokens (`--prompt`) and writes on greedily (`--new`), one process after the other. On one thread
(`--threads 1`) speeds are per second of computing, so that other work on the machine does not count; on several, per
second by the clock, which needs an idle machine. Afterwards each says its peak memory and its logits for four pieces of
text, which are compared with those of `transformers`. `--work` keeps exports for a further run; `--cost` also measures
what writing the int4 exports of models costs; `--llama-python` names a Python with llama-cpp-python where this
one has none; `--add` keeps models of the report that is there. Takes about half an hour, most of it writing exports.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from _export_cost import cost_of
from _export_job import Job
from _export_models import ADAPTER, Model, make_export, make_model
from _export_page import page
from tunesmith.models.artifact import Kind, Target

HERE = Path(__file__).resolve().parent
PLAIN = "transformers fp32"
BARS = {"135M-untied": (4.0, 6.0, 0.31), "135M-tied": (4.0, 6.0, 0.36)}
"""At least, and hoped for, times as fast as `transformers` at writing; at most this share of the fp32 weights."""
ADAPTER_BAR = 3.5
COST_BARS = (120.0, 3e9)
"""Seconds of computing, and bytes, of writing an int4 export."""
_PAUSE = 0.3
"""Seconds between two turns, in which threads of the last one stop waiting for more."""


@dataclass(frozen=True)
class Case:
    """One row of a table: an export, asked with an adapter where it is to be switched in. No target: `transformers`,
    with the tuned model or (`base`) the untuned one, which is not timed."""

    name: str
    target: Target | None = None
    adapter: str | None = None
    threads: int | None = None
    base: bool = False


def cases(threads: int) -> list[Case]:
    """All that is measured, in the order of the tables."""
    exports: list[tuple[str, Kind, str, str | None]] = [
        ("torchao int8", "torchao", "int8", None),
        ("onnx-plain fp32", "onnx-plain", "fp32", None),
        ("onnx-plain int8", "onnx-plain", "int8", None),
        ("onnx fp32", "onnx", "fp32", None),
        ("onnx int8", "onnx", "int8", None),
        ("onnx int4", "onnx", "int4", None),
        ("onnx-multi int4, none active", "onnx-multi", "int4", None),
        ("onnx-multi int4, adapter switched in", "onnx-multi", "int4", ADAPTER),
        ("gguf q8_0", "gguf", "q8_0", None),
        ("gguf q4_0", "gguf", "q4_0", None),
    ]
    plain = [Case(f"{PLAIN}, {_threads(n)}", threads=n) for n in sorted({1, threads})]
    return [*plain, *(Case(name, Target(kind, precision), adapter) for name, kind, precision, adapter in exports)]


@dataclass
class Measured:
    """What was found of one case; `skipped` says why there is nothing. Sizes are bytes, times seconds by round: to the
    first token, and of the further ones, of computing where there is one thread, else by the `clock`."""

    case: Case
    threads: int
    skipped: str | None = None
    first: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    size: int | None = None
    peak: int | None = None
    imports: int | None = None
    kl: float | None = None
    top1: float | None = None

    def to_dict(self, prompt: int, new: int) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.case.name, "threads": self.threads, "skipped": self.skipped}
        if self.skipped is None:
            found |= {
                "decode": [round((new - 1) / seconds, 2) for seconds in self.rest],
                "prefill": [round(prompt / seconds, 1) for seconds in self.first],
                "first_ms": [round(1e3 * seconds, 1) for seconds in self.first],
                "decode_by_clock": [round((new - 1) / seconds, 2) for seconds in self.clock],
                "load": self.load,
                "bytes": self.size,
                "peak": self.peak,
                "imports": self.imports,
                "kl": self.kl,
                "top1": self.top1,
            }
        return found


class Running:
    """A process of `_export_job.py` that is told what to do."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.opened = self._read()

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"failed": f"its process ended with status {self._process.wait()}"}
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def running(job: Job, threads: int, python: str) -> Iterator[Running]:
    """The process of a job, until the block ends."""
    source = str(HERE.parent / "src")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
    }
    command = [python, str(HERE / "_export_job.py"), job.to_json()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def measure(model: Model, wanted: Sequence[Case], work: Path, options: argparse.Namespace) -> list[Measured]:
    """Write what is missing, open everything, and let all take turns."""
    found, jobs, prompt, new = [], dict[str, Job](), options.prompt, options.new
    for case in wanted:
        one = Measured(case, case.threads or options.threads)
        found.append(one)
        job = _job(model, one, work, prompt, new)
        if job is not None:
            jobs[case.name] = job
    untuned = Job(str(model.base), plain=True, prompt=prompt, new=new)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as logits:
        open_ones = []
        for one in found:
            if one.case.name not in jobs:
                continue
            gguf = one.case.target is not None and one.case.target.kind == "gguf"
            python = options.llama_python if gguf else sys.executable
            process = stack.enter_context(running(jobs[one.case.name], one.threads, python))
            one.skipped, one.imports = process.opened.get("failed"), process.opened.get("imports")
            if one.skipped is None:
                open_ones.append((one, process))
            print(f"  {one.case.name}: {one.skipped or 'opened'}", flush=True)
        for place in range(options.rounds):
            for one, process in open_ones:
                time.sleep(_PAUSE)
                _note(one, process.ask(f"round {place}"))
            print(f"  round {place + 1} of {options.rounds}", flush=True)
        for one, process in open_ones:
            one.peak = process.ask("peak")["peak"]
            process.ask(f"logits {_logits_of(Path(logits), one.case)}")
        base = stack.enter_context(running(untuned, options.threads, sys.executable))
        base.ask(f"logits {_logits_of(Path(logits), Case('base', base=True))}")
        _compare([one for one, _ in open_ones], Path(logits))
    return found


def _job(model: Model, one: Measured, work: Path, prompt: int, new: int) -> Job | None:
    """What a case's process is to open, written where it is not there; None, and the reason noted, if it cannot be."""
    target, scratch = one.case.target, work / "scratch"
    if target is None:
        folder = model.source().merged(scratch)
        one.size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return Job(str(folder), plain=True, prompt=prompt, new=new)
    print(f"  writing {target}", flush=True)
    made = make_export(model, target, work / str(target), scratch)
    if isinstance(made, str):
        one.skipped = made
        return None
    one.size = made.bytes
    return Job(str(made.folder), one.case.adapter, prompt=prompt, new=new)


def _note(one: Measured, said: dict[str, Any]) -> None:
    if "failed" in said:
        raise RuntimeError(f"{one.case.name}: {said['failed']}")
    kind = "_cpu" if one.threads == 1 else ""
    one.first.append(said[f"first{kind}"])
    one.rest.append(said[f"rest{kind}"])
    one.clock.append(said["rest"])
    one.load.append(said["load"])


def _logits_of(folder: Path, case: Case) -> Path:
    return folder / f"{case.name.replace(' ', '-').replace(',', '')}.npy"


def _compare(found: Sequence[Measured], folder: Path) -> None:
    """Note how far each is from `transformers`: with the tuned model, or without it where no adapter is active."""
    tuned = np.load(_logits_of(folder, found[0].case))
    base = np.load(_logits_of(folder, Case("base", base=True)))
    for one in found:
        switched = one.case.target is not None and one.case.target.kind == "onnx-multi" and one.case.adapter is None
        one.kl, one.top1 = parity(base if switched else tuned, np.load(_logits_of(folder, one.case)))


def parity(expected: Any, logits: Any) -> tuple[float, float]:
    """Mean KL from the expected to the found distribution in nats per token, and the share of equal top tokens."""
    p, q = _log_softmax(expected), _log_softmax(logits)
    kl = float((np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64).mean())
    return max(kl, 0.0), float((expected.argmax(axis=-1) == logits.argmax(axis=-1)).mean())


def _log_softmax(logits: Any) -> Any:
    found = logits - logits.max(axis=-1, keepdims=True)
    return found - np.log(np.exp(found).sum(axis=-1, keepdims=True))


def summary(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the rows stand to the better `transformers`, by the median of rounds, and what was asked of this model."""
    timed = [row for row in rows if row["skipped"] is None]
    plain = [row for row in timed if row["name"].startswith(PLAIN)]
    base = max(statistics.median(row["decode"]) for row in plain)
    for row in timed:
        row["times"] = round(statistics.median(row["decode"]) / base, 2)
        row["share"] = round(row["bytes"] / plain[0]["bytes"], 4)
    found: dict[str, Any] = {}
    switched = next((row for row in timed if row["name"].endswith("switched in")), None)
    exports = [row for row in timed if row not in plain and row is not switched]
    bar, goal, share = BARS.get(name, (None, None, 1.0))
    small = [row for row in exports if row["share"] <= share]
    if small:
        best = max(small, key=lambda row: row["times"])
        found["best"] = {key: best[key] for key in ("name", "times", "share", "kl")}
    if bar is not None:
        found |= {"bar": bar, "goal": goal, "share_bar": share}
        fast = [row for row in small if row["times"] >= bar]
        found["reached"] = bool(fast)
        if fast:
            nearest = min(fast, key=lambda row: row["kl"])
            found["nearest"] = {key: nearest[key] for key in ("name", "times", "share", "kl")}
    if switched is not None:
        found["switched"] = switched["times"]
        if bar is not None:
            found |= {"switched_bar": ADAPTER_BAR, "switched_reached": switched["times"] >= ADAPTER_BAR}
    return found


def costs(models: Sequence[Model]) -> list[dict[str, Any]]:
    """What writing the int4 exports of these models costs, each in fresh folders."""
    found = []
    for model in models:
        for kind in ("onnx", "onnx-multi"):
            with tempfile.TemporaryDirectory() as folder:
                load = round(os.getloadavg()[0], 2)
                cost = cost_of(model, Target(kind, "int4"), Path(folder) / "export")  # type: ignore[arg-type]
            reached = cost.computing <= COST_BARS[0] and cost.peak <= COST_BARS[1]
            found.append(
                {"model": model.name, "export": f"{kind} int4", "seconds": round(cost.seconds, 1),
                 "computing": round(cost.computing, 1), "peak": cost.peak, "load": load, "reached": reached}
            )  # fmt: skip
            print(f"  {model.name} {kind} int4: {cost.computing:.1f} s, {cost.peak / 1e9:.2f} GB", flush=True)
    return found


def missed(report: dict[str, Any]) -> list[str]:
    """Which of the bars these figures do not reach."""
    found = []
    for name, one in report["models"].items():
        asked = one["summary"]
        if asked.get("reached") is False:
            found.append(f"{name}: no export is {asked['bar']:g} times as fast at {asked['share_bar']} of the size")
        if asked.get("switched_reached") is False:
            found.append(f"{name}: with an adapter switched in it is {asked['switched']:g} times as fast")
    found += [
        f"{one['model']}, {one['export']}: {one['computing']:g} s, {one['peak'] / 1e9:.2f} GB"
        for one in report["costs"]
        if not one["reached"]
    ]
    return found


def main() -> None:
    """Measure and publish; ends with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("embedded", "135M-untied", "135M-tied", "0.5B")
    parser.add_argument("--models", nargs="*", default=list(names), choices=names)
    parser.add_argument("--only", nargs="+", help="exports to measure, as onnx-int4; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64, help="tokens that are read")
    parser.add_argument("--new", type=int, default=64, help="tokens that are written")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="folder for models and exports, which is kept")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--cost", nargs="*", default=[], choices=names, help="models of which writing is measured, too")
    parser.add_argument("--add", action="store_true", help="to the report that is there: other models stay in it")
    day = datetime.date.today().isoformat()
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"export-{day}.json")
    parser.add_argument("--page", type=Path, default=HERE / "export.md")
    options = parser.parse_args()
    report: dict[str, Any] = {"models": {}, "costs": []}
    if options.add and options.out.is_file():
        report = json.loads(options.out.read_text(encoding="utf-8"))
    report |= environment()
    with tempfile.TemporaryDirectory() as fallback:
        work = options.work or Path(fallback)
        for name in options.models:
            print(name, flush=True)
            model = make_model(name, work / name)
            wanted = [c for c in cases(options.threads) if _is_wanted(c, options.only)]
            rows = [one.to_dict(options.prompt, options.new) for one in measure(model, wanted, work / name, options)]
            report["models"][f"{name}, {_threads(options.threads)}"] = {
                "model": name, "threads": options.threads, "prompt": options.prompt, "new": options.new,
                "parameters": model.parameters(), "summary": summary(name, rows), "rows": rows,
                "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            }  # fmt: skip
        if options.cost:
            report["costs"] = costs([make_model(name, work / name) for name in options.cost])
    report["missed"] = missed(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(report), encoding="utf-8")
    print(page(report))
    for line in report["missed"]:
        print(f"missed: {line}")
    if report["missed"]:
        raise SystemExit(1)


def environment() -> dict[str, Any]:
    """Where it was measured, without the machine's name."""
    packages = ("torch", "transformers", "torchao", "onnxruntime", "onnxruntime-genai", "llama-cpp-python")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{processor()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {found}" for name in packages if (found := _version(name)) is not None),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The kind of CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _is_wanted(case: Case, only: Sequence[str] | None) -> bool:
    return only is None or case.target is None or str(case.target) in only


if __name__ == "__main__":
    main()
