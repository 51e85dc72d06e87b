"""The page of `exports.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.verdict import wording
from tunesmith.verdict.front_chart import Point, on_front

Record = Mapping[str, Any]
TASTESET = "tasteset"


def page(found: Mapping[str, Mapping[str, Record]], required: Sequence[str]) -> str:
    """Markdown: every export of the real task with what it lost, then families against formats."""
    lines = [
        "# Exports: is every one the tuned model?",
        "",
        "Made by `python benchmarks/exports.py`. An export is *verified* where its own runtime opened it and every",
        "check of `docs/export.md` passed against the tuned model in memory: logits, what tuning changed, template,",
        "answers, task metric on the frozen test rows, stopping. It was then opened by programs that know nothing of",
        "Tunesmith.",
        "",
    ]
    if TASTESET in found:
        lines += [*_task(found[TASTESET]), ""]
    families = {name: records for name, records in found.items() if name != TASTESET}
    if families:
        lines += [*_matrix(families, required), ""]
    lines += [*_others(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def _task(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## `embedded:base` tuned on TASTEset"
    yield ""
    yield "Intervals are of 95 %, differences are paired with the tuned model on the same rows. *Surely*: the loss is"
    yield "shown to be below what is allowed; else nothing speaks against the export, but the rows are too few to show"
    yield "it. Tokens a second are of one answer on one thread, the best of three on a machine that did other things"
    yield "too; peak memory is of the whole process with its libraries. `export.md` is about speed."
    yield ""
    head = "MB | tokens/s | peak MB | rows | metric | against tuned | KL | same top token | same answer | not worse"
    yield f"| export | {head} |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    points = []
    for name, record in records.items():
        if record["outcome"] != "verified":
            yield f"| {name} | | | | {_why(record)} | | | | | | |"
            continue
        size = (record["bytes"] + record["facts"].get("base_bytes", 0)) / 1e6
        speed = record["facts"].get("speed", {})
        for number, one in enumerate(record["verifications"]):
            scores = one["numbers"].get("scores")
            label = name if one["adapter"] is None else f"{name}: {one['adapter']}"
            yield _line(label, size, speed if number == 0 else {}, one["numbers"], scores)
            if scores and number == 0:
                points.append(Point(len(points), name, size, scores["value"], scores["low"], scores["high"]))
    front = [point.label for point in on_front(points, smaller=True)]
    yield ""
    yield f"On the Pareto front of quality and size: {', '.join(front)}. An adapter counts with the base it needs."
    yield "The picture with intervals is in the run's report."


def _line(label: str, size: float, speed: Record, numbers: Record, scores: Record | None) -> str:
    decode, peak = speed.get("decode"), speed.get("peak_memory")
    cells = [label, f"{size:.1f}", f"{decode:,.0f}" if decode else "", f"{peak / 1e6:,.0f}" if peak else ""]
    if scores:
        ends = (scores["difference_low"], scores["difference_high"])
        cells += [
            str(scores["n"]),
            f"{wording.percent(scores['value'])} ({_between(scores['low'], scores['high'])})",
            f"{wording.points(scores['difference'])} ({_between(*ends)})",
        ]
    else:
        cells += ["", "", ""]
    sure = "" if not scores else "surely" if scores["non_inferior"] else "as far as the rows tell"
    kl, top, same = numbers["mean_kl"], numbers["top1_agreement"], numbers["answer_agreement"]
    return "| " + " | ".join([*cells, f"{kl:.2g}", wording.percent(top), wording.percent(same), sure]) + " |"


def _between(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _matrix(families: Mapping[str, Mapping[str, Record]], required: Sequence[str]) -> Iterator[str]:
    yield "## Families"
    yield ""
    yield "Random weights, three or six layers of 128, a tokenizer and a template of the family's kind; LoRA learnt"
    yield "from rows, 32 test rows. *✓* is verified; the number is the mean KL from the tuned model, in nats."
    yield f"Exports of several adapters hold two, each verified on its own rows. Of {wording.listed(required)} every"
    yield "format above `gguf-q4_0` must come out; of the others adapter and merged."
    yield ""
    names = list(dict.fromkeys(name for records in families.values() for name in records))
    yield "| export | " + " | ".join(families) + " |"
    yield "|---|" + "---|" * len(families)
    notes: dict[str, None] = {}
    for name in names:
        cells = []
        for family, records in families.items():
            record = records.get(name)
            if record is None:
                cells.append("")
            elif record["outcome"] == "verified":
                kl = max(one["numbers"]["mean_kl"] for one in record["verifications"])
                cells.append(f"✓ {kl:.2g}")
            else:
                why = f"{family}, {_why(record)}"
                notes[why] = None
                cells.append(f"– ({list(notes).index(why) + 1})")
        yield f"| {name} | " + " | ".join(cells) + " |"
    if notes:
        yield ""
        yield from (f"{number}. {why}" for number, why in enumerate(notes, 1))


def _others(found: Mapping[str, Mapping[str, Record]]) -> Iterator[str]:
    """How far independent programs are from the verified engine, and what they do not read."""
    yield "## Opened by others"
    yield ""
    yield "Mean KL, in nats, of a program's next token from that of the verified engine on the same file, the largest"
    yield "of all exports. *Same tokens*: it asks a conversation with the tokens of the tuned model, by its own"
    yield "tokenizer and template."
    yield ""
    yield "| program | exports opened | largest KL | same tokens |"
    yield "|---|---|---|---|"
    tools: dict[str, list[Record]] = {}
    said: dict[str, None] = {}
    for case, records in found.items():
        for name, record in records.items():
            for one in record.get("others", []):
                if "tool" in one:
                    tools.setdefault(one["tool"], []).append(one)
                    if not one["same_tokens"]:
                        said[f"{case}, {name}: {one['tool']} cuts the conversation into other tokens"] = None
                else:
                    said[f"{case}: {one['said']}"] = None
    for tool, ones in sorted(tools.items()):
        same = sum(one["same_tokens"] for one in ones)
        yield f"| {tool} | {len(ones)} | {max(one['kl'] for one in ones):.1g} | {same} of {len(ones)} |"
    if said:
        yield ""
        yield from (f"- {one}" for one in said)


def _why(record: Record) -> str:
    """What stopped an export, fit for a cell."""
    words = {"step": f"{record.get('step')}: {record['reason']}. Instead: {record.get('instead')}"}
    return words.get(record["outcome"], f"{record['outcome']}: {record['reason']}").replace("|", "/").replace("\n", " ")
