"""An engine over any runtime: the same answers, forms, draws and scores as the torch engine on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.inference.test_torch_engine import NEW, prompts, stopping_model
from tests.tiny import build, byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import FloatArray, Generation, Sampling
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer


class PlainRow:
    """A row in torch that counts what it reads."""

    def __init__(self, model: TorchModel) -> None:
        from transformers import DynamicCache

        self.owner, self.cache, self.closed = model, DynamicCache(config=model.model.config), False

    @torch.inference_mode()
    def append(self, ids: Sequence[int]) -> FloatArray:
        assert not self.closed and len(ids) > 0
        self.owner.read += len(ids)
        out = self.owner.model(input_ids=torch.tensor([list(ids)]), past_key_values=self.cache, use_cache=True)
        return out.logits[0].float().numpy()

    def next(self, ids: Sequence[int]) -> FloatArray:
        return self.append(ids)[-1]

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.owner.open -= 1


class RewoundRow(PlainRow):
    def rewind(self, length: int) -> None:
        assert length <= self.cache.get_seq_length()
        self.cache.crop(length - self.cache.get_seq_length())


class WritingRow(PlainRow):
    def write(self, ids: Sequence[int], limit: int, stops: frozenset[int]) -> list[int]:
        self.owner.written += 1
        answer: list[int] = []
        while len(answer) < limit:
            answer.append(int(self.next(ids).argmax()))
            if answer[-1] in stops:
                break
            ids = [answer[-1]]
        return answer


class TorchModel:
    def __init__(self, model: Any, kind: type[PlainRow]) -> None:
        self.model, self.kind = model, kind
        self.open = self.read = self.written = 0

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def row(self) -> PlainRow:
        self.open += 1
        return self.kind(self)


KINDS = (PlainRow, RewoundRow, WritingRow)
SHARED = "a long beginning that all of the prompts share: be kind"


def both(kind: type[PlainRow], model: Any = None) -> tuple[SteppingEngine, TorchEngine]:
    model = stopping_model() if model is None else model
    renderer = Renderer(byte_tokenizer(), "raw")
    return SteppingEngine(TorchModel(model, kind), renderer, 512), TorchEngine(model, renderer, 512, batch_size=4)


@pytest.mark.parametrize("beginning", ["", SHARED])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_torch_engine(kind, beginning):
    stepping, usual = both(kind)
    asked = prompts(beginning)
    expected = list(usual.generate(asked, NEW))
    assert list(stepping.generate(asked, NEW)) == expected
    assert True in {answer.stopped for answer in expected}
    assert beginning or {answer.stopped for answer in expected} == {True, False}
    assert stepping.model.open == 0
    assert bool(stepping.model.written) == (kind is WritingRow)
    assert [stepping.count_tokens(p) for p in asked] == [answer.prompt_tokens for answer in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_torch_engine(kind):
    stepping, usual = both(kind)
    asked, sampling = prompts(), Sampling(temperature=0.7, seed=3)
    expected = list(usual.generate(asked, NEW, sampling=sampling))
    assert list(stepping.generate(asked, NEW, sampling=sampling)) == expected
    assert expected != list(usual.generate(asked, NEW, sampling=Sampling(0.7, 4)))
    assert not stepping.model.written


@pytest.mark.parametrize("sampling", [None, Sampling(1.5, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_held_to_their_forms(kind, sampling):
    stepping, usual = both(kind)
    asked = prompts()[:4]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    forms = [AnswerForm(choices=("red", "green", "grey")), None, AnswerForm(json_schema=schema), AnswerForm(("x",))]
    made = list(stepping.generate(asked, 20, forms=forms, sampling=sampling))
    assert made == list(usual.generate(asked, 20, forms=forms, sampling=sampling))
    assert made[0].text.strip() in {"red", "green", "grey"} and made[3].text.strip() == "x"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_torch_engine(kind):
    stepping, usual = both(kind)
    asked = prompts(SHARED)[:5]
    answers = [["a", "ab", "abc", "b", "abd", "a", ""]] * 4 + [["zebra"]]
    made, expected = list(stepping.score(asked, answers)), list(usual.score(asked, answers))
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        assert len(ours) == len(theirs)
    exact = [float(sum_of(stepping, p, "abc")) for p in asked[:4]]
    np.testing.assert_allclose([line[2] for line in made[:4]], exact, rtol=0, atol=1e-5)
    assert stepping.model.open == 0


def sum_of(engine: SteppingEngine, prompt: list[Message], text: str) -> float:
    """The log-probability of an answer, token by token from the logits of the whole text."""
    answer = [*engine.renderer.tokenizer(text, add_special_tokens=False)["input_ids"], 256]
    ids = engine.renderer.prompt_ids(prompt)
    chances = torch.from_numpy(engine.logits([*ids, *answer])).double().log_softmax(-1)
    return sum(float(chances[len(ids) + i - 1, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_model(kind):
    stepping, _ = both(kind)
    ids = [5, 80, 9, 256, 41]
    with torch.no_grad():
        expected = stepping.model.model(torch.tensor([ids])).logits[0]
    made = stepping.logits(ids)
    assert made.shape == (5, 300) and made.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=0, atol=1e-5)
    assert stepping.logits([]).shape == (0, 300)


@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_list_answers_alike(kind):
    stepping, _ = both(kind)
    asked = prompts(SHARED)
    forms = [AnswerForm(("red", "green")) if i % 3 == 0 else None for i in range(len(asked))]
    sampling = Sampling(1.0, 1)
    whole = list(stepping.generate(asked, NEW, forms=forms, sampling=sampling))
    assert list(stepping.generate(asked, NEW, skip=4, forms=forms, sampling=sampling)) == whole[4:]
    answers = [["a", "b", "ab"]] * len(asked)
    assert list(stepping.score(asked, answers, skip=5)) == list(stepping.score(asked, answers))[5:]
    for skip in (len(asked), len(asked) + 3):
        assert list(stepping.generate(asked, NEW, skip=skip)) == []
        assert list(stepping.score(asked, answers, skip=skip)) == []


def test_a_shared_beginning_is_read_once_where_a_row_can_be_rewound():
    asked = prompts(SHARED)
    answers = [["abc", "abd", "x"]] * len(asked)
    read = {}
    for kind in (PlainRow, RewoundRow):
        stepping, _ = both(kind, build("llama"))
        list(stepping.score(asked, answers))
        read[kind] = stepping.model.read
    lengths = [stepping.count_tokens(p) for p in asked]
    assert read[PlainRow] == sum(3 * n + 3 + 3 + 1 for n in lengths)
    shared = next(n for n in range(min(lengths)) if read[RewoundRow] == sum(lengths) - n * (len(asked) - 1) + 5 * 11)
    assert shared >= len(SHARED)


def test_rows_are_closed_when_asking_is_given_up():
    for kind in KINDS:
        stepping, _ = both(kind)
        answers = stepping.generate(prompts(), NEW)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert stepping.model.open == 0


def test_what_is_too_long_is_refused_before_anything_is_read():
    model = TorchModel(build("llama"), RewoundRow)
    engine = SteppingEngine(model, Renderer(byte_tokenizer(), "raw"), context=40)
    short, full = [Message("user", "hi")], [Message("user", "x" * 40)]
    with pytest.raises(EngineError, match=r"a prompt has 4[0-9] tokens"):
        next(engine.generate([short, full], 4))
    with pytest.raises(EngineError, match="together"):
        next(engine.score([short], [["a", "y" * 60]]))
    with pytest.raises(EngineError, match="41 tokens are to be read"):
        engine.logits([1] * 41)
    with pytest.raises(EngineError, match="form"):
        next(engine.generate([short], 4, forms=[AnswerForm(json_schema={"type": "nonsense"})]))
    assert model.read == 0 and engine.logits([1] * 40).shape == (40, 300)


def test_an_answer_is_cut_at_the_context():
    engine = SteppingEngine(TorchModel(build("llama"), WritingRow), Renderer(byte_tokenizer(), "raw"), context=24)
    [answer] = engine.generate([[Message("user", "x" * 10)]], 100)
    assert isinstance(answer, Generation)
    assert answer.prompt_tokens + answer.answer_tokens == 24 and not answer.stopped


@pytest.mark.parametrize("kind", [PlainRow, RewoundRow])
def test_a_model_that_has_come_apart_says_nothing(kind):
    model = build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    stepping, usual = both(kind, model)
    assert list(stepping.generate(prompts()[:2], 4)) == list(usual.generate(prompts()[:2], 4))
