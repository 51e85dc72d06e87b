"""Bits per byte on held-out text: whole documents, near-duplicates, windows, `xz`, intervals."""

from __future__ import annotations

import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import build

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import held_out

    return held_out


class Bytes:
    """A tokenizer of bytes, moved up by three."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + byte for byte in text.encode()]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(i - 3 for i in ids if i > 2).decode()


def document(held_out: Any, ids: list[int]) -> Any:
    return held_out.Document("x" * len(ids), np.array(ids, np.uint16))


# --- documents -------------------------------------------------------------------------------------------------------


def test_documents_are_whole_drawn_by_seed_and_in_order(held_out: Any, tmp_path: Path) -> None:
    texts = [f"{letter * 20}\n\n{letter * 10}" for letter in "abcdefgh"]
    path = tmp_path / "validation.txt"
    path.write_text("\n\n\n".join(texts), encoding="utf-8")
    found = [d.text for d in held_out.read_documents(path, Bytes(), 100, seed=3)]
    assert len(found) == 3
    assert found == [text for text in texts if text in found]
    assert found == [d.text for d in held_out.read_documents(path, Bytes(), 100, seed=3)]
    assert any(found != [d.text for d in held_out.read_documents(path, Bytes(), 100, seed=s)] for s in range(9))
    assert len(held_out.read_documents(path, Bytes(), 1, seed=0)) == 1
    assert len(held_out.read_documents(path, Bytes(), 10**6, seed=0)) == 8


def test_a_document_has_both_marks_and_counts_bytes(held_out: Any) -> None:
    made = held_out.encoded("né", Bytes())
    assert made.ids.tolist() == [1, 3 + ord("n"), 3 + 0xC3, 3 + 0xA9, 2]
    assert made.bytes == 3


def test_near_duplicates_are_found_by_what_they_share(held_out: Any) -> None:
    draw = np.random.default_rng(0)
    training = draw.integers(10, 500, 5000)
    new = draw.integers(10, 500, 200)
    half = np.concatenate([training[1000:1100], new[:100]])
    parts = [new, training[300:500], half, training[20:25]]
    documents = [document(held_out, [1, *part.tolist(), 2]) for part in parts]
    for chunk in (64, 1 << 22):  # a chunk's end hides nothing
        shares = held_out.shared_shares(documents, training.astype(np.uint16), chunk)
        assert shares[0] == 0
        assert shares[1] == 1
        assert shares[2] == pytest.approx(89 / 189)  # 12 tokens in a row, none across the seam
        assert shares[3] == 0  # too short to tell
    assert held_out.shared_shares([], training.astype(np.uint16)) == []


def test_order_and_place_of_tokens_count(held_out: Any) -> None:
    ids = list(range(20, 40))
    turned = document(held_out, [1, *ids[::-1], 2])
    assert held_out.shared_shares([turned], np.array(ids, np.uint16)) == [0]


def test_running_text_is_told_from_conversations_and_random_sequences(held_out: Any) -> None:
    text, chat, repeated = [1, 20, 21, 2], [1, 5, 22, 2, 6, 23, 2], [1, 30, 31, 30, 31]
    learnt = [[0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    ids = np.array(text + chat + repeated, np.uint16)
    offsets = np.cumsum([0, len(text), len(chat), len(repeated)])
    stream = held_out.Stream(ids, offsets, np.concatenate(learnt).astype(np.uint8))
    plain = stream.plain_documents([4, 5, 6])
    assert plain.tolist() == [0]
    some, places = stream.select(np.array([0, 2]))
    assert some.tolist() == text + repeated
    assert places.tolist() == [0, 4, 9]
    assert held_out.training_sample(stream, np.array([0]), Bytes(), 100) == bytes([17, 18]).decode()


# --- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "context"), [(2, 8), (8, 8), (9, 8), (30, 8), (31, 8), (64, 9), (200, 16)])
def test_windows_count_every_token_once_with_enough_before_it(held_out: Any, length: int, context: int) -> None:
    counted: list[int] = []
    for start, new, end in held_out.windows(length, context):
        assert 1 <= start <= new < end <= length
        assert end - start + 1 <= context  # the begin mark is read too
        assert start == 1 or new - start == (context - 1) // 2
        counted += range(new, end)
    assert counted == list(range(1, length))


def test_bits_are_those_of_a_single_pass_where_the_context_is_long_enough(held_out: Any) -> None:
    model = build("llama")
    ids = [1, *np.random.default_rng(0).integers(3, 250, 60).tolist(), 2]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum") / math.log(2)
    bits = held_out.model_bits(model, [document(held_out, ids), document(held_out, ids[:10])])
    assert bits[0] == pytest.approx(float(expected), rel=1e-5)
    assert 0 < bits[1] < bits[0]


def test_long_documents_are_read_in_windows_that_begin_like_documents(held_out: Any) -> None:
    model = build("llama")
    model.config.max_position_embeddings = 16
    ids = [1, *np.random.default_rng(1).integers(3, 250, 40).tolist(), 2]
    total = 0.0
    for start, new, end in held_out.windows(len(ids), 16):
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([[1, *ids[start:end]]])).logits[0], -1)
        total -= sum(float(scores[i - start, ids[i]]) for i in range(new, end)) / math.log(2)
    assert held_out.model_bits(model, [document(held_out, ids)])[0] == pytest.approx(total, rel=1e-5)


def test_xz_is_that_of_the_command_and_knows_what_stood_before(held_out: Any) -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 3000)))
    alone = held_out.compressed_bytes(text)
    assert alone == len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    other = text[::-1]
    assert held_out.compressed_bytes(text, after=text) < 100
    assert held_out.compressed_bytes(text, after=other) > 0.8 * alone


# --- intervals -------------------------------------------------------------------------------------------------------


def test_differences_are_paired_over_documents(held_out: Any) -> None:
    draw = np.random.default_rng(0)
    reference = draw.uniform(100, 10_000, 40)
    ours = 0.85 * reference * draw.uniform(0.98, 1.02, 40)
    found = held_out.difference(ours, reference, 0)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(-0.15, abs=0.01)
    assert found.high - found.low < 0.02  # unpaired it would be as wide as the documents are different
    assert found == held_out.difference(ours, reference, 0)
    assert held_out.difference(reference, reference, 0).rounded() == [0, 0, 0]


def test_bits_per_byte_weigh_bytes_and_not_documents(held_out: Any) -> None:
    bits, sizes = np.array([10.0] * 7 + [3000.0]), np.array([10.0] * 7 + [1000.0])
    found = held_out.per_byte(bits, sizes, 0)
    assert found.value == pytest.approx(3070 / 1070)
    assert found.low == pytest.approx(1)  # a third of the resamples do without the long one
    assert 2.9 < found.high < 3


def test_few_documents_have_no_interval(held_out: Any) -> None:
    few = np.arange(1.0, 8.0)
    assert held_out.per_byte(2 * few, few, 0).rounded() == [2, None, None]
    assert held_out.difference(2 * few, few, 0).rounded() == [1, None, None]
