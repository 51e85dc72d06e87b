"""`tunesmith chat RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from tunesmith.cli.options import json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.data.types import Message


class Chatting(Protocol):
    """A model that continues a conversation."""

    def chat(self, messages: Sequence[Message]) -> str: ...

    def reply(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> Message: ...


@click.command("chat")
@click.argument("run")
@click.option("--message", metavar="TEXT", help="Say this, print the answer and end.")
@click.option("--base", "untuned", is_flag=True, help="Talk to the base as it was before tuning.")
@click.option(
    "--tools",
    "tools_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Offer these tools: a JSON list of OpenAI's definitions. You are asked for the result of each call.",
)
@set_option
@json_option
def command(
    run: str,
    message: str | None,
    untuned: bool,
    tools_file: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Talk to the model of a run, which is asked exactly as it was trained.

    RUN is a path, a run's name, or `last`. `/new` forgets the conversation, `/quit` ends it.
    """  # fmt: skip
    if as_json and message is None:
        raise RecipeError("--json needs a message", where="chat", fix="add --message TEXT")
    folder = run_from(run, overrides)
    tools = _tools_in(tools_file) if tools_file is not None else ()
    from tunesmith import pipeline
    from tunesmith.data.types import Message

    with only_json(as_json):
        result = pipeline.load_run(folder)
        model: Chatting = result.base if untuned else result.model
        said = model.reply([Message("user", message)], tools) if message is not None else None
    if said is None:
        _converse(model, f"{folder.name}, {'base' if untuned else 'tuned'}", tools)
    elif as_json:
        about = {"run": str(folder.path), "model": "base" if untuned else "tuned", "message": message}
        calls: dict[str, Any] = {"tool_calls": [asdict(call) for call in said.tool_calls]} if tools else {}
        print_json({**about, "answer": said.content, **calls})
    else:
        _print_turn(said)


def _tools_in(file: Path) -> tuple[str, ...]:
    """The definitions in a file. Raises `DataError` where they cannot be read."""
    from tunesmith.data.chat import read_tools
    from tunesmith.data.findings import FindingLog
    from tunesmith.errors import DataError

    log = FindingLog(str(file))
    found = read_tools(file.read_text(encoding="utf-8-sig", errors="replace"), 1, log)
    if not found:
        reasons = "; ".join(finding.detail for finding in log.findings()) or "the list is empty"
        expected = '[{"type": "function", "function": {"name": "…", "parameters": {…}}}]'
        raise DataError(f"no tools can be read: {reasons}", where=str(file), expected=expected)
    return found


def _print_turn(said: Message) -> None:
    if said.content or not said.tool_calls:
        click.echo(said.content)
    for call in said.tool_calls:
        click.echo(f"calls {call.name} {call.arguments}")


def _converse(model: Chatting, title: str, tools: Sequence[str]) -> None:
    """Read lines and answer them until `/quit`, Ctrl-D or Ctrl-C."""
    from tunesmith.data.types import Message

    _line_editing()
    click.echo(f"{title}. /new forgets the conversation, /quit ends it.", err=True)
    turns: list[Message] = []
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if text == "/quit":
            return
        if text == "/new":
            turns = []
        elif text.startswith("/"):
            click.echo(f"{text}: there are /new and /quit", err=True)
        elif text:
            turns.append(Message("user", text))
            if not _answer(model, turns, tools):
                return


def _answer(model: Chatting, turns: list[Message], tools: Sequence[str]) -> bool:
    """Let the model answer; while it calls tools, ask for their results. False where the user ends it instead."""
    from tunesmith.data.types import Message

    while True:
        said = model.reply(turns, tools)
        turns.append(said)
        _print_turn(said)
        if not said.tool_calls:
            return True
        for call in said.tool_calls:
            try:
                result = input(f"result of {call.name}> ")
            except (EOFError, KeyboardInterrupt):
                click.echo(err=True)
                return False
            turns.append(Message("tool", result, tool_call_id=call.id))


def _line_editing() -> None:
    """Arrow keys and history for `input`, where this Python was built with it."""
    import importlib.util

    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")
