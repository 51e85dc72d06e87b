"""How fast answers are generated for an evaluation, against one-at-a-time `transformers` generate: the same answers?

    TUNESMITH_TEST_DATA=DATA python benchmarks/generation.py [--rows 64] [--rounds 3] [--only NAME ...]

Every prompt begins with the same few-shot examples, about 500 tokens, as an evaluation's prompts do. Both sides get the
same weights (fp32), the same token ids and the same limit; the peer is called as its documentation shows, once for each
prompt. Rounds are interleaved, each on other rows, and the answers are compared text by text. Questions are those of
real data where TUNESMITH_TEST_DATA names its folder, else they are generated; the page says which.

Besides: what holding answers to a form costs, and label scoring against one pass per label.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.types import Message
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.models.load import load_base
from tunesmith.recipe.schema import Base
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

HERE = Path(__file__).resolve().parent
PREFIX_TOKENS = 500
TARGET = 4.0
Turns = list[Message]


@dataclass(frozen=True)
class Workload:
    """Prompts that begin alike, and the labels their answers should be. `source` says where the questions are from."""

    name: str
    source: str
    prompts: tuple[Turns, ...]
    labels: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Compared:
    """Rows per second of both sides in each round, and how many answers of theirs are ours too."""

    workload: str
    source: str
    prefix_tokens: int
    max_new_tokens: int
    rows: int
    ours: list[float]
    theirs: list[float]
    times: float
    same: int
    answer_tokens: float


def intents(data: Path | None) -> tuple[str, list[tuple[str, str]]]:
    """Where rows are from, and a question with its label in each."""
    file = data / "banking77" / "test.csv" if data is not None else None
    if file is not None and file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            return "banking77", [(row["text"], row["category"]) for row in csv.DictReader(stream)]
    draw = random.Random(1)
    nouns = ["card", "transfer", "payment", "balance", "account", "limit", "refund", "fee", "exchange", "address"]
    asks = ("why is my {} pending", "how do I change the {}", "the {} is wrong", "where can I see my {} today")
    return "generated", [(f"{draw.choice(asks).format(n)} {i}", f"{n}_question") for i in range(400) for n in nouns]


def instructions(data: Path | None) -> tuple[str, list[tuple[str, str]]]:
    """Where rows are from, and an instruction with its answer of a sentence or more in each."""
    file = data / "dolly15k" / "dolly15k.jsonl" if data is not None else None
    if file is not None and file.is_file():
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        plain = [(row["instruction"], row["response"]) for row in found if not row["context"]]
        return "dolly15k", [(ask, said) for ask, said in plain if len(ask) < 200 and 100 < len(said) < 400]
    rows = intents(None)[1]
    return "generated", [(ask, f"Please look at the page of your {label.split('_')[0]}. " * 3) for ask, label in rows]


def workload(
    name: str, engine: TorchEngine, rows_from: tuple[str, list[tuple[str, str]]], system: str, rows: int, limit: int
) -> Workload:
    """`rows` prompts behind as many examples as make `PREFIX_TOKENS` tokens, in a seeded order."""
    source, found = rows_from
    random.Random(0).shuffle(found)
    shown: Turns = [Message("system", system)]
    while engine.count_tokens(shown) < PREFIX_TOKENS:
        question, label = found.pop()
        shown += [Message("user", question), Message("assistant", label)]
    prompts = tuple([*shown, Message("user", question)] for question, _ in found[:rows])
    if len(prompts) < rows:
        raise SystemExit(f"{source} has only {len(prompts)} rows to ask; give fewer --rows or --rounds")
    return Workload(name, source, prompts, tuple(sorted({label for _, label in found})), limit)


def one_at_a_time(engine: TorchEngine, prompts: Sequence[Turns], max_new_tokens: int) -> list[str]:
    """What `transformers` generates, prompt by prompt."""
    said = []
    for prompt in prompts:
        ids = torch.tensor([engine.renderer.prompt_ids(prompt)])
        with torch.inference_mode():
            out = engine.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens,
                eos_token_id=sorted(engine.renderer.stop_ids), pad_token_id=0,
            )  # fmt: skip
        said.append(engine.renderer.decode([int(i) for i in out[0, ids.shape[1] :]]))
    return said


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a piece of work gives, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def compare(engine: TorchEngine, work: Workload, rounds: int) -> Compared:
    """Both sides on the same rows, in turns; who begins changes from round to round."""
    ours, theirs, same, tokens = [], [], 0, 0
    for number, part in enumerate(parts(work.prompts, rounds)):
        sides: list[tuple[str, Callable[[], Any]]] = [
            ("ours", lambda part=part: list(engine.generate(part, work.max_new_tokens))),  # type: ignore[misc]
            ("theirs", lambda part=part: one_at_a_time(engine, part, work.max_new_tokens)),  # type: ignore[misc]
        ]
        found = {name: timed(side) for name, side in (sides if number % 2 == 0 else sides[::-1])}
        ours.append(len(part) / found["ours"][1])
        theirs.append(len(part) / found["theirs"][1])
        answers = found["ours"][0]
        same += sum(one.text == other for one, other in zip(answers, found["theirs"][0], strict=True))
        tokens += sum(one.answer_tokens for one in answers)
    return Compared(
        workload=work.name,
        source=work.source,
        prefix_tokens=PREFIX_TOKENS,
        max_new_tokens=work.max_new_tokens,
        rows=len(work.prompts),
        ours=[round(speed, 2) for speed in ours],
        theirs=[round(speed, 2) for speed in theirs],
        times=round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        same=same,
        answer_tokens=round(tokens / len(work.prompts), 1),
    )


def parts(prompts: Sequence[Turns], rounds: int) -> Iterator[Sequence[Turns]]:
    """The prompts in equal parts, one for each round."""
    size = len(prompts) // rounds
    for number in range(rounds):
        yield prompts[number * size : (number + 1) * size]


def held(engine: TorchEngine, work: Workload, rounds: int) -> dict[str, Any]:
    """Rows per second under a grammar of the labels, and without it; and how many answers are labels."""
    form, labels = AnswerForm(work.labels), set(work.labels)
    speeds: dict[str, list[float]] = {"grammar": [], "free": []}
    readable = {"grammar": 0, "free": 0}
    for part in parts(work.prompts, rounds):
        for name, forms in (("grammar", [form] * len(part)), ("free", None)):
            answers, seconds = timed(
                lambda part=part, forms=forms: list(engine.generate(part, work.max_new_tokens, forms=forms))  # type: ignore[misc]
            )
            speeds[name].append(round(len(part) / seconds, 2))
            readable[name] += sum(one.text.strip() in labels for one in answers)
    return {
        "labels": len(labels),
        "rows": len(work.prompts),
        "rows_per_second": speeds,
        "answers_that_are_labels": readable,
    }


def scored(engine: TorchEngine, work: Workload, rows: int, plain_rows: int) -> dict[str, Any]:
    """Rows per second of scoring every label, of one pass per label, and the largest difference between them."""
    asked = work.prompts[:rows]
    answers = [list(work.labels)] * rows
    found, seconds = timed(lambda: list(engine.score(asked, answers)))
    plain, plain_seconds = timed(lambda: [one_pass_per_label(engine, p, work.labels) for p in asked[:plain_rows]])
    worst = max(abs(a - b) for one, other in zip(found, plain, strict=False) for a, b in zip(one, other, strict=True))
    return {
        "labels": len(work.labels),
        "rows": rows,
        "rows_per_second": round(rows / seconds, 2),
        "one_pass_per_label": {"rows": plain_rows, "rows_per_second": round(plain_rows / plain_seconds, 3)},
        "largest_difference": float(f"{worst:.2g}"),
    }


def one_pass_per_label(engine: TorchEngine, prompt: Turns, labels: Sequence[str]) -> list[float]:
    """The plain way: prompt and label through the model, for each label by itself."""
    renderer, found = engine.renderer, []
    before = len(renderer.prompt_ids(prompt))
    for label in labels:
        sample = renderer.sample([*prompt, Message("assistant", label)], loss="last")
        said = sample.ids[sample.weights > 0].tolist()
        ids = torch.tensor([sample.ids[: before + len(said)].tolist()])
        with torch.inference_mode():
            steps = engine.model(ids, use_cache=False).logits[0, before - 1 : -1].float().log_softmax(-1)
        found.append(float(steps.gather(1, torch.tensor(said)[:, None]).sum()))
    return found


def page(report: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "# Generating answers",
        "",
        "Written by `python benchmarks/generation.py`; do not edit. The peer is `transformers` generate, called once",
        f"for each prompt. All prompts begin with the same few-shot examples, {PREFIX_TOKENS} tokens or a little more;",
        "both sides have the same fp32 weights and token ids. Rows per second are of each round, and rounds are",
        "interleaved.",
        "",
        f"{report['date'][:10]}, {report['machine']}, base {report['base']}, threads: {report['threads']}, "
        f"load of the machine before: {report['load_before']}.",
        "",
        "| answers | questions | at most | on average | ours, rows/s | one at a time, rows/s | times | same answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in report["compared"]:
        limit, same = f"{one['max_new_tokens']} tokens", f"{one['same']} of {one['rows']}"
        cells = [one["workload"], one["source"], limit, one["answer_tokens"], _speeds(one["ours"])]
        cells += [_speeds(one["theirs"]), f"**{one['times']}**", same]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"`times` is the median over rounds; the least that is asked for is {TARGET:g}.", ""]
    if (form := report.get("held")) is not None:
        speeds, readable = form["rows_per_second"], form["answers_that_are_labels"]
        lines += [
            "## Held to a form",
            "",
            f"The base, not tuned, under a grammar of {form['labels']} labels: {_speeds(speeds['grammar'])} rows/s, "
            f"and {readable['grammar']} of {form['rows']} answers are labels; free: {_speeds(speeds['free'])} rows/s, "
            f"{readable['free']} of {form['rows']}.",
            "",
        ]
    if (labels := report.get("scored")) is not None:
        plain = labels["one_pass_per_label"]
        lines += [
            "## Every label scored",
            "",
            f"The exact log-probability of {labels['labels']} labels: {labels['rows_per_second']} rows/s; with a pass "
            f"for each label {plain['rows_per_second']} rows/s ({plain['rows']} rows). The log-probabilities differ by "
            f"at most {labels['largest_difference']:g}.",
            "",
        ]
    return "\n".join(lines)


def _speeds(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def main() -> None:
    """Measure and publish; ends with 1 where the target is missed or an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="rows of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scored-rows", type=int, default=48)
    parser.add_argument("--base", default="embedded:base")
    parser.add_argument("--only", nargs="*", choices=("short", "long", "held", "scored"), help="parts to measure")
    day = datetime.date.today().isoformat()
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"generation-{day}.json")
    parser.add_argument("--page", type=Path, default=HERE / "generation.md")
    options = parser.parse_args()
    wanted = set(options.only or ("short", "long", "held", "scored"))
    folder = os.environ.get("TUNESMITH_TEST_DATA")
    data = Path(folder) if folder else None
    base = load_base(Base(model=options.base, dtype="float32"))
    engine = TorchEngine(base.model, Renderer(base.tokenizer), base.context)
    rows = options.rows * options.rounds
    short = workload("labels", engine, intents(data), "Classify the input.", rows, 24)
    long = workload("sentences", engine, instructions(data), "Answer the question.", rows, 64)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "base": options.base,
        "target": TARGET,
        "compared": [
            asdict(compare(engine, work, options.rounds))
            for name, work in (("short", short), ("long", long))
            if name in wanted
        ],
        "held": held(engine, short, options.rounds) if "held" in wanted else None,
        "scored": scored(engine, short, options.scored_rows, 2) if "scored" in wanted else None,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(page(report), encoding="utf-8")
    print(page(report))
    if any(one["times"] < TARGET or one["same"] < one["rows"] for one in report["compared"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
