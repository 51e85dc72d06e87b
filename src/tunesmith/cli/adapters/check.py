"""`tunesmith adapters check ADAPTER`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.adapters.naming import adapter_from, base_option
from tunesmith.cli.options import json_option, set_option
from tunesmith.cli.output import only_json, print_json


@click.command("check")
@click.argument("adapter")
@click.option(
    "--for",
    "server",
    type=click.Choice(["peft", "vllm", "gguf", "onnx"]),
    help="Fail with 6 where this server cannot take it.",
)
@base_option
@set_option
@json_option
def command(adapter: str, server: str | None, base: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what ADAPTER is, whether it can become plain LoRA, and which servers take it, with reasons.

    ADAPTER is a run (path, name, or `last`), or a folder with an adapter. Nothing is loaded but its files.
    """
    from tunesmith.errors import EngineError

    with only_json(as_json):
        told = _told(adapter, overrides, base)
    if as_json:
        print_json(told)
    else:
        _print(told)
    if server is not None:
        verdict = told["servers"][server]
        if not verdict["ok"]:
            raise EngineError(
                f"{server} cannot take this adapter: {'; '.join(o['reason'] for o in verdict['obstacles'])}",
                where=told["folder"],
                fix="; ".join(dict.fromkeys(o["fix"] for o in verdict["obstacles"])),
            )


def _told(adapter: str, overrides: tuple[str, ...], base: str | None) -> dict[str, Any]:
    from tunesmith.errors import RecipeError
    from tunesmith.export.adapter.convert import convertible
    from tunesmith.export.adapter.serving import servers_of, serving_facts
    from tunesmith.export.adapter.write import adapted_paths
    from tunesmith.models.adapter import WEIGHTS, read_adapter

    source = adapter_from(adapter, overrides, base).source
    if not source.is_adapter:
        raise RecipeError(
            "the model was tuned in full, so there is no adapter",
            where=str(source.tuned),
            expected="a run with an adapter",
            fix="every server takes the whole model: tunesmith export RUN --to merged",
        )
    config, tensors = read_adapter(source.tuned)
    conversion = convertible(source)
    return {
        "name": source.name,
        "folder": str(source.tuned),
        "base": source.recipe.base.model,
        "base_sha256": source.base_sha256,
        "type": config["peft_type"],
        "dora": bool(config.get("use_dora")),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "modules": len(adapted_paths(tensors)) or None,
        "trained_in_full": list(config.get("modules_to_save") or ()),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": (source.tuned / WEIGHTS).stat().st_size,
        "plain_lora": {"how": conversion.how, "words": conversion.words},
        "servers": serving_facts(servers_of(source)),
    }


def _print(told: dict[str, Any]) -> None:
    from tunesmith.models.servable import SERVER_NAMES

    kind = "DoRA" if told["dora"] else told["type"]
    size = f"{told['parameters']:,} parameters, {told['bytes'] / 1e6:,.1f} MB"
    rank = f", rank {told['rank']}, alpha {told['alpha']:g}" if told["type"] == "LORA" else ""
    modules = f", {told['modules']} modules" if told["modules"] else ""
    click.echo(f"{told['name']}: {kind}{rank}{modules}, {size}")
    if told["trained_in_full"]:
        click.echo(f"  trained in full: {', '.join(told['trained_in_full'])}")
    click.echo(f"  base: {told['base']} ({told['base_sha256'][:12]}…)")
    click.echo(f"  as plain LoRA: {told['plain_lora']['how']}: {told['plain_lora']['words']}")
    for server, one in told["servers"].items():
        name = SERVER_NAMES[server]
        if one["ok"]:
            click.echo(f"  {click.style('✓', fg='green')} {name}" + (f": {one['note']}" if one["note"] else ""))
            continue
        click.echo(f"  {click.style('✗', fg='red')} {name}: {'; '.join(o['reason'] for o in one['obstacles'])}")
        for fix in dict.fromkeys(o["fix"] for o in one["obstacles"]):
            click.echo(f"      to do: {fix}")
