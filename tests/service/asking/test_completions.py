"""Completions through the real client: the classification flow, tokens as prompts, scores, the best of several."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.service.asking.conftest import House
from tests.service.scripted import ScriptedEngine
from tunesmith.data.types import Message
from tunesmith.inference.serving.types import Ask
from tunesmith.service.store.nouns import Model


@pytest.fixture(scope="module")
def tuned(house: House) -> str:
    """A model that was tuned on prompt/completion rows."""
    name = "ft:babbage-002:tunesmith::abc12345"
    house.service.store.add(
        Model(name, 5, "tunesmith", "tuned", "embedded:base", chat_template="raw", job_id="ftjob-1")
    )
    return name


def test_classification_flow(house: House, tuned: str) -> None:
    engine = house.says(" b")
    prompt = "From: fan@ice.org\n\n###\n\n"
    answer = house.client.completions.create(model=tuned, prompt=prompt, max_tokens=1, temperature=0, logprobs=2)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, answer.object, answer.model) == (" ", "length", "text_completion", tuned)
    assert choice.logprobs is not None and choice.logprobs.tokens == [" "]
    assert choice.logprobs.text_offset == [len(prompt)]
    assert choice.logprobs.top_logprobs and len(choice.logprobs.top_logprobs[0]) == 2
    assert choice.logprobs.token_logprobs == [pytest.approx(math.log(0.5))]
    assert engine.asks[0].prompt == (Message("user", prompt),), "asked by the renderer that it was trained with"
    assert (engine.asks[0].decoding.top, engine.asks[0].decoding.temperature) == (2, 0.0)
    assert answer.id.startswith("cmpl-") and answer.usage and answer.usage.completion_tokens == 1


def test_base_is_given_the_text_itself(house: House) -> None:
    engine = house.says("and so on")
    answer = house.client.completions.create(model="davinci-002", prompt="Once")
    assert engine.asks[0].prompt == "Once" and engine.asks[0].max_new_tokens == 16
    assert answer.choices[0].text == "and so on" and answer.choices[0].logprobs is None


def test_many_prompts_and_answers_are_numbered(house: House) -> None:
    house.says(lambda ask: [f"{ask.prompt}1", f"{ask.prompt}2"])
    answer = house.client.completions.create(model="davinci-002", prompt=["a", "b", "c"], n=2)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(["a1", "a2", "b1", "b2", "c1", "c2"]))
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    texts = dict.fromkeys(range(6), "")
    chunks = list(house.client.completions.create(model="davinci-002", prompt=["a", "b", "c"], n=2, stream=True,
                                                  stream_options={"include_usage": True}))  # fmt: skip
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert chunks[-1].choices == [] and chunks[-1].usage == answer.usage


def test_tokens_as_prompts(house: House) -> None:
    engine = house.says("x")
    ids = [65, 66, 67]
    house.client.completions.create(model="davinci-002", prompt=ids)
    house.client.completions.create(model="davinci-002", prompt=[ids, [68]])
    assert [ask.prompt for ask in engine.asks] == [(65, 66, 67), (65, 66, 67), (68,)]
    with pytest.raises(openai.BadRequestError, match="prompt 2 has the token 999999, but the model's largest is"):
        house.client.completions.create(model="davinci-002", prompt=[[1], [999_999]])


def test_nothing_as_prompt_begins_a_document(house: House) -> None:
    engine = house.says("x")
    house.client.completions.create(model="davinci-002", prompt="")
    house.client.completions.create(model="davinci-002", prompt=None)
    assert [ask.prompt for ask in engine.asks] == [(engine.tokenizer.eos_token_id,)] * 2


def test_echo_with_scores(house: House, tuned: str) -> None:
    house.says("yz")
    answer = house.client.completions.create(model=tuned, prompt="né", echo=True, logprobs=1, max_tokens=2)
    choice = answer.choices[0]
    assert choice.text == "néyz" and choice.logprobs is not None
    assert choice.logprobs.tokens == ["n", "bytes:\\xc3", "bytes:\\xa9", "y", "z"]
    assert choice.logprobs.text_offset == [0, 1, 1, 2, 3]
    assert choice.logprobs.token_logprobs and choice.logprobs.token_logprobs[0] is None
    assert all(isinstance(value, float) for value in choice.logprobs.token_logprobs[1:])
    only = house.client.completions.create(model=tuned, prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert only.choices[0].text == "ab" and only.choices[0].finish_reason == "length"
    streamed = house.client.completions.create(model=tuned, prompt="ab", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abyz"


def test_best_of_tells_the_most_probable(open_house: Any) -> None:
    class Unequal(ScriptedEngine):
        def _score(self, token: int, top: int) -> Any:
            made = super()._score(token, top)
            better = made.data == b"b"
            return type(made)(made.id, made.text, made.data, -0.1 if better else -2.0, made.top)

    house: House = open_house(Unequal(["aaa", "bb", "ab"]))
    answer = house.client.completions.create(model="davinci-002", prompt="q", best_of=3, n=2)
    assert [choice.text for choice in answer.choices] == ["bb", "ab"] and answer.choices[0].logprobs is None
    assert house.engine.asks[0].count == 3 and house.engine.asks[0].decoding.top == 0
    assert answer.usage and answer.usage.completion_tokens == 7


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"best_of": 2, "n": 3}, "best_of", ">= n, which is 3"),
        ({"best_of": 2, "stream": True}, "best_of", "not streamed"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo", "not streamed"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"logprobs": 6}, "logprobs", "<= 5"),
        ({"prompt": []}, "prompt", "array of tokens"),
        ({"prompt": ["a", 1]}, "prompt", "tokens only"),
        ({"prompt": [[1], []]}, "prompt", "tokens only"),
        ({"prompt": [-1]}, "prompt", "tokens only"),
        ({"prompt": {"a": 1}}, "prompt", "expected a string"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream'"),
    ],
)
def test_refuses(house: House, more: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        house.client.completions.create(**{"model": "davinci-002", "prompt": "q", **more})
    assert refused.value.param == param and words in refused.value.message


def test_one_of_many_that_is_too_long_ends_all(open_house: Any) -> None:
    house: House = open_house(ScriptedEngine("x" * 16, context=60, per_piece=1, delay=0.01))
    with pytest.raises(openai.BadRequestError) as refused:
        house.client.completions.create(model="davinci-002", prompt=["a", "b" * 60, "c"])
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "prompt"
    assert house.engine.running == 0 and all(isinstance(ask, Ask) for ask in house.engine.asks)


def test_embeddings_and_moderations_are_refused_clearly(house: House) -> None:
    with pytest.raises(openai.BadRequestError, match="makes no embeddings") as refused:
        house.client.embeddings.create(model="gpt-4o", input="text")
    assert refused.value.code == "model_not_supported" and refused.value.param == "model"
    with pytest.raises(openai.NotFoundError, match="does not exist here, and this server has no model") as missing:
        house.client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert missing.value.code == "model_not_found" and "gpt-4o" not in missing.value.message
    with pytest.raises(openai.BadRequestError, match="no model for moderation"):
        house.client.moderations.create(input="text")
