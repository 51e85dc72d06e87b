"""The one way in which the status of runs and batches changes: from where it is allowed, or not at all."""

from __future__ import annotations

import threading

from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import EvalRun


def test_of_two_that_end_a_run_one_wins(store: Store) -> None:
    won: list[str] = []
    for number in range(10):
        store.add(EvalRun(f"r{number}", 1, "e", None, None, "in_progress", {}))

    def end(status: str) -> None:
        for number in range(10):
            if store.move(EvalRun, f"r{number}", status, only_from=("in_progress",), error={"code": status}):
                won.append(f"r{number}:{status}")

    threads = [threading.Thread(target=end, args=(status,)) for status in ("completed", "canceled")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(f"{one.id}:{one.status}" for one in store.all(EvalRun)) and len(won) == 10
    assert all(one.error == {"code": one.status} for one in store.all(EvalRun))
    assert store.move(EvalRun, "r0", "queued", only_from=("in_progress",)) is None
    assert store.move(EvalRun, "nothing", "queued", only_from=("in_progress",)) is None
