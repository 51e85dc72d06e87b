"""When micro-batches are captured and layers compiled: rules that repeat, and refusals before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.errors import RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.text.types import Group, Sample
from tunesmith.training.acceleration import choose_compile, choose_graphs, refuse_absent, why_no_graphs

ROWS = ragged_samples((40, 33, 50, 21, 60, 44, 12, 35) * 8, seed=1)
"""Nothing in common: tokens are drawn at random."""


class OnGpu:
    """A model as far as the rules look: on a device that this machine does not have."""

    def __init__(self, family: str = "llama", parameters: int = 600_000_000) -> None:
        self.config, self.device, self.dtype = build(family).config, torch.device("cuda", 0), torch.bfloat16
        self.parameters = parameters

    def num_parameters(self) -> int:
        return self.parameters


def recipe(method: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settled = {"batch_size": 8, "epochs": 10, "precision": "bf16", "cache_trunk": "off", **train}
    method = {"type": "lora", **(method or {})}
    return parse_recipe({"data": "rows.jsonl", "base": "embedded:base", "method": method, "train": settled})


def alike(rows: list[Sample]) -> list[Sample]:
    """The same rows behind a beginning that all have."""
    beginning = np.arange(3, 43)
    return [
        Sample(np.r_[beginning, row.ids], np.r_[np.zeros(40), row.weights].astype(np.float32), row.example_id)
        for row in rows
    ]


def test_on_a_cpu_both_are_off():
    assert choose_graphs(recipe(), build("llama"), ROWS)[0] == "off"
    assert choose_compile(recipe(), build("llama"), ROWS)[0] == "off"


def test_on_a_gpu_graphs_are_on_where_the_computation_can_be_captured():
    assert choose_graphs(recipe(), OnGpu(), ROWS) == ("on", "no launch overhead")
    value, reason = choose_graphs(recipe(epochs=1), OnGpu(), ROWS)
    assert value == "off" and "8 steps" in reason
    value, reason = choose_graphs(recipe(), OnGpu(), alike(ROWS))
    assert value == "off" and "common beginnings save" in reason
    assert choose_graphs(recipe(share_prefixes=False), OnGpu(), alike(ROWS))[0] == "on"


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
    assert said in choose_graphs(recipe(**change), OnGpu(), ROWS)[1]


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


def test_compiling_pays_for_long_trainings():
    value, reason = choose_compile(recipe(), OnGpu(), ROWS)
    assert value == "off" and "too few" in reason
    assert choose_compile(recipe(epochs=20_000), OnGpu(), ROWS)[0] == "on"
    assert choose_compile(recipe(epochs=20_000, max_steps=10), OnGpu(), ROWS)[0] == "off"
    assert choose_compile(recipe(epochs=20_000, sharding="fsdp"), OnGpu(), ROWS)[0] == "off"
    assert choose_compile(recipe({"quantize": "nf4"}, epochs=20_000), OnGpu(), ROWS)[0] == "off"


def test_what_is_asked_for_and_absent_is_refused_at_once():
    asked = recipe(cuda_graphs="on", precision="fp8")
    with pytest.raises(RecipeError) as caught:
        refuse_absent(asked, torch.device("cpu"))
    text = str(caught.value)
    assert "train.cuda_graphs" in text and "train.precision" in text and "only GPUs have 8-bit floats" in text
    refuse_absent(recipe(compile="on"), torch.device("cpu"))
    with pytest.raises(RecipeError, match="divided"):
        refuse_absent(recipe(compile="on", sharding="fsdp"), torch.device("cpu"))
    with pytest.raises(RecipeError, match="held in nf4"):
        refuse_absent(recipe({"quantize": "nf4"}, precision="fp8"), torch.device("cpu"))
