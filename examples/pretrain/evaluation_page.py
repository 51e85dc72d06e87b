"""What `evaluate.py` found, as a page of markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MARGIN = 0.10
"""A base worth its training is at least this much below the n-gram model, in bits per byte."""
COPIED = 0.90
"""Share of random lists that it must repeat exactly."""


def page(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    lines = ["# The small base, measured", "", "Written by `examples/pretrain/evaluate.py`; intervals are of 95 %.", ""]
    writers = {"language": _language_page, "copying": _copying_page, "stories": _stories_page, "curve": _curve_page}
    for name, write in writers.items():
        if report.get(name) is not None:
            lines += [*write(report[name]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _interval(value: Sequence[float | None], percent: bool = False) -> str:
    scale, form = (100, "{:+.1f}") if percent else (1, "{:.3f}")
    middle, *ends = (form.format(scale * v) for v in value if v is not None)
    return middle + (" %" if percent else "") + (f" ({ends[0]} to {ends[1]})" if ends else "")


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _language_page(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Bits per byte on held-out text",
        "",
        "| text | bytes | base | n-grams, all | n-grams, running text | base against the better | xz alone | "
        f"xz added | {MARGIN:.0%} below n-grams, and below xz |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["texts"].items():
        both = [_interval(one["ngram"][which]) for which in ("all documents", "running text")]
        lines.append(
            f"| {name} | {one['bytes']:,} in {one['documents']} | {_interval(one['bits_per_byte'])} | {both[0]} | "
            f"{both[1]} | {_interval(one['against_ngram'], percent=True)} | {one['xz_alone']:.3f} | "
            f"{one['xz_added_to_training_text']:.3f} | {_verdict(one['reached'])} |"
        )
    dropped = sum(len(one["dropped_documents"]) for one in found["texts"].values())
    counted = found["ngram"]["all documents"]
    order = len(counted["different_by_order"])
    return [
        *lines,
        "",
        f"n-grams: interpolated modified Kneser-Ney of order {order} over {counted['tokens']:,} training tokens "
        f"(running text: {found['ngram']['running text']['tokens']:,}). xz: level 9, extreme; *added* is what the text "
        f"adds to {found['xz_sample_bytes']:,} bytes of training text. {dropped} documents dropped as near-duplicates.",
    ]


def _copying_page(found: Mapping[str, Any]) -> list[str]:
    said = {
        "repeat": "repeats a list of eight random words exactly",
        "to_json": "turns such a list into JSON exactly",
        "look_up": "finds the value of one of six keys",
    }
    rows = [f"| {said[name]} | {_interval([found[name][k] for k in ('value', 'low', 'high')])} |" for name in said]
    kinds = "; ".join(f"{kind} {share:.0%}" for kind, share in found["repeat"]["by_kind"].items())
    induction = [
        f"Induction on random {name}: {one['second_accuracy']:.1%} of the second reading foreseen (first: "
        f"{one['first_accuracy']:.1%}), {one['bits_saved']:.1f} bits a token saved."
        for name, one in found["induction"].items()
    ]
    goal = f"Goal, {COPIED:.0%} of the lists repeated: {_verdict(found['reached'])}. By wording: {kinds}."
    return [
        "## Using what stands in the prompt",
        "",
        f"| share of {found['repeat']['n']} questions each | |",
        "|---|---|",
        *rows,
        "",
        goal,
        "",
        *induction,
    ]


def _stories_page(found: Mapping[str, Any]) -> list[str]:
    return [
        f"## Simple stories ({found['documents']} of them, {found['bytes']:,} bytes)",
        "",
        "| model | parameters | bits per byte |",
        "|---|---|---|",
        *(
            f"| {name} | {one['parameters']:,} | {_interval(one['bits_per_byte'])} |"
            for name, one in found["models"].items()
        ),
        "",
        f"Base against stories260K: {_interval(found['base_against_stories260K'], percent=True)}.",
    ]


def _curve_page(found: Mapping[str, Any]) -> list[str]:
    law = found["law"]
    rows = [
        f"| {times} times | {one['tokens']:,} | {one['change']:+.3f} | {_interval(one['loss'])} |"
        for times, one in found["foreseen"].items()
    ]
    return [
        "## Loss against tokens",
        "",
        "![held-out loss against tokens](curve.svg)",
        "",
        f"At the peak rate the loss follows {law['limit']:.2f} + {law['scale']:.3g} D^-{law['exponent']:.2f} (nats a "
        f"token, {found['law_points']} points, residuals of {found['law_error']:.3f}). After {found['tokens']:,} "
        f"tokens it is {found['last_loss']:.3f}, {found['below_law_at_end']:.3f} below the law: what the "
        "falling rate and the later mixes brought or took.",
        "",
        "| tokens | | change of the law | the law (before the rate falls) |",
        "|---|---|---|---|",
        *rows,
    ]
