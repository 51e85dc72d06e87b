"""How long a training takes to begin: from the start of the process to the end of the first optimiser step.

    python benchmarks/startup.py [--rounds 3]     # about two minutes; writes results/startup-DATE.json

`tunesmith train` with LoRA on the embedded base of 8M parameters and 64 rows of chat, against a script that does the
same with TRL's SFTTrainer and PEFT (`_startup_peer.py`): loading libraries and model, reading and tokenising the rows,
eight rows learnt. Every measurement is a process of its own, ended after its first step; both once unmeasured, so that
files are in the system's cache and all modules compiled (as an installation does), then in turns. Once more with an
empty cache folder: the first training of a machine compiles its C functions, if it has a compiler.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BAR, GOAL = 6.0, 3.0
ROWS = 64
PATIENCE = 300
"""Seconds after which a process that has not taken its first step is given up."""
PHASES = {
    "stage_started check": "command line and pipeline loaded",
    "stage_finished check": "rows read, base loaded, everything decided",
    "train_started": "adapters attached, model verified",
    "train_step": "first optimiser step done",
}
"""Events of a run, and what was done by then."""


def write_rows(path: Path) -> None:
    """Questions and answers of two dozen words, as chats with a prompt and a completion."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            question = " ".join(f"word{(i * j) % 97}" for j in range(1, 13))
            answer = " ".join(f"word{(i + j) % 89}" for j in range(12))
            prompt = [{"role": "user", "content": f"Say something about {question}"}]
            completion = [{"role": "assistant", "content": answer}]
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def write_recipe(folder: Path) -> Path:
    """A recipe on the same rows, each as one conversation."""
    chats = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for chat in chats:
            file.write(json.dumps({"messages": chat["prompt"] + chat["completion"]}) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "data: {train: chats.jsonl, split: {validation: 0, test: 0.2}}\n"
        "task: generation\nbase: embedded:base\nmethod: lora\n"
        "train: {batch_size: 8, epochs: 1, learning_rate: 0.0002}\n"
    )
    return recipe


def start_ours(folder: Path, run: str, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds from the start of `tunesmith train` to each of `PHASES`."""
    events = folder / run / "events.jsonl"
    command = [sys.executable, "-m", "tunesmith.cli", "train", str(folder / "recipe.yaml"), "--out", str(folder / run)]
    with (folder / f"{run}.log").open("w+") as log:
        began = time.time()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            while not (phases := _phases(events, began)).get("train_step"):
                if process.poll() is not None or time.time() - began > PATIENCE:
                    log.seek(0)
                    raise SystemExit(f"tunesmith train took no step:\n{log.read()[-2000:]}")
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait()
    return phases


def _phases(events: Path, began: float) -> dict[str, float]:
    """What the run has told so far: seconds since `began` of the first event of each kind."""
    phases: dict[str, float] = {}
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # being written
            break
        name = " ".join(filter(None, (event["kind"], event.get("stage"))))
        if name in PHASES and name not in phases:
            phases[name] = datetime.datetime.fromisoformat(event["time"]).timestamp() - began
    return phases


def start_peer(folder: Path, base: Path, environment: Mapping[str, str]) -> float:
    """Seconds from the start of the peer's script to the end of its first step."""
    began = time.time()
    command = [sys.executable, str(HERE / "_startup_peer.py"), str(folder / "rows.jsonl"), str(base), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(f"the peer took no step:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1]) - began


def measure(rounds: int, threads: int) -> dict[str, Any]:
    """Both sides in turns; medians, every round, and whether bar and goal are reached."""
    import tunesmith

    assert tunesmith.__file__ is not None
    base = Path(tunesmith.__file__).parent / "models" / "embedded" / "base"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(base.parents[3]), os.environ.get("PYTHONPATH")))),
    }
    print(f"startup: {rounds} rounds", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl")
        write_recipe(folder)
        start_ours(folder, "unmeasured", environment)
        start_peer(folder, base, environment)
        pairs = [
            (start_ours(folder, f"run-{i}", environment), start_peer(folder, base, environment)) for i in range(rounds)
        ]
        first = start_ours(folder, "first", {**environment, "XDG_CACHE_HOME": str(folder / "cache")})
    ours, theirs = [o["train_step"] for o, _ in pairs], [p for _, p in pairs]
    seconds = statistics.median(ours)
    return {
        "seconds": seconds,
        "rounds": ours,
        "phases": {p: statistics.median(o[p] for o, _ in pairs) for p in PHASES},
        "first_on_a_machine": first["train_step"],
        "peer_seconds": statistics.median(theirs),
        "peer_rounds": theirs,
        "bar": BAR,
        "goal": GOAL,
        "reached": "goal" if seconds <= GOAL else "bar" if seconds <= BAR else "not reached",
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    default = HERE / "results" / f"startup-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    report = {"threads": options.threads, "load_before": load, **measure(options.rounds, options.threads)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
