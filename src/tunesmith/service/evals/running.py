"""A run of an eval, item by item.

Every item is kept the moment it is graded, under an id that is made of the run and the row's place. So a run that was
broken off goes on with the rows that have no item, and none is there twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from tunesmith.service.context import Service
from tunesmith.service.evals.asking import answer
from tunesmith.service.evals.operations import LIVE, graders_of, remove_run
from tunesmith.service.evals.rows import Row, kept_rows
from tunesmith.service.evals.shapes import AnyRunData, RunData
from tunesmith.service.evals.summary import counts, summarise
from tunesmith.service.gate import Gate
from tunesmith.service.grading import Grade, Grader, grade
from tunesmith.service.inner import Post
from tunesmith.service.store.nouns import Eval, EvalRun, OutputItem
from tunesmith.service.threads import whole

log = logging.getLogger("tunesmith.service")

_TELL_EVERY = 1.0
"""Seconds between two notes of how far a run is."""
_DATA: TypeAdapter[RunData] = TypeAdapter(AnyRunData)


async def run_eval(service: Service, post: Post, gate: Gate, run: EvalRun) -> None:
    """Do what is left of a run and conclude it. Cancelling leaves the items that are finished."""
    started = await asyncio.to_thread(service.store.move, EvalRun, run.id, "in_progress", only_from=LIVE)
    found = await asyncio.to_thread(service.store.get, Eval, run.eval_id)
    if started is None:
        return
    if found is None:  # deleted in the very moment the run was made
        await asyncio.to_thread(remove_run, service, run)
        return
    try:
        rows = await asyncio.to_thread(kept_rows, service, run.items or "")
    except (KeyError, OSError):
        error = {"code": "rows_missing", "message": "The rows of this run are no longer there."}
        await asyncio.to_thread(service.store.move, EvalRun, run.id, "failed", only_from=LIVE, error=error)
        return
    graders = graders_of(found)
    data = _DATA.validate_python(run.data_source)
    there, ends = await asyncio.to_thread(_finished, service, run)
    told = time.monotonic()

    async def do(place: int) -> None:
        nonlocal told
        async with gate.place():
            item = await make_item(service, run.id, place, rows[place], data, graders, post)
        await whole(_keep, service, item)
        ends[item.status] += 1
        if time.monotonic() - told >= _TELL_EVERY:
            told = time.monotonic()
            await asyncio.to_thread(service.store.update, EvalRun, run.id, result_counts=counts(ends))

    await gate.each(do, (place for place in range(len(rows)) if place not in there))
    await conclude(service, run, "completed")


async def conclude(service: Service, run: EvalRun, status: str | None) -> None:
    """Sum up the items there are; with `status` the run ends so, unless it has ended otherwise meanwhile."""

    def write() -> None:
        found = service.store.get(Eval, run.eval_id)
        if found is None:
            return
        items = service.store.all(OutputItem, {"run_id": run.id})
        fields = summarise(items, found.testing_criteria).fields()
        if status is None or service.store.move(EvalRun, run.id, status, only_from=LIVE, **fields) is None:
            service.store.update(EvalRun, run.id, **fields)

    await whole(write)


async def settle_run(service: Service, run: EvalRun) -> None:
    """After a run was cancelled or taken away: sum up what it finished, or remove it."""
    if await asyncio.to_thread(service.store.get, EvalRun, run.id) is not None:
        await conclude(service, run, None)
        return
    await asyncio.to_thread(service.store.remove_all, OutputItem, {"run_id": run.id})


async def make_item(
    service: Service,
    run_id: str,
    place: int,
    row: Row,
    data: RunData,
    graders: Mapping[str, Grader],
    post: Post,
) -> OutputItem:
    """Answer and grade one row."""
    answered = await answer(data, row, post)
    results: Sequence[dict[str, Any]] = ()
    status = "error"
    if answered.record["error"] is None:
        sample = answered.sample if answered.sample is not None else {}
        grades = await asyncio.gather(*(grade(one, sample, row.item, post) for one in graders.values()))
        results = [_result(name, one) for name, one in zip(graders, grades, strict=True)]
        if not any(one.errors for one in grades):
            status = "pass" if all(one.passed for one in grades) else "fail"
    return OutputItem(
        id=f"outputitem_{hashlib.sha256(f'{run_id}/{place}'.encode()).hexdigest()[:32]}",
        created_at=service.now(),
        run_id=run_id,
        place=place,
        status=status,
        datasource_item=row.item,
        results=tuple(results),
        sample=answered.record,
    )


def _finished(service: Service, run: EvalRun) -> tuple[frozenset[int], Counter[str]]:
    """The places of the items there are, and how they ended."""
    items = service.store.all(OutputItem, {"run_id": run.id})
    return frozenset(one.place for one in items), Counter(one.status for one in items)


def _keep(service: Service, item: OutputItem) -> None:
    try:
        service.store.add(item)
    except ValueError:
        # Kept before, by a server that was taken for dead; the first one stays.
        log.info("an output item was there already", extra={"item": item.id, "run": item.run_id})


def _result(name: str, made: Grade) -> dict[str, Any]:
    """One criterion's part of an item; `usage`, `error` and `sub_scores` only where there are any."""
    shown: dict[str, Any] = {
        "name": name,
        "type": made.type,
        "passed": made.passed,
        "score": made.reward,
        "sample": None,
    }
    said = made.judgement
    if said is not None:
        output = [] if said.said is None else [{"role": "assistant", "content": said.said}]
        shown["sample"] = {
            "input": list(said.asked),
            "output": output,
            "model": said.model,
            "finish_reason": said.finish,
            "usage": said.tokens.json(),
            **said.settings,
        }
    if made.sub_rewards:
        shown["sub_scores"] = dict(made.sub_rewards)
    if made.usage:
        shown["usage"] = {model: {**used.json(), "invocation_count": used.calls} for model, used in made.usage.items()}
    if made.errors:
        shown["error"] = {"code": made.errors[0].kind, "message": "; ".join(one.message for one in made.errors)}
    return shown
