"""The page of `train_speed.py`: a table of what was asked and what was reached, then every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MEGABYTE = 2**20


def page(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    facts = report["environment"]
    libraries = ", ".join(f"{n} {facts[n]}" for n in ("torch", "transformers", "trl", "peft"))
    lines = [
        "# Training speed against TRL's SFTTrainer",
        "",
        "Written by `python benchmarks/train_speed.py`; do not edit. How it is measured: `README.md`.",
        "",
        f"{facts['processor']}, {facts['threads']} threads, fp32; {libraries}; load before the run "
        f"{facts['load_before']}; {facts['date'][:10]}; {report['minutes']:g} minutes.",
        "",
        *_asked(report["comparisons"], report["startup"]),
    ]
    for one in report["comparisons"]:
        lines += ["", *_case(one)]
    if report["startup"] is not None:
        lines += ["", *_startup(report["startup"])]
    return "\n".join(lines) + "\n"


def _asked(comparisons: Sequence[Mapping[str, Any]], startup: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "| workload | shape | speed | bar | goal | reached | memory above loaded | of the GEMM ceiling | same work |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        head, asked = one["headline"], one["headline"]["reached"]
        low, high = head["ratio_span"]
        memory = f"{head['above_loaded_ratio']:.2f}x"
        if one["memory"] is not None:
            memory += f" (at most {one['memory']:g}x: {_word(asked['memory'])})"
        share = ""
        if "ceiling_share" in head:
            share = f"{head['ceiling_share']:.0%}, TRL {head['peer_ceiling_share']:.0%}"
            if one["ceiling_goal"] is not None:
                share += f" (goal {one['ceiling_goal']:.0%}: {_word(asked['ceiling'])})"
        lines.append(
            f"| {one['workload']} | {one['shape']['name']} | **{head['speed_ratio']:.2f}x** ({low:.2f} to {high:.2f}) "
            f"| {one['bar']:g}x | {one['goal']:g}x | {_word(asked['speed'])} | {memory} | {share} "
            f"| {'yes' if head['same_work'] else '**no**'} |"
        )
    if startup is not None:
        lines.append(
            f"| startup | 8M | **{startup['seconds']:.1f} s**, TRL {startup['peer_seconds']:.1f} s "
            f"| {startup['bar']:g} s | {startup['goal']:g} s | {_word(startup['reached'])} | | | |"
        )
    return lines


def _word(reached: str) -> str:
    return {"goal": "goal reached", "bar": "bar reached", "not reached": "**not reached**"}[reached]


def _case(one: Mapping[str, Any]) -> list[str]:
    head, unit = one["headline"], one["unit"]
    ours = one["lines"][0]
    lines = [
        f"## {one['workload']}, {one['shape']['name']}: {one['title']}, {one['rows']} rows per optimiser step",
        "",
        f"**{head['speed_ratio']:.2f} times the {unit} per second, {head['above_loaded_ratio']:.2f} times the memory "
        f"above the loaded model ({head['peak_ratio']:.2f} times the whole peak)** of TRL at its fastest exact setting "
        f"(`{head['peer']}`: rows at once x accumulation). "
        + ("Both computed the same." if head["same_work"] else "**The two did not compute the same.**"),
        "",
        f"Rows padded together are {one['fill_when_padded']:.0%} real tokens, {one['learnt_share']:.0%} of which are "
        f"learnt. {one['steps']} steps, the first {one['warmup']} not timed; median of the rounds (min to max).",
    ]
    if one["epoch_steps"]:
        facts = ours["facts"]
        rows = one["epoch_steps"] * one["rows"]
        lines[-1] += (
            f" Before the first step the states of the frozen layers were computed: {facts['prepared_seconds']:.2f} s "
            f"and {facts['trunk_cache_bytes'] / _MEGABYTE:.1f} MiB of disk for {rows} rows "
            f"({facts['prepared_seconds'] * 1000 / ours['step_ms'][0]:.1f} of our steps)."
        )
    lines += ["", *_table(one["lines"], unit), ""]
    return [*lines, f"Every setting once, {one['sweep_steps']} steps:", "", *_table(one["sweep"], unit)]


def _table(entries: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    rows = [
        f"| trainer | setting | {unit}/s | step p50 / p95 | peak | above loaded | loss differs by | norm differs by "
        "| tensors changed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        median, low, high = (_number(rate) for rate in e["speed"])
        span = f" ({low} to {high})" if e["rounds"] > 1 else ""
        ours = e["trainer"] == "tunesmith"
        loss, norm = (
            "" if ours else "other order" if e[k] is None else f"{e[k]:.0e}"
            for k in ("loss_difference", "grad_norm_difference")
        )
        typical, slow = e["step_ms"]
        changed, there = e["tensors_changed"]
        rows.append(
            f"| {e['trainer']} | {e['name']} | {median}{span} | {typical:,.0f} / {slow:,.0f} ms "
            f"| {e['peak_bytes'] / _MEGABYTE:,.0f} MiB | {e['above_loaded_bytes'] / _MEGABYTE:,.0f} MiB | {loss} "
            f"| {norm} | {changed} of {there} |"
        )
    return rows


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _startup(one: Mapping[str, Any]) -> list[str]:
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one["phases"].items())
    return [
        "## startup: from the start of the process to the end of the first optimiser step",
        "",
        f"**{one['seconds']:.1f} s** with `tunesmith train` (rounds: {_seconds(one['rounds'])}), "
        f"{one['peer_seconds']:.1f} s with a script for TRL (rounds: {_seconds(one['peer_rounds'])}); "
        f"{one['first_on_a_machine']:.1f} s where the C functions have to be compiled first. Ours, by events of the "
        f"run: {phases}."
        + (f" Measured by itself, `results/{one['measured_by_itself']}`." if "measured_by_itself" in one else ""),
    ]


def _seconds(rounds: Sequence[float]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in rounds)
