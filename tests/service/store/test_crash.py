"""A process that is killed while it writes: whatever it had acknowledged is there, once, and nothing half-made."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tunesmith.service.settings import Limits, ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.nouns import Event, File, Job, Lease

WRITER = textwrap.dedent(
    """
    import itertools, sys
    from pathlib import Path
    from tests.service.store.records import event, job
    from tunesmith.service.filing import NewFile, keep_file
    from tunesmith.service.settings import Limits, ServeSettings
    from tunesmith.service.store import open_store

    home, start = Path(sys.argv[1]), int(sys.argv[2])
    store, blobs = open_store(ServeSettings(home=home, limits=Limits(free_disk=0)))
    print("open", flush=True)
    for n in itertools.count(start):
        data = f"{n}\\n".encode() * (n % 7 * 20_000 + 1)
        file = keep_file(store, blobs, NewFile(f"{n}.jsonl", "fine-tune"), data, now=n, id=f"file-{n}")
        print("file", n, file.blob, flush=True)
        store.add_all([job(f"ftjob-{n}", created_at=n, training_file=file.id), event(1, f"ftjob-{n}")])
        print("job", n, flush=True)
        for seq in (2, 3, 2):
            store.append_event(event(seq, f"ftjob-{n}"))
        print("events", n, flush=True)
        claimed = store.claim_job("me", 3600)
        assert claimed is not None
        store.move_job(claimed[0].id, "succeeded", only_from=["queued"])
        print("moved", claimed[0].id[6:], flush=True)
    """
)


@pytest.mark.parametrize("seed", [1])
def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    home = tmp_path / "home"
    said: list[list[str]] = []
    for attempt in range(3):
        command = [sys.executable, "-c", WRITER, str(home), str(attempt * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            lines = [process.stdout.readline() for _ in range(draw.randrange(2, 60))]
            time.sleep(draw.uniform(0.0, 0.01))
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
            # A line that was cut in the middle was not acknowledged.
            said += [line.split() for line in lines if line.endswith("\n")]
    assert {kind for kind, *_ in said} == {"file", "job", "events", "moved"}

    store, blobs = open_store(ServeSettings(home=home, limits=Limits(free_disk=0)))
    files = {file.id: file for file in store.all(File)}
    jobs = {job.id: job for job in store.all(Job)}
    events: dict[str, list[int]] = {}
    for event in store.all(Event):
        events.setdefault(event.job_id, []).append(event.seq)
    assert len(files) == store.count(File) and len(jobs) == store.count(Job)
    for kind, n, *more in said:
        if kind == "file":
            assert files[f"file-{n}"].blob == more[0]
        elif kind == "job":
            assert jobs[f"ftjob-{n}"].training_file == f"file-{n}"
        elif kind == "events":
            assert sorted(events[f"ftjob-{n}"]) == [1, 2, 3]
        else:
            assert jobs[f"ftjob-{n}"].status == "succeeded" and store.get(Lease, f"job:ftjob-{n}") is not None
    for file in files.values():
        assert file.blob is not None
        assert hashlib.sha256(blobs.path(file.blob).read_bytes()).hexdigest() == file.blob
    # A job and its first event were added together: never one without the other, and no event twice.
    assert events.keys() == jobs.keys()
    assert all(sorted(seqs) == list(range(1, len(seqs) + 1)) for seqs in events.values())
    assert list(blobs.parts.iterdir()) == []
    store.close()
