"""A store in trouble: its disk full, its database away, its clock set back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tests.service.apps import client_of, make_service
from tests.service.store.records import job
from tunesmith.service.store import leases, open_store
from tunesmith.service.store.nouns import Lease, Upload

UPLOAD = {"filename": "a.bin", "purpose": "user_data", "bytes": 5, "mime_type": "x" * 200}


def test_a_database_on_a_full_disk_refuses_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    service = make_service(tmp_path / "home")
    store: Any = service.store

    def pages(most: int) -> None:
        """The database may have so many; its one connection is the one that all calls use."""
        with store.database.reading() as connection:
            used = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {used + most}")

    with client_of(service) as client:
        pages(0)
        made, answer = [], client.post("/v1/uploads", json=UPLOAD)
        while answer.status_code == 200 and len(made) < 1000:
            made.append(answer.json()["id"])
            answer = client.post("/v1/uploads", json=UPLOAD)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], answer.headers["x-should-retry"]) == (503, "exceeded_quota", "false")
        assert "disk is full" in error["message"] and str(tmp_path) not in answer.text
        assert {one.id for one in store.all(Upload)} == set(made)
        pages(10_000)
        assert client.post("/v1/uploads", json=UPLOAD).status_code == 200


def test_a_database_that_is_away_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(tmp_path / "home")

    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("connection to server at 10.0.0.7 failed"))

    with client_of(service) as client:
        monkeypatch.setattr(service.store, "get", away)
        answer = client.get("/v1/files/file-x")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5" and "10.0.0.7" not in answer.text


def test_a_clock_that_is_set_back_in_between_does_not_stop_the_claiming(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read one time to see that a lease was over, and another one to take it: for ever, with the database locked."""
    store, _ = open_store(settings)
    store.add_all([job(), Lease("job:ftjob-1", 1, "gone", 80.0, 1)])
    times: Iterator[float] = iter([100.0, 50.0])
    monkeypatch.setattr(leases, "now", lambda _: next(times))
    claimed = store.claim_job("me", 10)
    assert claimed is not None and (claimed[1].holder, claimed[1].until, claimed[1].token) == ("me", 110.0, 2)
    store.close()
