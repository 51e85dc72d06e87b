"""Compiled layers: the same loss and gradients, one compilation for all layers of a kind, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.errors import ResourceError
from tunesmith.models import compiled_layers as module
from tunesmith.models.compiled_layers import artifact_key, compiled_layers, why_not
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fp8 import fp8_linears
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.models.trunk import decoder_layers
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.recompute import recompute_layers
from tunesmith.training.step import accumulate_gradients, mean_loss

PLAN = TrainingPlan(steps=1, batch_size=8, learning_rate=1e-3, seed=0)
FIRST, SECOND = (ragged_samples(lengths, seed=len(lengths)) for lengths in ((40, 33, 20, 31, 25), (47, 31, 52, 26)))
SEEN, QUICK = "eager", "aot_eager"
"""What the compiler sees of a layer; its graphs and their gradients too. Neither makes code for kernels."""
long = pytest.mark.skipif("TUNESMITH_COMPILE" not in os.environ, reason="compiles for long; set TUNESMITH_COMPILE=1")


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What one test compiled, the next does not use."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def tuned(family: str = "llama", method: str = "lora", **settings: Any) -> LanguageModel:
    model = build(family)
    torch.manual_seed(1)
    if method == "lora":
        for layer in attach_lora(model, LoraSettings(4, 8, **settings), seed=0).layers.values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    return LanguageModel(model.train())


def gradients(model: LanguageModel, rows: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.model.train().zero_grad()
    loss = accumulate_gradients(model, rows, PLAN).read().mean
    return loss, {n: p.grad.clone() for n, p in trainable_parameters(model.model).items() if p.grad is not None}


def alike(ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert float((ours[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


def compilations() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


PIECES = 4
"""Of a layer, as attention is not compiled: its norm, the heads' inputs, what joins the heads, and the rest."""


def test_loss_and_gradients_stay_and_other_lengths_compile_nothing():
    plain = [gradients(tuned(), rows) for rows in (FIRST, SECOND)]
    model = tuned()
    with compiled_layers(model, backend=SEEN) as said:
        assert (said.layers, said.kinds, said.reused) == (1, ("LlamaDecoderLayer",), 0)
        alike(gradients(model, FIRST), plain[0])
        assert compilations() == PIECES
        alike(gradients(model, SECOND), plain[1])
        assert compilations() == PIECES
    assert all("forward" not in vars(layer) for layer in decoder_layers(model.trunk))
    alike(gradients(model, FIRST), plain[0])


@long
def test_more_layers_of_a_kind_are_no_more_compilations_in_eight_bits_too():
    model = tuned()
    more = [tuned().trunk.layers[1] for _ in range(2)]
    for layer in more:
        layer.self_attn.config = model.model.config
    decoder_layers(model.trunk).extend(more)
    model.model.config.num_hidden_layers = 4
    plain = gradients(model, FIRST)
    with fp8_linears(model.model):
        rounded = gradients(model, FIRST)
        with compiled_layers(model, backend=QUICK) as said:
            assert said.layers == 3
            alike(gradients(model, FIRST), rounded)
    assert compilations() == PIECES and rounded[0] != plain[0]


@long
def test_with_recomputation_soft_caps_and_all_weights_trained():
    model = tuned("gemma2", "full")
    with recompute_layers(model.model, (0,)):
        plain = gradients(model, FIRST)
        with compiled_layers(model, recomputed=(0,), backend=QUICK) as said:
            assert said.layers == 1
            alike(gradients(model, FIRST), plain)
    assert compilations() > 0


def test_below_the_lowest_trained_layer_nothing_is_compiled():
    model = tuned(last_layers=1)
    with compiled_layers(model, backend=QUICK) as said:
        assert said.layers == 0 and said.kinds == ()
        ours = gradients(model, FIRST)
    alike(ours, gradients(tuned(last_layers=1), FIRST))


def test_validation_and_answers_compile_nothing():
    model = tuned()
    plain = mean_loss(model, FIRST)
    with compiled_layers(model, backend=QUICK):
        assert mean_loss(model, FIRST) == plain
        model.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
        assert compilations() == 0


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert "C++ compiler" in (why_not(torch.device("cpu")) or "")
    with pytest.raises(ResourceError, match=r"train\.compile"), compiled_layers(tuned()):
        pass


def test_code_that_cannot_be_kept_loses_no_training(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module.torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    (tmp_path / "file").touch()
    model, said = tuned(last_layers=1), []
    with compiled_layers(model, tmp_path / "file" / "kept", backend=QUICK, tell=said.append) as layers:
        learnt = gradients(model, FIRST)
    assert layers.reused == 0 and learnt[1]
    (text,) = said
    assert "not kept for the next run" in text and "file" in text


def test_code_belongs_to_shapes_and_to_what_is_trained():
    keys = [artifact_key(tuned(**settings)) for settings in ({}, {"use_dora": True}, {"method": "full"})]
    assert len({*keys, artifact_key(tuned("qwen3"))}) == 4
    assert keys[0] == artifact_key(tuned())


def test_a_damaged_or_foreign_file_is_compiled_anew(tmp_path: Path):
    model = tuned(last_layers=1)  # nothing of which is compiled
    (tmp_path / f"{artifact_key(model)}.bin").write_bytes(b"not what was written")
    with compiled_layers(model, tmp_path, backend=QUICK) as said:
        assert said.reused == 0


@long
@pytest.mark.skipif(why_not(torch.device("cpu")) is not None, reason=str(why_not(torch.device("cpu"))))
def test_inductor_gives_the_same_and_keeps_its_code(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = gradients(tuned(), FIRST)
    model = tuned()
    with compiled_layers(model, tmp_path / "kept") as said:
        assert said.reused == 0
        alike(gradients(model, FIRST), plain)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == f"{artifact_key(model)}.bin"
    with compiled_layers(model, tmp_path / "kept") as said:
        assert said.reused == kept.stat().st_size
