"""`tunesmith adapters convert ADAPTER --to FORMAT`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.adapters.naming import Named, adapter_from, base_option
from tunesmith.cli.options import FOLDER, json_option, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.export.adapter import Converted


@click.command("convert")
@click.argument("adapter")
@click.option(
    "--to", type=click.Choice(["lora", "gguf", "onnx"]), required=True, help="Plain LoRA, or a server's file."
)
@click.option("--rank", type=int, metavar="N", help="The nearest LoRA of this rank, where there is no exact one.")
@click.option(
    "--max-error",
    type=float,
    metavar="SHARE",
    help="The nearest of the lowest rank that is at most so far, such as 0.1.",
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder to write.")
@click.option("--precision", metavar="P", help="For onnx: how the base's weights are held; default int4.")
@base_option
@set_option
@json_option
def command(
    adapter: str,
    to: str,
    rank: int | None,
    max_error: float | None,
    out: Path,
    precision: str | None,
    base: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an adapter plain LoRA, which every server knows, or a file for llama.cpp or ONNX Runtime GenAI.

    Exact for PiSSA, OLoRA, rsLoRA and single ranks or alphas, and proved on logits. DoRA and the other methods of the
    peft library have only a nearest LoRA, made where --rank or --max-error asks for it; its error is said. `lora`
    writes a folder that the peft library loads, `gguf` an adapter beside a GGUF base, `onnx` the base's graph with this
    adapter as one that can be switched to.
    """
    if out.exists():
        raise RecipeError("this path exists already", where=str(out), fix="choose another, or remove it")
    if precision is not None and to != "onnx":
        raise RecipeError("a precision is for onnx only", where="--precision", expected="--to onnx")
    with only_json(as_json):
        from tunesmith.export.adapter import to_plain_lora
        from tunesmith.export.gguf.write import require_library

        if to == "gguf":
            require_library()
        named = adapter_from(adapter, overrides, base)
        plain = to_plain_lora(named.source, rank, max_error)
        facts = _write(named, plain, to, precision, out)
    told = {"path": str(out), "to": to, "rank": plain.rank, "exact": plain.exact, "error": plain.error, **facts}
    if as_json:
        print_json(told | {"changes": list(plain.changes)})
        return
    for change in plain.changes:
        click.echo(f"  {change}", err=True)
    click.echo(f"  rank {plain.rank}: {told['words']}", err=True)
    click.echo(out)


def _write(named: Named, plain: Converted, to: str, precision: str | None, out: Path) -> dict[str, Any]:
    """Write plain LoRA, prove it, and from it the file of the server."""
    from tempfile import TemporaryDirectory

    from tunesmith.export.adapter import save_plain
    from tunesmith.export.adapter.proving import logits_difference, prove_same
    from tunesmith.export.adapter.saving import error_words, write_gguf_card
    from tunesmith.runs import staged_folder

    source = named.source
    words = error_words(plain)
    made = [f"Converted from: {source.tuned}", *plain.changes, f"It comes near that: {words}"]
    with TemporaryDirectory(prefix="tunesmith-") as scratch:
        folder = Path(scratch) / source.name
        folder.mkdir()
        save_plain(source, plain, folder, f"{source.name}, as plain LoRA", made)
        found = prove_same(source, folder) if plain.exact else logits_difference(source, folder)
        facts: dict[str, Any] = {"words": words, "logits_difference": found}
        if to == "onnx":
            return facts | _onnx(named, folder, precision, out)
        with staged_folder(out) as staged:
            if to == "gguf":
                from tunesmith.export.gguf.adapter import write_adapter_gguf

                file = staged / "adapter.gguf"
                facts |= {"facts": dict(write_adapter_gguf(folder, source.base_folder, file, name=source.name))}
                write_gguf_card(source, plain, staged, file.name, f"{source.name}, as a GGUF adapter", made)
            else:
                shutil.copytree(folder, staged, dirs_exist_ok=True)
    return facts


def _onnx(named: Named, folder: Path, precision: str | None, out: Path) -> dict[str, Any]:
    """The base's graph with this adapter, verified by itself; scored on the run's test rows where it is a run's."""
    from tunesmith.cli.export import tell_line
    from tunesmith.export.source import open_folders
    from tunesmith.models.artifact import PRECISIONS, Target
    from tunesmith.pipeline.exporting.flow import export_pack
    from tunesmith.pipeline.exporting.targets import refuse_impossible

    target = Target("onnx-multi", precision or PRECISIONS["onnx-multi"][0])
    refuse_impossible(target)
    spec = named.source.recipe.base
    source = open_folders(spec.model, folder, spec.chat_template, revision=spec.revision)
    done = export_pack(spec.model, {named.source.name: source}, target, out, listener=tell_line)
    return {"adapters": list(done.artifact.adapters), "bytes": done.artifact.bytes}
