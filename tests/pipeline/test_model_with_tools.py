"""A run's model and tools: it is offered them as in training, and its calls come back as calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.tiny import byte_tokenizer
from tunesmith.data.types import Example, Message, ToolCall
from tunesmith.inference.types import Generation
from tunesmith.pipeline.result import Model
from tunesmith.recipe import parse_recipe
from tunesmith.tasks.conversation import training_conversation
from tunesmith.tasks.generation import Generation as GenerationTask
from tunesmith.text.render import Renderer

TOOL = json.dumps({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}})
CALL = ToolCall("call_1", "look", '{"at": "home"}')


class Engine:
    """Answers with texts given beforehand, through a real renderer."""

    context = 4_000

    def __init__(self, *texts: str) -> None:
        self.renderer, self.texts, self.asked = Renderer(byte_tokenizer()), list(texts), list[Any]()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.renderer.prompt_ids(messages))

    def generate(
        self, prompts: Sequence[Sequence[Message]], max_new_tokens: int, skip: int = 0
    ) -> Iterator[Generation]:
        for prompt in prompts:
            self.asked.append(prompt)
            ids = self.renderer.tokenizer(self.texts.pop(0))["input_ids"]
            read = self.renderer.answer(ids, prompt)
            yield Generation(read.expected_form, "", 0, 0, True, read.calls, read.content if read.calls else "")


def model(*texts: str, **settings: Any) -> tuple[Model, Engine]:
    engine = Engine(*texts)
    recipe = parse_recipe({"data": {"train": "rows.jsonl", **settings}, "evaluate": {"max_new_tokens": 50}})
    return Model(engine, GenerationTask(), recipe), engine  # type: ignore[arg-type]


def test_a_call_and_its_result_are_asked_as_they_were_learnt() -> None:
    made, engine = model('call look {"at": "home"}', "It is there.", system="Be kind.")
    asked = [Message("user", "Where?")]
    call = made.reply(asked, [TOOL], False)
    assert call == Message("assistant", "", tool_calls=(CALL,))
    asked += [call, Message("tool", "in the hall", tool_call_id="call_1")]
    assert made.reply(asked, [TOOL], False) == Message("assistant", "It is there.")
    # The row that teaches this, as training renders it.
    turns = (Message("system", "Be kind."), *asked, Message("assistant", "It is there."))
    row = Example("1", turns, "It is there.", 1, "x", tools=(TOOL,), parallel_tool_calls=False)
    learnt = engine.renderer.sample(training_conversation(GenerationTask(), row)).ids.tolist()
    for prompt in engine.asked:
        ids = engine.renderer.prompt_ids(prompt)
        assert learnt[: len(ids)] == ids


def test_text_beside_a_call_is_kept_and_chat_gives_the_text() -> None:
    made, _ = model("I look.\ncall look {}", "call look {}")
    said = made.reply([Message("user", "Where?")], [TOOL])
    assert said.content == "I look." and said.tool_calls[0].name == "look"
    assert made.chat([Message("user", "Where?")]) == "call look {}"  # nobody offered tools


@pytest.mark.parametrize("text", ["call look {at home}", '[{"name": "look", "arguments": {}}]', "Yes."])
def test_without_tools_nothing_is_taken_for_a_call(text: str) -> None:
    made, _ = model(text)
    assert made.reply([Message("user", "q")]) == Message("assistant", text)
