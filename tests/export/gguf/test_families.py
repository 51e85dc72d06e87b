"""Every family, written and read by programs that know nothing of the writer."""

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.export.gguf.models import FAMILIES, IDS, Source, build, exported, logits_of
from tests.training.small import full_disk
from tunesmith.errors import ResourceError, VerificationError
from tunesmith.export.gguf import families
from tunesmith.export.gguf.families import family_of
from tunesmith.export.gguf.settings import longest_context, rotation
from tunesmith.export.types import StepError
from tunesmith.inference.gguf_engine import Reader, open_gguf

TANH_TABLE = ("gemma", "gemma2", "gemma3", "gpt2")
"""llama.cpp looks GELU up in a table of half precision."""


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_file_in_32_bits_are_the_models_own(name: str, using: Reader, tmp_path: Path) -> None:
    model = build(name)
    artifact, facts = exported(Source(model, tmp_path / "model"), tmp_path)
    error = np.abs(open_gguf(artifact, using=using).logits(IDS) - logits_of(model)).max()
    assert error < (4e-3 if using == "llama.cpp" and name in TANH_TABLE else 5e-5)
    assert facts["bits_per_weight"] == 32
    assert facts["activation_precision"] == ("f16" if name in TANH_TABLE else "f32")
    assert facts["fallback_tensors"] == 0


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
def test_quantised_files_are_as_close_as_their_bits_allow(name: str, using: Reader, tmp_path: Path) -> None:
    model = build(name)
    want = logits_of(model)
    errors = []
    for precision, most in (("f16", 0.002), ("q8_0", 0.04), ("q4_0", 0.45)):
        artifact, _ = exported(Source(model, tmp_path / "model"), tmp_path, precision)
        found = open_gguf(artifact, using=using).logits(IDS)
        errors.append(float(np.linalg.norm(found - want) / np.linalg.norm(want)))
        assert errors[-1] < most, precision
    assert errors == sorted(errors)
    assert errors[0] > 0


def spoilt(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "rows not interleaved":
        monkeypatch.setattr(families, "interleave", lambda rows, heads: rows)
    elif how == "heads of queries taken for keys":
        monkeypatch.setattr(families, "interleave", lambda rows, heads, own=families.interleave: own(rows, 4))
    elif how == "scale forgotten":
        monkeypatch.setattr(families, "query_factor", lambda family, config: 1.0)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", "rows not interleaved"),
        ("llama", "heads of queries taken for keys"),
        ("llama-biased", "rows not interleaved"),
        ("granite", "rows not interleaved"),
        ("gemma2", "scale forgotten"),
        ("gemma3", "scale forgotten"),
    ],
)
def test_a_forgotten_change_of_weights_shows(
    name: str, how: str, using: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(monkeypatch, how)
    model = build(name)
    artifact, _ = exported(Source(model, tmp_path / "model"), tmp_path)
    error = np.abs(open_gguf(artifact, using=using).logits(IDS) - logits_of(model)).max()
    assert error > 0.02


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_the_gguf_reader_of_transformers_gives_the_same(name: str, tmp_path: Path) -> None:
    """For models of which it reads every setting: it has no heads of other sizes, windows or scaled positions."""
    model = build(name)
    source = Source(model, tmp_path / "model")
    artifact, _ = exported(source, tmp_path)
    read = AutoModelForCausalLM.from_pretrained(artifact.folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    assert np.abs(logits_of(read) - logits_of(model)).max() < 5e-5


def build_with(name: str, **more: object) -> object:
    kind, usual = FAMILIES[name]
    FAMILIES["other"] = (kind, {**usual, **more})
    try:
        return build("other")
    finally:
        del FAMILIES["other"]


def test_metadata_says_what_the_model_is(tmp_path: Path) -> None:
    source = Source(build("gemma3"), tmp_path / "model", name="my tune")
    artifact, facts = exported(source, tmp_path)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(artifact.folder / "model.gguf").fields.items()}
    assert fields["general.architecture"] == facts["architecture"] == "gemma3"
    assert fields["general.name"] == "my tune"
    assert fields["general.base_model.0.name"] == "base"
    assert fields["gemma3.block_count"] == 3
    assert fields["gemma3.attention.head_count_kv"] == 2
    assert fields["gemma3.attention.key_length"] == 32
    assert fields["gemma3.attention.sliding_window"] == 8
    assert fields["gemma3.attention.sliding_window_pattern"] == [True, False, True]
    assert fields["gemma3.rope.freq_base"] == 50_000
    assert fields["gemma3.rope.freq_base_swa"] == 10_000
    assert fields["gemma3.rope.scaling.factor"] == 4
    assert fields["gemma3.context_length"] == 512
    assert fields["tokenizer.chat_template"] == source.template
    assert len(fields["tokenizer.ggml.tokens"]) == 300


def test_types_of_tensors_and_bits_are_counted(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    artifact, facts = exported(source, tmp_path, "q4_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(artifact.folder / "model.gguf").tensors}
    assert kinds["token_embd.weight"] == "Q8_0"  # the head is the embeddings
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    weights = sum(p.numel() for p in source.model.parameters())
    size = sum(t.n_bytes for t in gguf.GGUFReader(artifact.folder / "model.gguf").tensors)
    assert facts["bits_per_weight"] == pytest.approx(8 * size / weights, abs=0.001)


def test_rows_that_fill_no_blocks_are_kept_in_16_bits_and_counted(tmp_path: Path) -> None:
    _, facts = exported(Source(build_with("llama", hidden_size=48), tmp_path / "model"), tmp_path, "q8_0")
    assert facts["fallback_tensors"] == 2 * 6 + 1  # all whose rows are the hidden size
    assert facts["tensor_types"]["F16"] == facts["fallback_tensors"]


def test_single_modules_can_be_given_other_bits(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    plan = {"model.layers.1.mlp.down_proj": 8, "model.layers.0.self_attn.o_proj": 16}
    artifact, _ = exported(source, tmp_path, "q4_0", bits=plan)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(artifact.folder / "model.gguf").tensors}
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_output.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"
    with pytest.raises(StepError, match=r"model\.nowhere is no module.*cannot have 3 bits") as caught:
        exported(source, tmp_path / "other", "q4_0", bits={"model.nowhere": 8, "model.layers.0.mlp.up_proj": 3})
    assert caught.value.step == "precision"


def test_what_lies_beside_the_model_opens_by_itself(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    artifact, _ = exported(source, tmp_path)
    assert AutoTokenizer.from_pretrained(artifact.folder)("abc")["input_ids"] == source.tokenizer("abc")["input_ids"]
    assert (artifact.folder / "chat_template.jinja").read_text() == source.template


def test_architectures_that_llama_cpp_computes_otherwise_are_refused_with_every_reason() -> None:
    with pytest.raises(StepError, match="gpt_neox models are not written") as caught:
        family_of(SimpleNamespace(model_type="gpt_neox"))
    assert caught.value.step == "architecture"
    assert "--to merged" in str(caught.value.fix)
    odd = build_with("gemma", hidden_activation="relu", tie_word_embeddings=False).config  # type: ignore[attr-defined]
    with pytest.raises(StepError, match=r"gelu_pytorch_tanh, this model has relu; llama\.cpp takes the head"):
        family_of(odd)
    sharing = build_with("qwen2", head_dim=32).config  # type: ignore[attr-defined]
    with pytest.raises(StepError, match="shares the hidden size out"):
        family_of(sharing)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "'dynamic'"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "turns all numbers"),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "truncate": False}, "rounds the range"),
    ],
)
def test_ways_of_rotating_that_llama_cpp_lacks_are_refused(parameters: dict[str, object], words: str) -> None:
    config = LlamaConfig(rope_parameters=parameters)
    with pytest.raises(StepError, match=words) as caught:
        rotation(family_of(config), config)
    assert caught.value.step == "positions"


def test_a_model_with_windows_is_given_the_context_in_which_there_are_none(tmp_path: Path) -> None:
    source = Source(build("mistral"), tmp_path / "model")
    artifact, facts = exported(source, tmp_path)
    assert longest_context(source.config, 512) == 256
    assert gguf.GGUFReader(artifact.folder / "model.gguf").fields["llama.context_length"].contents() == 256
    assert any("256" in note for note in facts["notes"])
    assert open_gguf(artifact).context == 256
    assert longest_context(build("gemma2").config, 512) == 512


def spoil(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif change == "more":
        tensors["model.layers.0.self_attn.odd.weight"] = torch.zeros(2, 2)
    elif change == "nan":
        tensors["model.norm.weight"][3] = float("nan")
    else:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    cases = [
        ("missing", "f32", VerificationError, r"lack tensors: blk\.1\.ffn_up\.weight"),
        ("more", "f32", StepError, r"no place for model\.layers\.0\.self_attn\.odd\.weight"),
        ("nan", "f32", VerificationError, r"model\.norm\.weight holds values that are no numbers"),
        ("large", "f16", StepError, r"up_proj\.weight holds numbers too large for F16"),
    ]
    for change, precision, kind, words in cases:
        source = Source(build("llama"), tmp_path / change)
        spoil(source.folder, change)
        with pytest.raises(kind, match=words):
            exported(source, tmp_path / f"out-{change}", precision)
    (tmp_path / "nothing").mkdir()
    source = Source(build("llama"), tmp_path / "broken")
    (source.folder / "model.safetensors").write_bytes(b"\x08" * 40)
    with pytest.raises(VerificationError, match="the weights cannot be read"):
        exported(source, tmp_path / "out-broken")


def test_a_full_disk_is_told_as_one_wherever_it_ends(tmp_path: Path) -> None:
    """The last bytes of a tensor are where numpy, which writes it, says nothing."""
    source = Source(build("llama"), tmp_path / "model")
    whole = exported(source, tmp_path / "whole")[0].folder / "model.gguf"
    size = whole.stat().st_size
    for limit in (100, 7000, size // 2, size - 5000, size - 100, size - 33):
        with pytest.raises(ResourceError, match="the file cannot be written"), full_disk(limit):
            exported(source, tmp_path / str(limit))
