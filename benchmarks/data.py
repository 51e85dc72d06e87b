"""Large data: how fast and lean rows are checked, compared and tokenised.

    python benchmarks/data.py

Writes a seeded JSONL file of 1,000,000 chats (about 500 bytes each, with a few planted faults and copies) and measures,
each in a process of its own, by wall clock and by the largest resident memory of all its processes together:

- structure: every row read, parsed, validated and made an example of, on all cores;
- duplicates: exact and near-duplicates of all rows, from the file on;
- tokens: rows to a store of token ids on disk, from the file on, in tokens per second; beside it, the rate of the
  tokenizer's own `encode_batch` on the same texts, rendered before, on all cores;
- check: all that `tunesmith check FILE` does.

The figures go to `results/data-DATE.json` and to `data.md`. Ends with 1 where a limit is not met; the limits of time
and memory hold for 1,000,000 rows. `--rows`, `--base` and `--only` measure something else, `--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
ROWS = 1_000_000
LIMITS = {"structure": (60.0, 1_500_000_000), "duplicates": (360.0, 4_000_000_000)}
SHARE = 0.6
"""Of the tokenizer's own rate."""
COPIES, SAME, FAULTS = 0.01, 0.002, 0.001
"""Shares of rows that are nearly an earlier row, that are one, and that cannot be used."""
_LINES = 10_000


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """Chats of a system message, a question and an answer, of about 50 words; words drawn as in texts (Zipf)."""
    rng = np.random.default_rng(seed)
    words = _words(rng)
    chances = 1 / np.arange(2, len(words) + 2)
    edges = np.cumsum(chances / chances.sum())
    kept: list[tuple[str, str]] = []
    with path.open("w", encoding="utf-8") as stream:
        for begin in range(0, rows, _LINES):
            count = min(_LINES, rows - begin)
            lengths = rng.integers(8, 44, (count, 2))
            drawn = [words[i] for i in np.searchsorted(edges, rng.random(int(lengths.sum())))]
            kinds = rng.random(count)
            at, lines = 0, []
            for (asked, answered), kind in zip(lengths.tolist(), kinds.tolist(), strict=True):
                question = " ".join(drawn[at : at + asked])
                answer = " ".join(drawn[at + asked : at + asked + answered])
                at += asked + answered
                if kind < FAULTS:
                    lines.append('{"messages": [{"role": "user", "content": "no answer"}]}')
                    continue
                if kind < FAULTS + COPIES + SAME and kept:
                    question, answer = kept[int(kind * 1e9) % len(kept)]
                    if kind < FAULTS + COPIES:  # a letter or two are others
                        question, answer = question.replace("a", "e", 1), answer.replace("i", "o", 1)
                elif len(kept) < 1_000 and asked > 20:
                    kept.append((question, answer))
                turns = (("system", "You are a helpful assistant."), ("user", question), ("assistant", f"{answer}."))
                messages = [{"role": role, "content": content} for role, content in turns]
                lines.append(json.dumps({"messages": messages}))
            stream.write("\n".join(lines) + "\n")


def _words(rng: np.random.Generator) -> list[str]:
    """20,000 words: those of this project's documents first, made ones after them."""
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted((HERE.parent / "docs").glob("*.md")))
    real = list(dict.fromkeys(word.strip(".,;:()`'\"|*#") for word in text.lower().split()))
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    made = ["".join(letters[rng.integers(0, 16, n)]) for n in rng.integers(3, 10, 20_000)]
    return [word for word in [*real, *made] if word][:20_000]


# What is measured, each in a process of its own.


def structure(file: Path, base: str) -> dict[str, Any]:
    """Read and validate every row."""
    from tunesmith.data.examples import scan_examples
    from tunesmith.recipe.schema import Data

    began = time.perf_counter()
    scan = scan_examples(Data(train=str(file)), file, _count)
    return {
        "seconds": time.perf_counter() - began,
        "rows": scan.rows,
        "usable": scan.examples,
        "findings": {f.code: f.count for f in scan.findings},
    }


def _count(examples: Any, log: Any) -> int:
    return len(examples)


def duplicates(file: Path, base: str) -> dict[str, Any]:
    """Read all rows and find those that are the same, or nearly."""
    from tunesmith.data.duplicates import find_near_duplicates
    from tunesmith.data.duplicates.exact import copies_of
    from tunesmith.data.looking import load_only
    from tunesmith.recipe.schema import Data

    began = time.perf_counter()
    loaded = load_only(Data(train=str(file)), file)
    read = time.perf_counter() - began
    copies = copies_of(loaded.examples)
    found = find_near_duplicates(loaded.examples, processes=None)
    return {
        "seconds": time.perf_counter() - began,
        "reading": read,
        "rows": loaded.rows,
        "copies": sum(len(group) - 1 for group in copies),
        "pairs": len(found.pairs),
    }


def check(file: Path, base: str) -> dict[str, Any]:
    """Everything `tunesmith check FILE` looks for."""
    from tunesmith.pipeline import check_file

    began = time.perf_counter()
    report = check_file(file)
    seconds = time.perf_counter() - began
    with file.open(encoding="utf-8") as stream:
        rows = sum(1 for _ in stream)
    return {"seconds": seconds, "rows": rows, "findings": {f.code: f.count for f in report.findings}}


def tokens(file: Path, base: str) -> dict[str, Any]:
    """Rows to a store on disk; then the tokenizer's own rate on some of the same texts."""
    from tunesmith.data.examples import load_examples
    from tunesmith.recipe.schema import Data, Task
    from tunesmith.tasks import fit_task
    from tunesmith.tasks.conversation import training_conversation
    from tunesmith.text.render import Renderer
    from tunesmith.text.tokenising import tokenise_source

    renderer = Renderer(_tokenizer(base))
    spec = Data(train=str(file))
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        head = Path(folder) / "head.jsonl"
        with file.open(encoding="utf-8") as stream:
            head.write_text("".join(line for line, _ in zip(stream, range(20_000), strict=False)), encoding="utf-8")
        examples = load_examples(spec, head).examples
        converse = partial(training_conversation, fit_task(Task(), "generation", examples))
        began = time.perf_counter()
        made = tokenise_source(file, spec, renderer, Path(folder) / "store", converse=converse, loss="assistant")
        seconds = time.perf_counter() - began
        store = made.samples
        texts = ["".join(s.text for s in renderer.segments(converse(example))) for example in examples]
        raw = _raw_rate(renderer.tokenizer, texts)
        alone = _first_samples(renderer, converse, examples[:200])
        same = all(
            np.array_equal(store[i].ids, s.ids) and np.array_equal(store[i].weights, s.weights) for i, s in alone
        )
        count = int(store.lengths.sum())
        size = sum(path.stat().st_size for path in (Path(folder) / "store").iterdir())
        return {
            "seconds": seconds,
            "rows": len(store),
            "tokens": count,
            "tokens_per_second": count / seconds,
            "raw_tokens_per_second": raw,
            "share": count / seconds / raw,
            "bytes_per_token_on_disk": size / count,
            "as_one_by_one": same,
        }


def _first_samples(renderer: Any, converse: Callable[..., Any], examples: Any) -> Iterator[tuple[int, Any]]:
    return ((i, renderer.sample(converse(example))) for i, example in enumerate(examples))


def _raw_rate(tokenizer: Any, texts: list[str]) -> float:
    """Tokens per second of `encode_batch` on all cores: the best of three rounds."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        count = 0
        for start in range(0, len(texts), 2_000):
            part = texts[start : start + 2_000]
            count += sum(len(e.ids) for e in tokenizer.backend_tokenizer.encode_batch(part, add_special_tokens=False))
        best = max(best, count / (time.perf_counter() - began))
    return best


def _tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer

    from tunesmith.models.load import base_folder

    return AutoTokenizer.from_pretrained(str(base_folder(base) or base))


MEASURES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "structure": structure,
    "duplicates": duplicates,
    "tokens": tokens,
    "check": check,
}


class Memory:
    """The largest resident memory of a process and all its children together, looked at ten times a second.

    Pages that processes share are counted once for each: the true peak is lower, never higher.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.peak = 0
        self._process, self._done = psutil.Process(process.pid), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:  # one of them has just ended
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """The largest there was."""
        self._done.set()
        self._thread.join()
        return self.peak


def measure(name: str, file: Path, base: str) -> dict[str, Any]:
    """One measure in a process of its own, with its memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", name, "--file", str(file), "--base", base]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = Memory(process)
    output, _ = process.communicate()
    peak = memory.stop()
    if process.returncode:
        raise SystemExit(f"the measure {name} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "cpu_seconds": round(used, 2), "peak_bytes": peak}


def verdict(name: str, found: dict[str, Any], rows: int) -> bool | None:
    """Whether the limits are met; None where they are not for this many rows."""
    if name not in LIMITS and name != "tokens":
        return None
    if name == "tokens":
        return bool(found["share"] >= SHARE and found["as_one_by_one"])
    if rows < ROWS:
        return None
    seconds, size = LIMITS[name]
    return bool(found["seconds"] <= seconds and found["peak_bytes"] <= size)


def machine() -> str:
    """The processor, its cores, and Python."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = (line.partition(":")[2] for line in info.read_text().splitlines() if line.startswith("model name"))
        model = " ".join(next(names, model).split())
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


WHAT = {
    "structure": "every row read, parsed and validated",
    "duplicates": "exact and near-duplicates, from the file on",
    "tokens": "tokenised, from the file to the store on disk",
    "check": "`tunesmith check FILE`: all findings",
}


def page(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Large data: speed and memory",
        "",
        f"Written by `{report['command']}`; do not edit. {report['rows']:,} generated chat rows, "
        f"{report['bytes'] / 1e6:,.0f} MB of JSONL.",
        "",
        f"{report['machine']}; load before the runs {report['load_before']}; {report['date'][:10]}.",
        "",
        "| what | seconds | of all cores | rows per second | largest memory | limit for 1,000,000 rows | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report["measures"].items():
        limit = "–"
        if name in LIMITS:
            limit = f"{LIMITS[name][0]:g} s, {LIMITS[name][1] / 1e9:g} GB"
        elif name == "tokens":
            limit = f"{SHARE} of the tokenizer's rate"
        met = {True: "yes", False: "**no**", None: "–"}[found["met"]]
        lines.append(
            f"| {WHAT[name]} | {found['seconds']:.1f} | {found['cpu_seconds']:.1f} | "
            f"{found['rows'] / found['seconds']:,.0f} | {found['peak_bytes'] / 1e6:,.0f} MB | {limit} | {met} |"
        )
    if "tokens" in report["measures"]:
        found = report["measures"]["tokens"]
        lines += [
            "",
            f"Tokenising: {found['tokens_per_second']:,.0f} tokens a second. That is **{found['share']:.2f}** of the "
            f"tokenizer's own batch rate ({found['raw_tokens_per_second']:,.0f}, `encode_batch` on texts in memory, "
            f"all cores). The store takes {found['bytes_per_token_on_disk']:.2f} bytes per token; its first rows are "
            f"{'exactly' if found['as_one_by_one'] else '**not**'} those that rendering one by one gives.",
        ]
    if "duplicates" in report["measures"]:
        found = report["measures"]["duplicates"]
        lines += [
            "",
            f"Among the rows are {found['copies']:,} copies of another and {found['pairs']:,} pairs that are nearly "
            "the same (character 5-grams, Jaccard likeness of at least 0.8).",
        ]
    lines += [
        "",
        "Memory is that of all processes together; pages that they share are counted once for each. `of all cores` is "
        "processor time. Other programs that work meanwhile make the seconds longer, not the processor time.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--base", default="embedded:base", help="whose tokenizer and template are used")
    parser.add_argument("--only", default=",".join(MEASURES), help="measures, with commas between them")
    parser.add_argument("--folder", type=Path, help="where the rows are written; they stay there")
    parser.add_argument("--dry", action="store_true", help="print, and write no page")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.file, options.base)))
        return
    names = [name for name in MEASURES if name in options.only.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"chat-{options.rows}.jsonl"
        if not file.is_file():
            print(f"writing {options.rows:,} rows", file=sys.stderr)
            write_rows(file, options.rows)
        load = round(os.getloadavg()[0], 2)
        found = {}
        for name in names:
            print(f"measuring {name}", file=sys.stderr)
            found[name] = measure(name, file, options.base)
        size = file.stat().st_size
    for name, one in found.items():
        one["met"] = verdict(name, one, options.rows)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/data.py"
        + (f" --rows {options.rows}" if options.rows != ROWS else "")
        + (f" --only {','.join(names)}" if names != list(MEASURES) else ""),
        "machine": machine(),
        "load_before": load,
        "base": options.base,
        "rows": options.rows,
        "bytes": size,
        "measures": found,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if not options.dry:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        (results / f"data-{datetime.date.today().isoformat()}.json").write_text(text + "\n", encoding="utf-8")
        (HERE / "data.md").write_text(page(report), encoding="utf-8")
    if any(one["met"] is False for one in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
