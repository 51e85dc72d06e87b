"""GGUF files asked by each program that reads them here: the answers are those of the model they were made of."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.export.gguf.models import IDS, READERS, Source, build, exported, logits_of
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference import gguf_engine
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.gguf_engine import LlamaCppModel, Reader, open_gguf
from tunesmith.inference.gguf_reading import read_model
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import Engine, Generation, Sampling
from tunesmith.models.artifact import Artifact
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer

PROMPTS = [[Message("user", text)] for text in ("kettle", "a longer question, is it not?", "x", "Zoë")]
needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


@pytest.fixture(params=READERS)
def using(request: pytest.FixtureRequest) -> Reader:
    if request.param == "llama.cpp" and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    found: Reader = request.param
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model, its file, and the engine that asks the model itself."""
    folder = tmp_path_factory.mktemp("gguf")
    source = Source(build("llama"), folder / "model")
    artifact, _ = exported(source, folder)
    renderer = Renderer(source.tokenizer, str(artifact.folder / "chat_template.jinja"))
    return SimpleNamespace(artifact=artifact, model=source.model, own=TorchEngine(source.model, renderer, 512))


def texts(engine: Engine, prompts: Sequence[Sequence[Message]] = PROMPTS, **more: Any) -> list[Generation]:
    return list(engine.generate(prompts, 12, **more))


def test_answers_are_the_models_own(made: SimpleNamespace, using: Reader) -> None:
    engine = open_gguf(made.artifact, using=using)
    assert texts(engine) == texts(made.own)
    assert texts(engine, sampling=Sampling(1.0, seed=5)) == texts(made.own, sampling=Sampling(1.0, seed=5))
    forms = [AnswerForm(choices=("yes", "no", "not yet"))] * len(PROMPTS)
    held = texts(engine, forms=forms)
    assert held == texts(made.own, forms=forms)
    assert {one.text for one in held} <= {"yes", "no", "not yet"}


def test_scores_are_the_models_own(made: SimpleNamespace, using: Reader) -> None:
    engine = open_gguf(made.artifact, using=using)
    choices = [("tea", "team", "coffee", "")] * len(PROMPTS)
    found = list(engine.score(PROMPTS, choices))
    assert np.allclose(found, list(made.own.score(PROMPTS, choices)), atol=1e-3)


def test_a_list_that_is_continued_gives_the_same(made: SimpleNamespace, using: Reader) -> None:
    engine = open_gguf(made.artifact, using=using)
    assert texts(engine, skip=2) == texts(engine)[2:]


def test_logits_of_more_tokens_than_are_read_at_once(
    made: SimpleNamespace, using: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_engine, "_AT_ONCE", 16)
    engine = open_gguf(made.artifact, using=using)
    assert np.abs(engine.logits(IDS) - logits_of(made.model)).max() < 1e-4
    assert engine.context == 512


def test_artifacts_are_opened_by_their_kind(made: SimpleNamespace) -> None:
    engine = open_artifact(made.artifact)
    assert engine.count_tokens(PROMPTS[0]) == made.own.count_tokens(PROMPTS[0])
    assert getattr(engine, "reader", None) == gguf_engine.reader()


def test_an_unknown_adapter_is_named(made: SimpleNamespace, using: Reader) -> None:
    with pytest.raises(EngineError, match="no adapter 'manners'"):
        open_gguf(made.artifact, "manners", using=using)
    named: Artifact = replace(made.artifact, adapters=("formal",))
    with pytest.raises(EngineError, match="one of formal"):
        open_gguf(named, "manners", using=using)


def test_a_damaged_file_is_told(made: SimpleNamespace, using: Reader, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((made.artifact.folder / name).read_bytes())
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(EngineError, match=r"cannot load this file|cannot be read|no GGUF file"):
        open_gguf(replace(made.artifact, folder=tmp_path), using=using)


def test_a_missing_library_names_the_extra(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_engine, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"tunesmith\[gguf\]"):
        open_gguf(made.artifact)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("odd_setting",), r"not understood here: llama\.odd_setting"),
        ((), r"the file lacks lm_head\.weight|lacks model"),
    ],
)
def test_files_that_are_not_whole_models_are_refused(more: tuple[str, ...], words: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    sizes = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length", "context_length")
    for key in (*sizes, "vocab_size", *more):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match=words):
        read_model(tmp_path / "odd.gguf")


def test_a_file_that_does_not_say_its_sizes_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match=r"the file does not say llama\.attention\.head_count"):
        read_model(tmp_path / "odd.gguf")


@needs_llama_cpp
def test_a_row_of_llama_cpp_moves_into_a_larger_room(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_engine, "_ROOM", 256)
    model = LlamaCppModel(made.artifact.folder / "model.gguf", 512)
    long = (IDS * 8)[:400]
    want = logits_of(made.model, long)
    row = model.row()
    assert np.abs(row.append(long[:200]) - want[:200]).max() < 1e-4
    assert np.abs(row.append(long[200:]) - want[200:]).max() < 1e-4
    row.rewind(250)
    assert np.abs(row.next(long[250:300]) - want[299]).max() < 1e-4
    row.close()
    small, large = model.take_room(10), model.take_room(300)
    assert (small.tokens, large.tokens) == (256, 512)  # both were given back
    assert len(model._made) == 2


@needs_llama_cpp
def test_rows_of_llama_cpp_remember_rewind_and_are_given_back(made: SimpleNamespace) -> None:
    model = LlamaCppModel(made.artifact.folder / "model.gguf", 512)
    want = logits_of(made.model)
    first, second = model.row(), model.row()
    assert np.abs(first.append(IDS[:20]) - want[:20]).max() < 1e-4
    assert np.abs(second.next(IDS[:5]) - want[4]).max() < 1e-4
    first.rewind(7)
    assert np.abs(first.next(IDS[7:30]) - want[29]).max() < 1e-4
    first.close()
    again = model.row()
    assert np.abs(again.append(IDS[:3]) - want[:3]).max() < 1e-4
    again.close()
    second.close()
    small = LlamaCppModel(made.artifact.folder / "model.gguf", 16).row()
    with pytest.raises(EngineError, match="cannot read 17 tokens"):
        small.append(IDS[:17])
    assert np.abs(small.append(IDS[:16]) - want[:16]).max() < 1e-4
    unknown = model.row()
    with pytest.raises(EngineError, match="cannot read on"):
        unknown.next([9_999])


def test_reading_back_leaves_the_random_numbers_alone(made: SimpleNamespace) -> None:
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    open_gguf(made.artifact, using="transformers")
    assert torch.equal(torch.rand(1), before)
