"""How answers are drawn, told and ended: sampling, scores, stop texts, forms, whole characters."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.serving.asking import GREEDY, answers, base_folder, conversation, serve, told
from tests.tiny import build, byte_tokenizer
from tunesmith.errors import EngineError
from tunesmith.inference.serving.answer_text import AnswerText
from tunesmith.inference.serving.choosing import Chooser, Draws, choose
from tunesmith.inference.serving.token_bytes import TokenBytes
from tunesmith.inference.serving.torch_serving import TorchServing
from tunesmith.inference.serving.types import Ask, Decoding, ModelRef, Piece, TooLongError, answer_text
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

BYTES = byte_tokenizer()
TOKEN_BYTES = TokenBytes(BYTES, 300, [256])
PARTS = st.lists(st.integers(0, 254), min_size=1, max_size=3).map(bytes)
ID_OF = {TOKEN_BYTES(i): i for i in range(256)}


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A model that never ends by itself."""
    return ModelRef(str(base_folder(tmp_path_factory.mktemp("base"), model=build("llama"))), None, "raw")


def asking(ref: ModelRef, text: str = "hello there", new: int = 12, count: int = 1, **decoding: Any) -> Ask:
    return Ask(ref, conversation(text), new, Decoding(**{"temperature": 0.0, **decoding}), count)


def decode(ids: list[int]) -> str:
    return str(BYTES.backend_tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def spelled(text: str | bytes) -> list[int]:
    """The byte tokens of a text."""
    data = text.encode() if isinstance(text, str) else text
    return [ID_OF[bytes([byte])] for byte in data]


# Sampling


def test_every_token_has_its_bytes() -> None:
    assert len(ID_OF) == 256 and TOKEN_BYTES(256) == b"</s>" and TOKEN_BYTES(299) == b""


def test_a_seed_gives_the_same_answer_whatever_it_is_batched_with(ref: ModelRef) -> None:
    seeded = asking(ref, temperature=1.0, seed=7, count=3)
    others = [asking(ref, f"other {i}", temperature=1.3) for i in range(6)]

    async def work(engine: TorchServing) -> Any:
        def texts(found: Any) -> list[str]:
            return [answer_text(found[0], i) for i in range(3)]

        alone = texts(await told(engine, seeded))
        both = await asyncio.gather(told(engine, seeded, 0.002), *(told(engine, one) for one in others))
        negative = await told(engine, asking(ref, temperature=1.0, seed=-7))
        return alone, texts(both[0]), answer_text(negative[0])

    alone, together, negative = serve(work)
    assert alone == together and len(set(alone)) == 3 and negative not in alone


def test_without_a_seed_answers_differ(ref: ModelRef) -> None:
    found = serve(lambda engine: answers(engine, [asking(ref, temperature=1.0)] * 4))
    assert len(set(found)) == 4


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)])
    for decoding, shares in (
        (Decoding(), (0.5, 0.3, 0.15, 0.05)),
        (Decoding(top_p=0.75), (0.625, 0.375, 0, 0)),
        (Decoding(top_p=0.8), (0.625, 0.375, 0, 0)),
        (Decoding(top_p=0.0001), (1, 0, 0, 0)),
        (Decoding(temperature=0.5), tuple(np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)),
        (Decoding(logit_bias={3: 100.0}), (0, 0, 0, 1)),
        (Decoding(logit_bias={0: -100.0}), (0, 0.6, 0.3, 0.1)),
    ):
        chooser = Chooser(decoding, Draws(5, 0))
        drawn = np.bincount([chooser.choose(logits) or 0 for _ in range(3000)], minlength=4) / 3000
        assert np.abs(drawn - shares).max() < 0.035, decoding
        assert not drawn[np.array(shares) == 0].any(), decoding


def test_penalties_count_what_was_written() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0])
    chooser = Chooser(Decoding(temperature=0.0, presence_penalty=0.7), Draws(0, 0))
    written = []
    for _ in range(4):
        token = chooser.choose(logits)
        assert token is not None
        chooser.take(token, ends=False)
        written.append(token)
    assert written == [0, 1, 0, 0]  # 2.0; 1.3 to 1.5; 1.3 to 0.8 and 1.0; once is as often as twice
    chooser = Chooser(Decoding(temperature=0.0, frequency_penalty=0.4), Draws(0, 0))
    written = []
    for _ in range(5):
        token = chooser.choose(logits)
        assert token is not None
        chooser.take(token, ends=False)
        written.append(token)
    assert written == [0, 0, 1, 0, 1]


def test_a_row_whose_logits_are_no_numbers_fails_alone() -> None:
    logits = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 0.0], [3.0, 1.0]])
    found = choose(logits, [Chooser(GREEDY, Draws(0, 0)) for _ in range(4)])
    assert [one.token for one in found] == [1, None, None, 0]
    assert "not a number" in found[1].why and "not a number" in found[2].why


def test_a_broken_adapter_fails_only_those_who_ask_it(tmp_path: Path, ref: ModelRef) -> None:
    """Its factors are numbers, but what comes out of them is not."""
    from tests.inference.serving.asking import adapter_folder

    broken = ModelRef(ref.base, adapter_folder(tmp_path / "a", ref.base, 1, scale=1e37, alpha=4.0), "raw")

    async def work(engine: TorchServing) -> Any:
        good = asking(ref, new=30)
        expected = await answers(engine, [good])
        found = await asyncio.gather(
            told(engine, good), told(engine, asking(broken)), told(engine, good), return_exceptions=True
        )
        again = await asyncio.gather(told(engine, asking(broken)), return_exceptions=True)
        return expected[0], found, again

    expected, found, again = serve(work)
    assert answer_text(found[0][0]) == answer_text(found[2][0]) == expected
    for one in (found[1], again[0]):
        assert isinstance(one, EngineError) and "not a number" in one.what


# Scores


def test_log_probabilities_are_the_models_own(ref: ModelRef) -> None:
    model, renderer = build("llama"), Renderer(BYTES, "raw")
    ask = asking(ref, temperature=0.8, seed=1, top=3, logit_bias={65: 3.0}, presence_penalty=1.0)
    pieces, usage = serve(lambda engine: told(engine, ask))
    scores = [one for piece in pieces for one in piece.scores]
    ids = [i for piece in pieces for i in piece.ids]
    prompt = renderer.prompt_ids(ask.prompt)
    with torch.inference_mode():
        logs = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert len(scores) == len(ids) == usage.answer == 12 and [one.id for one in scores] == ids
    for one, line in zip(scores, logs, strict=True):
        best = line.topk(3)
        assert one.logprob == pytest.approx(float(line[one.id]), abs=1e-4)
        assert [i for i, *_ in one.top] == best.indices.tolist()
        assert [value for *_, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert all(data.decode("utf-8", "replace") == text for _, text, data, _ in one.top)
    assert b"".join(one.data for one in scores).decode("utf-8", "replace") == answer_text(pieces)


def test_scores_of_the_prompt_are_told_on_request(ref: ModelRef) -> None:
    text = "a prompt that is longer than one chunk of scored tokens, to be sure of it: " * 2
    ask = Ask(ref, text, 0, Decoding(temperature=0.0, top=2), echo_scores=True)
    later = Ask(ref, text, 3, Decoding(temperature=0.0, top=0), count=2, echo_scores=True)

    async def work(engine: TorchServing) -> Any:
        first = await told(engine, ask)
        return first, await told(engine, later), await told(engine, later)

    (pieces, usage), *others = serve(work)
    ids = BYTES.encode(text)
    with torch.inference_mode():
        logs = build("llama")(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert [one.id for one in usage.prompt_scores] == ids and math.isnan(usage.prompt_scores[0].logprob)
    for place, one in enumerate(usage.prompt_scores[1:]):
        assert one.logprob == pytest.approx(float(logs[place, one.id]), abs=1e-4) and len(one.top) == 2
    assert [p.finish for p in pieces] == ["length"] and usage.answer == 0 and answer_text(pieces) == ""
    for other_pieces, other in others:
        assert [s.logprob for s in other.prompt_scores[1:]] == pytest.approx(
            [s.logprob for s in usage.prompt_scores[1:]], abs=1e-4
        )
        assert other.answer == 6 and answer_text(other_pieces, 0) == answer_text(other_pieces, 1) != ""


# Ends


def test_stop_texts_end_an_answer_and_are_not_part_of_it(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> None:
        pieces, _ = await told(engine, asking(ref, new=40))
        whole = answer_text(pieces)
        for start, size in ((6, 1), (9, 4), (20, 7)):
            stop = whole[start : start + size]
            pieces, usage = await told(engine, asking(ref, new=40, stop=(stop, "never"), top=0))
            expected = whole[: whole.index(stop)]
            assert answer_text(pieces) == expected and pieces[-1].finish == "stop"
            assert all(stop not in answer_text(pieces[:n]) for n in range(len(pieces)))
            assert usage.answer < 40
            said = b"".join(one.data for piece in pieces for one in piece.scores)
            assert said.decode("utf-8", "replace") == expected

    serve(work)


def test_what_may_become_a_stop_text_is_held_back() -> None:
    text = AnswerText(decode, ("stop", "op!"))
    sent = [text.add(i)[0] for i in spelled("do sto")]
    assert sent == ["d", "", "o ", "", "", ""]
    assert text.add(spelled("r")[0])[0] == "stor"
    for i in spelled("st"):
        assert text.add(i)[0] == ""
    assert text.finish() == ("st", 9)
    text = AnswerText(decode, ("stop", "op!"))
    sent = [text.add(i) for i in spelled("a stop!")]
    assert "".join(one for one, _ in sent) == "a " and text.stopped
    assert sent[-1] == ("", 2), "tokens of a stop text are not told"


def test_of_two_stop_texts_the_earlier_one_counts() -> None:
    text = AnswerText(decode, ("cd", "abcd"))
    assert "".join(text.add(i)[0] for i in spelled("x abcd")) == "x "


@given(data=st.lists(st.one_of(st.sampled_from(list("aä漢😀\n ")).map(str.encode), PARTS)))
@settings(max_examples=150, deadline=None)
def test_pieces_are_whole_characters_and_joined_the_whole_text(data: list[bytes]) -> None:
    ids = spelled(b"".join(data))
    text = AnswerText(decode)
    pieces = [text.add(i)[0] for i in ids] + [text.finish()[0]]
    assert "".join(pieces) == decode(ids)


def test_a_character_of_several_tokens_is_sent_with_its_last() -> None:
    text = AnswerText(decode)
    assert [text.add(i) for i in spelled("é😀!")] == [
        ("", 0), ("é", 2), ("", 2), ("", 2), ("", 2), ("😀", 6), ("!", 7),
    ]  # fmt: skip


def test_the_end_token_ends_and_is_counted(tmp_path: Path) -> None:
    ref = ModelRef(str(base_folder(tmp_path / "base")), None, "raw")
    asks = [asking(ref, text, new=60, top=0) for text in ("hello", "how are you", "x", "one more")]

    async def work(engine: TorchServing) -> Any:
        return [await told(engine, ask) for ask in asks]

    found = serve(work)
    ended = [(pieces, usage) for pieces, usage in found if pieces[-1].finish == "stop"]
    assert ended
    for pieces, usage in found:
        told_ids = [i for piece in pieces for i in piece.ids]
        assert usage.answer == len(told_ids) + (pieces[-1].finish == "stop")
        assert 256 not in told_ids and [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)


# Forms


def test_forms_and_grammars_hold_single_rows_of_a_batch(ref: ModelRef) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    asks = [
        asking(ref, "free", new=40),
        asking(ref, "choose", new=40, form=AnswerForm(choices=("good", "bad"))),
        asking(ref, "json", new=200, form=AnswerForm(json_schema=schema), temperature=1.0, seed=3),
        asking(ref, "any", new=60, form=AnswerForm(json_schema={"type": "object", "maxProperties": 0})),
        asking(ref, "lark", new=40, grammar='start: "<" /[0-9]{3}/ ">"'),
    ]

    async def work(engine: TorchServing) -> Any:
        free = await answers(engine, [asks[0]])
        return free, await answers(engine, asks)

    free, (unheld, chosen, made, empty, lark) = serve(work)
    assert [unheld] == free and chosen.strip() in ("good", "bad")
    value = json.loads(made)
    assert isinstance(value["n"], int) and isinstance(value["ok"], bool) and set(value) == {"n", "ok"}
    assert json.loads(empty) == {}
    assert lark[0] == "<" and lark[-1] == ">" and lark[1:-1].isdigit() and len(lark) == 5


@pytest.mark.parametrize(
    "decoding",
    [{"grammar": "start: nothing"}, {"form": AnswerForm(json_schema={"type": "nonsense"})}],
)
def test_a_form_that_cannot_be_compiled_is_refused_at_once(ref: ModelRef, decoding: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="cannot be held to its form"):
        serve(lambda engine: told(engine, asking(ref, **decoding)))


# Limits


def test_what_does_not_fit_the_context_is_refused(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        for text, new in (("x" * 600, 1), ("x" * 500, 13), ("x" * 512, None)):
            with pytest.raises(TooLongError) as refused:
                await told(engine, asking(ref, text, new=new))
            assert (refused.value.prompt, refused.value.asked, refused.value.context) == (len(text), new, 512)
        return [await told(engine, asking(ref, "x" * 500, new=new)) for new in (12, None)]

    for pieces, usage in serve(work):
        assert usage.answer == 12 and pieces[-1].finish == "length" and usage.prompt == 500


def test_an_endless_prompt_is_refused_without_being_tokenised(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: TorchServing) -> TooLongError:
        known = await engine.load(ref)
        counted: list[int] = []
        monkeypatch.setattr(type(known.renderer), "prompt_ids", lambda *_: counted.append(1) or [])
        with pytest.raises(TooLongError) as refused:
            await told(engine, asking(ref, "endless " * 1_000_000, new=1))
        assert not counted
        return refused.value

    told_too_long = serve(work)
    assert told_too_long.context == 512 < told_too_long.prompt <= 8_000_000


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (5, 300)}, "no token 300"),
        ({"decoding": Decoding(logit_bias={-1: 1.0})}, "no token -1"),
    ],
)
def test_tokens_that_there_are_not_are_refused(ref: ModelRef, ask: dict[str, Any], words: str) -> None:
    given = {"prompt": (5, 6), "decoding": GREEDY, **ask}
    with pytest.raises(EngineError, match=words):
        serve(lambda engine: told(engine, Ask(ref, given["prompt"], 3, given["decoding"])))


def test_text_token_and_message_prompts_are_the_same_prompt(ref: ModelRef) -> None:
    text = "the very same"
    asks = [Ask(ref, prompt, 9, GREEDY) for prompt in (text, tuple(BYTES.encode(text)), conversation(text))]
    found = serve(lambda engine: answers(engine, asks))
    assert len(set(found)) == 1


def test_pieces_tell_the_answer_they_belong_to(ref: ModelRef) -> None:
    ask = asking(ref, count=5, temperature=1.0, new=7, logit_bias={256: -100.0})  # the end token never
    pieces, usage = serve(lambda engine: told(engine, ask))
    for index in range(5):
        own = [p for p in pieces if p.index == index]
        assert sum(len(p.ids) for p in own) == 7 and [p.finish for p in own if p.finish] == ["length"]
        assert isinstance(own[-1], Piece) and own[-1].finish == "length"
    assert usage.answer == 35 and usage.prompt == len("hello there")
