"""The four costs of tuning in words: sections for the terminal and for the page of `tunesmith check --html`."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.pipeline.tuning_costs import BaseCost, ComputeCost, DataCost, EffortCost, State, TuningCosts
from tunesmith.training.resources import shown_bytes
from tunesmith.verdict import wording


@dataclass(frozen=True, slots=True)
class Section:
    """One cost in words, for a table or a page: lines of (what, how much, how it is known)."""

    name: str
    question: str
    state: State
    lines: tuple[tuple[str, str, str], ...]


def sections(costs: TuningCosts) -> tuple[Section, ...]:
    """The four costs in words, in the order in which they can put an end to a plan."""
    return (_base_words(costs.base), _data_words(costs.data), _effort_words(costs.effort),
            _compute_words(costs.compute))  # fmt: skip


def _base_words(base: BaseCost) -> Section:
    licence = base.licence
    read = "; ".join(licence.where) or "nowhere"
    asked = "" if licence.use else "; say what it is for in goal.use"
    lines = [
        ("base", f"{base.name}{f' at {base.revision}' if base.revision else ''}",
         "comes with Tunesmith" if base.name.startswith("embedded:") else base.files.where),
        *([("cannot be loaded", base.problem, base.problem_fix)] if base.problem else []),
        ("licence", f"{licence.name}: {licence.words}{asked}", f"read in {read}"),
        *([("its conditions", licence.conditions, "a table of known licences, no legal advice")]
          if licence.conditions else []),
        ("gated", licence.gated, "nobody was asked; its page on the hub shows it" if licence.hub else "its name"),
        ("format", _format(base), "the files"),
        ("size", _size(base), "its files" if base.problem else "the loaded base, its files"),
        ("context", _context(base), "the base's configuration, the rows"),
    ]  # fmt: skip
    return Section("base", "Can and may this base be tuned?", base.state, tuple(lines))


def _format(base: BaseCost) -> str:
    if not base.files.known:
        files = "no files on this machine" if base.problem else "loaded by transformers"
    elif base.files.weights == "none":
        files = "no weights"
    else:
        files = f"{base.files.weights} in {base.files.shards} file{'' if base.files.shards == 1 else 's'}"
    return "; ".join((f"{base.architecture or 'architecture not known'}, {files}", *base.files.obstacles))


def _size(base: BaseCost) -> str:
    parameters = "parameters not known" if base.parameters is None else f"{base.parameters:,} parameters"
    return f"{parameters}, {shown_bytes(base.bytes)}" if base.bytes else parameters


def _context(base: BaseCost) -> str:
    if base.context is None:
        return "not known"
    if base.problem:
        return f"{base.context:,} tokens; rows cannot be counted in its tokens"
    text = f"{base.context:,} tokens; the longest row looked at has {base.longest_row:,}"
    return f"{text}; {base.rows_too_long:,} rows are too long and are left out" if base.rows_too_long else text


def _data_words(data: DataCost) -> Section:
    least = wording.bare_points(data.min_gain)
    shows = f"shows differences from about {wording.bare_points(data.detectable_difference)} points on"
    lines = [
        ("training rows", f"{data.train_rows:,} of {data.wanted.rows:,} wanted", data.wanted.how),
        ("missing", f"{data.train_rows_missing:,}", "wanted − there"),
        ("validation rows", f"{data.validation_rows:,}", "the split"),
        ("test rows", f"{data.test_rows:,}, which {shows}", "paired answers that differ on 12 % of the rows"),
    ]
    if data.test_rows_wanted is not None:
        lines.append(
            (f"test rows to see {least} points", f"{data.test_rows_wanted:,}: {data.test_rows_missing:,} missing",
             "verdict.min_gain; a larger gain needs far fewer")
        )  # fmt: skip
    return Section("data", "Are there enough rows?", data.state, tuple(lines))


def _effort_words(effort: EffortCost) -> Section:
    rate = f"{effort.minutes_per_row:g} minutes each"
    lines = [
        ("data and review", f"{effort.review_hours:,.1f} h", "verdict.prices.hours_of_work"),
        ("missing training rows", f"{effort.train_rows_hours:,.1f} h", f"{effort.train_rows_missing:,} rows, {rate}"),
        ("to begin", f"{effort.hours_to_begin:,.1f} h, {wording.money(effort.money_to_begin, effort.currency)}",
         f"{wording.money(effort.per_hour, effort.currency)} an hour"),
        ("missing test rows", f"{effort.test_rows_hours:,.1f} h", f"{effort.test_rows_missing:,} rows, {rate}"),
        ("with them", f"{effort.hours:,.1f} h, {wording.money(effort.money, effort.currency)}",
         "only to see gains as small as verdict.min_gain"),
    ]  # fmt: skip
    return Section("effort", "How much work is it?", effort.state, tuple(lines))


def _compute_words(compute: ComputeCost) -> Section:
    lines: list[tuple[str, str, str]] = []
    if compute.training_seconds is not None and compute.training_money is not None:
        spent = wording.money(compute.training_money, compute.currency)
        rate = f"measured on a few micro-batches; {wording.money(compute.hardware_per_hour, compute.currency)} an hour"
        lines.append(("training here", f"{wording.duration(compute.training_seconds)}, {spent}", rate))
    if compute.peak_memory_bytes is not None:
        lines.append(("memory for it", shown_bytes(compute.peak_memory_bytes), "predicted from shapes"))
    if compute.elsewhere_money is not None:
        low, high = (wording.money(end, str(compute.elsewhere_currency)) for end in compute.elsewhere_money)
        money = low if low == high else f"{low} to {high}"
        lines.append(
            ("cheapest elsewhere", f"{compute.elsewhere}: {money}", "estimated; all places stand in the table")
        )
    lines.append(
        ("hosting, per month", wording.money(compute.hosting_money, compute.currency),
         f"{compute.hosting_hours:g} hours × {wording.money(compute.hardware_per_hour, compute.currency)}")
    )  # fmt: skip
    if compute.hosting_electricity is not None:
        lines.append(("electricity, per month", wording.money(compute.hosting_electricity, compute.currency),
                      "verdict.prices.power_watts × hours × price"))  # fmt: skip
    lines.append(
        ("hosting, per 1,000 requests", wording.money(compute.hosting_per_1000, compute.currency),
         f"{compute.requests_per_month:,} requests a month")
    )  # fmt: skip
    return Section("compute", "What do machines cost?", compute.state, tuple(lines))
