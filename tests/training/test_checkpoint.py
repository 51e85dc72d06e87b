"""Checkpoints: whole or not at all, restored to the bit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.small import full_disk
from tunesmith.errors import ResourceError, VerificationError
from tunesmith.runs import atomic
from tunesmith.training import checkpoint
from tunesmith.training.checkpoint import Progress, State, load_best, load_latest, save_best, save_checkpoint


def trained(steps: int = 3, size: int = 4, identity: str = "base") -> State:
    """Some parameters after some steps of AdamW."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        "matrix": nn.Parameter(torch.randn(size, 3, generator=generator)),
        "vector": nn.Parameter(torch.randn(size, generator=generator)),
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    for _ in range(steps):
        for p in parameters.values():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return State(parameters, optimizer, identity)


def save(folder: Path, step: int, state: State, keep: int = 2) -> None:
    save_checkpoint(folder, Progress(step=step), state, keep)


def test_everything_comes_back(tmp_path):
    state = trained()
    parameters, optimizer = state.tensors, state.optimizer
    torch.manual_seed(5)
    progress = Progress(
        step=7, tokens=100, supervised=40, seconds=1.5, best_step=4, best_value=0.25, best_loss=float("nan"), stale=2,
        history=[{"kind": "validation", "step": 4, "metrics": {"accuracy": 0.25}}],
    )  # fmt: skip
    save_checkpoint(tmp_path, progress, state, keep=2)
    drawn = torch.rand(3)
    other = trained(steps=1)
    others, fresh = other.tensors, other.optimizer
    found = load_latest(tmp_path, other)
    assert found is not None and repr(found) == repr(progress)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(others[name], parameters[name]) for name in parameters)
    for a, b in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    for p in (*parameters.values(), *others.values()):
        p.grad = torch.ones_like(p)
    optimizer.step()
    fresh.step()
    assert all(torch.equal(others[name], parameters[name]) for name in parameters)


def test_the_newest_are_kept_and_the_latest_taken(tmp_path):
    state = trained()
    for step in (1, 2, 10, 9_999_999):
        save(tmp_path, step, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000010", "step-9999999"]
    found = load_latest(tmp_path, state)
    assert found is not None and found.step == 9_999_999


def test_best_weights_stand_beside_the_checkpoints(tmp_path):
    state = trained()
    parameters = state.tensors
    assert not load_best(tmp_path, state)
    assert load_latest(tmp_path, state) is None
    before = parameters["matrix"].detach().clone()
    save_best(tmp_path, state)
    with torch.no_grad():
        parameters["matrix"].zero_()
    save_best_again = parameters["matrix"].detach().clone()
    assert load_best(tmp_path, state) and torch.equal(parameters["matrix"], before)
    with torch.no_grad():
        parameters["matrix"].zero_()
    save_best(tmp_path, state)
    assert load_best(tmp_path, state) and torch.equal(parameters["matrix"], save_best_again)
    assert load_latest(tmp_path, state) is None  # best is not a place to go on from


@pytest.mark.parametrize("limit", [100, 40_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, limit):
    """At 100 bytes the weights do not fit, at 40,000 the optimiser's state does not."""
    state = trained(size=2_000)
    save(tmp_path, 5, state)
    with full_disk(limit), pytest.raises(ResourceError) as caught:
        save(tmp_path, 6, state)
    assert "too large" in caught.value.what and "goes on from the last checkpoint" in str(caught.value.fix)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000005"]
    found = load_latest(tmp_path, state)
    assert found is not None and found.step == 5


@pytest.mark.parametrize("refused", ["fsync", "rename"])
def test_no_space_when_the_folder_is_finished(tmp_path, monkeypatch, refused):
    state = trained()
    save(tmp_path, 5, state)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"fsync": (atomic.os, "fsync"), "rename": (Path, "rename")}[refused], full)
    with pytest.raises(ResourceError, match="no space left on device"):
        save(tmp_path, 6, state)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000005"]
    save(tmp_path, 6, state)
    assert [p.name for p in checkpoint._steps(tmp_path)] == ["step-0000005", "step-0000006"]


def test_half_a_checkpoint_of_a_killed_process_is_not_taken(tmp_path):
    state = trained()
    save(tmp_path, 5, state)
    (tmp_path / ".step-0000006.ab12cd34.tmp").mkdir()
    (tmp_path / "step-0000007").write_text("not a folder")
    found = load_latest(tmp_path, state)
    assert found is not None and found.step == 5


def test_an_error_of_ours_stays_what_it_is(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, Progress(history=[{"a": object()}]), trained(), keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["parameters.safetensors", "optimizer.pt", "progress.json"])
def test_a_damaged_checkpoint_is_named_with_what_is_left(tmp_path, name):
    state = trained()
    save(tmp_path, 5, state)
    save(tmp_path, 6, state)
    path = tmp_path / "step-0000006" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=rf"damaged: {name}[\s\S]*goes on from step-0000005"):
        load_latest(tmp_path, state)
    path.unlink()
    with pytest.raises(VerificationError, match="damaged"):
        load_latest(tmp_path, state)


def test_a_checkpoint_of_another_base_or_method_is_refused(tmp_path):
    save(tmp_path, 5, trained())
    with pytest.raises(VerificationError, match="made on another base"):
        load_latest(tmp_path, trained(identity="other"))
    with pytest.raises(VerificationError, match=r"other trained tensors, such as matrix: \(4, 3\)[\s\S]*\(5, 3\)"):
        load_latest(tmp_path, trained(size=5))
