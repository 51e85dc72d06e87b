"""`tunesmith adapters pack BASE a=RUN1 b=RUN2 --to onnx`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.adapters.naming import Named, adapters_from
from tunesmith.cli.options import FOLDER, json_option, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError, VerificationError

if TYPE_CHECKING:
    from tunesmith.pipeline.exporting.types import Exported


@click.command("pack")
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True, metavar="NAME=RUN...")
@click.option("--to", type=click.Choice(["onnx", "peft"]), required=True, help="One ONNX graph, or a folder of each.")
@click.option("--precision", metavar="P", help="For onnx: how the base's weights are held; default int4.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default NAME-NAME-FORMAT in this one.")
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Points of the deciding metric that may be lost.",
)
@set_option
@json_option
def command(
    base: str,
    adapters: tuple[str, ...],
    to: str,
    precision: str | None,
    out: Path | None,
    max_loss: float | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put several adapters over one base, each verified by itself under its name.

    BASE is a hub id, a folder or embedded:NAME; each RUN a run or an adapter's folder, trained on just these weights.
    `onnx` makes one graph of the base to which adapters are given and switched per request; `peft` a folder of each
    adapter, with the lines that serve them together.
    """
    out = out or Path(f"{'-'.join(text.partition('=')[0] for text in adapters)[:100]}-{to}")
    if out.exists():
        raise RecipeError("this path exists already", where=str(out), fix="choose another, or remove it")
    if precision is not None and to != "onnx":
        raise RecipeError("a precision is for onnx only", where="--precision", expected="--to onnx")
    loss = max_loss / 100 if max_loss is not None else None
    with only_json(as_json):
        named = adapters_from(adapters, overrides, base)
        _refuse_strangers(base, named)
        if to == "onnx":
            _refuse_unswitchable(named)
        told = _onnx(base, named, precision, out, loss) if to == "onnx" else _peft(base, named, out, loss)
    if as_json:
        print_json({"path": str(out), "to": to, "adapters": [one.name for one in named], **told})
    else:
        click.echo(out)


def _refuse_strangers(base: str, named: Sequence[Named]) -> None:
    """Raise one error for all adapters that are none, or of other base weights."""
    from tunesmith.export.source import open_folders

    whole = [one.name for one in named if not one.source.is_adapter]
    if whole:
        raise RecipeError(
            f"{', '.join(whole)}: tuned in full, so there is no adapter",
            where="adapters",
            expected="runs with an adapter",
            fix="leave them out: each is a model of its own (tunesmith export RUN)",
        )
    expected = open_folders(base, None).base_sha256
    others = [one for one in named if one.source.base_sha256 != expected]
    if others:
        told = "; ".join(f"{o.name}: {o.source.recipe.base.model} ({o.source.base_sha256[:12]}…)" for o in others)
        raise VerificationError(
            f"these adapters are of other base weights: {told}",
            where="adapters",
            expected=f"adapters of {base} ({expected[:12]}…)",
            fix="pack only adapters of one base",
        )


def _refuse_unswitchable(named: Sequence[Named]) -> None:
    """Raise one error for all adapters that a running graph cannot switch to, before anything is built."""
    from tunesmith.export.adapter.serving import servers_of
    from tunesmith.export.types import StepError

    verdicts = {one.name: next(v for v in servers_of(one.source) if v.server == "onnx") for one in named}
    refused = {name: verdict for name, verdict in verdicts.items() if not verdict.ok}
    if refused:
        reasons = "; ".join(f"{name}: {', '.join(verdict.reasons)}" for name, verdict in refused.items())
        fixes = dict.fromkeys(obstacle.fix for verdict in refused.values() for obstacle in verdict.obstacles)
        raise StepError("packing the adapters", reasons, "; ".join(fixes))


def _onnx(base: str, named: Sequence[Named], precision: str | None, out: Path, loss: float | None) -> dict[str, Any]:
    from tunesmith.cli.export import print_exported, tell_line
    from tunesmith.models.artifact import PRECISIONS, Target
    from tunesmith.pipeline.exporting.flow import export_pack

    target = Target("onnx-multi", precision or PRECISIONS["onnx-multi"][0])
    sources = {one.name: one.source for one in named}
    runs = {one.name: one.run for one in named if one.run is not None}
    done = export_pack(base, sources, target, out, max_loss=loss, runs=runs, listener=tell_line)
    _print_checks(done, print_exported)
    return done.to_dict()


def _peft(base: str, named: Sequence[Named], out: Path, loss: float | None) -> dict[str, Any]:
    """A verified folder of each adapter, and how they are served together. What is finished stays, whatever ends it."""
    from tunesmith.cli.export import print_exported, tell_line
    from tunesmith.models.artifact import Target
    from tunesmith.pipeline.exporting.flow import export_run, export_source

    target = Target("adapter", "own")
    done: dict[str, Exported] = {}
    for one in named:
        folder = out / one.name
        if one.run is not None:
            done[one.name] = export_run(one.run, target, out=folder, max_loss=loss, listener=tell_line)
        else:
            done[one.name] = export_source(one.source, target, folder, max_loss=loss, listener=tell_line)
        _print_checks(done[one.name], print_exported)
    (out / "README.md").write_text(_words(base, out, done), encoding="utf-8")
    return {"exports": {name: exported.to_dict() for name, exported in done.items()}}


def _print_checks(done: Exported, show: Any) -> None:
    """The checks on stderr; the folder is printed once, by the command."""
    from contextlib import redirect_stdout
    from sys import stderr

    with redirect_stdout(stderr):
        show(done)


def _words(base: str, out: Path, done: Mapping[str, Exported]) -> str:
    """The card of a folder with several adapters."""
    from tunesmith.models.servable import VLLM_MAX_RANKS

    served, refused, rank = [], [], 1
    for name, exported in done.items():
        facts = exported.artifact.facts
        verdict = facts["servable"]["vllm"]
        if verdict["ok"]:
            served.append(name)
            rank = max(rank, int(facts["rank"]))
        else:
            refused.append(f"- `{name}`: {'; '.join(o['reason'] for o in verdict['obstacles'])}")
    lines = [f"# Adapters of {base}", "", *(f"- [{name}]({name})" for name in done), ""]
    if served:
        limit = next(one for one in VLLM_MAX_RANKS if one >= rank)
        modules = " ".join(f"{name}={shlex.quote(str((out / name).resolve()))}" for name in served)
        serve = f"vllm serve {shlex.quote(base)} --enable-lora --max-loras {len(served)} --max-lora-rank {limit}"
        lines += ["## With vLLM", "", "```", f"{serve} --lora-modules {modules}", "```", ""]
    if refused:
        lines += ["Not with vLLM:", "", *refused, ""]
    first, *others = done
    lines += [
        "## With peft",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
    ]
    lines += ["", f'model = AutoModelForCausalLM.from_pretrained("{_folder_of(base)}")']
    lines += [f'model = PeftModel.from_pretrained(model, "{first}", adapter_name="{first}")']
    lines += [f'model.load_adapter("{name}", adapter_name="{name}")' for name in others]
    return "\n".join([*lines, f'model.set_adapter("{first}")', "```", ""])


def _folder_of(base: str) -> str:
    from tunesmith.models.load import base_folder

    folder = base_folder(base)
    return base if folder is None else str(folder.resolve())
