"""Copying tests of the base, asked of models whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import build, byte_tokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"
WORDS = [a + b + c for a in ("bar", "lin", "tor", "gam") for b in ("el", "us", "ix") for c in ("", "en", "at")]


def bytes_with_marks(template: str | None = None) -> Any:
    """The byte tokenizer with a begin mark."""
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import copying

    return copying


def test_common_words_are_common_short_and_small(copying: Any) -> None:
    texts = ["table table Table tables", "table chair chair a1b2c an an an incomprehensible " * 3]
    assert copying.common_words(texts) == ["chair", "table"]


def test_lists_are_of_eight_different_words_in_all_wordings(copying: Any) -> None:
    count = 2 * len(copying.REPEAT)
    questions = copying.repeat_questions(WORDS, count, Random(0))
    assert questions == copying.repeat_questions(WORDS, count, Random(0))
    assert questions != copying.repeat_questions(WORDS, count, Random(1))
    assert [q.kind for q in questions] == 2 * list(copying.REPEAT)
    for question in questions:
        assert question.answer in question.turns[-1].content
        joint = copying.REPEAT[question.kind][1]
        items = question.answer.removeprefix("- ").split(joint)
        assert len(items) == len(set(items)) == 8
        assert set(items) <= set(WORDS)
        assert question.answer == question.answer.strip()


def test_json_questions_ask_for_the_same_words_in_order(copying: Any) -> None:
    for question in copying.json_questions(WORDS, 6, Random(0)):
        items = json.loads(question.answer)
        assert len(set(items)) == 8
        shown = question.turns[0].content
        joint = ", " if question.kind == "commas" else "\n"
        assert shown.endswith(joint.join(items))


def test_look_up_has_one_answer(copying: Any) -> None:
    for question in copying.look_up_questions(WORDS, 20, Random(0)):
        table, asked = question.turns[0].content.split("\n\nWhat is ")
        pairs = dict(entry.split(": ") for entry in table.split(", "))
        assert len(pairs) == 6
        assert pairs[asked.removesuffix("?")] == question.answer


class Engine:
    """Answers as told."""

    answers: Sequence[str] = ()

    def __init__(self, model: Any, renderer: Any, context: int) -> None:
        self.context = context

    def generate(self, prompts: Sequence[Any], max_new_tokens: int) -> Any:
        return (SimpleNamespace(text=text) for text in self.answers)


def test_only_exact_answers_count(copying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = copying.repeat_questions(WORDS, 16, Random(0))
    right = [q.answer for q in questions]
    monkeypatch.setattr(copying, "TorchEngine", Engine)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    def share(answers: Sequence[str]) -> Any:
        Engine.answers = answers
        return copying.share_exact(model, bytes_with_marks(template), questions)

    assert share(right).value == 1
    assert share([f" {text}\n" for text in right]).value == 1
    assert share([text[:-1] for text in right]).value == 0
    assert share([text + " more" for text in right]).value == 0
    first = questions[0].kind
    some = share([text if q.kind == first else "" for text, q in zip(right, questions, strict=True)])
    assert some.value == 2 / 16
    assert some.by_kind[first] == 1
    assert sum(some.by_kind.values()) == 1
    assert some.low < some.value < some.high
    assert some.as_json()["n"] == 16


def test_a_model_is_really_asked(copying: Any) -> None:
    """A random model copies nothing, in a chat template of its own."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    share = copying.share_exact(
        build("llama"), bytes_with_marks(template), copying.look_up_questions(WORDS, 3, Random(0))
    )
    assert (share.value, share.n) == (0, 3)


class Copier(torch.nn.Module):
    """Foresees that what followed the last token before follows again; knows nothing where it is new."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        ids = input_ids[0].tolist()
        logits = torch.zeros(1, len(ids), 300)
        for place, token in enumerate(ids):
            for earlier in range(place):
                if ids[earlier] == token:
                    logits[0, place, ids[earlier + 1]] = 20.0
        return SimpleNamespace(logits=logits)


def test_induction_is_seen_in_the_second_reading_only(copying: Any) -> None:
    sequences = [Random(seed).sample(range(3, 256), 12) for seed in range(5)]
    found = copying.induction(Copier(), bytes_with_marks(), sequences)
    assert found["second_accuracy"] == 1
    assert found["first_accuracy"] < 0.1
    assert found["first_bits"] == pytest.approx(8.229, abs=0.01)  # log2 300
    assert found["second_bits"] < 0.01
    assert found["bits_saved"] == pytest.approx(found["first_bits"] - found["second_bits"], abs=0.002)


def test_random_sequences_hold_ordinary_tokens(copying: Any) -> None:
    tokenizer = bytes_with_marks()
    tokens = copying.token_sequences(tokenizer, 20, Random(0))
    assert {len(part) for part in tokens} == {40}
    assert not {i for part in tokens for i in part} & set(tokenizer.all_special_ids)
    words = copying.word_sequences(WORDS, tokenizer, 2, Random(0))
    assert len(tokenizer.decode(words[0]).split()) == 20
