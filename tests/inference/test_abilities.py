"""Models whose attention is not the usual one are asked as well, and answer as `transformers` has them answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.inference import test_label_scores
from tests.inference.test_label_scores import LABELS
from tests.inference.test_torch_engine import NEW, engine, prompts, reference
from tests.tiny import FAMILIES, build
from tunesmith.inference import label_scores
from tunesmith.inference.abilities import keeps_keys_and_values, may_share, takes_a_mask

IDS = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 256, "pad_token_id": 0, "initializer_range": 0.2}
SHORT = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**SHORT, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 512}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16}

UNUSUAL: dict[str, Callable[[], Any]] = {
    "a window longer than some rows": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=70, head_dim=8)),
    "convolutions": lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])),
    "latent attention": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**{**SIZES, "num_key_value_heads": 4}, **LATENT, **EXPERTS)
    ),
    "alibi": lambda: BloomForCausalLM(BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4)),
    "alibi by flag": lambda: FalconForCausalLM(FalconConfig(**SHORT, alibi=True)),
    "windows of its own": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(**IDS, **LOCAL, hidden_size=32, max_position_embeddings=512)
    ),
}  # fmt: skip


def made(name: str) -> Any:
    torch.manual_seed(0)
    return UNUSUAL[name]().eval()


@pytest.mark.parametrize("beginning", ["", "a long beginning that all of the prompts share: be kind"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_answer_as_transformers_has_them_answer(name: str, beginning: str) -> None:
    model = made(name)
    asked = prompts(beginning, (3, 9, 60, 17, 1))
    answers = list(engine(model=model).generate(asked, NEW))
    renderer = engine(model=model).renderer
    assert [one.text for one in answers] == [renderer.decode(reference(model, one, renderer)) for one in asked]


@pytest.mark.parametrize("beginning", ["", "a long beginning that all of the prompts share: be kind"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_scored_as_one_pass_per_label_does(name: str, beginning: str) -> None:
    """The first prompt is short: what serves it must not be taken to serve longer ones."""
    asking = engine(model=made(name), batch_size=2)
    asked = prompts(beginning, (3, 9, 60, 17, 90))
    for prompt, scores in zip(asked, asking.score(asked, [LABELS] * len(asked)), strict=True):
        wanted = [test_label_scores.reference(asking, prompt, label) for label in LABELS]
        assert scores == pytest.approx(wanted, abs=1e-4)


def test_a_row_longer_than_the_window_is_found_out_behind_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the window of prompts that holds it is scored row by row."""
    asking = engine(model=made("a window longer than some rows"), batch_size=1)
    plain: list[int] = []
    original = asking._by_rows
    monkeypatch.setattr(asking, "_by_rows", lambda prompt, said: plain.append(len(prompt)) or original(prompt, said))
    list(asking.score(prompts("", (3, 4, 5, 6, 90, 3, 4, 5, 7)), [LABELS] * 9))
    lengths = [len(asking.renderer.prompt_ids(p)) for p in prompts("", (90, 3, 4, 5))]
    assert plain[1:] == lengths  # the first is to find out whether a tree serves


def test_what_can_be_asked_of_whom() -> None:
    for family in FAMILIES:
        assert keeps_keys_and_values(build(family)) and takes_a_mask(build(family))
    assert not keeps_keys_and_values(made("convolutions")) and not may_share(made("convolutions"), 3)
    for name in ("alibi", "alibi by flag", "windows of its own"):
        assert not may_share(made(name), 3) and not takes_a_mask(made(name))


@pytest.mark.parametrize("name", ["convolutions", "latent attention", "windows of its own"])
def test_little_memory_gives_the_same_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts("a long beginning that all of the prompts share: be kind", (3, 30))
    whole = list(engine(model=made(name)).score(asked, [LABELS] * 2))
    widths: list[int] = []
    tight = engine(model=made(name))
    forward = tight.model.forward
    monkeypatch.setattr(label_scores, "_BYTES", 4 * 300 * 12)
    monkeypatch.setattr(
        tight.model, "forward", lambda *a, **k: widths.append(k["input_ids"].numel()) or forward(*a, **k)
    )
    for scores, wanted in zip(tight.score(asked, [LABELS] * 2), whole, strict=True):
        assert scores == pytest.approx(wanted, abs=1e-4)
    most = max(len(tight.renderer.prompt_ids(p)) for p in asked) + max(len(label.encode()) for label in LABELS)
    assert max(widths) <= most + 1  # never two rows at once
