"""Plain ONNX graphs in ONNX Runtime: the answers of `TorchEngine` on the same weights: free, drawn, held to forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.export.onnx_plain.made import ModelSource, long, write
from tests.inference.test_torch_engine import stopping_model
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.export.onnx_plain.write import write_plain
from tunesmith.inference import past_row
from tunesmith.inference.ort_engine import open_graph, open_ort
from tunesmith.inference.past_row import PastModel
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.types import RewindingRow, Sampling
from tunesmith.models.artifact import Artifact
from tunesmith.tasks.types import AnswerForm

PROMPTS = [(Message("user", text),) for text in ("lost card", "where is my card?", "a", "please help me with it")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, Artifact]:
    source = ModelSource(stopping_model("llama"))
    return source, write(write_plain, "onnx-plain", "fp32", source, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def engine(made: tuple[ModelSource, Artifact]) -> SteppingEngine:
    return open_ort(made[1])


def test_free_drawn_and_held_answers_are_those_of_torch(
    made: tuple[ModelSource, Artifact], engine: SteppingEngine
) -> None:
    torch_engine = made[0].engine()
    sampling = Sampling(temperature=0.8, seed=3)
    forms = [AnswerForm(choices=("card_lost", "card_found"))] * len(PROMPTS)
    free = [list(one.generate(PROMPTS, 30)) for one in (engine, torch_engine)]
    assert free[0] == free[1]
    assert {one.stopped for one in free[0]} == {True, False}, "some answers end by themselves"
    drawn = [list(one.generate(PROMPTS, 30, sampling=sampling)) for one in (engine, torch_engine)]
    assert drawn[0] == drawn[1] != free[0]
    held = [list(one.generate(PROMPTS, 30, forms=forms)) for one in (engine, torch_engine)]
    assert held[0] == held[1] and {one.text.strip() for one in held[0]} <= set(forms[0].choices)
    assert list(engine.generate(PROMPTS, 30, skip=2)) == free[0][2:]


def test_scores_and_logits_are_those_of_torch(made: tuple[ModelSource, Artifact], engine: SteppingEngine) -> None:
    said = [["yes", "no", "yes please"]] * len(PROMPTS)
    assert np.allclose(list(engine.score(PROMPTS, said)), list(made[0].engine().score(PROMPTS, said)), atol=1e-4)
    with pytest.raises(EngineError, match="are to be read"):
        engine.logits([5] * (engine.context + 1))


def test_a_row_reads_in_parts_and_can_be_rewound(
    made: tuple[ModelSource, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graph = open_graph(made[1])
    ids = list(range(5, 45))
    whole = PastModel(graph).row().append(ids)
    monkeypatch.setattr(past_row, "_CHUNK", 7)
    row = PastModel(graph).row()
    assert isinstance(row, RewindingRow)
    assert np.abs(row.append(ids) - whole).max() < 1e-4
    for length in (33, 12, 0):
        row.rewind(length)
        assert np.abs(row.next(ids[length:]) - whole[-1]).max() < 1e-4
    assert row.append([]).shape == (0, graph.vocabulary)
    row.close()


@long
def test_the_embedded_base_answers_as_in_torch(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tunesmith.inference.torch_engine import TorchEngine
    from tunesmith.models.load import EMBEDDED, load_base
    from tunesmith.recipe.schema import Base
    from tunesmith.text.render import Renderer

    base = load_base(Base(model="embedded:base"), "cpu")
    source = ModelSource(base.model, renderer=Renderer(base.tokenizer), context=base.context)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "base")
    source.merged = lambda scratch: _saved(base.model, tokenizer, scratch / "merged")  # type: ignore[method-assign]
    artifact = write(write_plain, "onnx-plain", "fp32", source, tmp_path)
    ours, theirs = open_ort(artifact), TorchEngine(base.model, source.renderer, base.context)
    asked = [(Message("user", "Name three fruits."),), (Message("user", "What is the largest mammal?"),)]
    assert list(ours.generate(asked, 24)) == list(theirs.generate(asked, 24))
    assert artifact.facts["largest_difference"] < 1e-3 and artifact.facts["shared_weights"] == 1


def _saved(model: object, tokenizer: object, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
