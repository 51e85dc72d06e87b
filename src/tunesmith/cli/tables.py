"""What commands print for people: findings, lengths, examples, comparison, verdict, runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.cli.progress import size
from tunesmith.data.types import Finding
from tunesmith.verdict.types import Verdict
from tunesmith.verdict.wording import bare_points, candidate_name, count, duration, metric_name, percent

if TYPE_CHECKING:
    from tunesmith.data.fixing import Fixed
    from tunesmith.pipeline import CheckReport, Result
    from tunesmith.pipeline.tuning_costs import TuningCosts
    from tunesmith.recipe import Choice
    from tunesmith.runs import RunSummary

Preview = Sequence[tuple[str, float]]

_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_STATE_STYLES = {"fine": "green", "look": "yellow", "stop": "bold red"}
_ORDER = {"error": 0, "warning": 1, "info": 2}
_DECISIONS = {
    "ship_tuned": "ship the tuned model",
    "keep_prompting": "keep prompting",
    "use_retrieval": "use retrieval",
    "use_trivial": "the trivial baseline is enough",
    "use_remote": "use the remote model",
    "none_good_enough": "none is good enough",
    "cannot_tell": "cannot tell",
}
_LINES_SHOWN = 8
_MARKS = {" ": " ", "\n": "↵\n", "\t": "→\t", "\r": "␍"}


def print_check(report: CheckReport) -> None:
    """Everything `check` found, the examples last but the findings: what matters most stands at the end."""
    console = Console()
    if report.choices:
        console.print(Text("decided", style="bold"))
        console.print(choices_table(report.choices))
    if report.preview:
        console.print(Text("what will be learnt", style="bold"), Text("(green)", style="black on green"))
        for example in list(report.preview)[:3]:
            console.print(Padding(preview_text(example), (0, 0, 1, 2)))
    if report.lengths:
        console.print(Text("tokens per row", style="bold"))
        console.print(Padding(histogram(report.lengths), (0, 0, 1, 2)))
    if report.estimate:
        console.print(Text("estimate", style="bold"))
        console.print(estimate_table(report.estimate))
    if report.numbers is not None:
        from tunesmith.cli.data.preview import cost_table

        console.print(Padding(cost_table(report.numbers), (1, 0, 1, 2)))
    if report.splits:
        console.print(Text("splits", style="bold"))
        console.print(Padding(splits_text(report.splits), (0, 0, 1, 2)))
    if report.tuning_costs is not None:
        print_tuning_costs(console, report.tuning_costs)
    console.print(findings_table(report.findings))


def print_tuning_costs(console: Console, costs: TuningCosts) -> None:
    """The four costs of tuning, each with how it is known, and one sentence on all."""
    from tunesmith.pipeline.tuning_costs_page import STATE_WORDS
    from tunesmith.pipeline.tuning_costs_words import sections

    console.print(Text("what tuning would cost", style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for style in ("", "", "dim"):
        table.add_column(overflow="fold", style=style)
    for section in sections(costs):
        state = Text(STATE_WORDS[section.state], _STATE_STYLES[section.state])
        table.add_row(Text(section.name, "bold"), state, Text(section.question))
        for what, value, how in section.lines:
            table.add_row(Text(f"  {what}"), Text(value), Text(how))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print(Padding(Text(costs.summary), (0, 0, 1, 2)))


def splits_text(splits: Mapping[str, Any]) -> Text:
    """How the rows are divided, and how small a difference the test set shows."""
    text = Text(str(splits["explanation"]))
    if splits["sizes"]["test"]:
        points = 100 * splits["detectable_difference"]
        text.append(f"\n{count(splits['sizes']['test'])} test rows show a difference of about {points:.1f} points.")
        if needed := splits["test_rows_for_min_gain"]:
            text.append(f" The gain of verdict.min_gain would need about {count(needed)}.", "dim")
    return text


def print_result(result: Result) -> None:
    """The comparison, what training took, the verdict, and where everything lies."""
    console = Console()
    if result.comparison_rows:
        console.print(comparison_table(result.comparison_rows))
    if result.training:
        console.print(training_text(result.training), highlight=False)
    if result.verdict is not None:
        console.print(verdict_text(result.verdict))
    console.print(Text(f"run: {result.folder.path}"), soft_wrap=True)
    if result.report is not None:
        console.print(Text(f"report: {result.report}"), soft_wrap=True)


def print_runs(summaries: Sequence[RunSummary]) -> None:
    """The runs, one per line."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "begun", "state", "verdict"):
        table.add_column(heading, overflow="fold")
    for summary in summaries:
        state = "running" if summary.running else summary.state
        table.add_row(
            Text(summary.name),
            summary.created[:16].replace("T", " "),
            state,
            Text(summary.verdict or summary.error or ""),
        )
    Console().print(table)


def findings_table(findings: Sequence[Finding]) -> Table | Text:
    """Findings, errors first, each with where it is, an example, why it matters and what to do."""
    if not findings:
        return Text("no findings: the data is fine", style="green")
    table = Table(title="findings", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("", "code", "what", "lines", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in sorted(findings, key=lambda f: _ORDER[f.severity]):
        what = Text(f"{finding.field}: {finding.message}" if finding.field else finding.message)
        if finding.example:
            what.append(f"\n{finding.example}", "italic")
        if finding.why:
            what.append(f"\n{finding.why}", "dim")
        table.add_row(
            Text(finding.severity, style=_SEVERITY_STYLES[finding.severity]),
            Text(finding.code),
            what,
            lines_text(finding.lines),
            Text(finding.fix),
        )
    return table


def print_fixed(fixed: Sequence[Fixed]) -> None:
    """What `--fix` wrote, and where."""
    console = Console()
    for made in fixed:
        kinds = ", ".join(f"{code} {count(number)}" for code, number in made.by_code.items()) or "nothing to mend"
        console.print(
            Text(
                f"{made.cleaned}: {count(made.rows)} rows; {count(made.dropped)} dropped, {count(made.changed)} texts "
                f"changed ({kinds}); log: {made.log}"
            ),
            soft_wrap=True,
        )


def lines_text(lines: Sequence[int]) -> str:
    """The first lines of a finding, and how many more there are."""
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    return f"{shown} and {count(len(lines) - _LINES_SHOWN)} more" if len(lines) > _LINES_SHOWN else shown


def preview_text(tokens: Preview) -> Text:
    """One example token by token: learnt ones on green, others dim; line breaks and tabs made visible."""
    text = Text()
    for number, (token, weight) in enumerate(tokens):
        style = ("black on green" if number % 2 else "black on bright_green") if weight > 0 else "dim"
        text.append("".join(_MARKS.get(character, character) for character in token), style)
    return text


def histogram(lengths: Sequence[int], bins: int = 10, width: int = 40) -> Text:
    """Numbers of rows by length in tokens, as bars."""
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // bins))
    counts = Counter((length - low) // step for length in lengths)
    most, digits = max(counts.values()), len(str(high))
    lines = []
    for number in range((high - low) // step + 1):
        first = low + number * step
        bar = "█" * max(1, round(counts[number] / most * width)) if counts[number] else ""
        lines.append(f"{first:>{digits}}-{min(first + step - 1, high):<{digits}} {bar} {count(counts[number])}")
    return Text("\n".join(lines))


def choices_table(choices: Sequence[Choice]) -> Table:
    """What `auto` became, and why."""
    from tunesmith.recipe.resolve import shown

    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(Text(f"  {choice.key}"), Text(shown(choice.value)), Text(choice.reason, style="dim"))
    return table


def estimate_table(estimate: Mapping[str, Any]) -> Table:
    """Figures by name; bytes, seconds and counts in units people read."""
    table = Table.grid(padding=(0, 2))
    for name, value in estimate.items():
        words = name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
        table.add_row(Text(f"  {words}"), Text(_figure(name, value)))
    return table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Candidates by metrics, each value with its interval, in per cent; the best of each metric is bold."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    values = {(row["candidate"], row["metric"]): row for row in rows}
    best = {metric: max(row["value"] for row in rows if row["metric"] == metric) for metric in metrics}
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate")
    for metric in metrics:
        table.add_column(metric_name(metric), justify="right")
    table.add_column("rows", justify="right")
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        cells = [_cell(values.get((candidate, metric)), best[metric]) for metric in metrics]
        n = max(row["n"] for row in rows if row["candidate"] == candidate)
        table.add_row(Text(candidate_name(candidate)), *cells, count(n))
    return table


def training_text(training: Mapping[str, Any]) -> str:
    """What training took, in one line."""
    return (
        f"trained {count(training['steps'])} steps, {count(training['tokens'])} tokens in "
        f"{duration(training['seconds'])} ({count(round(training['tokens_per_second']))} tokens/s, "
        f"at most {size(training['peak_memory_bytes'])})"
    )


def verdict_text(verdict: Verdict) -> Text:
    """The verdict in words, with its caveats."""
    style = {"ship_tuned": "bold green", "cannot_tell": "bold yellow"}.get(verdict.decision, "bold cyan")
    text = (
        Text("\n")
        .append("verdict: ", "bold")
        .append(_DECISIONS[verdict.decision], style)
        .append(f"\n{verdict.reason}\n")
    )
    for bound in verdict.sensitivity:
        text.append(f"{bound}\n")
    for benefit in verdict.benefits.values():
        text.append(f"{benefit['text']}\n")
    for caveat in verdict.caveats:
        text.append(f"note: {caveat}\n", "dim")
    return text


def _cell(row: Mapping[str, Any] | None, best: float) -> Text:
    if row is None:
        return Text("")
    text = Text(percent(row["value"]), "bold" if row["value"] == best else "")
    return text.append(f"  {bare_points(row['low'])} to {bare_points(row['high'])}", "dim")


def _part(name: str, value: Any) -> str:
    """One entry of a figure that has several: bytes of a part, or whether a server can load the adapter."""
    if isinstance(value, Mapping):
        return "yes" if value["ok"] else f"no ({'; '.join(value['reasons'])})"
    return _figure(name, value)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_part(name, part)}" for key, part in value.items() if part)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("seconds"):
        return duration(value)
    return count(value) if isinstance(value, int) else f"{value:,.4g}"
