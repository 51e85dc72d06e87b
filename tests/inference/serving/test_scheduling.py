"""Who is worked for when: places, memory, known beginnings, cancelled streams, failures, the end."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.inference.serving.asking import GREEDY, adapter_folder, answers, base_folder, conversation, serve, told
from tests.tiny import build
from tunesmith.errors import EngineError
from tunesmith.inference.serving import torch_serving
from tunesmith.inference.serving.memory import Beginnings, Known, Segment, as_ids, common
from tunesmith.inference.serving.runner import FlatRunner, Part
from tunesmith.inference.serving.torch_serving import TorchLimits, TorchServing
from tunesmith.inference.serving.types import Ask, ModelRef, OverloadedError, Piece, Usage, answer_text

SYSTEM = "you are asked many things, and always begin with this same long text. "


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A model that never ends by itself."""
    return ModelRef(str(base_folder(tmp_path_factory.mktemp("base"), model=build("llama"))), None, "raw")


def asking(ref: ModelRef, text: str = "hello there", new: int = 12, **more: Any) -> Ask:
    return Ask(ref, conversation(text), new, GREEDY, **more)


class Recorded:
    """What a runner was given, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Sequence[Part]] = []
        run = FlatRunner.run

        def recorded(runner: FlatRunner, parts: Sequence[Part]) -> torch.Tensor:
            self.steps.append(parts)
            return run(runner, parts)

        monkeypatch.setattr(FlatRunner, "run", recorded)

    @property
    def tokens(self) -> list[int]:
        return [sum(len(part.ids) for part in step) for step in self.steps]

    def clear(self) -> None:
        self.steps = []


# Known beginnings


def test_what_prompts_begin_with_is_computed_once(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [asking(ref, SYSTEM + f"{i}: tell me") for i in range(5)]
    plain = serve(lambda engine: _one_by_one(asks))
    steps = Recorded(monkeypatch)

    async def work(engine: TorchServing) -> Any:
        await engine.load(ref)
        steps.clear()
        found = await asyncio.gather(*(told(engine, ask) for ask in asks))
        return found, engine.state()

    found, state = serve(work)
    cached = sorted(usage.cached for _, usage in found)
    assert cached == [0] + [len(SYSTEM)] * 4, "asked at once, the others wait for the first to read it"
    assert [answer_text(pieces) for pieces, _ in found] == plain
    assert sum(steps.tokens) == sum(usage.prompt - usage.cached + usage.answer - 1 for _, usage in found)
    assert state["prompt_tokens_cached"] == 4 * len(SYSTEM)


async def _one_by_one(asks: Sequence[Ask]) -> list[str]:
    """Each by an engine of its own, which knows nothing."""
    found = []
    for ask in asks:
        engine = TorchServing(TorchLimits(memory=1 << 28))
        found += await answers(engine, [ask])
        await engine.drain(0)
    return found


def test_a_conversation_that_goes_on_is_not_read_again(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        pieces, usage = await told(engine, Ask(ref, (5, 6, 7) * 8, 10, GREEDY))
        said = tuple(i for piece in pieces for i in piece.ids)
        return usage, await told(engine, Ask(ref, (5, 6, 7) * 8 + said + (9, 9), 4, GREEDY))

    usage, (_, later) = serve(work)
    assert usage.cached == 0 and later.cached == 24 + 9  # the last token was chosen, and never read


def test_another_adapter_has_other_keys(tmp_path: Path, ref: ModelRef) -> None:
    tuned = ModelRef(ref.base, adapter_folder(tmp_path / "a", ref.base, 1), "raw")

    async def work(engine: TorchServing) -> Any:
        await told(engine, asking(ref, SYSTEM))
        _, first = await told(engine, asking(tuned, SYSTEM))
        _, second = await told(engine, asking(tuned, SYSTEM))
        engine.forget(tuned)
        _, third = await told(engine, asking(tuned, SYSTEM))
        return first.cached, second.cached, third.cached

    assert serve(work) == (0, len(SYSTEM) - 1, 0)


def test_beginnings_are_found_kept_and_dropped() -> None:
    def known(adapter: Any, ids: list[int]) -> Known:
        segment = Segment()
        segment.append(0, torch.zeros(1, len(ids), 4), torch.zeros(1, len(ids), 4))
        segment.length = len(ids)
        return Known(adapter, as_ids(ids), segment)

    kept = Beginnings()
    kept.keep(known(None, list(range(20))))
    kept.keep(known(None, list(range(30))))
    kept.keep(known(None, list(range(25))))
    kept.keep(known(None, [1, 2, 3]))
    assert len(kept) == 1, "shorter ones say nothing new"
    kept.keep(known("a", list(range(18))))
    kept.keep(known(None, [9, *range(40)]))
    assert len(kept) == 3 and kept.bytes == 2 * 16 * (30 + 18 + 41)
    assert kept.longest(None, as_ids([*range(28), 77, 78]))[1] == 28
    assert kept.longest(None, as_ids(range(30)))[1] == 29, "the last token is always read"
    assert kept.longest("a", as_ids(range(40)))[1] == 18
    assert kept.longest("b", as_ids(range(40))) == (None, 0)
    assert kept.longest(None, as_ids(range(10))) == (None, 0)
    kept.forget("a")
    assert kept.longest("a", as_ids(range(40))) == (None, 0) and len(kept) == 2
    assert kept.drop_oldest()
    assert kept.longest(None, as_ids(range(40)))[1] == 30, "the one used last stays"
    assert kept.drop_oldest() and not kept.drop_oldest()


def test_common_beginnings() -> None:
    assert common(as_ids([1, 2, 3]), as_ids([1, 2, 4])) == 2
    assert common(as_ids([1, 2]), as_ids([1, 2, 4])) == 2
    assert common(as_ids([]), as_ids([1])) == common(as_ids([2]), as_ids([1])) == 0


# Memory


def test_little_memory_makes_answers_wait_and_changes_none(ref: ModelRef) -> None:
    """Room for about two rows of the eight: some give way while they are written, and are read again."""
    asks = [asking(ref, "".join(chr(97 + (i * j) % 26) for j in range(40 + i)), new=150) for i in range(8)]
    expected = serve(lambda engine: answers(engine, asks))
    per_token = 2 * 2 * 2 * 8 * 4
    limits = TorchLimits(memory=400 * per_token)

    async def work(engine: TorchServing) -> Any:
        found = await answers(engine, asks)
        return found, engine.state()

    found, state = serve(work, limits)
    assert found == expected
    assert state["preemptions"] > 0 and state["memory_bytes"] <= limits.memory


def test_scores_of_a_prompt_that_is_read_again_are_told_once(ref: ModelRef) -> None:
    asks = [
        Ask(ref, f"{i} is a prompt of several parts, all scored. " * 4, 3, GREEDY, echo_scores=True) for i in "abcd"
    ]
    expected = [serve(lambda engine, ask=ask: told(engine, ask))[1] for ask in asks]

    async def work(engine: TorchServing) -> Any:
        await engine.load(ref)
        (resident,) = engine._residents.values()
        all_there = threading.Event()
        resident.loop._inbox.put(lambda: all_there.wait(30) and None)
        asked = [asyncio.create_task(told(engine, ask)) for ask in asks]
        while engine.state()["waiting"] < len(asks):
            await asyncio.sleep(0.005)
        all_there.set()
        return await asyncio.gather(*asked), engine.state()["preemptions"]

    found, preempted = serve(work, TorchLimits(memory=500 * 256))
    assert preempted > 0
    for (_, usage), plain in zip(found, expected, strict=True):
        assert [one.id for one in usage.prompt_scores] == [one.id for one in plain.prompt_scores]
        scores = [[score.logprob for score in one.prompt_scores[1:]] for one in (usage, plain)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4) and len(scores[0]) == usage.prompt - 1


def test_memory_stays_bounded(ref: ModelRef) -> None:
    limits = TorchLimits(memory=200_000)

    async def work(engine: TorchServing) -> float:
        most = 0.0
        for i in range(12):
            await told(engine, asking(ref, f"{i} " * 100, new=5))
            most = max(most, engine.state()["memory_bytes"])
        return most

    assert 100_000 < serve(work, limits) <= 200_000


# Places


def test_a_long_prompt_is_read_in_parts_while_others_write(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Recorded(monkeypatch)

    async def work(engine: TorchServing) -> Any:
        await told(engine, asking(ref, "x" * 100, new=1))
        stream = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(ref, new=200)))
        await anext(stream)
        steps.clear()
        pieces, _ = await told(engine, asking(ref, "y" * 300, new=3))
        await stream.aclose()
        return pieces

    serve(work, TorchLimits(memory=1 << 28, stall=1e-6))
    mixed = [step for step in steps.steps if any(len(part.ids) > 1 for part in step)]
    assert len(mixed) >= 300 // 32, "so many tokens at once make the others wait"
    assert all(len(step) == 2 and min(len(part.ids) for part in step) == 1 for step in mixed)


def test_adapters_take_turns(tmp_path: Path, ref: ModelRef) -> None:
    """One asks twenty things, the other one thing a little later; it need not wait for all of them."""
    tuned = ModelRef(ref.base, adapter_folder(tmp_path / "a", ref.base, 1), "raw")
    done: list[str] = []

    async def one(engine: TorchServing, which: ModelRef, name: str) -> None:
        await told(engine, asking(which, name, new=20))
        done.append(name)

    async def work(engine: TorchServing) -> None:
        await engine.load(tuned)
        many = [asyncio.create_task(one(engine, ref, f"many {i}")) for i in range(20)]
        await asyncio.sleep(0.01)
        await one(engine, tuned, "single")
        await asyncio.gather(*many)

    serve(work, TorchLimits(memory=1 << 28, rows=4))
    assert done.index("single") < 12


def test_too_many_requests_are_refused_with_a_time(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        await engine.load(ref)
        found = await asyncio.gather(
            *(told(engine, asking(ref, f"{i}", new=40)) for i in range(12)), return_exceptions=True
        )
        return found, await told(engine, asking(ref))

    found, later = serve(work, TorchLimits(memory=1 << 28, rows=2, waiting=4))
    refused = [one for one in found if isinstance(one, BaseException)]
    assert refused and all(isinstance(one, OverloadedError) and 1 <= one.retry_after <= 60 for one in refused)
    assert len(found) - len(refused) >= 6 and later[1].answer == 12


def test_a_closed_stream_frees_its_place(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        stream = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(ref, new=450)))
        await anext(stream)
        assert engine.state()["running"] == 1
        other = asyncio.create_task(told(engine, asking(ref, new=3)))
        await asyncio.sleep(0.03)
        waiting = engine.state()["waiting"]
        await stream.aclose()
        began = engine.state()["answer_tokens"]
        await asyncio.wait_for(other, 5)
        await asyncio.sleep(0.02)
        return waiting, engine.state(), began

    waiting, state, began = serve(work, TorchLimits(memory=1 << 28, rows=1))
    assert waiting == 1 and state["running"] == 0
    assert state["answer_tokens"] - began <= 6, "nobody writes for a stream that is closed"


def test_a_request_cancelled_while_it_waits_is_never_begun(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        stream = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(ref, new=300)))
        await anext(stream)
        waiting = [asyncio.create_task(told(engine, asking(ref, f"{i}", new=300))) for i in range(5)]
        await asyncio.sleep(0.03)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await stream.aclose()
        _, usage = await told(engine, asking(ref, new=2))
        return usage, engine.state()

    usage, state = serve(work, TorchLimits(memory=1 << 28, rows=1))
    assert usage.answer == 2 and state["waiting"] == state["running"] == 0
    assert state["answer_tokens"] < 310


# Failures and the end


def test_a_step_that_fails_is_told_to_all_and_the_next_are_served(
    ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failing = FlatRunner.run, [False]

    def sometimes(runner: FlatRunner, parts: Sequence[Part]) -> torch.Tensor:
        if failing[0]:
            raise RuntimeError("secret details of the inside")
        return run(runner, parts)

    monkeypatch.setattr(FlatRunner, "run", sometimes)

    async def work(engine: TorchServing) -> Any:
        before = await answers(engine, [asking(ref)])
        failing[0] = True
        found = await asyncio.gather(*(told(engine, asking(ref, f"{i}")) for i in range(5)), return_exceptions=True)
        failing[0] = False
        return before, found, await answers(engine, [asking(ref)])

    before, found, after = serve(work, TorchLimits(memory=1 << 28, rows=2))
    assert before == after and len(found) == 5
    for error in found:
        assert isinstance(error, EngineError) and "secret" not in str(error) and "RuntimeError" in error.what


def test_draining_finishes_what_runs_and_takes_nothing_new(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        running = [asyncio.create_task(told(engine, asking(ref, f"{i}", new=60))) for i in range(4)]
        while not engine.state()["answer_tokens"]:
            await asyncio.sleep(0.005)
        draining = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await told(engine, asking(ref))
        await draining
        return await asyncio.gather(*running), engine.state()

    found, state = serve(work)
    assert [usage.answer for _, usage in found] == [60] * 4 and state["models_resident"] == 0


def test_draining_ends_what_takes_too_long(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        running = asyncio.create_task(told(engine, asking(ref, new=480)))
        while not engine.state()["answer_tokens"]:
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        await engine.drain(0.02)
        with pytest.raises(EngineError, match="shutting down"):
            await running
        return time.perf_counter() - began

    assert serve(work) < 2


def test_of_many_known_beginnings_the_best_is_found_as_by_looking_at_all() -> None:
    draw = random.Random(3)
    kept, plain = Beginnings(), list[Known]()
    for _ in range(400):
        ids = [*[0, 300] * draw.randrange(8, 20), *(draw.randrange(2) * 300 for _ in range(draw.randrange(5)))]
        segment = Segment()
        segment.length = len(ids)
        segment.bytes = len(ids)
        kept.keep(Known(None, as_ids(ids), segment))
        plain.append(Known(None, as_ids(ids), segment))
    for _ in range(300):
        asked = as_ids(draw.choice(plain).ids[: draw.randrange(10, 40)].tolist() + [300, 0, 300][: draw.randrange(4)])
        best = max(common(one.ids, asked[:-1]) for one in plain)
        found, length = kept.longest(None, asked)
        assert length == (best if best >= 16 else 0)
        assert found is None or common(found.ids, asked) >= length
    left = [one.ids.tobytes() for one in kept._used]
    assert not [a for a in left for b in left if a != b and b.startswith(a)], "one begins another"
    assert kept.bytes == sum(one.segment.bytes for one in kept._used) and len(kept) < 400
    while kept.drop_oldest():
        pass
    assert kept.bytes == len(kept) == 0


def test_nothing_is_kept_under_an_adapter_that_has_left(tmp_path: Path, ref: ModelRef) -> None:
    """Neither where its last stream was closed while it wrote, nor where its file was written anew meanwhile."""
    tuned = ModelRef(ref.base, adapter_folder(tmp_path / "a", ref.base, 1), "raw")

    async def work(engine: TorchServing) -> Any:
        stream = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(tuned, SYSTEM, new=400)))
        await anext(stream)
        adapter_folder(tmp_path / "a", ref.base, 2, rank=5)
        other = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(tuned, SYSTEM, new=400)))
        await anext(other)
        await stream.aclose()
        engine.forget(tuned)
        await other.aclose()
        await told(engine, asking(ref, "x", new=1))
        (resident,) = engine._residents.values()
        return {one.adapter for one in resident.loop._beginnings._used}, resident.adapters

    assert serve(work) == (set(), 0)


def test_a_model_that_is_being_loaded_keeps_no_other_waiting(
    tmp_path: Path, ref: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than a process has threads for such things wait for it."""
    slow = ModelRef(str(base_folder(tmp_path / "slow")), None, "raw")
    load, go_on = torch_serving._loaded, threading.Event()

    def loaded(base: str, *rest: Any) -> Any:
        if base == slow.base:
            assert go_on.wait(30)
        return load(base, *rest)

    monkeypatch.setattr(torch_serving, "_loaded", loaded)

    async def work(engine: TorchServing) -> Any:
        await engine.load(ref)
        waiting = [asyncio.create_task(told(engine, asking(slow, f"{i}", new=2))) for i in range(40)]
        await asyncio.sleep(0.05)
        _, usage = await asyncio.wait_for(told(engine, asking(ref, new=3)), 10)
        await asyncio.wait_for(asyncio.to_thread(int), 10)
        go_on.set()
        return usage.answer, len(await asyncio.gather(*waiting))

    assert serve(work) == (3, 40)


def test_no_more_models_are_resident_than_may_be_however_they_are_asked(tmp_path: Path) -> None:
    refs = [ModelRef(str(base_folder(tmp_path / str(i), model=build("llama", seed=i))), None, "raw") for i in range(4)]

    async def work(engine: TorchServing) -> Any:
        found = await asyncio.gather(*(engine.load(one) for one in refs))
        return len(found), engine.state()["models_resident"]

    assert serve(work, TorchLimits(memory=1 << 26, models=2)) == (4, 2)


def test_a_model_of_its_own_leaves_once_nobody_asks_it(tmp_path: Path, ref: ModelRef) -> None:
    folder = adapter_folder(tmp_path / "whole", ref.base, 1, modules_to_save=("embed_tokens",))
    own = ModelRef(ref.base, folder, "raw")

    async def work(engine: TorchServing) -> Any:
        stream = cast(AsyncGenerator[Piece | Usage, None], engine.submit(asking(own, new=40)))
        await anext(stream)
        engine.forget(own)
        before = engine.state()["models_resident"]
        rest = [item async for item in stream]
        return before, rest[-1].answer, engine.state()["models_resident"]

    assert serve(work) == (1, 40, 0)


def test_a_failure_does_not_count_those_away_who_are_about_to_enter(ref: ModelRef) -> None:
    async def work(engine: TorchServing) -> Any:
        await engine.load(ref)
        (resident,) = engine._residents.values()
        loop = resident.loop
        loop._queued = 3  # counted, and on their way
        loop._fail_all(EngineError("gone"))
        left, loop._queued = loop._queued, 0
        return left

    assert serve(work) == 3
