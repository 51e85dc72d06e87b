"""How fast many are served at once, against `transformers` generate one at a time and `transformers serve`.

    python benchmarks/serve.py [--base embedded 135M] [--rounds N] [--clients 1 8 32] [--adapters 0 1 8] [--direct]

All sides get the same weights (fp32), the same conversations of 256 tokens, and write 64 tokens greedily; no prompt is
asked twice of one side, so that nothing is remembered. In every round each number of clients and adapters has its
questions, which all sides answer one after the other, in turns. Clients ask as soon as their answer is there. Ours is
the real HTTP server; with `--direct` the engine alone, and the page says so. `transformers serve` has no adapters, and
is asked for the base, with and without its continuous batching; TUNESMITH_TRANSFORMERS names its executable (default:
beside Python), and where it does not run, or takes too long, its row says why. Answers are compared with those of
generate, text by text. Takes about twelve minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from _serve_models import Prompts, make_adapter, make_base
from _serve_sides import PATIENCE, Direct, Plain, Said, Side, our_server, their_server
from tunesmith.inference.serving.torch_serving import TorchServing
from tunesmith.inference.serving.types import ModelRef

HERE = Path(__file__).resolve().parent
BAR, GOAL = 2.0, 3.0
"""Times one-at-a-time generate, at eight clients."""
FIRST_BAR = 1.3
"""Time to the first text of a lone request, in passes over its prompt."""
MEMORY_BAR = 1.3
"""Memory above that of the imported process, in weights and cache."""
Question = tuple[str, int]
"""A text, and which model it is for: 0 is the base."""
PEER_FAILURES = (OSError, RuntimeError, TimeoutError, ValueError, EOFError, asyncio.IncompleteReadError)
TITLES = {
    "ours": "tunesmith",
    "serve": "transformers serve",
    "batching": "transformers serve, continuous batching",
}


@dataclass(frozen=True)
class Work:
    """What is asked: tokens of prompt and answer; requests of each client in a round, but no more than `most` of all;
    how many answers of a round are also generated; and of how many clients at most the peers are asked."""

    rounds: int
    each: int = 2
    most: int = 32
    compared: int = 4
    peer_clients: int = 32
    prompt: int = 256
    new: int = 64

    def count(self, clients: int) -> int:
        """Requests of a round."""
        return max(4, clients, min(self.most, clients * self.each))


WORK = {"embedded": Work(2), "8M": Work(2), "135M": Work(1, compared=3, peer_clients=8)}
"""So much that all of it takes about twelve minutes."""
PEER_PATIENCE = 120.0
"""Seconds that a round of a peer may take."""


@dataclass
class Cell:
    """What was measured of one side at so many clients and adapters, over all rounds."""

    base: str
    side: str
    clients: int
    adapters: int
    requests_per_second: list[float] = field(default_factory=list)
    plain_requests_per_second: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    asked: int = 0
    compared: int = 0
    same: int = 0
    skipped: str = ""

    @property
    def times(self) -> float | None:
        """How much faster than generate, by the median of rounds."""
        if not self.requests_per_second:
            return None
        pairs = zip(self.requests_per_second, self.plain_requests_per_second, strict=True)
        return statistics.median(ours / plain for ours, plain in pairs)


async def asked(side: Side, questions: Sequence[Question], clients: int, tokens: int, patience: float) -> list[Said]:
    """The answers to questions with their models, by so many clients at once, each asking on when it is answered."""
    found: dict[int, Said] = {}
    rest = iter(range(len(questions)))

    async def client() -> None:
        for number in rest:
            question, model = questions[number]
            found[number] = await side.ask(question, model, tokens)

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(clients))), patience)
    return [found[number] for number in range(len(questions))]


def measure(cells: Sequence[Cell], found: dict[str, Any], plain: Plain, prompts: Prompts, work: Work) -> None:
    """One round of the sides that are asked by so many clients with so many adapters, and of generate."""
    clients, adapters = cells[0].clients, cells[0].adapters
    models = itertools.cycle(range(1, adapters + 1) if adapters else (0,))
    questions = [(prompts.next(), next(models)) for _ in range(work.count(clients))]
    alone = [plain.ask(question, model, work.new) for question, model in questions[: work.compared]]
    for cell in cells:
        patience = PATIENCE if cell.side == "ours" else PEER_PATIENCE
        began = time.perf_counter()
        try:
            said = asyncio.run(asked(found[cell.side], questions, clients, work.new, patience))
        except PEER_FAILURES as error:
            if cell.side == "ours":
                raise
            cell.skipped = _why(error)
            continue
        cell.requests_per_second.append(len(questions) / (time.perf_counter() - began))
        cell.plain_requests_per_second.append(len(alone) / sum(one.seconds for one in alone))
        cell.first += [one.first for one in said]
        cell.asked += len(said)
        cell.compared += len(alone)
        cell.same += sum(one.text == other.text for one, other in zip(said, alone, strict=False))
        print(f"{cell.base} {cell.side} {clients}x{adapters}: {cell.times:.2f}", file=sys.stderr)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"took more than {PEER_PATIENCE:.0f} s"
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")[:200]


@contextmanager
def sides(folder: Path, base: Path, adapters: Sequence[Path], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All sides at work, each `Side` or the reason why it is left out."""
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        if options.direct:
            engine = TorchServing()
            stack.callback(lambda: asyncio.run(engine.drain(0)))
            models = [ModelRef(str(base)), *(ModelRef(str(base), one) for one in adapters)]
            found["ours"] = Direct(engine, models)
        else:
            found["ours"] = stack.enter_context(our_server(folder / "home", base, adapters, options.threads))
        executable = os.environ.get("TUNESMITH_TRANSFORMERS") or str(Path(sys.executable).parent / "transformers")
        for name, batching in (("serve", False), ("batching", True)):
            if name not in options.peers:
                found[name] = "not asked for"
                continue
            try:
                server = their_server(executable, base, folder / f"{name}.log", options.threads, batching)
                side = stack.enter_context(server)
                asyncio.run(asyncio.wait_for(side.ask("Hello", 0, 2), PEER_PATIENCE))
                found[name] = side
            except PEER_FAILURES as error:
                found[name] = _why(error)
        yield found


def of_base(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one base."""
    given = {key: value for key in ("rounds", "each", "compared") if (value := getattr(options, key)) is not None}
    work = replace(WORK[name], **given)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = make_base(name, folder / "base")
        adapters = [make_adapter(base, folder / f"adapter-{i}", i) for i in range(1, max(options.adapters) + 1)]
        prompts = Prompts(base, work.prompt)
        plain = Plain(base, adapters, prompts)
        cells: list[Cell] = []
        with sides(folder, base, adapters, options) as found:
            for side, clients, count in itertools.product(TITLES, options.clients, options.adapters):
                if side == "ours" or (not count and clients <= work.peer_clients):
                    skipped = found[side] if isinstance(found[side], str) else ""
                    cells.append(Cell(name, side, clients, count, skipped=skipped))
            for side in {cell.side for cell in cells if not cell.skipped}:  # every model is loaded, every path warm
                models = range(max(options.adapters) + 1 if side == "ours" else 1)
                asyncio.run(asked(found[side], [("Hello", i) for i in models], 1, 2, PATIENCE))
            for i in range(len(adapters) + 1):
                plain.ask("Hello", i, 2)
            for number in range(work.rounds):
                for clients, count in itertools.product(options.clients, options.adapters):
                    group = [one for one in cells if (one.clients, one.adapters) == (clients, count)]
                    group = [one for one in group if not one.skipped]
                    if group:
                        measure(group if number % 2 == 0 else group[::-1], found, plain, prompts, work)
            first = lone(found["ours"], plain, prompts, work.rounds)
        return {
            "work": asdict(work),
            "cells": [{**asdict(cell), "times": cell.times} for cell in cells],
            "first": first,
            "memory": memory(base, work, options.threads),
        }


def lone(side: Side, plain: Plain, prompts: Prompts, rounds: int) -> dict[str, Any]:
    """Seconds until the first text of a request that is alone, and of one pass over its prompt, in turns."""
    first, passes = [], []
    for _ in range(5 * rounds):
        question = prompts.next()
        first.append(asyncio.run(side.ask(question, 0, 2)).first)
        passes.append(plain.prefill(question))
    return {"first": first, "prefill": passes, "times": statistics.median(first) / statistics.median(passes)}


def memory(base: Path, work: Work, threads: int) -> dict[str, Any]:
    """What a process of its own takes."""
    command = [sys.executable, str(HERE / "_serve_memory.py"), str(base), str(work.prompt), str(work.new)]
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(map(str, sys.path))
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(f"memory could not be measured:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "times": (found["peak"] - found["imported"]) / (found["weights"] + found["cache"])}


def page(report: dict[str, Any]) -> str:
    """The figures for people."""
    work = WORK["embedded"]
    ours = "the engine alone, without HTTP" if report["direct"] else "the HTTP server"
    lines = [
        "# Serving many at once",
        "",
        "Written by `python benchmarks/serve.py`; do not edit. All sides have the same fp32 weights, read",
        f"conversations of {work.prompt} tokens and write {work.new}, greedily. `generate` is `transformers`",
        "generate, called once for each prompt, adapters switched by peft; measured in the same rounds on the same",
        "questions. First text is the time until it arrives, p50 and p95 over all requests. The 135M shape has random",
        f"weights, and `transformers serve` is asked by at most {WORK['135M'].peer_clients} clients on it.",
        "",
        f"{report['date'][:10]}, {report['machine']}, threads: {report['threads']}, load of the machine before: "
        f"{report['load_before']}. Ours is {ours}.",
    ]
    for name, one in report["bases"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| side | clients | adapters | requests/s | tokens/s | generate, requests/s | times | first text | same |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for cell in one["cells"]:
            lines.append(_line(cell, work.new))
        first, held = one["first"], one["memory"]
        alone, once = (1000 * statistics.median(first[key]) for key in ("first", "prefill"))
        imported, peak, weights, cache = (held[key] / 1e6 for key in ("imported", "peak", "weights", "cache"))
        lines += [
            "",
            f"First text of a lone request: {alone:.0f} ms, one pass over its prompt {once:.0f} ms: "
            f"**{first['times']:.2f}** times (at most {FIRST_BAR}).",
            "",
            f"Memory: {imported:.0f} MB after import, {peak:.0f} MB at most while eight are answered; weights "
            f"{weights:.0f} MB, keys and values {cache:.0f} MB: above import **{held['times']:.2f}** times weights and "
            f"cache{f' (at most {MEMORY_BAR})' if name == '135M' else ''}.",
        ]
    asked_for = f"at least {BAR:g}, the goal is {GOAL:g}"
    lines += ["", f"`times` is the median over rounds; asked for at 8 clients: {asked_for}. `same`: equal answers.", ""]
    return "\n".join(lines)


def _line(cell: dict[str, Any], new: int) -> str:
    head = f"| {TITLES[cell['side']]} | {cell['clients']} | {cell['adapters'] or 'base'} |"
    if cell["skipped"]:
        return f"{head} left out: {cell['skipped']} | | | | | |"
    speeds = cell["requests_per_second"]
    plain = cell["plain_requests_per_second"]
    middle, ordered = statistics.median(speeds), sorted(cell["first"])
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return (
        f"{head} {', '.join(f'{s:.2f}' for s in speeds)} | {middle * new:.0f} | "
        f"{', '.join(f'{s:.2f}' for s in plain)} | **{cell['times']:.2f}** | "
        f"{statistics.median(ordered):.2f}, {p95:.2f} s | {cell['same']} of {cell['compared']} |"
    )


def missed(report: dict[str, Any]) -> list[str]:
    """Which of the claims these figures do not bear out."""
    found = []
    for name, one in report["bases"].items():
        for cell in one["cells"]:
            if cell["side"] != "ours":
                continue
            where = f"{name}, {cell['clients']} clients, {cell['adapters']} adapters"
            if cell["clients"] == 8 and cell["times"] < BAR:
                found.append(f"{where}: {cell['times']:.2f} times")
            if cell["same"] < cell["compared"]:
                found.append(f"{where}: {cell['compared'] - cell['same']} answers differ")
        if one["first"]["times"] > FIRST_BAR:
            found.append(f"{name}: first text after {one['first']['times']:.2f} passes")
        if name == "135M" and one["memory"]["times"] > MEMORY_BAR:
            found.append(f"{name}: {one['memory']['times']:.2f} times weights and cache")
    return found


def main() -> None:
    """Measure and publish; ends with 1 where a bar is missed or an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=["embedded", "135M"], choices=("embedded", "8M", "135M"))
    parser.add_argument("--rounds", type=int, help="default: 2, of 135M one")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--adapters", nargs="+", type=int, default=[0, 1, 8], help="0 is the base itself")
    parser.add_argument("--peers", nargs="*", default=["serve", "batching"], choices=("serve", "batching"))
    parser.add_argument("--direct", action="store_true", help="the engine without the HTTP server")
    parser.add_argument("--each", type=int, help="requests of each client in a round (default 2)")
    parser.add_argument(
        "--compared", type=int, help="answers of a round that are also generated (default 4, of 135M 3)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    day = datetime.date.today().isoformat()
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"serve-{day}.json")
    parser.add_argument("--page", type=Path, default=HERE / "serve.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores",
        "threads": options.threads,
        "load_before": round(os.getloadavg()[0], 2),
        "direct": options.direct,
        "bases": {name: of_base(name, options) for name in options.base},
    }
    report["missed"] = missed(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(report), encoding="utf-8")
    print(page(report))
    for line in report["missed"]:
        print(f"missed: {line}")
    if report["missed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
