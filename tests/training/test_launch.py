"""Processes are started, lost, started again, interrupted; and training goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.together import PROJECT, trained
from tunesmith.training import launch as launch_module
from tunesmith.training import loop
from tunesmith.training.launch import launch, threads_each

SAY = "import os, sys, time, signal; from pathlib import Path; rank = int(os.environ['RANK']); "
SAY += "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT']); folder = Path(sys.argv[1]); "


def run(folder: Path, body: str, processes: int = 2, restarts: int = 0) -> tuple[int, list[str]]:
    """Exit code and what was told of processes that run `body`."""
    told: list[str] = []
    code = launch([sys.executable, "-S", "-c", SAY + body, str(folder)], processes, restarts, told.append)
    return code, told


def test_processes_know_their_place_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
    body = f"(folder / str(rank)).write_text(' '.join(os.environ[n] for n in {names}))"
    assert run(tmp_path, body, processes=3) == (0, [])
    assert [(tmp_path / str(r)).read_text() for r in range(3)] == [f"{r} {r} 3 {threads_each(3)}" for r in range(3)]


def test_threads_are_physical_cores_divided(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(launch_module.psutil, "cpu_count", lambda logical: 8)
    assert [threads_each(n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


def test_only_the_first_process_writes_to_the_output(tmp_path):
    body = "print('out', rank); print('err', rank, file=sys.stderr)"
    program = (
        f"import sys; from tunesmith.training.launch import launch; "
        f"sys.exit(launch([sys.executable, '-S', '-c', {SAY + body!r}, {str(tmp_path)!r}], 2, 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out 0\n", "err 0\n")


def test_a_lost_group_is_started_again_and_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(launch_module, "_OWN_END_SECONDS", 0.3)
    body = "(folder / f'{attempt}-{rank}').touch(); "
    body += (
        "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 and attempt < 2 else time.sleep(60 if attempt < 2 else 0)"
    )
    began = time.monotonic()
    code, told = run(tmp_path, body, restarts=3)
    assert code == 0 and time.monotonic() - began < 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert len(told) == 2
    assert "process 2 was killed (SIGKILL" in told[0] and "(1 of 3)" in told[0] and "(2 of 3)" in told[1]


def test_restarts_come_to_an_end(tmp_path):
    code, told = run(tmp_path, "(folder / str(attempt)).touch(); os.kill(os.getpid(), signal.SIGSEGV)", restarts=1)
    assert code == 128 + signal.SIGSEGV
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]
    assert len(told) == 2 and "starting" in told[0] and "SIGSEGV" in told[1] and "starting" not in told[1]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_what_a_person_must_mend_is_not_repeated(tmp_path, code):
    """Even where others fail for want of the one that ended, and end first."""
    body = "(folder / str(attempt)).touch(); time.sleep(0 if rank else 0.3); "
    body += f"print('no such column', file=sys.stderr); sys.exit(75 if rank == 0 else {code})"
    ended, told = run(tmp_path, body, restarts=3)
    assert ended == code and [p.name for p in tmp_path.iterdir()] == ["0"]
    assert told == ["no such column"]  # of the second process, which nobody saw


def test_a_bug_is_repeated_and_its_last_words_are_told(tmp_path):
    code, told = run(tmp_path, "rank and sys.exit('CUDA error: unknown')", restarts=1)
    assert code == 1 and len(told) == 2
    assert all("process 2 of 2 failed: CUDA error: unknown" in text for text in told)


def program(folder: Path, body: str) -> subprocess.Popen[str]:
    """A launcher in a process of its own, so that signals can be sent to it."""
    text = "import sys; from tunesmith.training.launch import launch; "
    text += f"sys.exit(launch([sys.executable, '-S', '-c', {SAY + body!r}, {str(folder)!r}], 2, 2))"
    return subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True)


def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on_once(tmp_path, number, code):
    body = "seen = []; [signal.signal(n, lambda n, _: seen.append(n)) for n in (signal.SIGINT, signal.SIGTERM)]; "
    body += "(folder / f'ready-{rank}').touch()\nwhile not seen: time.sleep(0.01)\n"
    body += "time.sleep(0.3); (folder / f'{attempt}-{rank}').write_text(str(seen)); sys.exit(130)"
    process = program(tmp_path, body)
    until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    process.send_signal(number)
    assert process.wait(20) == code
    assert (tmp_path / "0-0").read_text() == (tmp_path / "0-1").read_text() == f"[{int(number)}]"
    assert not list(tmp_path.glob("1-*"))


def test_a_second_interruption_kills(tmp_path):
    body = "signal.signal(signal.SIGINT, signal.SIG_IGN); "
    body += "(folder / f'{rank}').write_text(str(os.getpid())); time.sleep(60)"
    process = program(tmp_path, body)
    until(lambda: all((tmp_path / r).exists() and (tmp_path / r).read_text() for r in "01"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    for r in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / r).read_text()), 0)


def test_launching_works_beside_the_main_thread(tmp_path):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(tmp_path, "pass")[0]))
    thread.start()
    thread.join(30)
    assert codes == [0]


TRAINING = """
import os, signal, sys
from pathlib import Path
import torch
from tests.training.together import trained
from tunesmith.training import loop, processes

torch.set_num_threads(1)
loop._LOG_SECONDS = 0.0
folder, fatal = Path(sys.argv[1]), int(sys.argv[2])

def listener(event):
    if event["kind"] == "train_step" and event["step"] == fatal and processes.rank() == 1 and not processes.restarts():
        os.kill(os.getpid(), signal.SIGKILL)

with processes.joined():
    result = trained(folder / "checkpoints", listener)
    torch.save(result | {"restarts": processes.restarts()}, folder / f"{processes.rank()}.pt")
"""


def in_two_processes(
    folder: Path, fatal: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], list[str]]:
    """What each of two launched processes ended with; the second is killed in step `fatal` (0: never)."""
    folder.mkdir()
    told: list[str] = []
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT / 'src'}{os.pathsep}{PROJECT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch([sys.executable, "-c", TRAINING, str(folder), str(fatal)], 2, 2, told.append) == 0, told
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)], told


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_train_as_one_and_as_if_none_had_been_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)
    alone = trained(tmp_path / "one")
    (first, second), told = in_two_processes(tmp_path / "two", 0, monkeypatch)
    assert told == [] and first["restarts"] == 0
    assert len(first["losses"]) == 12  # nine steps and three validations
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert second["losses"] == first["losses"]
    assert all(first[key] == second[key] == alone[key] for key in ("tokens", "supervised", "best"))
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-5, atol=1e-8)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    (again, _), told = in_two_processes(tmp_path / "killed", 5, monkeypatch)
    assert again["restarts"] == 1 and len(told) == 1 and "process 2 was killed (SIGKILL" in told[0]
    assert again["losses"] == first["losses"]
    assert all(torch.equal(again["weights"][name], weight) for name, weight in first["weights"].items())
