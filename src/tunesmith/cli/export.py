"""`tunesmith export RUN --to KIND`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.export_auto import AutoAsked, auto_options, run_auto
from tunesmith.cli.options import FOLDER, json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.types import Exported


@click.command("export")
@click.argument("run")
@click.argument("kind", metavar="[KIND]", required=False)
@click.option("--to", "kinds", metavar="KIND[,KIND]", help="Formats; see below.")
@click.option("--bits", type=int, metavar="4|8|16|32", help="Bits per weight.")
@click.option("--precision", metavar="P", help="The same by its name in the format, such as int4, bf16 or q8_0.")
@click.option(
    "--mixed",
    type=click.FloatRange(0, min_open=True),
    metavar="KL",
    help="Of gptq: bits layer by layer, the smallest file with at most this mean KL on training rows, such as 0.01.",
)
@click.option("--device", metavar="DEVICE", help="For what it is meant: cpu, cuda, directml or npu.")
@click.option(
    "--target",
    "runtime",
    metavar="RUNTIME",
    help="What is to run it (ollama, vllm, ort-genai, openvino): chooses both.",
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to write it; default RUN/export/KIND-PRECISION.")
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Points of the deciding metric that may be lost; default verdict.margin or verdict.min_gain.",
)
@click.option("--measure", is_flag=True, help="Measure speed and peak memory in a process of its own.")
@auto_options
@set_option
@json_option
def command(
    run: str,
    kind: str | None,
    kinds: str | None,
    bits: int | None,
    precision: str | None,
    mixed: float | None,
    device: str | None,
    runtime: str | None,
    out: Path | None,
    max_loss: float | None,
    measure: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **auto: Any,
) -> None:
    """Write the tuned model of a run for other tools, and prove that it is the same model.

    RUN is a path, a run's name, or `last`. Formats are adapter, merged, torchao, gptq, awq, fp8, onnx, onnx-multi,
    onnx-plain, openvino and gguf. Each is written, opened again by its own runtime, compared with the tuned model and
    scored on the run's test rows. One that fails is kept as DIR.failed, and the command ends with 5; with 6 where this
    model cannot have the format, saying which step failed and what works instead.

    With --auto formats and precisions are tried, measured and compared on validation rows, and the best of those within
    the limits is kept; the test rows only confirm it. Where none is within them, the command ends with 5.
    """
    asked_auto = AutoAsked(**auto)
    asked_auto.refuse_mixture(
        {
            "KIND": kind, "--to": kinds, "--bits": bits, "--precision": precision, "--mixed": mixed,
            "--target": runtime, "--measure": measure or None,
        }
    )  # fmt: skip
    if asked_auto.auto:
        run_auto(run_from(run, overrides), asked_auto, device, max_loss, out, as_json)
        return
    wanted = tuple(one.strip() for one in ",".join(filter(None, [kind, kinds])).split(",") if one.strip())
    folder = run_from(run, overrides)
    from tunesmith.pipeline.exporting.flow import export_run_to
    from tunesmith.pipeline.exporting.targets import choose_targets

    targets = choose_targets(wanted, bits=bits, precision=precision, device=device, runtime=runtime)
    places = [out if out is None or len(targets) == 1 else out / str(target) for target in targets]
    loss = max_loss / 100 if max_loss is not None else None
    with only_json(as_json):
        asked = list(zip(targets, places, strict=True))
        done = export_run_to(folder, asked, max_loss=loss, mixed=mixed, measure=measure, listener=tell_line)
    if as_json:
        print_json({"run": str(folder.path), "exports": [one.to_dict() for one in done], **_first(done)})
        return
    for one in done:
        print_exported(one)


def tell_line(event: dict[str, Any]) -> None:
    """A line of progress on stderr, with the seconds so far."""
    if event["kind"] == "note":
        click.echo(f"[{event.get('seconds', 0):7.1f} s] {event['text']}", err=True)


def print_exported(exported: Exported) -> None:
    """The checks on stderr, the folder on stdout."""
    for one in exported.verifications:
        if one.adapter is not None:
            click.echo(f"{one.adapter}:", err=True)
        for check in one.checks:
            click.echo(f"  {_MARKS[check.status]} {check.name}: {check.text}", err=True)
    click.echo(exported.path)


_MARKS = {"passed": "✓", "failed": "✗", "unsure": "?", "not possible": "–"}


def _first(done: Sequence[Exported]) -> dict[str, Any]:
    """Of a single export, where it lies, so that a script need not look into a list."""
    return {"to": done[0].artifact.target.kind, "path": str(done[0].path)} if len(done) == 1 else {}
