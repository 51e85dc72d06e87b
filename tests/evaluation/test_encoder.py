"""An encoder: pooling, prefixes and length as its files say, vectors that do not depend on the batch, and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluation.encoders import save_encoder
from tests.tasks.rows import example
from tunesmith.errors import EngineError
from tunesmith.evaluation.document_files import Document
from tunesmith.evaluation.encoder import TextEncoder, load_encoder
from tunesmith.evaluation.passages import PassageFinder, cut_all
from tunesmith.evaluation.retrieval import Retriever

TEXTS = ["the cat sleeps", "a dog", "the cat sleeps on the warm mat by the door", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"), TEXTS)


def settled(folder: Path, tmp_path: Path, files: dict[str, Any]) -> Path:
    """A copy of the model with further files beside it."""
    place = tmp_path / "model"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps(content))
    return place


def test_vectors_are_the_mean_of_token_states_whatever_the_batch(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    together = encoder.encode(TEXTS, "passage")
    assert together.shape == (4, 16) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, 0),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, -1),
        ({"pooling_mode": "cls", "include_prompt": True}, 0),
    ],
)
def test_pooling_is_that_of_the_model(folder: Path, tmp_path: Path, told: dict[str, Any], place: int) -> None:
    settings = {"word_embedding_dimension": 16, **told}
    encoder = load_encoder(str(settled(folder, tmp_path, {"1_Pooling/config.json": settings})), device="cpu")
    got = encoder.encode(TEXTS, "query")
    for text, vector in zip(TEXTS, got, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            state = encoder.model(input_ids=ids).last_hidden_state[0, place].numpy()
        np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=1e-5)


def test_prefixes_and_length_are_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    told = {
        "config_sentence_transformers.json": {"prompts": {"query": "the cat ", "document": "a dog "}},
        "sentence_bert_config.json": {"max_seq_length": 5},
    }
    encoder = load_encoder(str(settled(folder, tmp_path, told)), device="cpu")
    plain = load_encoder(str(folder), device="cpu")
    assert (encoder.longest, plain.longest) == (5, 12) and plain.prefixes == {}
    np.testing.assert_allclose(encoder.encode(["x"], "query"), plain.encode(["the cat x"], "query"), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["x"], "passage"), plain.encode(["a dog x"], "query"), atol=1e-6)
    long = encoder.encode([TEXTS[2]], "query")
    np.testing.assert_allclose(long, plain.encode(["the cat the cat sleeps"], "query"), atol=1e-6)


def test_an_encoder_that_cannot_be_used_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be loaded"):
        load_encoder(str(tmp_path / "missing"))
    odd = {"1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}}
    with pytest.raises(EngineError, match="pools by weightedmean_tokens"):
        load_encoder(str(settled(folder, tmp_path, odd)), device="cpu")


def test_an_encoder_with_further_layers_is_refused_and_a_usual_one_taken(folder: Path, tmp_path: Path) -> None:
    usual = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(
        ("Transformer", "Pooling", "Normalize"))]  # fmt: skip
    place = settled(folder, tmp_path, {"modules.json": usual})
    assert load_encoder(str(place), device="cpu").pooling == "mean"
    (place / "modules.json").write_text(json.dumps([*usual, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(EngineError, match="further layers behind its pooling: Dense"):
        load_encoder(str(place), device="cpu")


def test_code_that_comes_with_an_encoder_is_not_asked_about(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    place = settled(folder, tmp_path, {})
    config = json.loads((place / "config.json").read_text())
    del config["model_type"]
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (place / "config.json").write_text(json.dumps(config))
    (place / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    with pytest.raises(EngineError, match="could not be loaded"):
        load_encoder(str(place), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_vectors_are_kept_by_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = load_encoder(str(folder), cache=cache, device="cpu").encode(TEXTS, "passage")
    again = load_encoder(str(folder), cache=cache, device="cpu")
    monkeypatch.setattr(TextEncoder, "_encode", lambda *_: pytest.fail("encoded twice"))
    np.testing.assert_array_equal(again.encode(TEXTS, "passage"), first)
    monkeypatch.undo()
    (kept,) = cache.iterdir()
    again.encode(TEXTS[:3], "passage")
    again.encode(TEXTS[:1], "query")
    assert len(list(cache.iterdir())) == 2
    kept.write_bytes(b"damaged")
    np.testing.assert_allclose(again.encode(TEXTS, "passage"), first, atol=1e-6)


class ByLength:
    """Texts of like length are near: so it can be told from shared words."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def encode(self, texts: Any, side: str) -> Any:
        self.asked.append((side, len(texts)))
        angles = np.array([min(len(text), 90) for text in texts]) * np.pi / 180
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_rows_and_passages_are_found_by_meaning_where_there_is_an_encoder() -> None:
    rows = [example("cat" * 10, "long"), example("dog", "short")]
    question = example("cat", "x")
    assert Retriever(rows, ByLength()).nearest(question, 1) == (rows[1],)
    encoder = ByLength()
    finder = PassageFinder(
        cut_all([Document("cat " * 20, "a"), Document("dogs", "b")], 50, lambda texts: [len(text) for text in texts]),
        encoder,
    )
    finder.expect([question, question, example("a dog", "y")])
    assert finder.nearest(question, 1)[0].document.source == "b"
    assert encoder.asked == [("query", 2), ("passage", 3)]
    # A question alone is encoded each time it is expected: that is part of what it takes to answer it.
    finder.expect([question])
    assert encoder.asked[2:] == [("query", 1)]
    assert PassageFinder([], ByLength()).nearest(question, 1) == ()
