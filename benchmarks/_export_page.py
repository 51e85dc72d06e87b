"""The page of `export.py`: what was asked and reached, a table of each model, what writing costs, and the options."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPTIONS = Path(__file__).resolve().parent / "_export_options.md"
"""What was found about the builder's options; written by hand, with its figures' date."""
_TITLES = {
    "embedded": "the embedded base (16M, trained)",
    "135M-untied": "SmolLM2-135M's shape, head apart",
    "135M-tied": "SmolLM2-135M's shape, head tied",
    "0.5B": "Qwen2.5-0.5B's shape, head tied",
}


def page(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# Exports: speed, size and nearness to the original",
        "",
        "Written by `python benchmarks/export.py`; do not edit. How it is measured: the head of that file.",
        "",
        f"{report['machine']}; {report['date'][:10]}.",
        "",
        *_asked(report["models"]),
    ]
    for one in report["models"].values():
        lines += ["", *_model(one)]
    if report["costs"]:
        lines += ["", *_costs(report["costs"])]
    if OPTIONS.is_file():
        lines += ["", OPTIONS.read_text(encoding="utf-8").rstrip()]
    return "\n".join(lines) + "\n"


def _asked(models: Mapping[str, Any]) -> list[str]:
    lines = [
        "| model | fastest export | times `transformers` fp32 | asked, hoped for | share of the fp32 size | asked | KL "
        "| nearest of those that reach it | adapter switched in | asked |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in models.values():
        found = one["summary"]
        best = found.get("best")
        bar = f"{found['bar']:g}, {found['goal']:g}: {_word(found['reached'])}" if "bar" in found else ""
        share = f"at most {found['share_bar']:g}" if "bar" in found else ""
        switched = f"**{found['switched']:.2f}**" if "switched" in found else ""
        asked = f"{found['switched_bar']:g}: {_word(found['switched_reached'])}" if "switched_bar" in found else ""
        said = f"{best['name']} | **{best['times']:.2f}**" if best else "none | "
        size = f"{best['share']:.3f}" if best else ""
        near = found.get("nearest")
        also = f"{near['name']}: {near['times']:.2f}, {near['share']:.3f}, KL {_small(near['kl'])}" if near else ""
        kl = _small(best["kl"]) if best else ""
        lines.append(f"| {_title(one)} | {said} | {bar} | {size} | {share} | {kl} | {also} | {switched} | {asked} |")
    return lines


def _title(one: Mapping[str, Any]) -> str:
    return f"{_TITLES.get(one['model'], one['model'])}, {one['threads']} thread{'s' if one['threads'] > 1 else ''}"


def _model(one: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## {_title(one)[0].upper()}{_title(one)[1:]}",
        "",
        f"{one['parameters'] / 1e6:.1f}M parameters, measured {one['measured'].replace('T', ' ')[:16]} UTC; "
        f"{one['prompt']} tokens read, {one['new']} written. {_clock(one['threads'])} Medians of the rounds (lowest to "
        "highest). Memory is the most that the process held, in brackets what was above its imports; load is the "
        "machine's during the rounds.",
        "",
        "| | tokens/s written | times | by the clock | tokens/s read | first token, ms | MB | share | memory, MB | KL "
        "| top-1 | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [_row(row) for row in one["rows"]]


def _row(row: Mapping[str, Any]) -> str:
    if row["skipped"] is not None:
        return f"| {row['name']} | left out: {_cell(row['skipped'])} | | | | | | | | | | |"
    above = (row["peak"] - row["imports"]) / 1e6
    return (
        f"| {row['name']} | {_span(row['decode'])} | {row['times']:.2f} "
        f"| {statistics.median(row['decode_by_clock']):.1f} | {statistics.median(row['prefill']):.0f} "
        f"| {statistics.median(row['first_ms']):.0f} | {row['bytes'] / 1e6:.1f} | {row['share']:.3f} "
        f"| {row['peak'] / 1e6:.0f} ({above:.0f}) | {_small(row['kl'])} | {100 * row['top1']:.1f} % "
        f"| {min(row['load']):.1f} to {max(row['load']):.1f} |"
    )


def _costs(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "## What writing costs",
        "",
        "One export by a fresh Python process: imports, merging, building, a trial run, hashing. Memory is that of the "
        "process and all it started, at one moment. Computing is that of all of them together, which other work on the "
        "machine does not lengthen. Asked: 120 s and 3 GB.",
        "",
        "| model | export | seconds of computing | by the clock | GB | load before | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {_TITLES.get(one['model'], one['model'])} | {one['export']} | {one['computing']:.0f} "
        f"| {one['seconds']:.0f} | {one['peak'] / 1e9:.2f} | {one['load']} | {_word(one['reached'])} |"
        for one in costs
    ]


def _clock(threads: int) -> str:
    if threads == 1:
        return "Seconds are those of computing: on one thread other work on the machine does not count."
    return "Seconds are by the clock."


def _span(values: Sequence[float]) -> str:
    middle = f"**{statistics.median(values):.1f}**"
    return f"{middle} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else middle


def _small(value: float) -> str:
    return "0" if value < 1e-9 else f"{value:.1e}" if value < 1e-3 else f"{value:.4f}"


def _word(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    return text.replace("|", "/").replace("\n", " ")
