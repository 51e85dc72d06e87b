"""What of a GPU's faster paths is taken: none unasked, and refusals before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.errors import RecipeError
from tunesmith.models import compiled_layers
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group
from tunesmith.training.acceleration import choose_compile, choose_graphs, refuse_absent, why_no_graphs

ROWS = ragged_samples((40, 33, 50, 21, 60, 44, 12, 35) * 8, seed=1)
"""Nothing in common: tokens are drawn at random."""


class OnGpu:
    """A model as far as the rules look: on a device that this machine does not have."""

    def __init__(self, family: str = "llama") -> None:
        self.config, self.device, self.dtype = build(family).config, torch.device("cuda", 0), torch.bfloat16


def recipe(method: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settled = {"batch_size": 8, "epochs": 10, "precision": "bf16", "cache_trunk": "off", **train}
    method = {"type": "lora", **(method or {})}
    return parse_recipe({"data": "rows.jsonl", "base": "embedded:base", "method": method, "train": settled})


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
def test_neither_is_chosen_unasked_on_any_device(device):
    for choose in (choose_graphs, choose_compile):
        value, reason = choose(torch.device(device))
        assert value == "off" and reason
        assert ("on request" in reason) == device.startswith("cuda")


def test_what_is_plain_on_a_gpu_can_be_captured():
    assert why_no_graphs(recipe(), OnGpu(), ROWS) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neftune_alpha": 5.0}, "noise"),
        ({"label_smoothing": 0.1}, "label smoothing"),
        ({"objective": "loss.py:mine"}, "only cross-entropy"),
        ({"optimizer_in_backward": True, "max_grad_norm": 0}, "within the backward"),
        ({"sharding": "fsdp"}, "divided"),
    ],
)
def test_settings_that_cannot_be_captured_say_so(change, said):
    assert said in (why_no_graphs(recipe(**change), OnGpu(), ROWS) or "")


def test_models_and_rows_that_cannot_be_captured_say_so():
    assert "read from disk" in (why_no_graphs(recipe({"last_layers": 1}, cache_trunk="on"), OnGpu()) or "")
    assert "dropout" in (why_no_graphs(recipe({"dropout": 0.1}), OnGpu()) or "")
    assert "soft cap" in (why_no_graphs(recipe(), OnGpu("gemma2")) or "")
    pairs = [Group((ROWS[0], ROWS[1]), label=1.0)]
    assert "pairs" in (why_no_graphs(recipe(), OnGpu(), pairs) or "")
    wide = OnGpu()
    wide.dtype = torch.float32
    assert "fp32" in (why_no_graphs(recipe(precision="fp32"), wide) or "")
    assert why_no_graphs(recipe(precision="bf16"), wide) is None


def test_what_is_asked_for_and_absent_is_refused_at_once():
    asked = recipe(cuda_graphs="on", precision="fp8")
    with pytest.raises(RecipeError) as caught:
        refuse_absent(asked, torch.device("cpu"))
    text = str(caught.value)
    assert "train.cuda_graphs" in text and "train.precision" in text and "only GPUs have 8-bit floats" in text
    with pytest.raises(RecipeError, match="divided"):
        refuse_absent(recipe(compile="on", sharding="fsdp"), torch.device("cpu"))
    with pytest.raises(RecipeError, match="held in nf4"):
        refuse_absent(recipe({"quantize": "nf4"}, precision="fp8"), torch.device("cpu"))


def test_a_missing_compiler_is_found_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(compiled_layers.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiled_layers.importlib.util, "find_spec", lambda name: None)
    for device, needed in (("cpu", r"C\+\+ compiler"), ("cuda", "triton")):
        with pytest.raises(RecipeError, match=needed) as caught:
            refuse_absent(recipe(compile="on"), torch.device(device))
        assert "train.compile" in str(caught.value)
        refuse_absent(recipe(compile="auto"), torch.device(device))
