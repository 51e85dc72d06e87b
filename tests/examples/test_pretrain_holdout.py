"""What the embedded base must not have seen, proven twice: on the record that ships with it, and on the script.

The first tests read `src/tunesmith/models/embedded/base/training_text.hashes` and the real data sets, and skip where
one is missing. The last ones run `examples/pretrain/prepare.py` on a small made-up corpus with planted leaks.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tunesmith.models.training_text import MIN_TEXT, TrainingTextRecord, normalise, text_units

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = PROJECT / "examples" / "pretrain"
RECORD = PROJECT / "src" / "tunesmith" / "models" / "embedded" / "base" / "training_text.hashes"


@pytest.fixture(scope="module")
def sources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_sources", SCRIPTS / "sources.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- the shipped record ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record() -> TrainingTextRecord:
    if not RECORD.is_file():
        pytest.skip(f"no embedded base yet: {RECORD} is missing")
    return TrainingTextRecord.load(RECORD)


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> dict[str, list[dict[str, str]]]:
    path = shared_data / "pretraining" / "instruct.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    found: dict[str, list[dict[str, str]]] = {}
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["source"], []).append(row)
    return found


def telling(row: dict[str, str]) -> Iterator[str]:
    """Everything by which the row could be recognised: prompt, response, and their long lines."""
    yield from text_units(row["prompt"])
    yield from text_units(row["response"])


@pytest.mark.parametrize(("source", "least"), [("tldr", 30_000), ("medquad", 16_000), ("gsm8k", 7_000)])
def test_no_row_of_an_evaluation_source_was_learnt(
    record: TrainingTextRecord, rows: dict[str, list[dict[str, str]]], source: str, least: int
) -> None:
    units = [unit for row in rows[source] for unit in telling(row)]
    assert len(rows[source]) > least
    assert len(units) > least
    # One chance hit in all of these would be a one-in-thousands event.
    assert record.false_positive_probability(len(units)) < 1e-3
    assert record.count(units) == 0


def test_no_held_out_dolly_row_was_learnt(
    record: TrainingTextRecord, rows: dict[str, list[dict[str, str]]], sources: ModuleType
) -> None:
    held_out = [row for row in rows["dolly15k"] if sources.dolly_is_held_out(row["prompt"])]
    assert 0.08 < len(held_out) / len(rows["dolly15k"]) < 0.12
    assert record.count(unit for row in held_out for unit in telling(row)) == 0


def test_kept_dolly_rows_were_learnt(
    record: TrainingTextRecord, rows: dict[str, list[dict[str, str]]], sources: ModuleType
) -> None:
    """Without this, an empty or foreign record would pass the tests above."""
    kept = [row for row in rows["dolly15k"] if not sources.dolly_is_held_out(row["prompt"])]
    prompts = [row["prompt"] for row in kept if len(normalise(row["prompt"])) >= MIN_TEXT]
    # The rest did not fit in the budget or the context, or shares a passage with a held-out row.
    assert len(prompts) > 10_000
    assert record.count(prompts) > 0.5 * len(prompts)


def test_the_published_dolly_rows_obey_the_same_rule(
    record: TrainingTextRecord, shared_data: Path, sources: ModuleType
) -> None:
    path = shared_data / "dolly15k" / "dolly15k.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    held_out = learnt = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        context = row["context"].strip()
        prompt = row["instruction"].strip() + (f"\n\n{context}" if context else "")
        if len(normalise(prompt)) < MIN_TEXT:
            continue
        if sources.dolly_is_held_out(prompt):
            held_out += 1
            assert prompt not in record, f"held-out prompt was learnt: {prompt[:80]!r}"
        else:
            learnt += prompt in record
    assert held_out > 1_000
    assert learnt > 5_000


# --- the script ------------------------------------------------------------------------------------------------------

_ENDINGS = ("er", "ket", "den", "dow", "mer", "ble", "ange", "ton", "tle", "lin")
# Eighty made-up words and as many names.
_WORDS = [a + b for a in ("riv", "sto", "gar", "win", "mar", "let", "sil", "can") for b in _ENDINGS]
_NAMES = [a + b for a in ("Al", "Bor", "Cla", "Dor", "Em", "Fri", "Gef", "Han") for b in _ENDINGS]
_GENUS = {
    "food": "soft cheese made from milk",
    "animal": "large bird of the coast",
    "plant": "tall tree with hard wood",
    "tool": "device for cutting wire",
    "clothing": "warm coat for bad weather",
    "person": "worker who mends roads",
    "illness": "disease of the lungs",
    "building": "house for guests of a town",
}
LEAK = "The old lighthouse keeper counted seventeen ships before breakfast that day."
KEY = "medquadanswer"


def _sentence(rng: random.Random) -> str:
    name = rng.choice(_NAMES)
    body = " ".join(rng.choices(_WORDS, k=rng.randint(7, 14)))
    return f"Then, {name} saw {body}."


def _paragraph(rng: random.Random) -> str:
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, 5)))


def _write(path: Path, text: str) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus in the format of the real one; a held-out text is planted in Wikipedia and in Dolly."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(4)
    articles = []
    for number in range(400):
        paragraphs = [_paragraph(rng) for _ in range(4)] + (["See also", "Notes"] if number % 3 else [])
        if number % 50 == 0:
            paragraphs.insert(1, LEAK)
        articles.append("\n".join([f"Article {number}", *paragraphs]))
    _write(folder / "wiki_body_5k.txt.xz", "\n\n".join(articles))
    chapters = [f"CHAPTER {n}\n\n" + "\n\n".join(_paragraph(rng) for _ in range(30)) for n in range(1, 30)]
    last = "\n\n\n" + "\n\n".join(_paragraph(rng) for _ in range(6))
    _write(folder / "books_simple.txt.xz", "\n\n".join(chapters) + last)
    lines = [
        f"{a}{b} {kind}: (noun) a {genus}, as in \"{a} of {b}\""
        for kind, genus in _GENUS.items()
        for a, b in (rng.sample(_WORDS, 2) for _ in range(40))
    ]  # fmt: skip
    _write(folder / "definitions.txt.xz", "\n".join(lines))
    stories = ["\n\n".join(_sentence(rng) for _ in range(12)) for _ in range(20)]
    _write(folder / "stories_asp_ccby.txt.xz", "\n\n\n".join(stories))
    pairs = [("dolly15k", f"Question {n}?  {_sentence(rng)}", _paragraph(rng)) for n in range(250)]
    pairs += [("dolly15k", f"Question {n}? {_sentence(rng)}\n\n{LEAK}", _sentence(rng)) for n in range(250, 262)]
    passages = [_sentence(rng) for _ in range(60)]
    for template in ("Read this and say who saw it: {}", "{} Who is in the sentence?"):
        pairs += [("t0_open", template.format(p), f"{p.split()[1]}<|endoftext|>") for p in passages]
    pairs += [("medquad", f"What is number {n} of the answers?", f"{KEY} {n}: {_sentence(rng)}") for n in range(50)]
    pairs += [("gsm8k", f"How many ships did he count, version {n}?\n{LEAK}", "#### 17") for n in range(5)]
    pairs += [("tldr", "List files, sorted by the date of change", "ls --sort=time")]
    text = "\n".join(json.dumps({"source": s, "prompt": p, "response": r}) for s, p, r in pairs)
    _write(folder / "instruct.jsonl.xz", text)
    return folder


def _prepare(corpus: Path, out: Path, *options: str | Path, tokens: int = 220_000) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src"), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    done = subprocess.run(
        [
            sys.executable,
            SCRIPTS / "prepare.py",
            "--source",
            corpus,
            "--out",
            out,
            "--tokens",
            str(tokens),
            "--vocab",
            "700",
            *options,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    _prepare(corpus, out)
    return out


def _pairs(corpus: Path) -> list[dict[str, Any]]:
    with lzma.open(corpus / "instruct.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _documents(prepared: Path) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    ids = np.fromfile(prepared / "train.bin", dtype=np.uint16)
    mask = np.fromfile(prepared / "mask.bin", dtype=np.uint8)
    offsets = np.load(prepared / "documents.npy")
    assert offsets[0] == 0 and offsets[-1] == len(ids) == len(mask)
    for start, end in itertools.pairwise(offsets):
        yield ids[start:end], mask[start:end]


@pytest.fixture(scope="module")
def texts(prepared: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    return [tokenizer.decode(ids) for ids, _ in _documents(prepared)]


def test_held_out_rows_are_in_neither_the_tokens_nor_the_record(
    corpus: Path, prepared: Path, texts: list[str], sources: ModuleType
) -> None:
    everything = normalise("\n".join(texts))
    record = TrainingTextRecord.load(prepared / "training_text.hashes")
    pairs = _pairs(corpus)
    dolly = [pair for pair in pairs if pair["source"] == "dolly15k"]
    held_out = [pair for pair in dolly if sources.dolly_is_held_out(pair["prompt"])]
    assert 10 < len(held_out) < 60
    for pair in held_out + [pair for pair in pairs if pair["source"] in {"tldr", "medquad", "gsm8k"}]:
        assert normalise(pair["prompt"]) not in everything
        assert not any(unit in record for unit in telling(pair))
    assert KEY not in everything
    kept = [pair for pair in dolly if not sources.dolly_is_held_out(pair["prompt"]) and LEAK not in pair["prompt"]]
    assert record.count(pair["prompt"] for pair in kept) > 0.9 * len(kept)


def test_a_held_out_line_is_dropped_wherever_else_it_stands(prepared: Path, texts: list[str]) -> None:
    assert not any(LEAK in text for text in texts)
    dropped = json.loads((prepared / "mix.json").read_text())["dropped"]
    assert dropped["wikipedia: paragraph of a held-out row"] >= 6
    assert dropped["dolly15k: shares text with a held-out row"] >= 5


def test_one_sample_per_passage(corpus: Path, prepared: Path, texts: list[str]) -> None:
    asked = {text.partition("<|user|>\n")[2].partition("<|end|>")[0] for text in texts}
    prompts = [pair["prompt"] for pair in _pairs(corpus) if pair["source"] == "t0_open"]
    learnt = [prompt.partition("Then, ")[2].partition(".")[0] for prompt in prompts if prompt in asked]
    # Each of the 60 passages stands in two templates.
    assert len(prompts) == 120
    assert 50 < len(learnt) <= 60
    assert len(set(learnt)) == len(learnt)
    assert not any("endoftext" in text for text in texts)


def test_validation_texts_were_not_learnt(prepared: Path) -> None:
    record = TrainingTextRecord.load(prepared / "training_text.hashes")
    for name in ("wiki", "books"):
        lines = (prepared / f"validation_{name}.txt").read_text(encoding="utf-8").splitlines()
        paragraphs = [line for line in lines if len(line) >= 40 and line != LEAK]
        assert len(paragraphs) >= 5
        assert record.count(paragraphs) == 0


def test_documents_are_whole_and_only_answers_are_learnt_in_half_of_the_conversations(prepared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    assistant, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    answers_only = everything = repeats = 0
    for ids, mask in _documents(prepared):
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) <= 2048
        places = np.flatnonzero(ids == assistant)
        if not len(places) and not mask[1:].all():
            period = int(np.flatnonzero(mask)[0]) - 1
            assert mask[1 + period :].all()
            rows = ids[1:].reshape(-1, period)
            words = [[token.lstrip("Ġ") for token in tokenizer.convert_ids_to_tokens(row)] for row in rows]
            assert len(words) > 1 and all(row == words[0] for row in words)
            repeats += 1
            continue
        if not len(places):
            assert mask[1:].all() and not mask[0]
            continue
        if mask[1:].all():
            everything += 1
            continue
        answers_only += 1
        for place in places:
            stop = place + int(np.flatnonzero(ids[place:] == end)[0])
            # Neither the role nor its line break; everything from the answer's first token to its end mark.
            assert not mask[: places[0] + 2].any()
            assert not mask[place : place + 2].any()
            assert mask[place + 2 : stop + 1].all()
            assert not mask[stop + 1 : stop + 2].any()
    assert 0.35 < answers_only / (answers_only + everything) < 0.65
    assert repeats > 10


def test_the_same_seed_gives_the_same_files(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    _prepare(corpus, tmp_path)
    for name in (
        "train.bin",
        "mask.bin",
        "documents.npy",
        "training_text.hashes",
        "mix.json",
        "tokenizer/tokenizer.json",
    ):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes(), name


def test_a_later_round_adds_text_that_was_not_learnt_yet(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    _prepare(corpus, first, tokens=80_000)
    _prepare(corpus, later, "--after", first, tokens=40_000)
    begun, mix = (json.loads((folder / "mix.json").read_text()) for folder in (first, later))
    assert mix["first_document"] == begun["documents"] and mix["earlier"]["tokens"] == begun["tokens"]
    assert 40_000 <= mix["tokens"] - begun["tokens"] < 43_000
    for name in ("train.bin", "mask.bin"):
        assert (later / name).read_bytes().startswith((first / name).read_bytes())
    assert (later / "tokenizer" / "tokenizer.json").read_bytes() == (
        first / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    from transformers import AutoTokenizer

    def is_paragraph(line: str) -> bool:
        """Whole paragraphs of articles and books; exercises and stories quote single sentences."""
        return line.startswith("Then, ") and line.count("Then, ") > 1 and line.endswith(".")

    tokenizer = AutoTokenizer.from_pretrained(later / "tokenizer")
    texts = [tokenizer.decode(ids) for ids, _ in _documents(later)]
    marks = ("<|user|>", "<|system|>")
    early, late = (
        {line for text in part if not any(m in text for m in marks) for line in text.splitlines() if is_paragraph(line)}
        for part in (texts[: mix["first_document"]], texts[mix["first_document"] :])
    )
    record = TrainingTextRecord.load(first / "training_text.hashes")
    assert len(late) > 20 and record.count(early) > 0.8 * len(early)
    assert record.count(late) == 0
    assert TrainingTextRecord.load(later / "training_text.hashes").count(early) == record.count(early)
