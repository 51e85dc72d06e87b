"""k-quants by a llama.cpp that is installed, and what is said where there is none."""

import stat
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.export.gguf.models import IDS, Source, build, exported, logits_of
from tests.export.gguf.test_families import build_with
from tunesmith.errors import EngineError
from tunesmith.export.gguf import kquants, write
from tunesmith.export.gguf.adapter import write_adapter_gguf
from tunesmith.export.types import StepError
from tunesmith.inference.gguf_engine import open_gguf

needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No llama-cpp-python, and a PATH with one empty folder, which is returned."""
    monkeypatch.setattr(kquants, "find_spec", lambda _: None)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_without_llama_cpp_it_is_said_what_works_instead(without_library: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="neither llama-cpp-python nor llama-quantize") as caught:
        exported(Source(build("llama"), tmp_path / "model"), tmp_path, "q4_k_m")
    assert "q8_0 or q4_0" in caught.value.instead
    assert not (tmp_path / "q4_k_m" / "model.gguf").exists()


def test_a_tool_that_fails_is_quoted(without_library: Path, tmp_path: Path) -> None:
    tool = without_library / "llama-quantize"
    tool.write_text("#!/bin/sh\necho something >&2\necho 'bad tensor 7' >&2\nexit 3\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(StepError, match=r"llama\.cpp failed: bad tensor 7"):
        exported(Source(build("llama"), tmp_path / "model"), tmp_path, "q6_k")


def test_a_tool_on_the_path_gets_a_file_that_lost_nothing(without_library: Path, tmp_path: Path) -> None:
    """The tool is a script that copies; the real one is tried below where it is installed."""
    tool = without_library / "llama-quantize"
    tool.write_text('#!/bin/sh\n/bin/cp "$1" "$2"\n[ "$3" = Q5_K_M ]\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    source = Source(build("llama").bfloat16(), tmp_path / "model")
    artifact, facts = exported(source, tmp_path, "q5_k_m")
    assert facts["quantised_by"] == "llama-quantize"
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(artifact.folder / "model.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == "BF16"
    own = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    assert np.abs(open_gguf(artifact, using="transformers").logits(IDS) - logits_of(own)).max() < 1e-5


def test_bits_of_single_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot be said with q4_k_m"):
        exported(Source(build("llama"), tmp_path / "model"), tmp_path, "q4_k_m", bits={"lm_head": 8})


@needs_llama_cpp
@pytest.mark.parametrize(
    ("precision", "bits", "most"), [("q4_k_m", 5.7, 0.3), ("q5_k_m", 6.2, 0.15), ("q6_k", 7, 0.08)]
)
def test_k_quants_of_full_blocks(precision: str, bits: float, most: float, tmp_path: Path) -> None:
    model = build_with("llama", hidden_size=256, intermediate_size=512, head_dim=64, initializer_range=0.02)
    artifact, facts = exported(Source(model, tmp_path / "model"), tmp_path, precision)
    assert facts["fallback_tensors"] == 0
    assert facts["quantised_by"] == "llama-cpp-python"
    assert float(precision[1]) < facts["bits_per_weight"] < bits
    want = logits_of(model)
    for using in ("llama.cpp", "transformers"):
        found = open_gguf(artifact, using=using).logits(IDS)  # type: ignore[arg-type]
        assert np.linalg.norm(found - want) / np.linalg.norm(want) < most


@needs_llama_cpp
def test_rows_that_do_not_fill_blocks_are_counted(tmp_path: Path) -> None:
    artifact, facts = exported(Source(build("llama"), tmp_path / "model"), tmp_path, "q4_k_m")
    assert facts["fallback_tensors"] == 15  # all, with rows of 64 and 96
    assert any("do not fill blocks of 256" in note for note in facts["notes"])
    tensors = gguf.GGUFReader(artifact.folder / "model.gguf").tensors
    size, weights = sum(t.n_bytes for t in tensors), sum(t.n_elements for t in tensors)
    assert facts["bits_per_weight"] == pytest.approx(8 * size / weights, abs=0.001)


def test_without_the_gguf_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"tunesmith\[gguf\]"):
        write.require_library()
    with pytest.raises(EngineError, match=r"tunesmith\[gguf\]"):
        write_adapter_gguf(tmp_path, tmp_path, tmp_path / "a.gguf")
