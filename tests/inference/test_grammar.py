"""Answers held to a form: whatever is chosen among the allowed tokens, a finished answer has the form."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.inference.test_torch_engine import engine, prompts, stopping_model
from tests.tiny import FAMILIES, build, byte_tokenizer
from tunesmith.errors import EngineError
from tunesmith.inference.grammar import Grammars, grammar_text
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import Sampling
from tunesmith.tasks.extraction import Extraction
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

TEXTS = ["the card is lost", "a card has not arrived", "über den Wolken", '{"name": "flour", "unit": "g"}', "lost lost"]
LABELS = ("card lost", "card", "card_lost", "über", 'a "quoted" one', "back\\slash", "two\nlines", "日本")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "count": {"type": "integer", "maximum": 99}},
    "required": ["name"],
    "additionalProperties": False,
}


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3 have it, with merges."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["</s>"])
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma have it: a mark for spaces, one before every text, and single bytes for the rest."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for text in "▁abcdefghijklmnopqrstuvwxyz":
        pieces.setdefault(text, len(pieces))
    for merged in ("▁c", "ca", "rd", "▁l", "lo", "st"):
        pieces.setdefault(merged, len(pieces))
    merges = [("▁", "c"), ("c", "a"), ("r", "d"), ("▁", "l"), ("l", "o"), ("s", "t")]
    made = Tokenizer(models.BPE(vocab=pieces, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def marked_words() -> PreTrainedTokenizerFast:
    """As T5 has it: marks for spaces, and a decoder that says no more than that."""
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789_\"'{}[]:,.\\|\nü日本-ABCDEFGHIJKLMNOPQRSTUVWXYZ+\t"
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters), ("▁card", -2.0), ("lost", -2.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer, "byte level": byte_level, "sentencepiece": sentencepiece_like, "marked": marked_words,
}  # fmt: skip


@cache
def made(name: str) -> tuple[Any, Grammars]:
    tokenizer = TOKENIZERS[name]()
    return tokenizer, Grammars(tokenizer, len(tokenizer) + 40, [tokenizer.eos_token_id])  # logits may be wider


def walk(name: str, form: AnswerForm, seed: int, limit: int = 120) -> str | None:
    """An answer of tokens drawn among the allowed ones; None where the limit cuts it."""
    tokenizer, grammars = made(name)
    held, rng, ids = grammars.hold([form]), np.random.default_rng(seed), list[int]()
    for _ in range(limit):
        legal = np.flatnonzero(held.allowed([0])[0].numpy())
        assert len(legal) and legal.max() < len(tokenizer)
        end = tokenizer.eos_token_id
        token = end if end in legal and rng.random() < 0.3 else int(rng.choice(legal))
        if token == end:
            return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        held.take([0], [token])
        ids.append(token)
    return None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_choices_come_out_whole(name: str) -> None:
    said = [walk(name, AnswerForm(LABELS), seed) for seed in range(250)]
    assert all(text is not None and text.removeprefix(" ") in LABELS for text in said)
    assert len({text.strip() for text in said if text}) == len(LABELS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_closing_text_may_follow_and_nothing_else(name: str) -> None:
    said = {walk(name, AnswerForm(("cold", "warm"), closing='" .'), seed) for seed in range(60)}
    plain = {text.strip() for text in said if text is not None}
    assert {"cold", "warm", 'cold" .', 'warm" .'} <= plain
    assert all(text.removesuffix('" .').strip() in ("cold", "warm") for text in plain)


@pytest.mark.parametrize(("separator", "shown"), [(", ", ","), (" ", " "), ("\n", "\n"), ("|", "|")])
def test_several_choices_between_separators(separator: str, shown: str) -> None:
    form = AnswerForm(("a", "b c", "d"), separator=separator, none="none")
    said = [text for seed in range(80) if (text := walk("byte level", form, seed)) is not None]
    parts = [[part.strip() for part in text.strip().split(shown)] for text in said]
    if shown != " ":
        assert all(set(some) <= {"a", "b c", "d"} or some == ["none"] for some in parts)
    assert ["none"] in parts and max(map(len, parts)) > 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), name=st.sampled_from(list(TOKENIZERS)))
def test_a_finished_answer_keeps_its_schema(seed: int, name: str) -> None:
    said = walk(name, AnswerForm(json_schema=SCHEMA, closing='"'), seed)
    if said is None:
        return
    whole = said.strip()
    value, end = json.JSONDecoder().raw_decode(whole)
    jsonschema.validate(value, SCHEMA)
    assert whole[end:].strip() in ("", '"')


@pytest.mark.parametrize("name", TOKENIZERS)
def test_walks_do_finish(name: str) -> None:
    """So that the test above says something."""
    said = [walk(name, AnswerForm(json_schema=SCHEMA), seed) for seed in range(30)]
    assert sum(text is not None for text in said) > 10


def test_the_form_seen_in_the_data_is_kept() -> None:
    task = Extraction("object", ("name", "unit"))
    form = task.answer_form(None)  # type: ignore[arg-type]
    said = [text for seed in range(40) if (text := walk("byte level", form, seed)) is not None]
    assert said and all(set(task.parse(text)) <= {"name", "unit"} for text in said)  # type: ignore[arg-type]
    listed = Extraction("list").answer_form(None)  # type: ignore[arg-type]
    lists = [text for seed in range(40) if (text := walk("byte level", listed, seed)) is not None]
    assert lists and all(Extraction("list").parse(text) is not None for text in lists)


def test_rows_without_a_form_are_free() -> None:
    tokenizer, grammars = made("bytes")
    held = grammars.hold([AnswerForm(("yes",)), None])
    allowed = held.allowed([0, 1])
    assert allowed[1].all() and 0 < int(allowed[0].sum()) < 10
    assert not allowed[0, tokenizer.eos_token_id]
    for token in tokenizer.encode("yes"):
        held.take([0], [token])
    assert held.allowed([0])[0].nonzero().flatten().tolist() == [tokenizer.eos_token_id]


def test_every_stop_token_ends_a_whole_answer() -> None:
    grammars = Grammars(byte_tokenizer(), 300, [256, 257])
    held = grammars.hold([AnswerForm(("a",))])
    assert not held.allowed([0])[0, [256, 257]].any()
    held.take([0], byte_tokenizer().encode("a"))
    assert held.allowed([0])[0].nonzero().flatten().tolist() == [256, 257]


def test_a_form_that_cannot_be_compiled_is_refused_before_anything_is_asked() -> None:
    form = AnswerForm(json_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(EngineError, match="uniqueItems") as caught:
        next(iter(engine().generate(prompts(), 5, forms=[form] * len(prompts()))))
    assert caught.value.where and "task.json_schema" in caught.value.where and caught.value.fix


def test_a_tokenizer_whose_bytes_are_not_known_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"card": 0, "a": 1, "##b": 2, "</s>": 3, "<unk>": 4}, unk_token="<unk>"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(EngineError, match="with this tokenizer"):
        Grammars(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>"), 5, [3])


def test_a_vocabulary_that_cannot_go_on_ends_the_row() -> None:
    """Letters the tokenizer lacks: the answer is cut there, which is counted, and nothing breaks."""
    tokenizer, grammars = made("marked")
    held = grammars.hold([AnswerForm(("a;b",)), AnswerForm(("a",))])  # it has no semicolon
    assert held.allowed([0, 1]).any(-1).tolist() == [True, True]
    held.take([0, 1], [tokenizer.convert_tokens_to_ids("a")] * 2)
    assert held.allowed([0, 1]).any(-1).tolist() == [False, True]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 3)])
def test_whatever_a_random_model_does(family: str, sampling: Sampling | None) -> None:
    made_engine = engine(family)
    asked = prompts("a beginning that all of these prompts share, which is long enough")
    form = AnswerForm(("warm", "cold", "warm and cold"))
    schema = AnswerForm(json_schema=SCHEMA)
    forms = [(form, schema, None)[i % 3] for i in range(len(asked))]
    said = list(made_engine.generate(asked, 60, forms=forms, sampling=sampling))
    for one, held in zip(said, forms, strict=True):
        if held is form:
            assert one.stopped and one.text.strip() in form.choices
        elif held is schema and one.stopped:
            jsonschema.validate(json.loads(one.text), SCHEMA)
    free = [i for i, held in enumerate(forms) if held is None]
    unheld = list(made_engine.generate(asked, 60, sampling=sampling))
    assert [said[i] for i in free] == [unheld[i] for i in free]


def test_held_answers_do_not_depend_on_the_batch() -> None:
    model = stopping_model()
    forms = [AnswerForm(("warm", "cold", "grey"))] * len(prompts())
    one = list(TorchEngine(model, Renderer(byte_tokenizer(), "raw"), 512, 1).generate(prompts(), 9, forms=forms))
    many = list(TorchEngine(model, Renderer(byte_tokenizer(), "raw"), 512, 8).generate(prompts(), 9, forms=forms))
    assert one == many and all(answer.stopped for answer in one)


def test_a_form_costs_no_freedom_that_it_does_not_take() -> None:
    """A model that would say a label by itself says the same one under the grammar."""
    model = build("llama")
    made_engine = engine(model=model)
    free = next(iter(made_engine.generate(prompts()[:1], 4)))
    said = free.text.encode("utf-8", "ignore").decode()
    if said and said == free.text and "\ufffd" not in said:
        held = next(iter(made_engine.generate(prompts()[:1], 4, forms=[AnswerForm((said, "other"))])))
        assert held.text == said


def test_grammar_text_quotes_what_labels_hold() -> None:
    text = grammar_text(AnswerForm(('say "hi"', "a\\b", "c|d")))
    assert '"say \\"hi\\""' in text and '"a\\\\b"' in text and '"c|d"' in text


def test_labels_of_unusual_characters_are_understood() -> None:
    for label in ("\x7f\x85", "\u2028 line", "a\x00b", "😀 ok", "/a/", "\\n"):
        said = {walk("byte level", AnswerForm((label, "other")), seed) for seed in range(12)}
        assert {(text or "").removeprefix(" ") for text in said} == {label, "other"}


def test_special_tokens_are_no_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    grammars = Grammars(tokenizer, len(tokenizer) + 3, [256])
    held = grammars.hold([AnswerForm(json_schema={"type": "string"})])
    held.take([0], tokenizer.encode('"'))
    allowed = held.allowed([0])[0]
    special = tokenizer.convert_tokens_to_ids(["<|turn|>", "<pad>", "</s>"])
    assert not allowed[special].any() and not allowed[len(tokenizer) :].any() and int(allowed.sum()) > 90
