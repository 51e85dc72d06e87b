"""The turns a model is trained on and asked with. Training, evaluation and serving all come here, so they agree."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.types import Example, Message
from tunesmith.tasks.types import Task


def training_conversation(task: Task, example: Example) -> tuple[Message, ...]:
    """The conversation a model learns: the task's instruction, the example's turns, the answer last."""
    return (*asking_conversation(task, example), example.messages[-1])


def asking_conversation(
    task: Task, example: Example, shots: Sequence[Example] = (), *, full: bool = False
) -> tuple[Message, ...]:
    """The turns that ask for `example`'s answer.

    One system message joins the task's instruction and the example's own system message; then each of `shots` as
    it would be asked and answered; then the example's turns without its answer. `full` takes the instruction for a
    model that was not tuned. Without shots and with `full=False` this is what `training_conversation` puts before
    the answer, message by message.
    """
    instruction = task.full_instruction if full else task.instruction
    own, turns = _leading_system(example.prompt)
    shown = [message for shot in shots for message in _leading_system(shot.messages)[1]]
    return (*_system_message([instruction, *own]), *shown, *turns)


def _system_message(parts: Sequence[str]) -> tuple[Message, ...]:
    """At most one system message from those parts that say something."""
    text = "\n\n".join(part for part in parts if part.strip())
    return (Message("system", text),) if text else ()


def _leading_system(messages: Sequence[Message]) -> tuple[list[str], tuple[Message, ...]]:
    """The contents of the system messages a conversation begins with, and the turns after them."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return [message.content for message in messages[:start]], tuple(messages[start:])
