"""ONNX Runtime GenAI as an engine: the answers, draws, forms and scores of the torch engine on the same weights."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.export.onnx.twins import IDS, int4_export, multi_export
from tests.inference.test_torch_engine import NEW, prompts
from tunesmith.errors import EngineError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.genai_config import open_config
from tunesmith.inference.genai_engine import GenaiModel, RewindingGenaiRow
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.inference.types import Sampling
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.render import Renderer


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def pair(root):
    """The engine of an fp32 export with an adapter, and a torch engine of the same weights."""
    from peft import PeftModel

    made = multi_export(root)
    model = transformers.AutoModelForCausalLM.from_pretrained(made.base)
    model = PeftModel.from_pretrained(model, str(made.adapters["plain"])).merge_and_unload().eval()
    engine = open_artifact(made.artifact, "plain")
    renderer = Renderer(engine.renderer.tokenizer, str(made.artifact.folder / "chat_template.jinja"))
    return engine, TorchEngine(model, renderer, 256, batch_size=4)


def test_answers_are_those_of_the_torch_engine(pair):
    ours, theirs = pair
    asked = prompts()
    expected = list(theirs.generate(asked, NEW))
    assert list(ours.generate(asked, NEW)) == expected
    assert len({answer.text for answer in expected}) > 3
    assert ours.context == 256 and ours.renderer.stop_ids == theirs.renderer.stop_ids


def test_draws_and_forms_are_those_of_the_torch_engine(pair):
    ours, theirs = pair
    asked = prompts()[:5]
    sampling = Sampling(0.8, 11)
    assert list(ours.generate(asked, NEW, sampling=sampling)) == list(theirs.generate(asked, NEW, sampling=sampling))
    forms = [AnswerForm(("red", "green")), None, AnswerForm(("x", "xy")), None, AnswerForm(("a",))]
    assert list(ours.generate(asked, NEW, forms=forms)) == list(theirs.generate(asked, NEW, forms=forms))


def test_scores_are_those_of_the_torch_engine(pair):
    ours, theirs = pair
    asked = prompts("a beginning that all of these prompts have in common, so it is read once")[:4]
    answers = [["alpha", "alpine", "beta", "b"]] * 4
    for one, other in zip(ours.score(asked, answers), theirs.score(asked, answers), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def test_the_native_loop_writes_what_stepping_chooses(root):
    *_, artifact = int4_export(root)
    model = GenaiModel(artifact.folder, artifact.context)
    row = model.row()
    for count in (1, 7, 40):
        row.rewind(0)
        written = row.write(IDS[:count], 30, frozenset())
        row.rewind(0)
        stepped, ids = [], IDS[:count]
        while len(stepped) < 30:
            ids = [int(row.next(ids).argmax())]
            stepped += ids
        assert written == stepped and len(written) == 30
        row.rewind(0)
        stop = written[9]
        until = written[: written.index(stop) + 1]
        assert row.write(IDS[:count], 30, frozenset([stop])) == until
    model.close()


def test_a_row_remembers_and_forgets(root):
    *_, artifact = int4_export(root)
    model = GenaiModel(artifact.folder, artifact.context)
    row, other = model.row(), model.row_of(len(IDS))
    assert isinstance(row, RewindingGenaiRow) and model.vocabulary == 300
    whole = other.append(IDS)
    assert whole.shape == (len(IDS), 300) and whole.dtype == np.float32
    parts = [row.append(IDS[:25]), row.append(IDS[25:26])]
    row.rewind(10)
    parts = [parts[0][:10], row.append(IDS[10:30]), row.append(IDS[30:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=2e-3)
    row.rewind(0)
    np.testing.assert_allclose(row.next(IDS), whole[-1], rtol=0, atol=2e-3)
    model.close()


def test_closing_ends_rows_from_any_thread(root):
    *_, artifact = int4_export(root)
    model = GenaiModel(artifact.folder, artifact.context)
    rows = [model.row() for _ in range(3)]
    failures: list[str] = []

    def read(row: RewindingGenaiRow) -> None:
        until = time.monotonic() + 20
        try:
            while time.monotonic() < until:
                row.rewind(0)
                row.next(IDS)
        except EngineError as error:
            failures.append(error.what)

    threads = [threading.Thread(target=read, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    model.close()
    model.close()
    for thread in threads:
        thread.join(20)
    assert failures == ["the row is closed"] * 3
    with pytest.raises(EngineError, match="the model is closed"):
        model.row()


def test_threads_that_read_at_once_read_as_alone(root):
    made = multi_export(root)
    whole = GenaiModel(made.artifact.folder, 256)
    names = [None, *made.adapters]
    alone = {name: whole.with_adapter(name).row().append(IDS) for name in names}
    found: dict[object, np.ndarray] = {}

    def read(name: str | None) -> None:
        row = whole.with_adapter(name).row()
        found[name] = np.concatenate([row.append(IDS[i : i + 5]) for i in range(0, len(IDS), 5)])

    threads = [threading.Thread(target=read, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for name in names:
        np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=1e-4)
    whole.close()


def test_what_the_runtime_refuses_is_told(root, tmp_path):
    *_, artifact = int4_export(root)
    model = GenaiModel(artifact.folder, artifact.context)
    row = model.row_of(8)
    with pytest.raises(EngineError, match="cannot read on"):
        row.append(IDS)
    model.close()
    with pytest.raises(EngineError, match=r"genai_config\.json cannot be read"):
        GenaiModel(tmp_path, 10)
    (tmp_path / "genai_config.json").write_bytes((artifact.folder / "genai_config.json").read_bytes())
    with pytest.raises(EngineError, match="cannot open this"):
        GenaiModel(tmp_path, 10)


def test_an_export_of_one_model_has_no_adapters(root):
    *_, artifact = int4_export(root)
    with pytest.raises(EngineError, match="one model"):
        open_artifact(artifact, "a")


def test_without_the_package_the_extra_is_named(root, monkeypatch):
    *_, artifact = int4_export(root)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(EngineError, match=r"tunesmith\[onnx\]"):
        open_artifact(artifact)


def test_threads_are_as_many_as_the_environment_says(root, monkeypatch):
    import onnxruntime_genai as og

    said: list[str] = []

    class Config:
        def __init__(self, folder: str) -> None:
            pass

        def overlay(self, text: str) -> None:
            said.append(text)

    *_, artifact = int4_export(root)
    monkeypatch.setattr(og, "Config", Config)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    open_config(artifact.folder)
    open_config(artifact.folder, threads=2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    open_config(artifact.folder)
    assert ['"intra_op_num_threads": 3' in said[0], '"intra_op_num_threads": 2' in said[1], len(said)] == [
        True,
        True,
        2,
    ]


def test_a_model_that_has_come_apart_says_nothing(root):
    *_, artifact = int4_export(root)
    engine = open_artifact(artifact)
    row = engine.model.row()
    row._read = lambda ids: np.full(300, np.nan, dtype=np.float32)
    assert row.write(IDS, 5, frozenset()) == []
    assert torch.isfinite(torch.from_numpy(engine.logits(IDS))).all()
