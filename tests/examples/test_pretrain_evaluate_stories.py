"""The published checkpoint is read as it was meant: rotations, vocabulary, cutting of text."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"
DIM, HIDDEN, LAYERS, HEADS, KEY_HEADS, ENTRIES, CONTEXT = 16, 24, 2, 4, 2, 20, 12
HEAD = DIM // HEADS


@pytest.fixture
def stories(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import stories260k

    return stories260k


def weights(tied: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Random tensors in the order of the file."""
    draw = np.random.default_rng(0)
    keys = HEAD * KEY_HEADS
    shapes = {
        "embedding": (ENTRIES, DIM),
        "attention_norm": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, keys, DIM),
        "wv": (LAYERS, keys, DIM),
        "wo": (LAYERS, DIM, DIM),
        "ffn_norm": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "norm": (DIM,),
        "cos": (CONTEXT, HEAD // 2),
        "sin": (CONTEXT, HEAD // 2),
        **({} if tied else {"head": (ENTRIES, DIM)}),
    }
    return {name: draw.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def written(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    vocabulary = -ENTRIES if "head" in tensors else ENTRIES
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KEY_HEADS, vocabulary, CONTEXT)
    path.write_bytes(header + b"".join(tensor.tobytes() for tensor in tensors.values()))
    return path


def plain_forward(w: dict[str, np.ndarray[Any, Any]], ids: list[int]) -> np.ndarray[Any, Any]:
    """What llama2.c computes, place by place: neighbouring pairs are turned, keys are shared by groups of heads."""

    def normed(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def turned(x: np.ndarray[Any, Any], place: int) -> np.ndarray[Any, Any]:
        result = x.copy()
        for i in range(0, len(x), 2):
            angle = place * 10_000.0 ** (-(i % HEAD) / HEAD)
            result[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            result[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return result

    keys: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(LAYERS)]
    values: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(LAYERS)]
    logits = []
    for place, token in enumerate(ids):
        x = w["embedding"][token].astype(np.float64)
        for layer in range(LAYERS):
            h = normed(x, w["attention_norm"][layer])
            query = turned(w["wq"][layer] @ h, place)
            keys[layer].append(turned(w["wk"][layer] @ h, place))
            values[layer].append(w["wv"][layer] @ h)
            mixed = []
            for head in range(HEADS):
                own = slice(head * HEAD, (head + 1) * HEAD)
                shared = slice(head // 2 * HEAD, (head // 2 + 1) * HEAD)
                scores = np.array([query[own] @ key[shared] for key in keys[layer]]) / np.sqrt(HEAD)
                chances = np.exp(scores - scores.max())
                chances /= chances.sum()
                mixed.append(sum(c * v[shared] for c, v in zip(chances, values[layer], strict=True)))
            x = x + w["wo"][layer] @ np.concatenate(mixed)
            h = normed(x, w["ffn_norm"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        logits.append(w.get("head", w["embedding"]) @ normed(x, w["norm"]))
    return np.array(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_computes_what_the_checkpoint_means(stories: Any, tmp_path: Path, tied: bool) -> None:
    tensors = weights(tied)
    model = stories.load_model(written(tmp_path / "model.bin", tensors))
    ids = [1, 7, 3, 19, 3, 3, 11, 0, 5]
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0]
    np.testing.assert_allclose(found.numpy(), plain_forward(tensors, ids), rtol=1e-4, atol=1e-4)
    assert model.config.tie_word_embeddings is tied
    assert model.config.max_position_embeddings == CONTEXT


def test_a_file_of_another_size_is_refused(stories: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "model.bin", weights(tied=True))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="its header asks for"):
        stories.load_model(path)


# --- vocabulary ------------------------------------------------------------------------------------------------------


def vocabulary(stories: Any, path: Path, pieces: list[tuple[str, float]]) -> Any:
    """Three marks, 256 bytes, then the given pieces."""
    entries = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), *pieces]
    body = b"".join(struct.pack("<fi", score, len(text.encode())) + text.encode() for text, score in entries)
    path.write_bytes(struct.pack("<i", max(len(text) for text, _ in entries)) + body)
    return stories.Vocabulary.load(path, len(entries))


PIECES = [
    (" ", -1e9),
    ("a", -1e9),
    ("b", -1e9),
    ("ab", -1.0),
    (" a", -2.0),
    (" ab", -3.0),
    ("ba", -0.5),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("ab", [" ab"]),
        ("b", [" ", "b"]),
        ("ab ab", [" ab", " ab"]),
        ("aba", [" a", "ba"]),  # "ba" has the best score and is joined first; "aba" is no entry
        ("bab", [" ", "ba", "b"]),
        ("a  b", [" a", " ", " ", "b"]),
    ],
)
def test_the_pair_with_the_best_score_is_joined_first(
    stories: Any, tmp_path: Path, text: str, expected: list[str]
) -> None:
    made = vocabulary(stories, tmp_path / "tok.bin", PIECES)
    ids = made(text)["input_ids"]
    assert [made.pieces[i].decode() for i in ids] == expected
    assert made(text)["input_ids"] == ids  # from memory this time


def test_unknown_characters_become_bytes(stories: Any, tmp_path: Path) -> None:
    made = vocabulary(stories, tmp_path / "tok.bin", PIECES)
    assert made("aé")["input_ids"] == [259 + 4, 3 + 0xC3, 3 + 0xA9]


def test_a_vocabulary_of_another_size_is_refused(stories: Any, tmp_path: Path) -> None:
    vocabulary(stories, tmp_path / "tok.bin", PIECES)
    with pytest.raises(ValueError, match="entries end after"):
        stories.Vocabulary.load(tmp_path / "tok.bin", 200)


def test_the_published_model_knows_its_stories(stories: Any, shared_data: Path) -> None:
    folder = shared_data / "stories260K"
    if not (folder / "stories260K.bin").is_file():
        pytest.skip(f"{folder} is missing")
    model = stories.load_model(folder / "stories260K.bin")
    made = stories.Vocabulary.load(folder / "tok512.bin", model.config.vocab_size)
    assert not any(b" " in piece[1:] for piece in made.pieces[259:])  # what `Vocabulary` relies on
    ids = torch.tensor([[1, *made("Once upon a time, there was a little girl named Lily.")["input_ids"]]])
    with torch.no_grad():
        told = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
        loss = model(ids, labels=ids).loss
    text = b"".join(made.pieces[i] for i in told.tolist()[1:]).decode()
    assert text.startswith(" Once upon a time, there was a little girl named Lily.")
    assert float(loss) < 1.2  # the published loss on stories like this is 1.3 nats a token
    assert "She " in text
