"""Runs that are broken off, cancelled, taken up by another server, or kept away from clients."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy.exc import OperationalError

from tests.service.apps import make_service
from tests.service.beside import last_text, served_beside
from tests.service.evals.conftest import ROWS, completions, eval_of, finished, geographer
from tests.service.scripted import ScriptedEngine
from tunesmith.service import background as module
from tunesmith.service.background import Background, patient
from tunesmith.service.bell import Bell
from tunesmith.service.gate import Gate
from tunesmith.service.inner import Reply
from tunesmith.service.store.nouns import EvalRun, Lease, OutputItem

MANY = [{"item": {"land": f"France {i}", "city": "Paris"}} for i in range(40)]


def test_a_run_goes_on_with_another_server(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer, delay=0.02)) as first:
        made = eval_of(first)
        run = first.client.evals.runs.create(made.id, data_source=completions(MANY))
        until = time.monotonic() + 10
        while first.service.store.count(OutputItem, {"run_id": run.id}) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    done = first.service.store.all(OutputItem, {"run_id": run.id})
    assert 5 <= len(done) < 40
    assert first.service.store.get(EvalRun, run.id).status == "in_progress"  # type: ignore[union-attr]
    with served_beside(tmp_path, ScriptedEngine(geographer)) as second:
        look = lambda: second.client.evals.runs.retrieve(run.id, eval_id=made.id)  # noqa: E731
        ended = second.wait(look, ("completed", "failed"))
        items = second.service.store.all(OutputItem, {"run_id": run.id})
    assert ended.status == "completed" and ended.result_counts.passed == 40
    assert [one.place for one in items] == list(range(40))
    assert items[: len(done)] == done or {one.id for one in done} <= {one.id for one in items}
    # What was finished was not asked again.
    assert len(second.engine.asks) == 40 - len(done)


@pytest.mark.parametrize("away", [OperationalError("insert", {}, OSError("gone")), OSError(errno.ENOSPC, "full")])
def test_a_database_that_is_away_for_a_moment_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Exception
) -> None:
    monkeypatch.setattr(module, "AWAY_SECONDS", 0.1)
    with served_beside(tmp_path, ScriptedEngine(geographer)) as beside:
        made, store = eval_of(beside), beside.service.store
        add, left = store.add, [away, away]

        def add_or_not(record: Any) -> None:
            if isinstance(record, OutputItem) and record.place == 3 and left:
                raise left.pop()
            add(record)

        monkeypatch.setattr(store, "add", add_or_not)
        ended = finished(beside, made, completions())
        assert not left and ended.status == "completed" and ended.result_counts.total == 5


def test_so_many_runs_at_once_the_oldest_first(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer, delay=0.05), working=False) as beside:
        made = eval_of(beside)
        ids = [beside.client.evals.runs.create(made.id, data_source=completions()).id for _ in range(6)]
    seen: list[list[str]] = []
    with served_beside(tmp_path, ScriptedEngine(geographer, delay=0.02)) as beside:
        until = time.monotonic() + 15
        while beside.service.store.count(EvalRun, {"status": "completed"}) < 6 and time.monotonic() < until:
            seen.append([one.id for one in beside.service.store.all(EvalRun, {"status": "in_progress"})])
            time.sleep(0.01)
        assert beside.service.store.count(EvalRun, {"status": "completed"}) == 6
    assert max(map(len, seen)) == module.AT_ONCE and next(filter(None, seen))[0] == ids[0]


def test_what_another_server_has_keeps_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as beside:
        made, store = eval_of(beside), beside.service.store
        ids = [beside.client.evals.runs.create(made.id, data_source=completions()).id for _ in range(6)]
        for id in ids[: module.AT_ONCE]:
            assert store.take_lease(f"evalrun:{id}", "another server", 600)
    with served_beside(tmp_path, ScriptedEngine(geographer)) as beside:
        takes, take = [], beside.service.store.take_lease
        monkeypatch.setattr(beside.service.store, "take_lease", lambda *args: takes.append(args) or take(*args))
        until = time.monotonic() + 10
        while (found := beside.service.store.count(EvalRun, {"status": "completed"})) < 2 and time.monotonic() < until:
            time.sleep(0.02)
    assert found == 2 and len(takes) < 20, "and nobody spins"


def test_cancelled_within_an_item(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine("word " * 100, delay=0.05)) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions(MANY))
        until = time.monotonic() + 10
        while beside.engine.running < 8 and time.monotonic() < until:
            time.sleep(0.01)
        began = time.monotonic()
        cancelled = beside.client.evals.runs.cancel(run.id, eval_id=made.id)
        assert cancelled.status == "canceled"
        while beside.engine.running and time.monotonic() < until:
            time.sleep(0.01)
        # Each answer takes eight seconds; they were cut off.
        assert time.monotonic() - began < 3 and beside.engine.closed == 8
        assert beside.client.evals.runs.retrieve(run.id, eval_id=made.id).status == "canceled"
        with pytest.raises(openai.BadRequestError, match="its status is 'canceled'"):
            beside.client.evals.runs.cancel(run.id, eval_id=made.id)


def test_cancelled_before_it_began_and_by_the_other_address(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions())
        told: Any = beside.client.post(f"/evals/{made.id}/runs/{run.id}", cast_to=object)
        assert told["status"] == "canceled"
    with served_beside(tmp_path, ScriptedEngine(geographer)) as beside:
        time.sleep(0.2)
        assert beside.engine.asks == []


def test_cancelled_after_its_server_was_gone(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer, delay=0.02)) as first:
        made = eval_of(first)
        run = first.client.evals.runs.create(made.id, data_source=completions(MANY))
        until = time.monotonic() + 10
        while first.service.store.count(OutputItem) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as second:
        told = second.client.evals.runs.cancel(run.id, eval_id=made.id)
        kept = second.service.store.count(OutputItem)
        assert told.status == "canceled" and told.result_counts.total == told.result_counts.passed == kept >= 5
        assert told.per_testing_criteria_results[0].passed == kept


def test_deleted_while_it_runs(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer, delay=0.02)) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions(MANY))
        until = time.monotonic() + 10
        while beside.service.store.count(OutputItem) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        beside.client.evals.delete(made.id)
        while (beside.engine.running or beside.service.store.count(OutputItem)) and time.monotonic() < until:
            time.sleep(0.02)
        assert beside.service.store.count(OutputItem) == beside.service.store.count(EvalRun, {"id": run.id}) == 0


def test_two_servers_share_the_runs_and_double_nothing(tmp_path: Path) -> None:
    with (
        served_beside(tmp_path, ScriptedEngine(geographer, delay=0.002)) as one,
        served_beside(tmp_path, ScriptedEngine(geographer, delay=0.002)) as two,
    ):
        made = eval_of(one)
        runs = [one.client.evals.runs.create(made.id, data_source=completions(MANY[:10])) for _ in range(4)]
        for run in runs:
            one.wait(lambda id=run.id: one.client.evals.runs.retrieve(id, eval_id=made.id), ("completed", "failed"))
        assert one.service.store.count(OutputItem) == 40
        assert len(one.engine.asks) + len(two.engine.asks) == 40


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.service.apps import make_service
from tests.service.evals.conftest import geographer
from tests.service.scripted import ScriptedEngine
from tunesmith.service.background import Background
async def work():
    background = Background(make_service(Path(sys.argv[1]), ScriptedEngine(geographer, delay=0.01)))
    background.start()
    await asyncio.sleep(60)
asyncio.run(work())
"""


@pytest.mark.slow
def test_killed_and_taken_up(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions(MANY))
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], env={**os.environ, "PYTHONPATH": "src:."}
        )
        until = time.monotonic() + 90
        while beside.service.store.count(OutputItem) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept = beside.service.store.count(OutputItem)
        assert 5 <= kept < 40
        # Its lease is still alive; an hour later it is not.
        service = make_service(tmp_path, ScriptedEngine(geographer))
        (lease,) = service.store.all(Lease)
        service.store.update(Lease, lease.id, until=0.0)

        async def finish() -> None:
            background = Background(service)
            background.start()
            while service.store.get(EvalRun, run.id).status == "in_progress":  # type: ignore[union-attr]
                await asyncio.sleep(0.02)
            await background.stop()

        asyncio.run(finish())
        ended = service.store.get(EvalRun, run.id)
        assert ended is not None and ended.status == "completed" and ended.result_counts["passed"] == 40
        assert [one.place for one in service.store.all(OutputItem)] == list(range(40))
        assert len(service.engine.asks) == 40 - kept  # type: ignore[union-attr]


def test_rows_that_are_gone_fail_the_run(tmp_path: Path) -> None:
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions())
        beside.service.store.update(EvalRun, run.id, items="0" * 64)
    with served_beside(tmp_path, ScriptedEngine(geographer)) as beside:
        look = lambda: beside.client.evals.runs.retrieve(run.id, eval_id=made.id)  # noqa: E731
        ended = beside.wait(look, ("completed", "failed"))
    assert ended.status == "failed" and ended.error.code == "rows_missing"


def test_a_mistake_of_ours_fails_the_run_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    sorts = (replace(module.SORTS[0], do=broken), module.SORTS[1])
    monkeypatch.setattr(module, "SORTS", sorts)
    with served_beside(tmp_path, ScriptedEngine(geographer)) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions())
        look = lambda: beside.client.evals.runs.retrieve(run.id, eval_id=made.id)  # noqa: E731
        ended = beside.wait(look, ("completed", "failed"))
        assert ended.error.code == "server_error" and "secret" not in ended.error.message
        assert beside.client.models.list().data


def test_a_full_queue_is_waited_for() -> None:
    replies = [Reply(429, {}, {"retry-after": "0"}), Reply(503, {}, {"retry-after": "0"}), Reply(200, {"a": 1})]

    async def post(path: str, body: Any) -> Reply:
        return replies.pop(0)

    assert asyncio.run(patient(post)("/v1/x", {})).status == 200 and replies == []


class Busy(ScriptedEngine):
    """An engine that others ask too."""

    clients = 1
    own = 0

    def state(self) -> Any:
        return {"waiting": self.clients, "running": self.own}


def test_the_gate_lets_one_through_beside_clients() -> None:
    engine = Busy()

    async def post(path: str, body: Any) -> Reply:
        engine.own += 2
        await asyncio.sleep(0.005)
        engine.own -= 2
        return Reply(200, {})

    async def count() -> list[tuple[int, int]]:
        gate, inside, most = Gate(engine, at_once=4), 0, []
        ask = gate.counted(post)

        async def do(place: int) -> None:
            nonlocal inside
            async with gate.place():
                inside += 1
                most.append((engine.clients, inside))
                await ask("/v1/chat/completions", {"n": 2})
                inside -= 1
            if place == 5:
                engine.clients = 0

        await gate.each(do, range(30))
        return most

    most = asyncio.run(count())
    beside = [inside for clients, inside in most if clients]
    assert len(most) == 30 and len(beside) >= 3 and set(beside) == {1}
    # Its own two answers for every row are no clients'.
    assert max(inside for _, inside in most) == 4


def test_rows_make_room_for_a_client(tmp_path: Path) -> None:
    script = lambda ask: "word " * (200 if last_text(ask) == "hi" else 10)  # noqa: E731
    with served_beside(tmp_path, ScriptedEngine(script, delay=0.01)) as beside:
        made = eval_of(beside)
        run = beside.client.evals.runs.create(made.id, data_source=completions(MANY * 20))
        until = time.monotonic() + 10
        while beside.engine.running < 8 and time.monotonic() < until:
            time.sleep(0.01)
        ask = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
        client = threading.Thread(target=lambda: beside.client.chat.completions.create(**ask))  # type: ignore[call-overload]
        client.start()
        while beside.engine.running < 9 and time.monotonic() < until:
            time.sleep(0.001)
        seen = set()
        while client.is_alive():
            seen.add(beside.engine.running)
            time.sleep(0.005)
        # The rows that were in work are finished beside it, and then there is one at a time.
        assert max(seen) == 9 and 2 in seen
        assert beside.service.store.count(OutputItem) < 800
        beside.client.evals.runs.cancel(run.id, eval_id=made.id)


def test_the_bell_wakes_from_another_thread() -> None:
    async def wait() -> list[bool]:
        bell = Bell()
        threading.Timer(0.05, bell.ring).start()
        return list(await asyncio.gather(bell.wait(5), bell.wait(5), bell.wait(0.001)))

    assert asyncio.run(wait()) == [True, True, False]


def test_the_rest_of_the_rows_stays_the_same(tmp_path: Path) -> None:
    """Two runs on the same rows keep them once."""
    with served_beside(tmp_path, ScriptedEngine(geographer), working=False) as beside:
        made = eval_of(beside)
        runs = [beside.client.evals.runs.create(made.id, data_source=completions(ROWS)) for _ in range(2)]
        blobs = {beside.service.store.get(EvalRun, run.id).items for run in runs}  # type: ignore[union-attr]
        assert len(blobs) == 1
