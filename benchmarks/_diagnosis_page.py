"""The twenty runs of `diagnosis.py` as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def page(records: Sequence[Mapping[str, Any]], seed: int) -> str:
    """All runs as markdown. Raises `ValueError` where they are not of one base."""
    bases = {(r["base"]["name"], r["base"]["weights_sha256"]) for r in records}
    if len(bases) != 1:
        raise ValueError(f"the runs are of {len(bases)} bases: run all of them again (--fresh)")
    ((base, weights),) = bases
    spoiled = [r for r in records if r["expected"] is not None]
    healthy = [r for r in records if r["expected"] is None]
    helped = sum("scores_after" in r and r["scores_after"][r["metric"]] > r["scores"][r["metric"]] for r in spoiled)
    told = sum(r["codes"] == [r["expected"]] and set(r["told_at"]) == {r["expected"]} for r in spoiled)
    lines = [
        "# Diagnosis: spoiled and healthy runs",
        "",
        f"{told} of {len(spoiled)} spoiled runs got their diagnosis and no other; {helped} of {len(spoiled)} remedies",
        f"helped; {sum(r['right'] for r in healthy)} of {len(healthy)} healthy runs got none, at any validation.",
        "",
        f"Made by `python benchmarks/diagnosis.py --seed {seed}` on `{base}`, weights of SHA-256",
        f"`{weights}`. Metrics are of the test rows, before and",
        "after the remedy; *told at* is the first validation at which the diagnosis was there (where the loss is no",
        "number: the last step before). *Loss* is nats per learnt token of training rows and of validation rows, at",
        "the last validation. Rows are mended where no setting can do it: right labels, a right mask, a number for a",
        "weight. *Then told*: what the remedied run is told at its end.",
        "",
        "| spoiled run | diagnosis | told at step | loss | remedy | metric | before | after | then told |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in spoiled:
        found = ", ".join(f"`{code}`" for code in r["codes"]) + ("" if r["right"] else " **(wrong)**")
        at = ", ".join(str(step) for step in r["told_at"].values())
        after = _percent(r["scores_after"][r["metric"]]) if "scores_after" in r else ""
        before = _percent(r["scores"][r["metric"]])
        then = (", ".join(f"`{code}`" for code in r["codes_after"]) or "nothing") if "codes_after" in r else ""
        cells = (r["name"], found, at, _losses(r), _remedy(r), r["metric"], before, after, then)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| healthy run | diagnosis | loss | test metric |", "|---|---|---|---|"]
    for r in healthy:
        found = ", ".join(dict.fromkeys([*r["codes"], *r["told_at"]])) or "none"
        name, value = next(iter(r["scores"].items()))
        lines.append(f"| {r['name']} | {found} | {_losses(r)} | {name} {_percent(value)} |")
    lines += ["", "What each spoiled run was told:", ""]
    for r in spoiled:
        lines += [f"- **{r['name']}**: {d['title']}. {d['seen']} {d['why']} *{d['remedy']}*" for d in r["diagnoses"]]
    return "\n".join(lines) + "\n"


def _remedy(record: Mapping[str, Any]) -> str:
    words = ", ".join(f"`{setting}`" for setting in record.get("remedy", ()))
    return "; ".join(part for part in (words, "rows mended" if record.get("rows_mended") else "") if part)


def _losses(record: Mapping[str, Any]) -> str:
    """Of the last validation: training rows, validation rows."""
    last = [event["probe"] for event in record["history"] if event["kind"] == "validation"][-1]
    return f"{last['train_loss']:.2g}, {last['loss']:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
