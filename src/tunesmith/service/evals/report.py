"""The page of a run: how it went, how sure that is, and the failures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.evals.summary import summarise
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import Eval, EvalRun, OutputItem

MOST_SHOWN = 50
"""Failures on the page; all are in the output items."""
LONGEST_TEXT = 2_000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #d5dae0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.4 ui-monospace, monospace; }
.bad { color: #b42318; } .muted { color: #57606a; }
"""


def report_page(service: Service, found: Eval, run: EvalRun) -> str:
    """HTML that needs nothing else."""
    items = service.store.all(OutputItem, {"run_id": run.id})
    summary = summarise(items, found.testing_criteria)
    failures = service.store.page(
        OutputItem, Page(limit=MOST_SHOWN, order="asc"), {"run_id": run.id, "status": ("fail", "error")}
    ).items
    title = f"{found.name or found.id}: {run.name or run.id}"
    counts = summary.result_counts
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body><h1>{escape(title)}</h1>",
        f"<p>{escape(run.status)}{_of(run.model)} · {counts['total']} rows: {counts['passed']} passed, ",
        f"{counts['failed']} failed, {counts['errored']} with errors.</p>",
        f"<p class=bad>{escape(run.error['message'])}</p>" if run.error else "",
        _criteria(summary.per_testing_criteria_results, found.testing_criteria),
        _usage(summary.per_model_usage),
        _failures(failures, counts["failed"] + counts["errored"], found.testing_criteria),
        "</body></html>",
    ]
    return "".join(parts)


def _of(model: str | None) -> str:
    return f" · model {escape(model)}" if model else ""


def _criteria(results: Sequence[Mapping[str, Any]], criteria: Sequence[Mapping[str, Any]]) -> str:
    types = {one["id"]: (one["name"], one["type"]) for one in criteria}
    rows = []
    for one in results:
        name, kind = types[one["testing_criteria"]]
        rows.append(
            f"<tr><td>{escape(str(name))}<td>{escape(str(kind))}<td class=number>{one['passed']}"
            f"<td class=number>{one['failed']}<td class=number>{_share(one['pass_rate'], one['pass_rate_interval'])}"
            f"<td class=number>{_score(one['mean_score'], one['mean_score_interval'])}"
        )
    return (
        "<h2>Criteria</h2><table><tr><th>Name<th>Type<th class=number>Passed<th class=number>Failed"
        "<th class=number>Pass rate (95&nbsp;% interval)<th class=number>Mean score (95&nbsp;% interval)"
        f"{''.join(rows)}</table><p class=muted>Intervals: Wilson for shares, bootstrap (BCa) for other scores. Rows "
        "on which a criterion met an error count neither way.</p>"
    )


def _share(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _score(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _usage(usage: Sequence[Mapping[str, Any]]) -> str:
    if not usage:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one['model_name'])}<td class=number>{one['invocation_count']:,}"
        f"<td class=number>{one['prompt_tokens']:,}<td class=number>{one['cached_tokens']:,}"
        f"<td class=number>{one['completion_tokens']:,}"
        for one in usage
    )
    return (
        "<h2>Tokens</h2><table><tr><th>Model<th class=number>Answers<th class=number>Prompt"
        f"<th class=number>of it cached<th class=number>Answer{rows}</table>"
    )


def _failures(items: Sequence[OutputItem], count: int, criteria: Sequence[Mapping[str, Any]]) -> str:
    if not items:
        return "<h2>Failures</h2><p>None.</p>"
    names = {one["id"]: str(one["name"]) for one in criteria}
    rows = "".join(
        f"<tr><td class=number>{item.place + 1}<td><pre>{_text(item.datasource_item)}</pre>"
        f"<td><pre>{_said(item)}</pre><td>{_why(item, names)}"
        for item in items
    )
    left = f" (the first {len(items)} of {count})" if count > len(items) else ""
    return f"<h2>Failures{left}</h2><table><tr><th class=number>Row<th>Item<th>Answer<th>Why{rows}</table>"


def _said(item: OutputItem) -> str:
    output = item.sample.get("output") or []
    texts = [one.get("content") or json.dumps(one.get("tool_calls"), ensure_ascii=False) for one in output]
    return _text("\n".join(texts))


def _why(item: OutputItem, names: Mapping[str, str]) -> str:
    error = item.sample.get("error")
    lines = [f"<span class=bad>{escape(error['message'])}</span>"] if error else []
    for result in item.results:
        name = escape(names.get(result["name"], result["name"]))
        if result.get("error"):
            lines.append(f"{name}: <span class=bad>{escape(result['error']['message'])}</span>")
        elif not result["passed"]:
            lines.append(f"{name}: {result['score']:.3g}")
    return "<br>".join(lines)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    shown = text[:LONGEST_TEXT] + (" …" if len(text) > LONGEST_TEXT else "")
    # A row may hold half of a surrogate pair, which no page can.
    return escape(shown.encode("utf-8", "replace").decode())
