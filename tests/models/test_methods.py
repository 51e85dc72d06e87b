"""The dispatcher: what each method trains on a base, saves, and gives back when loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.peft_side import answers, difference, load_plain, plain_adapter, shake
from tests.tiny import FAMILIES, build, ragged_samples, save_base
from tests.training.small import full_disk
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models import methods
from tunesmith.models.adapter import load_adapter
from tunesmith.models.bottleneck import BottleneckTuning
from tunesmith.models.forward import LanguageModel
from tunesmith.models.load import EMBEDDED, LoadedBase, load_base
from tunesmith.models.methods import attach, load_tuned
from tunesmith.models.model_card import model_card
from tunesmith.models.trunk import frozen_layers
from tunesmith.models.vocabulary import add_tokens
from tunesmith.recipe.schema import Base, Method
from tunesmith.training.batching import collate


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: save_base(tmp_path_factory.mktemp("bases") / family, family) for family in FAMILIES}


def load(folder: Path, dtype: str = "float32") -> LoadedBase:
    return load_base(Base(model=str(folder), dtype=dtype))


KINDS = {
    "lora": {"rank": 4, "alpha": 8.0},
    "rslora": {"rank": 4, "use_rslora": True},
    "dora": {"rank": 4, "use_dora": True},
    "pissa": {"rank": 4, "init": "pissa"},
    "olora": {"rank": 4, "init": "olora", "modules_to_save": ["norm", "lm_head"]},
    "last layer": {"rank": 4, "last_layers": 1},
    "full": {"type": "full"},
    "full, last layer": {"type": "full", "last_layers": 1},
    "bottleneck": {"type": "bottleneck", "bottleneck_size": 8},
    "of peft": {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}},
    "lora of peft with what ours has not": {
        "type": "peft",
        "peft_type": "LORA",
        "peft_options": {"r": 4, "bias": "lora_only", "lora_bias": False, "init_lora_weights": "orthogonal"},
    },
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_attached_trained_saved_and_loaded(family, name, folders, tmp_path):
    base = load(folders[family])
    original = answers(base.model)
    method = Method(**KINDS[name])
    tuning = attach(base, method, seed=1)
    assert tuning.kind == method.type
    assert difference(answers(base.model), original) < 1e-5
    trained = tuning.trained()
    assert trained and len({id(p) for p in trained.values()}) == len(trained)
    assert {id(p) for p in trained.values()} == {id(p) for p in base.model.parameters() if p.requires_grad}
    shake(base.model)
    tuned = answers(base.model)
    assert difference(tuned, original) > 1e-2
    sha = tuning.save(tmp_path / "a", base)
    weights = next((tmp_path / "a").glob("*.safetensors"))
    assert sha == hashlib.sha256(weights.read_bytes()).hexdigest()
    fresh = load(folders[family])
    loaded = load_tuned(fresh, tmp_path / "a")
    assert loaded.kind == method.type and not fresh.model.training
    assert difference(answers(fresh.model), tuned) < 1e-5
    if method.type in ("lora", "peft"):
        assert difference(answers(load_plain(build(family), tmp_path / "a")), tuned) < 1e-5


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "olora", "bottleneck", "of peft"])
def test_the_base_s_own_answers_while_tuned(name, folders):
    base = load(folders["llama"])
    original = answers(base.model)
    tuning = attach(base, Method(**KINDS[name]), seed=1)
    shake(base.model)
    tuned = answers(base.model)
    with tuning.enabled(False):
        assert difference(answers(base.model), original) < 1e-6
        with tuning.enabled(True):
            pass
    with tuning.enabled(True):
        assert torch.equal(answers(base.model), tuned)
    with pytest.raises(ZeroDivisionError), tuning.enabled(False):
        raise ZeroDivisionError
    assert torch.equal(answers(base.model), tuned)


def test_full_tuning_says_that_the_base_is_gone(folders):
    base = load(folders["llama"])
    tuning = attach(base, Method(type="full"), seed=0)
    with tuning.enabled(True):
        pass
    with pytest.raises(EngineError, match="its own answers are gone"), tuning.enabled(False):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layers_in_full_are_those_and_the_final_norm(family, folders):
    base = load(folders[family])
    trained = attach(base, Method(type="full", last_layers=1), seed=0).trained()
    last = "transformer.h.1." if family == "gpt2" else "model.layers.1."
    norm = {"transformer.ln_f.weight", "transformer.ln_f.bias"} if family == "gpt2" else {"model.norm.weight"}
    assert {name for name in trained if not name.startswith(last)} == norm
    assert {n for n, _ in base.model.named_parameters() if n.startswith(last)} <= set(trained)
    assert frozen_layers(base.model, base.model.base_model) == 1


def test_the_head_is_trained_by_request_and_a_shared_one_stays_shared(folders):
    method = Method(type="full", last_layers=1, modules_to_save=["lm_head"])
    untied = load(folders["qwen3"])
    trained = attach(untied, method, seed=0).trained()
    assert "lm_head.weight" in trained and "model.embed_tokens.weight" not in trained
    tied = load(folders["llama"])
    trained = attach(tied, method, seed=0).trained()
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
    assert "model.embed_tokens.weight" in trained and tied.model.config.tie_word_embeddings


@pytest.mark.parametrize("options", [{}, {"last_layers": 1}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_full_tuning_holds_its_weights_in_fp32_and_is_saved_as_the_base_is_held(
    family, dtype, options, folders, tmp_path
):
    base = load(folders[family], str(dtype).removeprefix("torch."))
    buffers = {n: b.clone() for n, b in base.model.named_buffers()}
    tuning = attach(base, Method(type="full", **options), seed=0)
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    shake(base.model)
    tuning.save(tmp_path / "m", base)
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {dtype}
    after = dict(base.model.named_buffers())
    assert all(after[n].dtype == b.dtype and torch.equal(after[n], b) for n, b in buffers.items())
    again = load(folders[family], str(dtype).removeprefix("torch."))
    load_tuned(again, tmp_path / "m")
    assert torch.equal(answers(again.model), answers(base.model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_head_trained_in_full_in_half_precision_gives_the_loss_of_the_model_itself(dtype, folders):
    base = load(folders["qwen3"], dtype)
    tuning = attach(base, Method(rank=4, modules_to_save=["lm_head", "norm"]), seed=0)
    shake(base.model)
    model = LanguageModel(base.model)
    model.verify()
    stream = collate(ragged_samples())
    with model.packed():
        loss = model.loss_sum(stream.ids, stream.packing, stream.weights, stream.previous)
    expected = torch.zeros(())
    for sample in ragged_samples():
        ids, weights = torch.as_tensor(sample.ids), torch.as_tensor(sample.weights)
        scores = base.model(ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
        expected = expected - (weights[1:] * scores.gather(1, ids[1:, None])[:, 0]).sum()
    assert abs(float(loss - expected)) < 0.01 * float(expected)
    loss.backward()
    head = tuning.trained()["lm_head.weight"]
    assert head.dtype == torch.float32 and head.grad is not None and bool(head.grad.any())


def test_an_adapter_of_a_bf16_base_answers_alike_in_peft(folders, tmp_path):
    base = load(folders["llama"], "bfloat16")
    tuning = attach(base, Method(rank=4, modules_to_save=["lm_head"]), seed=1)
    assert {p.dtype for p in tuning.trained().values()} == {torch.float32}
    shake(base.model)
    tuning.save(tmp_path / "a", base)
    tuned = answers(base.model)
    assert difference(answers(load_plain(build("llama").bfloat16(), tmp_path / "a")), tuned) < 0.03


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_on_quantised_weights(kind, options, family, folders, tmp_path):
    """Trained on them; loaded on them again with the method, or on full weights by anybody."""
    base = load(folders[family])
    method = Method(rank=4, quantize=kind, modules_to_save=["lm_head"], **options)
    tuning = attach(base, method, seed=1)
    layers = tuning.attached.layers.values()  # type: ignore[attr-defined]
    assert layers and all(layer.quantized for layer in layers)
    base.model.train()
    base.model(torch.arange(3, 40)[None]).logits.square().mean().backward()
    assert all(p.grad is not None for p in tuning.trained().values())
    shake(base.model)
    tuned = answers(base.model)
    tuning.save(tmp_path / "a", base)
    again = load(folders[family])
    load_tuned(again, tmp_path / "a", method)
    assert difference(answers(again.model), tuned) < 1e-5
    plain = load(folders[family])
    load_tuned(plain, tmp_path / "a")
    assert 1e-4 < difference(answers(plain.model), tuned) < 0.6
    assert difference(answers(load_plain(build(family), tmp_path / "a")), answers(plain.model)) < 1e-5
    assert f"trained on {kind} weights" in (tmp_path / "a" / "README.md").read_text()


def test_a_block_trained_in_full_on_a_quantised_base_is_not_quantised(folders, tmp_path):
    base = load(folders["qwen3"])
    method = Method(rank=4, quantize="nf4", modules_to_save=["0.mlp"])
    tuning = attach(base, method, seed=1)
    mlp = {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert {name for name in tuning.trained() if "lora" not in name} == mlp
    shake(base.model)
    tuning.save(tmp_path / "a", base)
    again = load(folders["qwen3"])
    load_tuned(again, tmp_path / "a", method)
    assert difference(answers(again.model), answers(base.model)) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "full", "quantize": "nf4"}, r"method\.quantize: full tuning changes the weights"),
        ({"init": "pissa", "quantize": "nf4"}, r"method\.init: init pissa begins with the main directions"),
        ({"type": "full", "last_layers": 9}, r"method\.last_layers: the base has 2 layers, not 9"),
        ({"type": "full", "modules_to_save": ["lm_hed"]}, r"'lm_hed'[\s\S]*lm_head"),
    ],
)
def test_what_does_not_fit_is_told(options, words, folders):
    with pytest.raises(RecipeError, match=words):
        attach(load(folders["llama"]), Method(rank=4, **options), seed=0)


def test_an_adapter_that_plain_peft_wrote_is_loaded(folders, tmp_path):
    options: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "use_dora": True}
    expected = answers(plain_adapter(build("llama"), tmp_path / "a", **options))
    base = load(folders["llama"])
    assert load_tuned(base, tmp_path / "a").kind == "lora"
    assert difference(answers(base.model), expected) < 1e-5


def test_an_adapter_of_peft_that_ours_cannot_hold_is_run_by_peft(folders, tmp_path):
    expected = answers(plain_adapter(build("qwen3"), tmp_path / "a", r=4, target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(EngineError, match="lora_bias: True"):
        load_adapter(load(folders["qwen3"]).model, tmp_path / "a")
    base = load(folders["qwen3"])
    assert load_tuned(base, tmp_path / "a").kind == "peft"
    assert difference(answers(base.model), expected) < 1e-5


def test_a_folder_that_is_nothing_is_told(folders, tmp_path):
    with pytest.raises(EngineError, match="this is no tuned model"):
        load_tuned(load(folders["llama"]), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(EngineError, match="this is no tuned model"):
        load_tuned(load(folders["llama"]), tmp_path)


def test_an_adapter_of_another_base_is_refused(folders, tmp_path):
    base = load(folders["llama"])
    attach(base, Method(rank=4, target_modules=["q_proj"]), seed=0).save(tmp_path / "a", base)
    with pytest.raises(VerificationError, match=r"does not fit this base: .*no module 'q_proj'"):
        load_tuned(load(folders["gpt2"]), tmp_path / "a")
    wider = build("llama")
    wider.config.hidden_size = 64
    other = type(wider)(wider.config)
    with pytest.raises(VerificationError, match="does not fit this base"):
        load_adapter(other, tmp_path / "a")


def test_the_card_names_base_method_and_loading(folders, tmp_path):
    base = load(folders["llama"])
    attach(base, Method(rank=4, alpha=8.0, use_dora=True, use_rslora=True), seed=0).save(tmp_path / "a", base)
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith(f"---\nbase_model: {folders['llama']}\nlibrary_name: peft\n")
    assert "DoRA (rank 4, alpha 8, scaled by alpha/sqrt(rank))" in text
    assert base.weights_sha256 in text and "PeftModel.from_pretrained" in text and "Licence" in text
    assert "resize" not in text and "Added tokens" not in text
    assert not (tmp_path / "a" / "tokenizer.json").exists()


def test_the_card_names_the_licence_of_the_base_where_it_is_known(folders):
    base = load(folders["llama"])
    assert model_card(base, "full tuning", None).rstrip().endswith("limit what it can be.")
    text = model_card(replace(base, name="embedded:tiny", folder=EMBEDDED / "tiny"), "full tuning", None)
    assert "The base: CC BY-SA (MODEL_CARD.md (license): cc-by-sa-4.0)." in text and "the same licence" in text


def test_the_cards_of_other_kinds_say_what_they_are_and_load(folders, tmp_path):
    quantised = Method(type="bottleneck", bottleneck_size=8, quantize="nf4", modules_to_save=["norm"])
    for name, method in (("of peft", Method(**KINDS["of peft"])), ("bottleneck", quantised)):
        base = load(folders["llama"])
        tuning = attach(base, method, seed=0)
        shake(base.model)
        tuning.save(tmp_path / name, base)
        text = (tmp_path / name / "README.md").read_text()
        assert base.weights_sha256 in text and "Licence" in text
        assert ("PeftModel" in text) == (name == "of peft") == ("LOHA by the peft library" in text)
        assert ("bottleneck adapters (8 wide, model.norm trained in full)" in text) == (name == "bottleneck")
        assert ("held in 4-bit NF4 with double quantisation" in text) == (name == "bottleneck")
        code = re.search(r"```python\n(.*?)```", text, re.S)[1]
        names: dict[str, Any] = {}
        exec(code.replace('"."', repr(str(tmp_path / name))), names)
        assert difference(answers(names["model"]), answers(base.model)) < 1e-5
        again = load(folders["llama"])
        load_tuned(again, tmp_path / name, method).save(tmp_path / "again" / name, again)
        assert (tmp_path / "again" / name / "README.md").read_text() == text


def test_a_fully_tuned_folder_is_a_plain_model_folder(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    base = load(folders["llama"])
    tuning = attach(base, Method(type="full"), seed=0)
    shake(base.model)
    tuning.save(tmp_path / "m", base)
    assert difference(answers(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), answers(base.model)) < 1e-6
    assert "full tuning" in (tmp_path / "m" / "README.md").read_text()
    assert (tmp_path / "m" / "tokenizer.json").is_file()


@pytest.mark.parametrize("options", [{"type": "full"}, {}, {"type": "bottleneck", "bottleneck_size": 8}], ids=str)
def test_a_disk_that_is_full_at_the_tokenizer_is_told_as_such(options, folders, tmp_path, monkeypatch):
    base = load(folders["llama"])
    added = add_tokens(base, ["<a>"])
    tuning = attach(base, Method(rank=4, **options), seed=0, added=added)
    monkeypatch.setattr(methods, "save_adapter", lambda *arguments, **more: "")
    monkeypatch.setattr(BottleneckTuning, "save", lambda *arguments: "")
    monkeypatch.setattr(base.model, "save_pretrained", lambda folder: None)
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="File too large") as caught, full_disk(500):
        tuning.save(tmp_path / "a", base)
    assert caught.value.errno == errno.EFBIG


def test_the_same_start_each_time(folders):
    starts = []
    for seed in (1, 1, 2):
        base = load(folders["qwen3"])
        starts.append({n: p.detach() for n, p in attach(base, Method(rank=4), seed).trained().items()})
    assert starts[0].keys() == starts[1].keys()
    assert all(torch.equal(starts[0][n], starts[1][n]) for n in starts[0])
    assert any(not torch.equal(starts[0][n], starts[2][n]) for n in starts[0])


def test_the_saved_configuration_is_read_by_peft_alone(folders, tmp_path):
    from peft import LoraConfig

    base = load(folders["llama"])
    method = Method(rank=4, alpha=8.0, rank_pattern={"q_proj": 2}, use_dora=True, last_layers=1)
    attach(base, method, seed=0).save(tmp_path / "a", base)
    config = LoraConfig.from_pretrained(str(tmp_path / "a"))
    assert (config.r, config.lora_alpha, config.use_dora, config.rank_pattern) == (4, 8, True, {"q_proj": 2})
    names = {key.removeprefix("base_model.model.") for key in load_file(tmp_path / "a" / "adapter_model.safetensors")}
    assert config.target_modules == {name.partition(".lora_")[0] for name in names}
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base.folder
    )
