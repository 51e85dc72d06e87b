"""A cut of the user's own base: what is taken and read, what is found, and what is said about bases that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, T5Config

from tests.tiny import FAMILIES, byte_tokenizer, ragged_samples, save_base
from tunesmith.errors import DataError, EngineError, RecipeError, ResourceError
from tunesmith.ops import lora_linear
from tunesmith.recipe.schema import Base, Data
from tunesmith.training.gate import doctor, weight_files
from tunesmith.training.gate.cut import WINDOW, Cut, plan_cut
from tunesmith.training.gate.doctor import base_checks, examine
from tunesmith.training.gate.fast_paths import FastPath, fast_paths
from tunesmith.training.gate.machine import machine_facts
from tunesmith.training.gate.rows import read_samples
from tunesmith.training.gate.types import run_gate

CPU = torch.device("cpu")
PLENTY = 10**10
SIZES: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of nine layers in several files."""
    folder = tmp_path_factory.mktemp("bases") / "sharded"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=9, tie_word_embeddings=False)).save_pretrained(
        folder, max_shard_size="40KB"
    )
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rates of products are kept for later; not in the user's cache."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def no_machine_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate itself is tested in test_gate; here the base is what matters."""
    monkeypatch.setattr(doctor, "gate_checks", lambda: ())


def cut_of(folder: Path, memory: int = PLENTY) -> Cut:
    return plan_cut(Base(model=str(folder)), memory)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family_is_that_of_plain_transformers(family: str, tmp_path: Path) -> None:
    cut = cut_of(save_base(tmp_path, family))
    outcomes = run_gate(CPU, (torch.float64, torch.float32), base_checks(cut))
    assert [o.check for o in outcomes] == ["LoRA, random rows"] * 2 + ["full tuning, random rows"] * 2
    for outcome in outcomes:
        assert outcome.holds, outcome
        assert outcome.tensors > 8


def test_a_report_says_what_was_found_and_what_is_used(tmp_path: Path, no_machine_checks: None) -> None:
    report = examine(Base(model=str(save_base(tmp_path, "qwen3"))))
    assert report.exit_code == 0 and not report.failed and report.of_base == report.outcomes
    told = report.to_dict()
    json.dumps(told)
    assert told["holds"] is True and told["cut"]["layers"] == [0, 1]
    assert set(told["product_gflops"]) >= {"fp32", "bf16"} and min(told["product_gflops"].values()) > 0
    paths = {path.name: path for path in report.fast_paths}
    assert "bf16" in paths["half precision"].detail
    assert paths["fused decoder layers"].used and "2 of 2" in paths["fused decoder layers"].detail
    assert machine_facts(CPU)[0].name == "system"
    assert {"threads", "allocator", "memory", "disk", "GPU", "libraries"} <= set(told["machine"])
    assert all(path.detail for path in report.fast_paths)


def test_a_wrong_gradient_fails_the_report_and_is_named(
    tmp_path: Path, no_machine_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma's layers are not fused, so that its adapters are what `lora_linear` computes."""
    right = lora_linear._MergedLora.backward

    def wrong(*given: Any) -> Any:
        gradients = list(right(*given))
        gradients[4] = gradients[4] * 1.001
        return tuple(gradients)

    monkeypatch.setattr(lora_linear._MergedLora, "backward", staticmethod(wrong))
    report = examine(Base(model=str(save_base(tmp_path, "gemma"))))
    assert report.exit_code == 5 and report.to_dict()["holds"] is False
    assert {o.check for o in report.failed} == {"LoRA, random rows"}
    assert all(o.worst_tensor.endswith("lora_B") for o in report.failed)


def test_rows_of_the_users_are_taken_as_they_would_be_trained(tmp_path: Path, no_machine_checks: None) -> None:
    base = Base(model=str(save_base(tmp_path / "base", "llama")))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"what is {i}?" * 9, "completion": f"it is {i}"}) + "\n" for i in range(20))
    )
    samples = read_samples(base, Data(train=str(rows)))
    assert len(samples) == 12 and all(s.supervised for s in samples)
    report = examine(base, samples=samples)
    assert [o.holds for o in report.outcomes if o.check == "LoRA, your rows"] == [True, True]


def test_rows_that_are_none_are_told(tmp_path: Path) -> None:
    base = Base(model=str(save_base(tmp_path / "base", "llama")))
    with pytest.raises(DataError, match=r"missing\.csv"):
        read_samples(base, Data(train=str(tmp_path / "missing.csv")))
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    (tmp_path / "rows.csv").write_text("prompt,completion\nhello,there\n")
    with pytest.raises(EngineError, match="tokenizer could not be loaded"):
        read_samples(base, Data(train=str(tmp_path / "rows.csv")))


# ── what is taken ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_first_middle_and_last_layer_are_taken_and_the_rest_is_named(sharded: Path) -> None:
    cut = cut_of(sharded)
    assert (cut.layers, cut.of_layers) == ((0, 4, 8), 9)
    assert cut.left_out == ("layers 1-3, 5-7, each like one that was checked",)
    model = cut.open(torch.float32, torch.float32, CPU)
    assert sum(p.numel() for p in model.parameters()) == cut.parameters
    whole = LlamaForCausalLM.from_pretrained(sharded, dtype=torch.float32)
    for new, old in enumerate(cut.layers):
        for (name, ours), theirs in zip(
            model.model.layers[new].named_parameters(), whole.model.layers[old].parameters(), strict=True
        ):
            assert torch.equal(ours, theirs), (old, name)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


def test_files_of_other_layers_are_never_opened(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shutil.copytree(sharded, folder)
    needed = {stored.path.name for stored in cut_of(folder).stored.values()}
    others = [path for path in folder.glob("*.safetensors") if path.name not in needed]
    assert others
    for path in others:
        path.unlink()
    cut_of(folder).open(torch.float32, torch.float32, CPU)


def test_every_kind_of_layer_is_taken_with_a_window_that_short_rows_cross(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 8
    kinds[2] = "full_attention"
    torch.manual_seed(0)
    Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_hidden_layers=8, layer_types=kinds, sliding_window=512)
    ).save_pretrained(tmp_path)
    cut = cut_of(tmp_path)
    assert cut.layers == (0, 2, 4, 7)
    assert cut.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert cut.config.sliding_window == WINDOW
    assert any("512" in told and "windows" in told for told in cut.left_out)
    for outcome in run_gate(CPU, [torch.float32], base_checks(cut)):
        assert outcome.holds, outcome


def test_little_memory_takes_less_and_says_so(sharded: Path) -> None:
    whole = cut_of(sharded)
    need = 14 * whole.parameters
    without_middle = cut_of(sharded, need - 1)
    assert without_middle.layers == (0, 8)
    assert any("the middle layer 4" in told for told in without_middle.left_out)
    fewer_words = cut_of(sharded, 14 * without_middle.parameters - 1)
    assert fewer_words.layers == (0, 8) and fewer_words.vocabulary == 2048
    assert any("tokens 2,048 to 4,095" in told for told in fewer_words.left_out)
    for outcome in run_gate(CPU, [torch.float32], base_checks(fewer_words)[:1]):
        assert outcome.holds, outcome
    with pytest.raises(ResourceError, match=r"needs about .* of memory"):
        cut_of(sharded, 1000)


def test_rows_with_words_that_were_cut_off_still_make_a_step(sharded: Path) -> None:
    whole = cut_of(sharded)
    cut = cut_of(sharded, 14 * whole.parameters * 6 // 10)
    assert cut.vocabulary < whole.vocabulary
    samples = [type(s)(s.ids + 3500, s.weights, s.example_id) for s in ragged_samples((80, 20))]
    (outcome,) = run_gate(CPU, [torch.float32], base_checks(cut, samples)[-1:])
    assert outcome.check == "LoRA, your rows" and outcome.holds


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_hub_base_only_the_files_of_the_cut_are_fetched(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import transformers

    fetched: list[str] = []

    def fetch(repo: str, name: str, revision: str | None = None) -> str:
        assert (repo, revision) == ("org/model", "abc")
        fetched.append(name)
        return str(sharded / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    config = transformers.AutoConfig.from_pretrained(sharded)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *given, **more: config)
    cut = plan_cut(Base(model="org/model", revision="abc"), PLENTY)
    assert cut.layers == (0, 4, 8)
    there = {path.name for path in sharded.glob("*.safetensors")}
    assert fetched[0] == "model.safetensors.index.json"
    assert set(fetched[1:]) < there
    cut.open(torch.float32, torch.float32, CPU)


def test_a_hub_base_in_one_file_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    save_base(tmp_path)

    def fetch(repo: str, name: str, revision: str | None = None) -> str:
        if not (tmp_path / name).exists():
            raise LocalEntryNotFoundError("not in the cache, and no network")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    files = weight_files.weight_files(Base(model="org/model"), None)
    assert set(files.holding.values()) == {"model.safetensors"}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"safetensors \(hub\).*could not be fetched: not in the cache"):
        weight_files.weight_files(Base(model="org/model"), None)


# ── bases that are none ──────────────────────────────────────────────────────────────────────────────────────────────


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(values)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x01" * 4096)


def not_a_number(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan


def missing_tensor(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def encoder_decoder(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weights": 3}')


def index_of_another(folder: Path) -> None:
    keys = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    holding = {"weight_map": dict.fromkeys(keys, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(holding))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, r"model\.safetensors: the weights cannot be read"),
        (garble, r"model\.safetensors: the weights cannot be read"),
        (change_weights(not_a_number), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
        (change_weights(missing_tensor), "cannot be built: missing keys: .*up_proj"),
        (change_config(hidden_size=64), "a cut of this base cannot be built"),
        (change_config(num_hidden_layers=5), r"do not have 5 layers.*model\.layers\.\* has 2"),
        (change_config(num_hidden_layers="two"), "num_hidden_layers"),
        (change_config(model_type="nothing-known"), "the configuration could not be read"),
        (
            change_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            "quantised already",
        ),
        (encoder_decoder, "encoder-decoder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no safetensors weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "the configuration could not be read"),
        (index_of_nothing, "list of weight files cannot be read"),
        (index_of_another, "a weight file is missing"),
    ],
)
def test_a_spoiled_base_is_told_with_its_place(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    folder = save_base(tmp_path / "base")
    spoil(folder)
    with pytest.raises(EngineError, match=words) as raised:
        cut_of(folder).open(torch.float32, torch.float32, CPU)
    assert raised.value.where and raised.value.fix


def test_names_that_are_no_base(tmp_path: Path) -> None:
    for name in ("embedded:none", str(tmp_path), "no-such-folder"):
        with pytest.raises(RecipeError):
            plan_cut(Base(model=name), PLENTY)


# ── fast paths and machine ───────────────────────────────────────────────────────────────────────────────────────────


def paths_of(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, FastPath]:
    model = cut_of(folder).open(dtype, dtype, CPU)
    return {path.name: path for path in fast_paths(model, {"fp32": 2e9, "bf16": 1e9})}


def test_what_is_not_used_has_its_reason(tmp_path: Path) -> None:
    gemma = paths_of(save_base(tmp_path / "gemma2", "gemma2"))
    assert not gemma["fused decoder layers"].used and "Gemma2DecoderLayer" in gemma["fused decoder layers"].detail
    assert "soft cap" in gemma["attention without padding"].detail
    assert "soft cap" in gemma["head where something is supervised"].detail
    gpt = paths_of(save_base(tmp_path / "gpt2", "gpt2"))
    assert not gpt["products by oneDNN"].used or "of" in gpt["products by oneDNN"].detail
    half = paths_of(save_base(tmp_path / "llama", "llama"), torch.bfloat16)
    assert "half precision" in half["fused decoder layers"].detail
    assert not half["adapters merged into one product"].used


def test_native_code_that_is_switched_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.ops import pointwise_native

    monkeypatch.setenv("TUNESMITH_NATIVE", "0")
    pointwise_native._built.cache_clear()
    try:
        path = paths_of(save_base(tmp_path))["norms, heads and activation in C"]
        assert not path.used and "TUNESMITH_NATIVE=0" in path.detail
    finally:
        pointwise_native._built.cache_clear()


def test_dropout_of_the_base_is_told_and_left_off(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "gpt2")
    change_config(attn_pdrop=0.1, resid_pdrop=0.1)(folder)
    path = paths_of(folder)["common beginnings computed once"]
    assert not path.used and "dropout" in path.detail
    assert all(o.holds for o in run_gate(CPU, [torch.float32], base_checks(cut_of(folder))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_family_on_a_gpu(family: str, tmp_path: Path) -> None:
    cut = cut_of(save_base(tmp_path, family))
    for outcome in run_gate(torch.device("cuda"), (torch.float64, torch.float32, torch.bfloat16), base_checks(cut)):
        assert outcome.holds, outcome
