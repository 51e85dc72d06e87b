"""The whole evaluation of the base, on a small random model and a prepared folder of a few documents."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"
MARKS = ("<|pad|>", "<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer() -> Any:
    """Byte-level BPE that has learnt the invented words, and the marks that `prepare.py` uses."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([prose(99, 50)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=MARKS[0],
        bos_token=MARKS[1],
        eos_token=MARKS[5],
        additional_special_tokens=list(MARKS[2:5]),
    )
    fast.chat_template = TEMPLATE
    return fast


def prose(seed: int, sentences: int) -> str:
    """Sentences of invented words, some of them frequent."""
    draw = np.random.default_rng(seed)
    syllables = ["bar", "lin", "tor", "gam", "sed", "mul", "pek", "ron", "dax", "vit"]
    words = [a + b for a in syllables for b in syllables] + [a + b + "s" for a in syllables for b in syllables]
    chosen = [words[min(int(draw.zipf(1.2)), len(words)) - 1] for _ in range(6 * sentences)]
    chosen += words * 3
    draw.shuffle(chosen)
    return " ".join(chosen) + "."


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare.py` writes, as far as evaluation reads it, and a model folder."""
    folder = tmp_path_factory.mktemp("prepared")
    made = tokenizer()
    documents, masks = [], []
    for seed in range(12):
        ids = [1, *made(prose(seed, 5), add_special_tokens=False)["input_ids"], 5]
        documents.append(ids)
        masks.append([0, *[1] * (len(ids) - 1)])
    documents.append([1, 3, *made("Repeat this.")["input_ids"], 5, 4, *made("No.")["input_ids"], 5])
    masks.append([0] * (len(documents[-1]) - 4) + [1] * 4)
    np.array([i for ids in documents for i in ids], np.uint16).tofile(folder / "train.bin")
    np.array([m for mask in masks for m in mask], np.uint8).tofile(folder / "mask.bin")
    np.save(folder / "documents.npy", np.cumsum([0, *map(len, documents)]))
    copied = prose(0, 5)  # the first training document once more
    (folder / "validation_books.txt").write_text("\n\n\n".join([prose(20, 9), prose(21, 3)]), encoding="utf-8")
    (folder / "validation_wiki.txt").write_text("\n\n\n".join([prose(22, 9), copied]), encoding="utf-8")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(made),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=5,
            pad_token_id=0,
        )
    ).save_pretrained(folder / "model")
    made.save_pretrained(folder / "model")
    made.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The script with some options, in this process; returns what it printed."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import evaluate

    def call(model: Path, *options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(model), *options])
        evaluate.main()
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return call


def test_everything_is_measured_and_written(evaluated: Any, prepared: Path, tmp_path: Path) -> None:
    lines = []
    for step in range(1, 7):
        tokens, loss = 1000 * step, 2 + 20 * (1000 * step) ** -0.3
        facts = {"tokens_per_second": tokens, "seconds": 1, "learning_rate": 1e-3}
        lines.append(json.dumps({"kind": "train_step", "step": step, **facts}))
        lines.append(json.dumps({"kind": "validation", "step": step, "loss": loss}))
    (tmp_path / "run.log").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    options = ["--shared", str(tmp_path), "--questions", "8", "--log", str(tmp_path / "run.log"), "--out", str(out)]
    report = evaluated(prepared / "model", "--data", str(prepared), *options)
    assert report == json.loads((out / "evaluation.json").read_text(encoding="utf-8"))

    wiki, books = (report["language"]["texts"][name] for name in ("wiki", "books"))
    assert [one["begins"] for one in wiki["dropped_documents"]] == [prose(0, 5)[:60]]
    assert wiki["dropped_documents"][0]["shared"] == 1
    assert (wiki["documents"], books["documents"], books["dropped_documents"]) == (1, 2, [])
    assert books["bytes"] == sum(len(prose(*which).encode()) for which in ((20, 9), (21, 3)))
    for one in (wiki, books):
        ours = one["bits_per_byte"][0]
        better = min(one["ngram"].values())[0]
        assert ours == pytest.approx(math.log2(900) * one["tokens"] / one["bytes"], rel=0.1)  # nothing was learnt
        assert 0.3 < better < 0.9 * ours
        assert one["against_ngram"][0] == pytest.approx(ours / better - 1, abs=1e-3)
        assert one["xz_added_to_training_text"] < one["xz_alone"] < 8
        assert one["reached"] is False
    assert (
        report["language"]["ngram"]["running text"]["tokens"] < report["language"]["ngram"]["all documents"]["tokens"]
    )
    assert len(report["language"]["ngram"]["all documents"]["different_by_order"]) == 5

    assert report["copying"]["repeat"]["n"] == 8
    assert report["copying"]["repeat"]["value"] == 0
    assert report["copying"]["reached"] is False
    assert report["stories"] is None  # stories260K is not there
    assert report["curve"]["law"]["exponent"] == pytest.approx(0.3, abs=0.02)
    page = (out / "evaluation.md").read_text(encoding="utf-8")
    assert page.count("**not reached**") == 3
    assert "1 documents dropped" in page
    assert (out / "curve.svg").read_text(encoding="utf-8").startswith("<svg")


def test_parts_can_be_asked_for_and_stories_are_compared(evaluated: Any, prepared: Path, shared_data: Path) -> None:
    if not (shared_data / "stories260K" / "stories260K.bin").is_file():
        pytest.skip(f"{shared_data}/stories260K is missing")
    options = ["--data", str(prepared), "--shared", str(shared_data), "--only", "stories"]
    report = evaluated(prepared / "model", *options)
    assert set(report) == {"parameters", "seed", "seconds", "stories"}
    models_ = report["stories"]["models"]
    assert models_["stories260K"]["parameters"] == 260_032
    assert 0.7 < models_["stories260K"]["bits_per_byte"][0] < 1.6
    assert models_["base"]["bits_per_byte"][0] > 3


def test_ids_of_another_tokenizer_are_refused(evaluated: Any, prepared: Path, tmp_path: Path) -> None:
    other = tmp_path / "prepared"
    shutil.copytree(prepared, other)
    made = json.loads((other / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    made["model"]["merges"] = made["model"]["merges"][:-1]
    (other / "tokenizer" / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(SystemExit, match="prepared with another tokenizer"):
        evaluated(prepared / "model", "--data", str(other), "--only", "language")


def test_a_folder_that_was_not_prepared_is_refused(
    evaluated: Any, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluated(prepared / "model", "--data", str(tmp_path))
    assert ended.value.code == 2
    assert "prepare.py writes them" in capsys.readouterr().err
