"""Batched greedy answers: the same as one at a time, and the same as `transformers` gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, build, byte_tokenizer
from tunesmith.data.types import Message
from tunesmith.inference import torch_engine
from tunesmith.inference.abilities import may_share
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import Generation, Sampling
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

LENGTHS = (3, 40, 1, 17, 17, 90, 5, 33, 2, 61, 8)
NEW = 12


def prompts(beginning: str = "", lengths: tuple[int, ...] = LENGTHS) -> list[list[Message]]:
    """Ragged prompts; all begin with the same system message where one is given."""
    generator = torch.Generator().manual_seed(5)
    texts = ["".join(map(chr, torch.randint(97, 123, (n,), generator=generator).tolist())) for n in lengths]
    system = [Message("system", beginning)] if beginning else []
    return [[*system, Message("user", text)] for text in texts]


def engine(family: str = "llama", batch_size: int = 4, model: Any = None) -> TorchEngine:
    model = build(family) if model is None else model
    return TorchEngine(model, Renderer(byte_tokenizer(), "raw"), context=512, batch_size=batch_size)


def stopping_model(family: str = "llama") -> Any:
    """A model whose answers end after some tokens, at different places."""
    model = build(family)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[256] = 2.0 * head[[40, 82, 110, 123]].sum(0)  # the end token
    return model


def reference(model: Any, asked: list[Message], renderer: Renderer, new: int = NEW) -> list[int]:
    """What `transformers` generates to one prompt, the stop token included."""
    ids = torch.tensor([renderer.prompt_ids(asked)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, num_beams=1, use_cache=True,
        eos_token_id=sorted(renderer.stop_ids), pad_token_id=0, repetition_penalty=1.0,
    )  # fmt: skip
    return [int(i) for i in out[0, ids.shape[1] :]]


@pytest.mark.parametrize("beginning", ["", "a long beginning that all of the prompts share: be kind"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_one_at_a_time_and_as_transformers(family, beginning):
    model = stopping_model(family)
    batched, single = engine(model=model), engine(model=model, batch_size=1)
    asked = prompts(beginning)
    together = list(batched.generate(asked, NEW))
    assert together == [next(iter(single.generate([p], NEW))) for p in asked]
    for prompt, answer in zip(asked, together, strict=True):
        ids = reference(model, prompt, batched.renderer)
        assert answer.text == batched.renderer.decode(ids)
        assert answer.answer_tokens == len(ids)
        assert answer.stopped == (ids[-1] == 256)
        assert answer.prompt == batched.renderer.prompt_text(prompt)
        assert answer.prompt_tokens == len(batched.renderer.prompt_ids(prompt)) == batched.count_tokens(prompt)


def logits_of(made: TorchEngine, ids: list[list[int]], new: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The logits [new, rows, V] that a batch chooses its tokens by."""
    seen: list[torch.Tensor] = []
    forward = made.model.forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append(out.logits[:, -1])
        return out

    with monkeypatch.context() as patch:
        patch.setattr(made.model, "forward", kept)
        made._answer_window(ids, new)
    return torch.stack(seen[-new:])


@pytest.mark.parametrize("beginning", ["", "a long beginning that all of the prompts share: be kind"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_a_batch_are_those_of_its_rows(family, beginning, monkeypatch):
    """Closer than answers can tell: what padding and sharing change is small in a small model."""
    made = engine(family, batch_size=8)
    ids = sorted((made.renderer.prompt_ids(p) for p in prompts(beginning)[:8]), key=len, reverse=True)
    together = logits_of(made, ids, 4, monkeypatch)
    for row, prompt in enumerate(ids):
        torch.testing.assert_close(together[:, row], logits_of(made, [prompt], 4, monkeypatch)[:, 0], rtol=0, atol=1e-4)


def test_a_window_longer_than_every_row_may_share():
    model = build("gemma3")
    made = engine(model=model)
    assert not may_share(made.model, 5) and may_share(made.model, 4)
    assert may_share(build("llama"), 10_000)


def test_the_shared_beginning_is_computed_once(monkeypatch):
    widths: list[int] = []
    model = build("llama")
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    beginning = "s" * 100
    answered = list(engine(model=model).generate(prompts(beginning, (5, 6, 7, 8)), 1))
    assert len(answered) == 4
    # The beginning alone, two rests both ways to find out whether they may attend to it in place, then all four.
    assert widths == [100, 2 * 6, 2 * 6, 4 * 8]


def test_windows_and_lists_share_one_beginning(monkeypatch):
    """Computed once for the whole list, whatever else the prompts of a window have in common."""
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    widths: list[int] = []
    made = engine(batch_size=2)
    forward = made.model.forward
    monkeypatch.setattr(
        made.model, "forward", lambda *a, **k: widths.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    )
    list(made.generate(prompts("s" * 100, (5, 6, 7, 8, 9, 10)), 1))
    assert widths.count((1, 100)) == 1 and len(widths) == 1 + 2 + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_attend_to_a_beginning_in_place(family):
    """Without windows and soft caps; the tests above compare what comes out."""
    made = engine(family)
    list(made.generate(prompts("s" * 100, (5, 6)), 1))
    assert made._attends_behind is (None if family in ("gemma2", "gemma3") else True)
    assert made.model.config._attn_implementation in ("sdpa", "eager")


def test_a_model_that_hands_no_beginning_on_computes_it_for_every_row(monkeypatch):
    made = engine()
    forward = made.model.forward
    monkeypatch.setattr(made.model, "forward", lambda *a, prefix=None, **k: forward(*a, **k))
    asked = prompts("s" * 100, (5, 6, 9))
    assert list(made.generate(asked, NEW)) == list(engine().generate(asked, NEW))
    assert made._attends_behind is False


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_attending_in_place_gives_the_logits_of_copies(family, monkeypatch):
    made, plain = engine(family, batch_size=8), engine(family, batch_size=8)
    plain._attends_behind = False
    ids = [made.renderer.prompt_ids(p) for p in prompts("s" * 100, (30, 9, 8, 1))]
    assert made._answer_window(ids, 1) and made._attends_behind
    together = logits_of(made, ids, 4, monkeypatch)
    torch.testing.assert_close(together, logits_of(plain, ids, 4, monkeypatch), rtol=0, atol=1e-4)


def test_identical_prompts_share_all_but_their_last_token():
    asked = prompts("x" * 60, (9,)) * 5
    one = next(iter(engine().generate(asked[:1], NEW)))
    assert list(engine().generate(asked, NEW)) == [one] * 5


def test_a_prompt_that_is_the_beginning_of_all_others():
    base = prompts("", (50,))[0][0].content
    asked = [[Message("user", base + more)] for more in ("", "b", "bcd", "xyz" * 9)]
    singles = [next(iter(engine().generate([p], NEW))) for p in asked]
    assert list(engine().generate(asked, NEW)) == singles


@pytest.mark.parametrize("skip", [0, 1, 7, 8, 10, 11])
def test_continuing_gives_the_same_answers(skip, monkeypatch):
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 2)  # windows of 8 prompts
    whole = list(engine().generate(prompts("shared beginning of all these prompts"), NEW))
    rest = list(engine().generate(prompts("shared beginning of all these prompts"), NEW, skip=skip))
    assert rest == whole[skip:]


def test_windows_before_the_skipped_place_are_not_computed(monkeypatch):
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    asked: list[int] = []
    made = engine(batch_size=4)
    original = made._answer_window
    monkeypatch.setattr(made, "_answer_window", lambda ids, *more: asked.append(len(ids)) or original(ids, *more))
    list(made.generate(prompts(), 1, skip=5))
    assert asked == [4, 3]  # of windows of 4, 4 and 3 prompts the first is passed over


def test_an_answer_that_is_cut_says_so():
    model = stopping_model()
    long = list(engine(model=model).generate(prompts(), 40))
    assert {g.stopped for g in long} == {True, False}
    for limit in (1, 3, 8):
        for cut, whole in zip(engine(model=model).generate(prompts(), limit), long, strict=True):
            assert cut.answer_tokens == min(limit, whole.answer_tokens)
            assert cut.stopped == (whole.stopped and whole.answer_tokens <= limit)
    assert all("</s>" not in g.text for g in long)


@pytest.mark.parametrize("sampling", [None, Sampling(0.8, 1)])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_model_that_has_come_apart_answers_nothing(wrong, held, sampling, monkeypatch):
    """The row ends there, as one that was cut; the others of its batch go on."""
    made = engine(batch_size=8)
    asked = prompts("", (9, 9, 9))
    forms = [AnswerForm(("warm", "cold"))] * 3 if held else None
    whole = list(made.generate(asked, 4, forms=forms, sampling=sampling))
    forward = made.model.forward
    broken = made.renderer.prompt_ids(asked[1])[0]

    def apart(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits[kwargs["input_ids"][:, 0] == broken] = wrong
        return out

    assert broken not in {made.renderer.prompt_ids(asked[i])[0] for i in (0, 2)}
    monkeypatch.setattr(made.model, "forward", apart)
    answers = list(made.generate(asked, 4, forms=forms, sampling=sampling))
    assert (answers[1].text, answers[1].answer_tokens, answers[1].stopped) == ("", 0, False)
    assert [answers[0].text, answers[2].text] == [whole[0].text, whole[2].text]


def test_answers_come_as_their_window_is_done(monkeypatch):
    monkeypatch.setattr(torch_engine, "_WINDOW_BATCHES", 1)
    made = engine(batch_size=2)
    calls: list[int] = []
    original = made._answer_window
    monkeypatch.setattr(made, "_answer_window", lambda ids, *more: calls.append(len(ids)) or original(ids, *more))
    answers = made.generate(prompts(), 2)
    first = next(answers)
    assert isinstance(first, Generation) and calls == [2]


def test_no_prompts_and_nothing_left():
    assert list(engine().generate([], NEW)) == []
    assert list(engine().generate(prompts(), NEW, skip=len(LENGTHS))) == []


def test_the_context_is_what_it_was_made_with():
    assert engine().context == 512


def test_a_model_in_training_is_asked_without_dropout_and_left_in_training():
    model = build("llama")
    attached = attach_lora(model, LoraSettings(4, 8, dropout=0.5), seed=0)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(1))
    model.train()
    first, second = (list(engine(model=model).generate(prompts(), NEW)) for _ in range(2))
    assert first == second
    assert model.training


def test_it_leaves_no_gradients():
    model = build("llama")
    list(engine(model=model).generate(prompts(), 2))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_answering_on_a_gpu(family):
    """Free, held to a form, drawn and scored, as on a CPU up to rounding."""
    here, there = engine(family, model=build(family)), engine(family, model=build(family).cuda())
    asked = prompts("a long beginning that all of the prompts share: be kind")
    form = AnswerForm(("warm", "cold"), closing='"')
    for made in (here, there):
        assert all(one.stopped for one in made.generate(asked, NEW, forms=[form] * len(asked)))
        assert len(list(made.generate(asked, NEW, sampling=Sampling(0.8, 1)))) == len(asked)
    labels = [("warm", "cold", "warm and cold")] * len(asked)
    for one, other in zip(here.score(asked, labels), there.score(asked, labels), strict=True):
        assert one == pytest.approx(other, rel=1e-2)
