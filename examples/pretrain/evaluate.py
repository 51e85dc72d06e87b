"""How good a small base is: at language, against simpler yardsticks, and at using what stands in its prompt.

    python examples/pretrain/evaluate.py work/pretrain/run/model --data work/pretrain --out work/pretrain/evaluation
    … --only copying                    # or language, stories, curve; default: all there is data for
    … --log work/pretrain/run.log       # what train.py printed, for the curve

`--data` is the folder that `prepare.py` wrote. Prints one JSON object; with `--out` also writes `evaluation.json`,
`evaluation.md` and `curve.svg`. Parts:

- **language** (`held_out.py`, `ngram.py`): bits per byte on whole held-out documents of Wikipedia and books, after
  near-duplicates of training text were dropped; against an interpolated Kneser-Ney model of the training tokens, and
  `xz -9e` of the same text, alone and as what it adds to a file of training text. The n-gram model is counted twice,
  over all training documents and over running text only (without conversations and exercises); the better one counts.
- **copying** (`copying.py`): lists of eight random words repeated on request, turned into JSON, a value looked up by
  its key; how well the second reading of a random sequence is foreseen (induction).
- **stories** (`stories260k.py`): bits per byte on simple stories written for this test, beside the published model
  stories260K.
- **curve** (`curve.py`): held-out loss against tokens learnt, and a power law through it.

The same folders and seed give the same numbers. With 16 million training tokens it took less than six minutes on one
core, most of it the n-grams and `xz`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import copying
import curve
import held_out
import ngram
import numpy as np
import stories260k
import torch
from evaluation_page import COPIED, MARGIN, page
from held_out import Document, Stream
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, on which folders, and how much of it."""

    folder: Path
    model: Any
    tokenizer: Any
    data: Path
    shared: Path
    logs: tuple[Path, ...]
    most_bytes: int
    sample_bytes: int
    order: int
    questions: int
    seed: int


def language(subject: Subject) -> dict[str, Any]:
    """Every held-out text of the prepared folder under the model, n-grams and `xz`."""
    tokenizer, seed = subject.tokenizer, subject.seed
    _require_same_tokens(subject)
    stream = Stream.open(subject.data)
    texts = {
        path.stem.removeprefix("validation_"): held_out.read_documents(path, tokenizer, subject.most_bytes, seed)
        for path in sorted(subject.data.glob("validation_*.txt"))
    }
    kept, dropped = _without_duplicates(texts, stream)
    plain = stream.plain_documents(_role_ids(tokenizer))
    everything = [document for documents in kept.values() for document in documents]
    counted = {
        "all documents": (stream.ids, stream.offsets),
        "running text": stream.select(plain),
    }
    ngrams: dict[str, tuple[held_out.Float, tuple[ngram.Order, ...]]] = {}
    for name, (ids, offsets) in counted.items():
        measured = ngram.measure(
            ids,
            offsets,
            [document.ids for document in everything],
            vocabulary=len(tokenizer),
            bos=tokenizer.bos_token_id,
            order=subject.order,
        )
        ngrams[name] = (_by_document(measured.bits, everything), measured.orders)
    sample = held_out.training_sample(stream, plain, tokenizer, subject.sample_bytes)
    results = {}
    start = 0
    for name, documents in kept.items():
        part = slice(start, start + len(documents))
        start += len(documents)
        counts = {which: bits[part] for which, (bits, _) in ngrams.items()}
        results[name] = _one_text(subject, documents, counts, sample) | {"dropped_documents": dropped[name]}
    return {
        "texts": results,
        "ngram": {
            which: {
                "tokens": int(counted[which][1][-1]),
                "different_by_order": [order.ngrams for order in orders],
                "discounts_by_order": [[round(d, 4) for d in order.discounts] for order in orders],
                "discounts_not_estimated": [n for n, order in enumerate(orders, 1) if not order.estimated],
            }
            for which, (_, orders) in ngrams.items()
        },
        "xz_sample_bytes": len(sample.encode()),
    }


def _one_text(
    subject: Subject, documents: Sequence[Document], counts: Mapping[str, held_out.Float], sample: str
) -> dict[str, Any]:
    seed = subject.seed
    sizes = np.array([document.bytes for document in documents], float)
    bits = held_out.model_bits(subject.model, documents)
    best = min(counts, key=lambda which: float(counts[which].sum()))
    text = "\n\n\n".join(document.text for document in documents)
    alone = 8 * held_out.compressed_bytes(text) / sizes.sum()
    added = 8 * held_out.compressed_bytes(text, after=sample) / sizes.sum()
    below = held_out.difference(bits, counts[best], seed)
    own = held_out.per_byte(bits, sizes, seed)
    return {
        "documents": len(documents),
        "bytes": int(sizes.sum()),
        "tokens": sum(len(document.ids) - 1 for document in documents),
        "bits_per_byte": own.rounded(),
        "ngram": {which: held_out.per_byte(found, sizes, seed).rounded() for which, found in counts.items()},
        "against_ngram": below.rounded(),
        "xz_alone": round(float(alone), 4),
        "xz_added_to_training_text": round(float(added), 4),
        "reached": bool(below.value <= -MARGIN and own.value < min(alone, added)),
    }


def _without_duplicates(
    texts: Mapping[str, Sequence[Document]], stream: Stream
) -> tuple[dict[str, list[Document]], dict[str, list[dict[str, Any]]]]:
    """The documents that training text does not repeat, and the others by their beginning."""
    everything = [document for documents in texts.values() for document in documents]
    shares = iter(held_out.shared_shares(everything, stream.ids))
    kept: dict[str, list[Document]] = {name: [] for name in texts}
    dropped: dict[str, list[dict[str, Any]]] = {name: [] for name in texts}
    for name, documents in texts.items():
        for document in documents:
            share = next(shares)
            if share <= held_out.MOST_SHARED:
                kept[name].append(document)
            else:
                beginning = " ".join(document.text.split())[:60]
                dropped[name].append({"begins": beginning, "bytes": document.bytes, "shared": round(share, 3)})
        if not kept[name]:
            raise SystemExit(f"all documents of validation_{name}.txt stand in the training text: {dropped[name]}")
    return kept, dropped


def _require_same_tokens(subject: Subject) -> None:
    """End here where the prepared ids are not those of the model's tokenizer: n-grams of them would mean nothing."""
    prepared = AutoTokenizer.from_pretrained(subject.data / "tokenizer")
    own, other = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (subject.tokenizer, prepared))
    if own != other:
        raise SystemExit(
            f"{subject.data} was prepared with another tokenizer than that of {subject.folder}; "
            "give the --data that this model was trained on, or --only copying stories"
        )


def _by_document(bits: held_out.Float, documents: Sequence[Document]) -> held_out.Float:
    """Sums of bits by document; each has one value less than ids, as the begin mark is given."""
    ends = np.cumsum([len(document.ids) - 1 for document in documents])
    return np.add.reduceat(bits, np.concatenate([[0], ends[:-1]]))


def _role_ids(tokenizer: Any) -> list[int]:
    found = [tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")]
    if None in found or tokenizer.unk_token_id in found:
        raise SystemExit("the tokenizer has no marks of roles; is it the one that prepare.py wrote?")
    return found


def copy_tests(subject: Subject) -> dict[str, Any]:
    """Copying from the prompt; words are common ones of the held-out texts."""
    rng = Random(subject.seed)
    texts = [path.read_text(encoding="utf-8") for path in sorted(subject.data.glob("validation_*.txt"))]
    words = copying.common_words(texts)
    if len(words) < 200:
        raise SystemExit(f"only {len(words)} common words in {subject.data}/validation_*.txt; expected at least 200")
    model, tokenizer, count = subject.model, subject.tokenizer, subject.questions
    asked = {
        "repeat": copying.repeat_questions(words, count, rng),
        "to_json": copying.json_questions(words, count, rng),
        "look_up": copying.look_up_questions(words, count, rng),
    }
    shares = {name: copying.share_exact(model, tokenizer, questions) for name, questions in asked.items()}
    sequences = {
        "words": copying.word_sequences(words, tokenizer, 100, rng),
        "tokens": copying.token_sequences(tokenizer, 100, rng),
    }
    return {
        **{name: share.as_json() for name, share in shares.items()},
        "induction": {name: copying.induction(model, tokenizer, found) for name, found in sequences.items()},
        "reached": shares["repeat"].value >= COPIED,
    }


def stories(subject: Subject) -> dict[str, Any] | None:
    """Both models on the same stories; None where stories260K is not there."""
    folder = subject.shared / "stories260K"
    if not (folder / "stories260K.bin").is_file():
        return None
    tiny = stories260k.load_model(folder / "stories260K.bin")
    vocabulary = stories260k.Vocabulary.load(folder / "tok512.bin", tiny.config.vocab_size)
    path = HERE / "simple_stories.txt"
    measured = {}
    for name, model, tokenizer in (("base", subject.model, subject.tokenizer), ("stories260K", tiny, vocabulary)):
        documents = held_out.read_documents(path, tokenizer, 10**9, subject.seed)
        sizes = np.array([document.bytes for document in documents], float)
        measured[name] = (held_out.model_bits(model, documents), sizes, model.num_parameters())
    return {
        "documents": len(measured["base"][0]),
        "bytes": int(measured["base"][1].sum()),
        "models": {
            name: {"parameters": parameters, "bits_per_byte": held_out.per_byte(bits, sizes, subject.seed).rounded()}
            for name, (bits, sizes, parameters) in measured.items()
        },
        "base_against_stories260K": held_out.difference(
            measured["base"][0], measured["stories260K"][0], subject.seed
        ).rounded(),
    }


def training_curve(subject: Subject) -> dict[str, Any] | None:
    """The power law of the training's logs; None without logs."""
    if not subject.logs:
        return None
    points = curve.read_points(subject.logs)
    if len(points) < 5:
        raise SystemExit(f"{len(points)} validation events in the logs, expected 5 or more (train.py --evaluations)")
    return curve.summary(points, curve.fit(curve.at_peak(points), subject.seed), subject.seed)


PARTS: Mapping[str, Callable[[Subject], dict[str, Any] | None]] = {
    "copying": copy_tests,
    "stories": stories,
    "language": language,
    "curve": training_curve,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("TUNESMITH_TEST_DATA", "../shared/data"))
    parser.add_argument("model", type=Path, help="folder of the model and its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--shared", type=Path, default=shared, help="folder with stories260K")
    parser.add_argument("--log", type=Path, nargs="+", default=[], help="what train.py printed, one file a stage")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json, evaluation.md, curve.svg")
    parser.add_argument("--bytes", type=int, default=500_000, help="at most so many bytes of each held-out text")
    parser.add_argument("--xz-sample", type=int, default=16_000_000, help="bytes of training text put before it for xz")
    parser.add_argument("--order", type=int, default=5, help="longest n-grams")
    parser.add_argument("--questions", type=int, default=240, help="questions of each copying test")
    parser.add_argument("--threads", type=int, help="threads of the model; default: torch's own")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not list(options.data.glob("validation_*.txt")):
        parser.error(f"no validation_*.txt in {options.data}; prepare.py writes them")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    subject = Subject(
        folder=options.model,
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(options.model),
        data=options.data,
        shared=options.shared,
        logs=tuple(options.log),
        most_bytes=options.bytes,
        sample_bytes=options.xz_sample,
        order=options.order,
        questions=options.questions,
        seed=options.seed,
    )
    report: dict[str, Any] = {"parameters": model.num_parameters(), "seed": options.seed, "seconds": {}}
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        report[name] = PARTS[name](subject)
        report["seconds"][name] = round(time.monotonic() - began, 1)
    print(json.dumps(report, indent=2))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (options.out / "evaluation.md").write_text(page(report), encoding="utf-8")
        if report.get("curve") is not None:
            points = curve.read_points(options.log)
            drawn = curve.picture(points, curve.fit(curve.at_peak(points), options.seed), "Held-out loss of the base")
            (options.out / "curve.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
