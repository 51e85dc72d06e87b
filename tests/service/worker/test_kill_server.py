"""`kill -9` of a whole server while files are uploaded, a job runs and an answer is streamed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
import pytest
import yaml

from tests.service.live import Live, free_port, live_server
from tests.service.worker.bench import MODEL, Bench, processes_of, rows
from tests.service.worker.test_kill import LONG, require_whole

KILLS, ROWS = (10, 300) if LONG else (2, 100)


@dataclass
class Crowd:
    """Clients that upload and listen all the time, and remember what they were told."""

    url: str
    uploaded: dict[str, str] = field(default_factory=dict)
    answers: int = 0
    cut: int = 0
    ending: threading.Event = field(default_factory=threading.Event)
    unexpected: list[Exception] = field(default_factory=list)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="local", max_retries=0, timeout=30)

    def upload(self) -> None:
        """One file after the other; each is remembered once the server has acknowledged it."""
        number = 0
        while not self.ending.is_set():
            number += 1
            data = rows(1000 * number, 400)
            self._try(lambda data=data: self._upload_one(data))

    def _upload_one(self, data: bytes) -> None:
        made = self.client().files.create(file=("more.jsonl", data), purpose="fine-tune")
        self.uploaded[made.id] = hashlib.sha256(data).hexdigest()

    def listen(self) -> None:
        """One streamed answer after the other."""
        while not self.ending.is_set():
            self._try(self._listen_once)

    def _listen_once(self) -> None:
        finished = None
        asked = [{"role": "user", "content": "Tell me of the sea."}]
        for chunk in self.client().chat.completions.create(model=MODEL, messages=asked, max_tokens=60, stream=True):  # type: ignore[call-overload]
            finished = chunk.choices[0].finish_reason if chunk.choices else finished
        assert finished in ("stop", "length")
        self.answers += 1

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (openai.APIConnectionError, httpx2.TransportError):
            self.cut += 1
            time.sleep(0.1)
        except openai.InternalServerError as error:
            if error.status_code != 503:
                self.unexpected.append(error)
        except Exception as error:
            self.unexpected.append(error)
        time.sleep(0.05)


def answering(live: Live, home: Path) -> None:
    """Nothing half-sent is left where the server has come up."""
    assert live.process.poll() is None
    assert (home / "blobs" / "parts").is_dir()


@pytest.mark.slow
def test_everything_that_was_acknowledged_is_there_after_kills(tmp_path):
    home, port, chance = tmp_path / "home", free_port(), random.Random(5)
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"aliases": {MODEL: "embedded:tiny"}, "limits": {"free_disk": 0}}))
    crowd = Crowd(f"http://127.0.0.1:{port}")
    threads = [threading.Thread(target=work, daemon=True) for work in (crowd.upload, crowd.listen)]
    flags = ("--config", str(config), "--no-evidence")
    id = ""
    for _ in range(KILLS):
        with live_server(home, *flags, port=port) as live:
            answering(live, home)
            if not id:
                id = begin(crowd)
                for thread in threads:
                    thread.start()
            time.sleep(chance.uniform(0.2, 5.0))
            os.kill(live.process.pid, signal.SIGKILL)
            live.process.wait()
        bench = Bench.at(home)
        bench.until(lambda id=id: processes_of(id) == [], 5)
        bench.store.close()
    with live_server(home, *flags, port=port):
        bench = Bench.at(home)
        job = bench.until_status(id, "succeeded", seconds=200)
        before = crowd.answers
        bench.until(lambda: crowd.answers > before, 60)
        crowd.ending.set()
        for thread in threads:
            thread.join(60)
        client = crowd.client()
        for file, sha in crowd.uploaded.items():
            assert hashlib.sha256(client.files.content(file).content).hexdigest() == sha
        listed = {one.id for one in client.files.list(limit=10_000)}
        assert set(crowd.uploaded) <= listed
        tuned = client.chat.completions.create(
            model=str(job.fine_tuned_model), messages=[{"role": "user", "content": "Hello"}], max_tokens=5
        )
        assert tuned.model == job.fine_tuned_model
    require_whole(bench, job, steps=3 * ROWS, epochs=3)
    print(
        f"{KILLS} kills: {len(crowd.uploaded)} uploads acknowledged and there, {crowd.answers} streams, {crowd.cut} cut"
    )
    assert crowd.unexpected == [] and crowd.cut >= KILLS and len(crowd.uploaded) > KILLS
    assert processes_of(id) == []
    assert not list((home / "blobs" / "parts").iterdir())


def begin(crowd: Crowd) -> str:
    """The job, made through the client like everything else."""
    client = crowd.client()
    files = [
        client.files.create(file=(f"{i}.jsonl", rows(i, n)), purpose="fine-tune").id for i, n in ((0, ROWS), (ROWS, 20))
    ]
    hyperparameters = {"n_epochs": 3, "batch_size": 1}
    made = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=files[0],
        validation_file=files[1],
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
    )
    return made.id
