"""Sizes as people write them, what control groups leave, and what the process holds."""

from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import pytest
import torch

from tests.tiny import build
from tunesmith.errors import RecipeError
from tunesmith.training import resources
from tunesmith.training.resources import (
    HeapWatch,
    available_memory,
    held_memory,
    memory_limit,
    parse_memory,
    peak_memory,
    release_freed_memory,
    reset_peak_memory,
    settle,
    shown_bytes,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6_000_000_000), ("6 GiB", 6 << 30), ("1.5GiB", 3 << 29), ("800MB", 800_000_000), ("512 MiB", 512 << 20)],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    assert parse_memory(text) == memory_limit(text) == size


@pytest.mark.parametrize("text", ["", "6", "GB", "6 TB", "-1GB", "6GBs", "0GB", "1e3MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"memory_limit.*not a size"):
        parse_memory(text)


def test_sizes_are_shown_in_three_digits() -> None:
    assert [shown_bytes(n) for n in (812_300_000, 6_200_000_000)] == ["812 MB", "6.20 GB"]


def test_the_automatic_limit_is_what_is_held_and_most_of_what_is_free() -> None:
    limit, held, free = memory_limit("auto"), held_memory(), available_memory()
    assert 0.9 * (held + 0.9 * free) < limit < 1.1 * (held + 0.9 * free)


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_smallest_of_nested_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    group(tmp_path / "sys/fs/cgroup/outer/inner", "max", 700, 0, V2)
    group(tmp_path / "sys/fs/cgroup/outer", "1000", 800, 300, V2)
    assert available_memory(tmp_path) == 1000 - 800 + 300


def test_version_one_and_a_containers_own_group_at_the_top_are_read(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory", "5000", 4000, 100, V1)
    assert available_memory(tmp_path) == 1100


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    group(tmp_path / "sys/fs/cgroup/a", "1000", 1200, 0, V2)
    assert available_memory(tmp_path) == 0


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available
    assert 0.8 * free < available_memory(tmp_path) < 1.2 * free


def test_settling_brings_mapped_weights_into_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(64 << 20))
    model = torch.nn.Module()
    mapped = torch.from_file(str(tmp_path / "weights"), size=16 << 20)
    model.weight = torch.nn.Parameter(mapped, requires_grad=False)
    release_freed_memory()
    before = held_memory()
    assert settle(model) - before > 60 << 20


def test_the_peak_begins_anew(tmp_path: Path) -> None:
    # Mapped apart from the heap, which may still hold what earlier tests gave back.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(bytes(64 << 20))
    reset_peak_memory()
    start = peak_memory()
    with mmap.mmap(-1, 64 << 20) as block:
        for page in range(0, 64 << 20, mmap.PAGESIZE):
            block[page] = 1
        assert peak_memory() - start > 60 << 20


def test_memory_is_given_back_only_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "held_memory", lambda device="cpu": 500)
    given: list[int] = []
    monkeypatch.setattr(resources, "release_freed_memory", lambda: given.append(1))
    below, above = HeapWatch(500), HeapWatch(499)
    below.after_step()
    above.after_step()
    above.after_step()
    assert (below.releases, above.releases, len(given)) == (0, 2, 2) or resources._glibc() is None


def test_settling_leaves_the_weights_alone() -> None:
    model = build("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert settle(model) > 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
