"""Serving of exported ONNX models: many rows and adapters at once, each as the engine alone answers."""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.inference.serving.made_onnx import CONTEXT, VOCABULARY, engine_alone, save_onnx
from tunesmith.data.types import Message
from tunesmith.errors import EngineError, VerificationError
from tunesmith.inference import genai_config
from tunesmith.inference.ort_engine import open_graph
from tunesmith.inference.serving import ort_runner
from tunesmith.inference.serving.onnx_serving import OnnxLimits, OnnxServing
from tunesmith.inference.serving.ort_runner import BatchRunner, GrowingRunner, best_ort_runner, kept_of
from tunesmith.inference.serving.runner import Part
from tunesmith.inference.serving.types import (
    Ask,
    Decoding,
    ModelRef,
    OverloadedError,
    Piece,
    TooLongError,
    Usage,
    answer_text,
)
from tunesmith.models.artifact import Artifact, hash_files, write_artifact
from tunesmith.tasks.types import AnswerForm

GREEDY = Decoding(temperature=0.0)
LIMITS = OnnxLimits(memory=1 << 28)
ADAPTERS = {"formal": 2, "pirate": 3}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return save_onnx(tmp_path_factory.mktemp("exports") / "small", ADAPTERS)


def ref_of(artifact: Artifact, variant: str | None = None) -> ModelRef:
    return ModelRef(str(artifact.folder), engine="onnx", variant=variant)


def turns(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def ask(artifact: Artifact, text: str, variant: str | None = None, new: int = 24, **more: Any) -> Ask:
    return Ask(ref_of(artifact, variant), turns(text), new, more.pop("decoding", GREEDY), **more)


def serve(work: Callable[[OnnxServing], Awaitable[Any]], limits: OnnxLimits = LIMITS) -> Any:
    async def run() -> Any:
        engine = OnnxServing(limits)
        try:
            return await asyncio.wait_for(work(engine), timeout=60)
        finally:
            await engine.drain(0)

    return asyncio.run(run())


async def told(engine: OnnxServing, one: Ask, delay: float = 0.0) -> tuple[list[Piece], Usage]:
    await asyncio.sleep(delay)
    pieces: list[Piece] = []
    async for item in engine.submit(one):
        if isinstance(item, Usage):
            return pieces, item
        pieces.append(item)
    raise AssertionError("no usage at the end")


def answered(asks: Sequence[Ask], stagger: float = 0.0, limits: OnnxLimits = LIMITS) -> list[tuple[list[Piece], Usage]]:
    """What comes of asks that are made at once, or one a little after the other."""

    async def work(engine: OnnxServing) -> Any:
        return await asyncio.gather(*(told(engine, one, i * stagger) for i, one in enumerate(asks)))

    return cast(list[tuple[list[Piece], Usage]], serve(work, limits))


# What is answered.


@pytest.mark.parametrize("stagger", [0.0, 0.004])
def test_interleaved_rows_of_a_base_and_its_adapters_are_each_as_alone(artifact: Artifact, stagger: float) -> None:
    texts = [f"{'long ' * (7 * i % 11)}question {i}" for i in range(18)]
    variants = [(None, "formal", "pirate")[i % 3] for i in range(18)]
    asks = [ask(artifact, text, variant, 8 + i) for i, (text, variant) in enumerate(zip(texts, variants, strict=True))]
    found = answered(asks, stagger)
    alone = {name: engine_alone(artifact, name) for name in (None, *ADAPTERS)}
    for i, (pieces, usage) in enumerate(found):
        (expected,) = alone[variants[i]].generate([turns(texts[i])], 8 + i)
        assert answer_text(pieces) == expected.text, (variants[i], texts[i])
        assert (usage.prompt, usage.answer) == (expected.prompt_tokens, expected.answer_tokens)
        assert pieces[-1].finish == ("stop" if expected.stopped else "length")
    same = [answer_text(pieces) for pieces, _ in answered([ask(artifact, "hello", name) for name in alone])]
    assert len(set(same)) == 3, "the base and two adapters answer differently"


def test_a_plain_graph_is_served_row_by_row(tmp_path: Path) -> None:
    from tests import tiny
    from tests.export.onnx_plain.made import ModelSource, engine_of, write
    from tunesmith.export.onnx_plain.write import write_plain

    plain = write(write_plain, "onnx-plain", "fp32", ModelSource(tiny.build("llama")), tmp_path)
    texts = ["hello", "what is it, and where?", "a"]
    found = [answer_text(pieces) for pieces, _ in answered([ask(plain, text) for text in texts])]
    assert found == [one.text for one in engine_of(plain).generate([turns(text) for text in texts], 24)]
    assert len(set(found)) == 3


def test_a_seed_draws_the_same_whatever_it_is_batched_with(artifact: Artifact) -> None:
    drawn = Decoding(temperature=4.0, top_p=0.95, logit_bias=dict.fromkeys(range(94, 300), -1000.0), seed=7)
    one = ask(artifact, "draw", "formal", decoding=drawn, count=2)
    others = [ask(artifact, f"other {i}", "formal", decoding=Decoding(temperature=1.0)) for i in range(5)]
    ((alone, _),) = answered([one])
    together = answered([*others, one])[-1][0]
    for index in (0, 1):
        assert answer_text(alone, index) == answer_text(together, index) != ""
    assert answer_text(alone, 0) != answer_text(alone, 1)


def test_log_probabilities_are_the_models(artifact: Artifact) -> None:
    one = ask(
        artifact, "how sure?", "pirate", decoding=replace(GREEDY, top=3, temperature=0.7, seed=1), echo_scores=True
    )
    ((pieces, usage),) = answered([one])
    engine = engine_alone(artifact, "pirate")
    prompt = engine.renderer.prompt_ids(turns("how sure?"))
    scores = [score for piece in pieces for score in piece.scores]
    logs = torch.from_numpy(engine.logits([*prompt, *(score.id for score in scores)])).log_softmax(-1)
    assert len(scores) > 3
    for place, score in enumerate(scores, start=len(prompt) - 1):
        assert score.logprob == pytest.approx(float(logs[place, score.id]), abs=1e-4)
        assert [i for i, *_ in score.top] == logs[place].topk(3).indices.tolist()
    assert math.isnan(usage.prompt_scores[0].logprob)
    for place, score in enumerate(usage.prompt_scores[1:]):
        assert (score.id, score.logprob) == (prompt[place + 1], pytest.approx(float(logs[place, score.id]), abs=1e-4))


def test_stop_texts_biases_forms_and_grammars_hold(artifact: Artifact) -> None:
    ((free, _),) = answered([ask(artifact, "say", "formal")])
    text = answer_text(free)
    assert len(text) > 6
    stop = text[3:5]
    before = text[: text.index(stop)]
    forbidden = free[0].ids[0]
    asks = [
        ask(artifact, "say", "formal", decoding=replace(GREEDY, stop=(stop,))),
        ask(artifact, "say", "formal", decoding=replace(GREEDY, logit_bias={forbidden: -100.0})),
        ask(artifact, "say", "pirate", decoding=replace(GREEDY, form=AnswerForm(choices=("card_lost", "card_found")))),
        ask(artifact, "say", None, decoding=replace(GREEDY, grammar='start: "yes" | "no"')),
    ]
    stopped, biased, held, written = answered(asks)
    assert answer_text(stopped[0]) == before and stopped[0][-1].finish == "stop"
    assert biased[0][0].ids[0] != forbidden
    assert answer_text(held[0]) in ("card_lost", "card_found")
    assert answer_text(written[0]) in ("yes", "no")


def test_what_prompts_of_one_adapter_begin_with_is_read_once(artifact: Artifact) -> None:
    long = "the same long beginning of every question, again and again: "
    asks = [ask(artifact, f"{long}{i}", variant) for i in range(3) for variant in ("formal", "pirate")]
    found = answered(asks)
    cached = [usage.cached for _, usage in found]
    assert sorted(cached)[:2] == [0, 0] and sorted(cached)[2] >= len(long)
    for one, (pieces, _) in zip(asks, found, strict=True):
        (expected,) = engine_alone(artifact, one.model.variant).generate([one.prompt], 24)  # type: ignore[list-item]
        assert answer_text(pieces) == expected.text


# Places, ends and failures.


def test_more_than_may_wait_is_refused_and_the_others_are_answered(artifact: Artifact) -> None:
    async def work(engine: OnnxServing) -> Any:
        await engine.load(ref_of(artifact))
        asks = [ask(artifact, f"{i}", None, 40) for i in range(12)]
        return await asyncio.gather(*(told(engine, one) for one in asks), return_exceptions=True), engine.state()

    found, state = serve(work, OnnxLimits(rows=2, waiting=3, memory=1 << 28))
    refused = [one for one in found if isinstance(one, OverloadedError)]
    assert refused and all(one.retry_after >= 1 for one in refused)
    assert sum(isinstance(one, tuple) for one in found) == 12 - len(refused) >= 5
    assert state["requests"] == 12 - len(refused) and state["waiting"] == state["running"] == 0


def test_a_closed_stream_makes_place(artifact: Artifact) -> None:
    async def work(engine: OnnxServing) -> Any:
        unending = Decoding(temperature=0.0, logit_bias={256: -100.0})
        stream = cast(
            AsyncGenerator[Any, None], engine.submit(ask(artifact, "on and on", None, 200, decoding=unending))
        )
        assert isinstance(await anext(stream), Piece)
        await stream.aclose()
        pieces, _ = await told(engine, ask(artifact, "next"))
        return pieces, engine.state()

    pieces, state = serve(work, OnnxLimits(rows=1, memory=1 << 28))
    assert answer_text(pieces) and state["running"] == 0
    assert state["answer_tokens"] < 100, "the closed one was not written to its end"


def test_what_does_not_fit_the_context_is_refused_before_it_is_asked(artifact: Artifact) -> None:
    with pytest.raises(TooLongError) as caught:
        answered([ask(artifact, "x" * 100, new=CONTEXT)])
    assert (caught.value.context, caught.value.asked) == (CONTEXT, CONTEXT)
    ((_, usage),) = answered(
        [ask(artifact, "x", new=None, decoding=Decoding(temperature=0.0, logit_bias={256: -99.0}))]
    )
    assert usage.prompt + usage.answer == CONTEXT, "an answer without a limit ends with the context"


def test_an_ended_server_takes_nothing(artifact: Artifact) -> None:
    async def work() -> None:
        engine = OnnxServing(LIMITS)
        running = asyncio.create_task(told(engine, ask(artifact, "still in work")))
        await asyncio.sleep(0)
        while not engine.state()["running"] and not running.done():
            await asyncio.sleep(0.005)
        await engine.drain(20)
        assert answer_text((await running)[0])
        with pytest.raises(OverloadedError):
            await told(engine, ask(artifact, "too late"))

    asyncio.run(work())


def test_an_adapter_that_is_none_and_files_that_are_others_are_told(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no adapter 'other'") as caught:
        answered([ask(artifact, "hello", "other")])
    assert "formal, pirate" in str(caught.value) and str(artifact.folder) not in str(caught.value)
    copied = tmp_path / "copied"
    shutil.copytree(artifact.folder, copied)
    with (copied / "adapters" / "formal.onnx_adapter").open("r+b") as file:
        file.write(b"changed!")
    moved = replace(artifact, folder=copied)
    with pytest.raises(VerificationError, match="changed: adapters/formal"):
        answered([ask(moved, "hello", "pirate")])
    shutil.rmtree(copied)
    with pytest.raises(EngineError, match="not there any more"):
        answered([ask(moved, "hello")])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "no adapter 'formal'"),
        ([1], "cannot be read"),
        ({"formal": 3}, "cannot be read"),
        ({"formal": "nowhere"}, "cannot be read"),
        ({"formal": "model.onnx"}, "cannot be read"),
        ({"formal": "/etc/hostname"}, "outside its folder"),
        ({"formal": "../good/adapters/formal.onnx_adapter"}, "outside its folder"),
    ],
)
def test_a_list_of_adapters_that_is_none_or_leads_elsewhere_is_refused(
    artifact: Artifact, tmp_path: Path, said: Any, told: str
) -> None:
    shutil.copytree(artifact.folder, tmp_path / "good")
    shutil.copytree(artifact.folder, tmp_path / "bad")
    (tmp_path / "bad" / genai_config.ADAPTERS).write_text(json.dumps(said))
    files, size = hash_files(tmp_path / "bad")
    bad = replace(artifact, folder=tmp_path / "bad", files=files, bytes=size)
    write_artifact(bad)
    with pytest.raises(EngineError, match=told):
        answered([ask(bad, "hello", "formal")])
    ((pieces, _),) = answered([ask(bad, "hello")])
    assert answer_text(pieces), "the base is not touched by it"


def test_an_export_made_anew_is_opened_anew(tmp_path: Path) -> None:
    async def work(engine: OnnxServing) -> list[str]:
        first = save_onnx(tmp_path / "one", seed=0)
        before = answer_text((await told(engine, ask(first, "who?")))[0])
        second = save_onnx(tmp_path / "one", seed=1, template="raw")
        after = answer_text((await told(engine, ask(second, "who?")))[0])
        return [before, after, *(one.text for one in engine_alone(second).generate([turns("who?")], 24))]

    before, after, expected = serve(work)
    assert before != after == expected


def test_the_model_unused_for_longest_makes_way(tmp_path: Path) -> None:
    made = [save_onnx(tmp_path / f"m{i}", seed=i) for i in range(3)]

    async def work(engine: OnnxServing) -> Any:
        for one in (made[0], made[1], made[0], made[2]):
            await told(engine, ask(one, "hello"))
        return [Path(base).name for base in engine._residents], engine.state()

    names, state = serve(work, OnnxLimits(models=2, memory=1 << 28))
    assert sorted(names) == ["m0", "m2"] and state["models_resident"] == 2


def test_adapters_that_are_too_many_make_way_and_come_back(tmp_path: Path) -> None:
    many = save_onnx(tmp_path / "many", {f"a{i}": i for i in range(4)})

    async def work(engine: OnnxServing) -> Any:
        names = [f"a{i % 4}" for i in range(8)]
        return [answer_text((await told(engine, ask(many, "hi", name)))[0]) for name in names], engine.state()

    found, state = serve(work, OnnxLimits(adapters=2, memory=1 << 28))
    assert found[:4] == found[4:] and len(set(found)) == 4
    assert state["adapters_resident"] == 2


def test_an_adapter_that_is_asked_stays_and_nothing_is_kept_of_one_that_left(tmp_path: Path) -> None:
    many = save_onnx(tmp_path / "many", {f"a{i}": i for i in range(3)})
    unending = Decoding(temperature=0.0, logit_bias={256: -100.0})
    text = "a prompt that is long enough to be kept for others"

    async def work(engine: OnnxServing) -> Any:
        stream = cast(AsyncGenerator[Any, None], engine.submit(ask(many, text, "a0", 150, decoding=unending)))
        await anext(stream)
        resident = engine._residents[str(many.folder)]
        for name in ("a1", "a2", "a1"):
            await told(engine, ask(many, text, name))
        assert "a0" in resident._adapters, "it is being asked"
        await stream.aclose()
        await told(engine, ask(many, text, "a2"))
        while len(resident.loop._beginnings) != 1:
            await told(engine, ask(many, text, "a2"))
        return list(resident._adapters), [one.name for one in resident.loop._beginnings._ordered]

    assert serve(work, OnnxLimits(adapters=1, memory=1 << 28)) == (["a2"], ["a2"])


# Rows that join, leave and are kept, at random.


def test_rows_in_a_batch_are_rows_alone_whoever_joins_and_leaves(artifact: Artifact) -> None:
    session, graph = open_graph(artifact)
    assert isinstance(best_ort_runner(session, graph), BatchRunner)
    usual, batched = GrowingRunner(graph), BatchRunner(session, kept_of(graph))
    rng = random.Random(5)
    rows: list[tuple[Any, Any]] = []
    kept: list[tuple[Any, Any]] = []
    compared = 0
    for _ in range(120):
        if len(rows) < 5 and rng.random() < 0.4:
            if kept and rng.random() < 0.5:  # a prompt that begins as one that is known
                one, other = rng.choice(kept)
                length = rng.randint(1, one.length)
                rows.append((one.copy(length, length + 8), other.copy(length, length + 8)))
            else:
                rows.append((usual.memory(4), batched.memory(4)))
        if rows and rng.random() < 0.2:
            left = rows.pop(rng.randrange(len(rows)))
            if left[0].length:
                kept.append(left)
        going = [row for row in rows if rng.random() < 0.9]
        parts: list[tuple[Part, Part]] = []
        for one, other in going:
            ids = [rng.randrange(VOCABULARY) for _ in range(1 if one.length else rng.randint(1, 9))]
            wants = rng.choice(["last", "last", "none", "all"])
            parts.append((Part(one, ids, None, wants), Part(other, ids, None, wants)))  # type: ignore[arg-type]
        if not parts:
            continue
        expected, got = usual.run([a for a, _ in parts]), batched.run([b for _, b in parts])
        assert expected.shape == got.shape
        if len(expected):
            assert float((expected - got).abs().max()) < 1e-4
            compared += len(expected)
        assert [one.length for one, _ in rows] == [other.length for _, other in rows]
    assert compared > 150 and len(kept) > 8
    for one, other in kept:  # what was kept is untouched by all that came after
        for past, array in zip(one.past, other.arrays, strict=True):
            assert np.abs(past.numpy()[0, :, : one.length] - array[0, :, : one.length]).max() < 1e-5


def test_a_graph_that_takes_another_rows_memory_is_run_row_by_row(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its logits are nearly flat, so that no probability tells much; their rounding is no reason."""
    session, graph = open_graph(artifact)
    usual = ort_runner._tried
    for scale in (1.0, 1e-5):
        monkeypatch.setattr(ort_runner, "_tried", lambda *asked, scale=scale: scale * usual(*asked) + 3.0)
        assert isinstance(best_ort_runner(session, graph), BatchRunner)
        with monkeypatch.context() as broken:
            broken.setattr(
                ort_runner._Batch, "put", lambda self, memory, slot: self.members.append(weakref.ref(memory))
            )
            assert isinstance(best_ort_runner(session, graph), GrowingRunner)
    noise = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        ort_runner,
        "_tried",
        lambda *asked: (t := usual(*asked)) + 0.01 * t.std() * torch.randn(t.shape, generator=noise),
    )
    assert isinstance(best_ort_runner(session, graph), BatchRunner)


# A pack of real adapters, written by the exporter and asked beside GenAI's own runtime.


def test_a_pack_of_adapters_answers_as_genai_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("onnxruntime_genai")
    from tests.export.onnx.twins import multi_export
    from tunesmith.inference.artifacts import open_artifact

    pack = multi_export(tmp_path_factory.getbasetemp()).artifact
    names = [None, *pack.adapters]
    texts = ["hello", "a somewhat longer question", "why?"]
    asks = [ask(pack, text, name, 16) for text in texts for name in names]
    found = iter(answered(asks, 0.002))
    expected = {name: list(open_artifact(pack, name).generate([turns(t) for t in texts], 16)) for name in names}
    for i in range(len(texts)):
        for name in names:
            pieces, usage = next(found)
            assert answer_text(pieces) == expected[name][i].text, (name, texts[i])
            assert usage.answer == expected[name][i].answer_tokens
    assert len({tuple(one.text for one in told) for told in expected.values()}) == len(names) >= 3

    async def runner(engine: OnnxServing) -> str:
        await engine.load(ref_of(pack))
        return type(engine._residents[str(pack.folder)].loop._runner).__name__

    assert serve(runner) == "BatchRunner"
