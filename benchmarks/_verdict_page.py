"""The page of `verdict.py`: bars, outcomes by truth and by size, and how the worlds were drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

BARS: Mapping[str, tuple[str, float, bool]] = {
    "right_or_cannot_tell": ('the verdict is right or "cannot tell"', 0.97, True),
    "wrong_ship": ('"ship" is wrong', 0.025, False),
    "cannot_tell_in_clear_worlds": (
        '"cannot tell" where the true difference is at least 1.5 times the smallest detectable one',
        0.20,
        False,
    ),
    "decided_by_rows_needed": ('"cannot tell" is decided by adding the rows it asks for', 0.75, True),
}
"""By figure: what it says, its bar, and whether it must be at least (or at most) that."""

METHOD = """## How it is measured

**A world** fixes the true score of tuned and of one to five alternatives (zero-shot, few-shot, retrieval, trivial,
remote), what each costs, and what is asked. The best alternative truly scores 30 to 95 %; others are as good (three
in ten) or less by about eight points. Tuned truly gains nothing (1 in 6), loses about six points (1 in 6), gains less
than is worth having (1 in 6), or more by about eight points (1 in 2); worlds are drawn again until the even ones
truly have tuned as winner and the odd ones do not. The smallest gain worth having is 0.5, 1, 2 or 5 points. Three
worlds in ten have a target within 20 points of the best candidate; one in five has a margin of 1 to 5 points within
which the cheaper candidate counts as better, with prices and volumes spread over orders of magnitude.

**Rows** number 50 to 2,000, log-uniform. In half of the worlds they are right or wrong, in a quarter graded with many
zeros and ones, in a quarter counts of an F1 over documents of uneven length. A difficulty that all candidates share
makes their answers to one row alike (correlation 0.2 to 0.8 of what lies behind the answers).

**The decision** is made by `compare` and `decide`, the code of every run, at 95 % confidence and 80 % power.
{resamples:,} resamples are drawn in place of the usual 10,000.

**Right** is what somebody would do who knows the true scores: ship tuned where it truly gains at least the smallest
gain worth having over the best alternative (or no other reaches the target; or with a margin, where it is cheaper and
not worse by more); else use an alternative that no other beats by that gain and that reaches the target; and none
where none reaches it. So "ship" counts as wrong too where tuned is better, but by a little less than was asked, and
"use few-shot" where retrieval truly is better by enough.

**Smallest detectable** is (1.96 + 0.84) standard errors of tuned minus the best alternative on that test set, the
standard error being that of the world, not of the sample.

**Rows asked for** are drawn from the same world and added to those it has. Worlds that ask for more than {most:,}
rows are not tried and count as not decided.
"""


def page(records: Sequence[Record], found: Mapping[str, float], settings: Mapping[str, Any]) -> str:
    """All tables as markdown."""
    decided = Counter(record["decision"] for record in records)
    sections = [
        "# Is the verdict right?",
        f"Made by `python benchmarks/verdict.py --worlds {settings['worlds']} --seed {settings['seed']}` in "
        f"{settings['minutes']:.0f} minutes with {settings['jobs']} processes. {len(records):,} worlds whose truth is "
        f"known, {100 * found['no_true_winner']:.0f} % of them with no true winner; each is decided by the code that "
        "decides every run. Outcome of every world: `results/verdict-*.json`.",
        _bars(found),
        f"Of the worlds, {found['clear_worlds']:,} are as clear as in the third line; "
        f"{found['asked_for_rows']:,} ask for more rows, and {100 * found['then_right']:.1f} % of the decisions made "
        "with them are right.",
        "## By what is true",
        _outcomes(records, "in truth", _truth_of),
        '"Ship" in a world where tuned is better by less than was asked is the mistake left: there the gain is real '
        "but smaller than it looks. A rule that asked for the whole interval to lie above the smallest gain would not "
        "make it, and would leave more worlds undecided.",
        "## By number of test rows",
        _outcomes(records, "test rows", _size_of),
        "## By metric",
        _outcomes(records, "metric", _metric_of),
        "## By what is asked",
        _outcomes(records, "asked for", _asked_of),
        "## Decisions",
        "| decision | worlds |\n|---|---:|\n" + "\n".join(f"| `{name}` | {n} |" for name, n in decided.most_common()),
        METHOD.format(resamples=settings["resamples"], most=settings["most_rows"]).strip(),
    ]
    return "\n\n".join(sections) + "\n"


def _bars(found: Mapping[str, float]) -> str:
    lines = ["| | bar | measured |", "|---|---:|---:|"]
    for name, (text, bar, least) in BARS.items():
        lines.append(f"| {text} | {'≥' if least else '≤'} {100 * bar:g} % | {100 * found[name]:.1f} % |")
    return "\n".join(lines)


def _outcomes(records: Sequence[Record], title: str, key: Callable[[Record], str]) -> str:
    """One line per group: worlds, and the shares that were right, not told, and wrong."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    lines = [f'| {title} | worlds | right | cannot tell | wrong | wrong "ship" |', "|---|---:|---:|---:|---:|---:|"]
    for name in sorted(groups):
        group = groups[name]
        shares = [
            sum(condition(one) for one in group) / len(group)
            for condition in (
                lambda one: one["right"] is True,
                lambda one: one["right"] is None,
                lambda one: one["right"] is False,
                lambda one: one["right"] is False and one["decision"] == "ship_tuned",
            )
        ]
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(f"| {name.partition(' ')[2]} | {len(group):,} | {cells} |")
    return "\n".join(lines)


def _truth_of(record: Record) -> str:
    """A group, with a number before it by which groups are sorted."""
    if record["truth"] == "none":
        return "5 no candidate reaches the target"
    if record["truth"] == "ship":
        return "1 tuned is the winner"
    if record["gain"] > 0:
        return "2 tuned is better, but by less than was asked"
    return "3 tuned is exactly as good" if record["gain"] > -1e-9 else "4 tuned is worse"


def _size_of(record: Record) -> str:
    return next(text for most, text in ((150, "1 50 to 149"), (500, "2 150 to 499"), (10**9, "3 500 to 2,000"))
                if record["rows"] < most)  # fmt: skip


def _metric_of(record: Record) -> str:
    kinds = {"accuracy": "1 right or wrong", "rouge_l": "2 graded, the mean", "entity_f1": "3 counts, an F1"}
    return kinds[record["metric"]]


def _asked_of(record: Record) -> str:
    target, margin = record["target"] is not None, record["margin"] is not None
    if target and margin:
        return "4 a gain, a target and a margin"
    if margin:
        return "3 a gain, or as good and cheaper"
    return "2 a gain and a target" if target else "1 a gain"
