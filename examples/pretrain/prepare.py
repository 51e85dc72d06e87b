"""From raw texts to a tokenizer and a file of token ids in training order.

    python examples/pretrain/prepare.py --out work/pretrain
    python examples/pretrain/prepare.py --out work/more --after work/pretrain --tokens 8000000   # add to it, later

1. Read and clean (`sources.py`), keep out what will be measured on (whole sources, a tenth of Dolly, one in a hundred
   articles, the last stories of the books), and drop every unit of text that also stands in something kept out.
2. Train a byte-level BPE tokenizer on a sample.
3. Mix the sources by their shares of tokens: at every step the source furthest behind its plan gives the next document.
   Plans of plain text fall and those of instructions and exercises rise over the last third, because what is learnt
   last is kept best.
4. Write ids, document offsets, which tokens are learnt, validation texts, the record of the training text, `mix.json`.

With `--after` the stream of an earlier folder is kept, with its tokenizer, and continued by running text that does not
stand in it and by more of the small sources: for a second round of training (`train.py --from`) without starting over.

Runs in about two minutes and 1.2 GB on one core; the same seed and sources give the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exercises
import numpy as np
import sources
from stream import ChatLane, Encoder, Lane, RepeatLane, Stream, Tally, TextLane, train_tokenizer, write_stream
from transformers import AutoTokenizer

from tunesmith.models.training_text import TrainingTextRecord, text_hash, text_units

# Shares of the tokens. Wikipedia for facts and names, books and stories for plain English, definitions for words; the
# next three teach the chat template, reading a passage and copying from the prompt; repeats are random tokens that
# come again.
SHARES = {
    "wikipedia": 0.33,
    "books": 0.17,
    "definitions": 0.04,
    "stories": 0.02,
    "dolly": 0.12,
    "t0_open": 0.05,
    "exercises": 0.25,
    "repeats": 0.02,
}
# The same for what is added later: more of the books, which the first round left furthest behind.
LATER_SHARES = {
    "wikipedia": 0.32,
    "books": 0.27,
    "definitions": 0.02,
    "stories": 0.02,
    "dolly": 0.09,
    "t0_open": 0.03,
    "exercises": 0.22,
    "repeats": 0.03,
}
# Of the conversations, those in the first three quarters; the learning rate falls in the last. When 84 % of the last
# quarter was conversations, the loss on held-out text rose at its beginning, so what is added later shifts less.
EARLY, LATER_EARLY = 0.5, 0.66
# How often a small source may be learnt at most.
MAX_REPEATS = {"stories": 3, "dolly": 3, "t0_open": 2}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Cleaned texts to learn from, in order, and the validation texts."""

    wiki: list[sources.Paragraphs]
    books: list[sources.Paragraphs]
    definitions: list[str]
    stories: list[sources.Paragraphs]
    dolly: list[sources.Pair]
    t0_open: list[sources.Pair]
    validation_wiki: list[sources.Paragraphs]
    validation_books: list[sources.Paragraphs]
    dropped: dict[str, int]


_VIOLENT = re.compile(r"\b(rap(e[ds]?|ing|ists?)|incest\w*|porn\w*|molest\w*)\b", re.IGNORECASE)


def read_corpus(folder: Path, rng: random.Random, learnt: TrainingTextRecord | None = None) -> Corpus:
    """Read, clean, hold out, and drop whatever also stands in a held-out row, and running text learnt already."""
    pairs = list(sources.read_pairs(folder / "instruct.jsonl.xz"))
    held_out = [p for p in pairs if p.source in sources.HELD_OUT_SOURCES]
    held_out += [p for p in pairs if p.source == "dolly15k" and sources.dolly_is_held_out(p.prompt)]
    forbidden = {text_hash(u) for p in held_out for text in (p.prompt, p.response) for u in text_units(text)}
    dropped: Counter[str] = Counter()

    def clean_pairs(source: str) -> Iterator[sources.Pair]:
        for pair in pairs:
            if pair.source != source or not pair.prompt or not pair.response:
                continue
            if source == "dolly15k" and sources.dolly_is_held_out(pair.prompt):
                continue
            if any(text_hash(u) in forbidden for text in (pair.prompt, pair.response) for u in text_units(text)):
                dropped[f"{source}: shares text with a held-out row"] += 1
            elif source == "t0_open" and _VIOLENT.search(pair.prompt):
                dropped[f"{source}: sexual violence (film plots)"] += 1
            else:
                yield pair

    def allowed(source: str, paragraphs: sources.Paragraphs) -> sources.Paragraphs:
        kept = [p for p in paragraphs if text_hash(p) not in forbidden]
        dropped[f"{source}: paragraph of a held-out row"] += len(paragraphs) - len(kept)
        return kept if learnt is None or source in MAX_REPEATS else [p for p in kept if p not in learnt]

    articles = list(sources.read_wiki(folder / "wiki_body_5k.txt.xz"))
    wiki = [allowed("wikipedia", text) for title, text in articles if not sources.one_percent(title)]
    books, validation_books = sources.read_books(folder / "books_simple.txt.xz")
    stories = sources.read_stories(folder / "stories_asp_ccby.txt.xz")
    corpus = Corpus(
        wiki=[text for text in wiki if len(text) > 1],
        books=[text for text in (allowed("books", chapter) for chapter in books) if text],
        definitions=allowed("definitions", sources.read_definitions(folder / "definitions.txt.xz")),
        stories=[text for text in (allowed("stories", story) for story in stories) if text],
        dolly=list(clean_pairs("dolly15k")),
        t0_open=sources.one_per_passage(clean_pairs("t0_open")),
        validation_wiki=[text for title, text in articles if sources.one_percent(title)],
        validation_books=validation_books,
        dropped={},
    )
    for part in (corpus.wiki, corpus.books, corpus.definitions, corpus.stories, corpus.dolly, corpus.t0_open):
        rng.shuffle(part)  # type: ignore[arg-type]
    corpus.dropped.update(dropped)
    return corpus


def tokenizer_sample(corpus: Corpus, made: Sequence[exercises.Conversation]) -> Iterator[str]:
    """About 22 million characters in nearly the proportions of the mix."""
    yield from take(("\n".join(text) for text in corpus.wiki), 8_500_000)
    yield from take(("\n\n".join(text) for text in corpus.books), 5_000_000)
    yield from take((f"{p.prompt}\n{p.response}" for p in corpus.dolly + corpus.t0_open), 5_500_000)
    yield from take(corpus.definitions, 1_200_000)
    yield from take(("\n".join(text) for text in corpus.stories), 300_000)
    yield from take(("\n".join(text for _, text in turns) for turns in made), 1_500_000)


def take(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until so many characters have gone by."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def conversations_of(
    pairs: Sequence[sources.Pair], repeats: int, rng: random.Random
) -> Iterator[exercises.Conversation]:
    """Each pair once per round, in a new order every round."""
    for _ in range(repeats):
        for pair in rng.sample(list(pairs), len(pairs)):
            yield ("user", pair.prompt), ("assistant", pair.response)


def make_lanes(encoder: Encoder, corpus: Corpus, pool: exercises.Pool, rng: random.Random) -> dict[str, Lane]:
    def endless_exercises() -> Iterator[exercises.Conversation]:
        own = random.Random(rng.getrandbits(64))
        while True:
            yield exercises.make_exercise(own, pool)

    def fork() -> random.Random:
        return random.Random(rng.getrandbits(64))

    order = fork()
    rounds = (
        story for _ in range(MAX_REPEATS["stories"]) for story in order.sample(corpus.stories, len(corpus.stories))
    )
    # Unrelated definitions stand together; a chunk holds about twenty.
    groups = (corpus.definitions[i : i + 400] for i in range(0, len(corpus.definitions), 400))
    return {
        "wikipedia": TextLane(encoder, corpus.wiki, "\n"),
        "books": TextLane(encoder, corpus.books, "\n\n"),
        "definitions": TextLane(encoder, groups, "\n"),
        "stories": TextLane(encoder, rounds, "\n\n"),
        "dolly": ChatLane(encoder, conversations_of(corpus.dolly, MAX_REPEATS["dolly"], fork()), fork()),
        "t0_open": ChatLane(encoder, conversations_of(corpus.t0_open, MAX_REPEATS["t0_open"], fork()), fork()),
        "exercises": ChatLane(encoder, endless_exercises(), fork()),
        "repeats": RepeatLane(encoder, fork()),
    }


def affordable_shares(planned: dict[str, float], encoder: Encoder, corpus: Corpus, budget: int) -> dict[str, float]:
    """The planned shares, cut where a source has too little text; what is cut goes to the nearest of its kind."""
    shares = dict(planned)

    def cut(name: str, texts: Sequence[str], heir: str) -> None:
        sample = texts[:: max(1, len(texts) // 1000)]
        per_character = sum(map(len, encoder.encode(sample))) / max(1, sum(map(len, sample)))
        # 3 % less than there is: some documents are too long or end up unused.
        most = 0.97 * MAX_REPEATS[name] * per_character * sum(map(len, texts)) / budget
        surplus = max(0.0, shares[name] - most)
        shares[name] -= surplus
        shares[heir] += surplus

    cut("stories", ["\n".join(text) for text in corpus.stories], "books")
    cut("t0_open", [f"{p.prompt} {p.response}" for p in corpus.t0_open], "dolly")
    cut("dolly", [f"{p.prompt} {p.response}" for p in corpus.dolly], "wikipedia")
    return shares


def sentences_of(corpus: Corpus, rng: random.Random) -> Iterator[str]:
    """Sentences for exercises, from texts of the training side, whether or not the budget reaches them."""
    for texts, count in ((corpus.wiki, 1500), (corpus.books, 300), (corpus.stories, 300)):
        for text in rng.sample(texts, min(count, len(texts))):
            for paragraph in text:
                yield from re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph.replace("\n", " "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("TUNESMITH_TEST_DATA", "../shared/data"))
    parser.add_argument("--source", type=Path, default=data / "pretraining", help="folder of the raw texts")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokens", type=int, default=28_000_000, help="tokens to write")
    parser.add_argument("--vocab", type=int, default=8192, help="size of the vocabulary")
    parser.add_argument("--after", type=Path, help="folder of an earlier run whose stream is kept and continued")
    parser.add_argument("--seed", type=int, help="order of the documents, exercises; default 1, with --after 2")
    options = parser.parse_args()
    if not (options.source / "wiki_body_5k.txt.xz").is_file():
        parser.error(f"no texts in {options.source}; name their folder with --source or TUNESMITH_TEST_DATA")
    if options.after is not None and not (options.after / "mix.json").is_file():
        parser.error(f"no mix.json in {options.after}; --after takes a folder that this script wrote")
    if (options.out / "mix.json").is_file():
        parser.error(f"{options.out} is prepared already; give another folder, or remove it")
    seed = options.seed if options.seed is not None else 2 if options.after else 1
    prepare(options.source, options.out, options.tokens, options.vocab, seed, options.after)


def begin(out: Path, after: Path | None) -> tuple[Stream, dict[str, Any]]:
    """What the stream holds before anything is added, and its `mix.json`; without an earlier folder it is empty."""
    for name in ("train.bin", "mask.bin"):
        (out / name).write_bytes(b"" if after is None else (after / name).read_bytes())
    if after is None:
        return Stream(), {}
    mix = json.loads((after / "mix.json").read_text(encoding="utf-8"))
    counted = [field.name for field in dataclasses.fields(Tally)]
    return Stream(
        offsets=np.load(after / "documents.npy").tolist(),
        tallies={name: Tally(**{key: found[key] for key in counted}) for name, found in mix["sources"].items()},
        units={int(unit) for unit in TrainingTextRecord.load(after / "training_text.hashes").hashes},
    ), mix


def prepare(source: Path, out: Path, budget: int, vocabulary: int, seed: int, after: Path | None) -> None:
    """All steps, with the seconds each took on stdout."""
    began = time.monotonic()

    def done(step: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {step}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    begun, earlier = begin(out, after)
    first = len(begun.offsets) - 1
    corpus = read_corpus(source, rng, TrainingTextRecord.from_hashes(begun.units) if after else None)
    done(
        f"read and cleaned: {len(corpus.wiki):,} articles, {len(corpus.books):,} chapters, "
        f"{len(corpus.dolly):,} Dolly rows, {len(corpus.t0_open):,} t0_open rows"
    )
    pool = exercises.make_pool(sentences_of(corpus, rng), corpus.definitions, rng)
    done(
        f"exercise pool: {len(pool.words):,} words, {len(pool.names):,} names, {len(pool.sentences):,} sentences, "
        + ", ".join(f"{len(found):,} {kind}" for kind, found in pool.kinds.items())
    )
    made = [exercises.make_exercise(rng, pool) for _ in range(6000)]
    if after is None:
        tokenizer = train_tokenizer(tokenizer_sample(corpus, made), vocabulary)
    else:
        tokenizer = AutoTokenizer.from_pretrained(after / "tokenizer")
    tokenizer.save_pretrained(out / "tokenizer")
    encoder = Encoder(tokenizer)
    for turns in [*conversations_of(corpus.dolly[:100], 1, rng), *(t for t in made[:200] if t[0][0] != "text")]:
        encoder.check_against_template(turns)
    done(f"tokenizer of {len(tokenizer):,} entries")
    shares = affordable_shares(LATER_SHARES if after else SHARES, encoder, corpus, budget)
    lanes = make_lanes(encoder, corpus, pool, rng)
    stream = write_stream(lanes, shares, budget, out, LATER_EARLY if after else EARLY, begun)
    done(f"{stream.offsets[-1]:,} tokens in {len(stream.offsets) - 1:,} documents")
    record = TrainingTextRecord.from_hashes(stream.units)
    record.save(out / "training_text.hashes")
    for name, texts, joint in (("wiki", corpus.validation_wiki, "\n"), ("books", corpus.validation_books, "\n\n")):
        (out / f"validation_{name}.txt").write_text("\n\n\n".join(joint.join(t) for t in texts), encoding="utf-8")
    summary = {
        "seed": seed,
        "vocabulary": len(tokenizer),
        "tokens": stream.offsets[-1],
        "documents": len(stream.offsets) - 1,
        "first_document": first,
        "earlier": {key: earlier[key] for key in ("seed", "tokens", "documents", "first_document") if key in earlier},
        "recorded_units": len(record),
        "sources": {
            name: {
                **dataclasses.asdict(tally),
                "share": round(tally.tokens / stream.offsets[-1], 4),
                "planned_share": round(shares[name], 4),
            }
            for name, tally in stream.tallies.items()
        },
        "held_out": {
            "sources": sorted(sources.HELD_OUT_SOURCES),
            "dolly": f"first byte of sha256(tidied prompt) below {sources.HELD_OUT_DOLLY_BYTES}",
            "wikipedia_articles": len(corpus.validation_wiki),
            "book_texts": len(corpus.validation_books),
        },
        "dropped": {key: count for key, count in sorted(corpus.dropped.items()) if count},
        "too_long_conversations": {n: lane.too_long for n, lane in lanes.items() if isinstance(lane, ChatLane)},
        "source_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(source.iterdir())
        },
    }
    (out / "mix.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    done("written")


if __name__ == "__main__":
    main()
