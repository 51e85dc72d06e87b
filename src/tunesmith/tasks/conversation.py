"""The turns a model is trained on and asked with. Training, evaluation and serving all come here, so they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.chat import SYSTEM_ROLES
from tunesmith.data.types import Example, Message, offering
from tunesmith.tasks.types import Task


def training_conversation(task: Task, example: Example) -> tuple[Message, ...]:
    """The conversation a model learns: the task's instruction, the example's turns, the answer last."""
    return (*asking_conversation(task, example), answer_message(task, example))


def answer_message(task: Task, example: Example) -> Message:
    """The turn a model learns to say: the example's own, with one answer where several are right.

    The template's closing text after the answer stays.
    """
    message = example.messages[-1]
    learnt = task.reply(example.expected)
    if learnt == example.expected or not message.content.startswith(example.expected):
        return message
    return replace(message, content=learnt + message.content[len(example.expected) :])


def asking_conversation(
    task: Task, example: Example, shots: Sequence[Example] = (), *, full: bool = False
) -> tuple[Message, ...]:
    """The turns that ask for `example`'s answer.

    One system message joins the task's instruction and the example's own system message; then each of `shots` as
    it would be asked and answered; then the example's turns without its answer. `full` takes the instruction for a
    model that was not tuned. Without shots and with `full=False` this is what `training_conversation` puts before
    the answer, message by message. The example's tools are offered with its first question.
    """
    instruction = task.full_instruction if full else task.instruction
    own, turns = leading_system(example.prompt)
    shown = [turn for shot in shots for turn in (*leading_system(shot.prompt)[1], answer_message(task, shot))]
    turns = offering(turns, example.tools, example.parallel_tool_calls)
    return (*system_message([instruction, *own]), *shown, *turns)


def system_message(parts: Sequence[str]) -> tuple[Message, ...]:
    """At most one system message from those parts that say something."""
    text = "\n\n".join(part for part in parts if part.strip())
    return (Message("system", text),) if text else ()


def leading_system(messages: Sequence[Message]) -> tuple[list[str], tuple[Message, ...]]:
    """The contents of the system messages a conversation begins with, and the turns after them.

    `developer` is another word for `system`, and most chat templates know only that one.
    """
    start = next((i for i, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages))
    return [message.content for message in messages[:start]], tuple(messages[start:])
