"""`tunesmith chat RUN`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import click

from tunesmith.cli.options import json_option, run_from, set_option
from tunesmith.cli.output import only_json, print_json
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.data.types import Message


class Chatting(Protocol):
    """A model that continues a conversation."""

    def chat(self, messages: list[Message]) -> str: ...


@click.command("chat")
@click.argument("run")
@click.option("--message", metavar="TEXT", help="Say this, print the answer and end.")
@click.option("--base", "untuned", is_flag=True, help="Talk to the base as it was before tuning.")
@set_option
@json_option
def command(run: str, message: str | None, untuned: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Talk to the model of a run, which is asked exactly as it was trained.

    RUN is a path, a run's name, or `last`. `/new` forgets the conversation, `/quit` ends it.
    """
    if as_json and message is None:
        raise RecipeError("--json needs a message", where="chat", fix="add --message TEXT")
    folder = run_from(run, overrides)
    from tunesmith import pipeline
    from tunesmith.data.types import Message

    with only_json(as_json):
        result = pipeline.load_run(folder)
        model: Chatting = result.base if untuned else result.model
        answer = model.chat([Message("user", message)]) if message is not None else None
    if answer is None:
        _converse(model, f"{folder.name}, {'base' if untuned else 'tuned'}")
    elif as_json:
        print_json(
            {"run": str(folder.path), "model": "base" if untuned else "tuned", "message": message, "answer": answer}
        )
    else:
        click.echo(answer)


def _converse(model: Chatting, title: str) -> None:
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
            answer = model.chat(turns)
            turns.append(Message("assistant", answer))
            click.echo(answer)


def _line_editing() -> None:
    """Arrow keys and history for `input`, where this Python was built with it."""
    import importlib.util

    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")
