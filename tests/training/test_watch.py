"""Watching the machine: means between two questions, what is not told is left out, and no cost to the step."""

from __future__ import annotations

import threading
import time

import pytest

from tunesmith.training import watch
from tunesmith.training.watch import ResourceSampler, gpu_sources


def test_means_and_highest_values_since_the_last_question(tmp_path):
    readings = iter(
        [{"cpu_percent": 10.0, "rss_bytes": 5.0}, {"cpu_percent": 30.0, "rss_bytes": 3.0}, {"cpu_percent": 7.0}]
    )
    sampler = ResourceSampler(tmp_path, sources=(lambda: next(readings),))
    sampler._sample()
    sampler._sample()
    taken = sampler.take()
    assert (taken["cpu_percent"], taken["rss_bytes"]) == (20.0, 5.0)
    assert taken["disk_free_bytes"] > 0
    assert sampler.take().keys() == {"cpu_percent", "disk_free_bytes"}  # a fresh reading where none was made since


def test_a_source_that_tells_less_the_second_time_is_averaged_over_what_it_told(tmp_path):
    readings = iter([{"a": 4.0, "b": 1.0}, {"b": 3.0}])
    sampler = ResourceSampler(tmp_path, sources=(lambda: next(readings),))
    sampler._sample()
    sampler._sample()
    taken = sampler.take()
    assert (taken["a"], taken["b"]) == (4.0, 2.0)


def test_it_samples_by_itself_and_ends(tmp_path):
    before = threading.active_count()
    seen = threading.Event()
    calls = []

    def source():
        calls.append(1)
        if len(calls) == 3:
            seen.set()
        return {"cpu_percent": float(len(calls))}

    with ResourceSampler(tmp_path, seconds=0.01, sources=(source,)) as sampler:
        assert seen.wait(10)
        assert sampler.take()["cpu_percent"] >= 2.0
    assert threading.active_count() == before
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


def test_this_machine_is_read(tmp_path):
    with ResourceSampler(tmp_path, seconds=0.05) as sampler:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            sum(range(1000))
        taken = sampler.take()
    assert taken["cpu_percent"] > 0 and taken["rss_bytes"] > 10_000_000
    assert 0 <= taken["machine_cpu_percent"] <= 100 and 0 < taken["machine_memory_percent"] <= 100
    assert all(isinstance(value, float) for value in taken.values())


def test_a_reading_is_cheap(tmp_path):
    sampler = ResourceSampler(tmp_path)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        sampler._sample()
        times.append(time.perf_counter() - began)
    assert min(times) < 0.02


def test_without_a_gpu_nothing_is_told_of_one(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_sources() == ()


def test_gpu_sensors_that_cannot_be_read_are_left_out(monkeypatch):
    """What a container without permission, or a part of a divided GPU, answers."""
    import torch

    class NotSupportedError(Exception):
        pass

    def refuse(device: int) -> int:
        raise NotSupportedError

    fake = type("pynvml", (), {"NVMLError": NotSupportedError})
    monkeypatch.setattr(watch.importlib, "import_module", lambda name: fake)
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 * device)  # only the second one is used
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 130 + device))
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    monkeypatch.setattr(torch.cuda, "temperature", lambda device: 60 + device)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    (gpu,) = gpu_sources()
    assert gpu() == {"gpu_memory_bytes": 31.0, "gpu_celsius": 61.0, "gpu_watts": 250.0}


@pytest.mark.gpu
def test_a_real_gpu_tells_its_memory(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held = torch.zeros(1 << 20, device="cuda")
    (gpu,) = gpu_sources()
    assert gpu()["gpu_memory_bytes"] >= held.nbytes
