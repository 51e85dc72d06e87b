"""Texts and conversations as token ids, and the one stream in which they are learnt.

A *lane* is a source that gives its documents one by one, none longer than asked for. `write_stream` merges the lanes:
at every step the lane furthest behind its plan goes next, so that shares hold at every point of the stream and not
only at its end.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import exercises
import numpy as np
import numpy.typing as npt
import sources
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tunesmith.models.training_text import MIN_LINE, normalise, text_hash, text_units

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
END = "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, BOS, EOS, *ROLES.values(), END)
CONTEXT = 2048
SPACE = "Ġ"
"""How byte-level BPE writes a space."""
SHARE_OF_WORDS = 0.6
"""Of the learnt pieces, those without a space before them."""
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# Sources of conversations; they rise towards the end of the stream.
CHAT = frozenset({"dolly", "t0_open", "exercises"})
# Documents are at most SHORT tokens up to this part of the stream (cheaper attention), then LONG.
SHORT_DOCUMENTS_UNTIL = 0.75
SHORT, LONG = 512, CONTEXT

Ids = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids and which of them are learnt, with the hashes of the text units it contains."""

    ids: Ids
    learnt: Mask
    units: tuple[int, ...]
    characters: int


# --- tokenizer -------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written; digits stay single, so that numbers are spelt one way; and a word is cut
    alike with and without the space before it (`_paired_merges`)."""
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    merges, pieces = _paired_merges(list(texts), vocabulary - len(SPECIAL), split)
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        # One mark ends a turn and a text, so that generation stops at the end of an answer without further settings.
        eos_token=END,
        additional_special_tokens=[EOS, *ROLES.values()],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _paired_merges(
    texts: Sequence[str], size: int, split: list[pre_tokenizers.PreTokenizer]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Merges and `size` pieces with which " sugar" is "sugar" with a space glued to its first piece.

    Ordinary byte-level BPE learns both apart: " sugar" is one token in a line of text, while the answer `["sugar"` must
    spell s-ug-ar. Copying into quotes is then spelling from memory, which a small model cannot do for words it has
    seldom seen. Here merges within words are learnt first, from words without their space, then those of a space with
    the most frequent first pieces. It is a plain list of merges, which any loader of byte-level BPE reads.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.Split(SPACE, "isolated")])
    learnt = len(alphabet) + round((size - len(alphabet)) * SHARE_OF_WORDS)
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=learnt, initial_alphabet=alphabet, show_progress=False)
    )
    merges: list[tuple[str, str]] = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    pieces = list(dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)]))
    words: Counter[str] = Counter()
    normal = pre_tokenizers.Sequence(split)
    for text in texts:
        words.update(word for word, _ in normal.pre_tokenize_str(text) if word.startswith(SPACE) and len(word) > 1)
    first: Counter[str] = Counter()
    for word, count in words.items():
        first[inner.model.tokenize(word[1:])[0].value] += count
    known = set(pieces)
    for piece, _ in first.most_common():
        if len(pieces) == size:
            break
        if SPACE + piece not in known:
            merges.append((SPACE, piece))
            pieces.append(SPACE + piece)
    return merges, pieces


# --- documents -------------------------------------------------------------------------------------------------------


class Encoder:
    """Texts to ids, and ids to documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.special = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
        ends = [i for token, i in tokenizer.get_vocab().items() if re.search(r"[.!?]\W*$", token)]
        self.sentence_end = np.zeros(len(tokenizer), dtype=bool)
        self.sentence_end[ends] = True
        self.newline = self.encode(["\n"])[0]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        found = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint16) for encoding in found]

    def conversations(self, batch: Sequence[exercises.Conversation], everything: Sequence[bool]) -> list[Document]:
        """Render as the chat template does, with the spans of the answers known from the rendering itself.

        `everything[i]`: whether the prompts of conversation i are learnt too, or only the answers.
        """
        texts = [text if role == "text" else "\n" + text for turns in batch for role, text in turns]
        encoded = iter(self.encode(texts))
        documents = []
        for turns, all_learnt in zip(batch, everything, strict=True):
            raw = turns[0][0] == "text"
            ids, learnt = [np.array([self.special[BOS]], np.uint16)], [np.zeros(1, np.uint8)]
            for role, _ in turns:
                content = next(encoded)
                is_answer = role in {"assistant", "text"}
                if not raw:
                    ids.append(np.array([self.special[ROLES[role]]], np.uint16))
                    learnt.append(np.full(1, all_learnt, np.uint8))
                mask = np.full(len(content) + 1, all_learnt or is_answer, np.uint8)
                if not raw and is_answer and not all_learnt:
                    # The line break after the role is part of the generation prompt.
                    mask[: len(self.newline)] = 0
                ids += [content, np.array([self.special[END]], np.uint16)]
                learnt.append(mask)
                if not raw:
                    ids.append(self.newline)
                    learnt.append(np.full(len(self.newline), all_learnt, np.uint8))
            units = tuple(text_hash(unit) for _, text in turns for unit in text_units(text))
            documents.append(
                Document(np.concatenate(ids), np.concatenate(learnt), units, sum(len(text) for _, text in turns))
            )
        return documents

    def check_against_template(self, turns: exercises.Conversation) -> None:
        """The ids written for training must be those that the tokenizer's own chat template gives."""
        messages = [{"role": role, "content": text} for role, text in turns]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False)
        expected = self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        written = self.conversations([turns], [True])[0].ids.tolist()
        if written != expected:
            raise ValueError(f"rendering differs from the chat template for {turns!r}")


class Lane:
    """A source that gives its documents one by one, none longer than asked for; `next` returns None when spent."""

    def next(self, limit: int) -> Document | None:
        raise NotImplementedError


class TextLane(Lane):
    """Plain texts cut into chunks at paragraph ends; the next text begins where the last one ended."""

    def __init__(self, encoder: Encoder, texts: Iterable[sources.Paragraphs], joint: str) -> None:
        self.encoder, self.joint = encoder, joint
        self.texts = iter(texts)
        self.ready: deque[deque[tuple[Ids, int, int]]] = deque()

    def next(self, limit: int) -> Document | None:
        while self.ready and not self.ready[0]:
            self.ready.popleft()
        if not self.ready and not self._fill():
            return None
        return self._chunk(self.ready[0], limit)

    def _fill(self) -> bool:
        """Encode the paragraphs of the next hundred texts at once."""
        texts = [text for _, text in zip(range(100), self.texts, strict=False)]
        joined = [
            paragraph if last else paragraph + self.joint
            for text in texts
            for paragraph, last in zip(text, [False] * (len(text) - 1) + [True], strict=True)
        ]
        encoded = iter(self.encoder.encode(joined))
        for text in texts:
            self.ready.append(
                deque(
                    (
                        next(encoded),
                        text_hash(paragraph) if len(normalise(paragraph)) >= MIN_LINE else -1,
                        len(paragraph),
                    )
                    for paragraph in text
                )
            )
        return bool(texts)

    def _chunk(self, paragraphs: deque[tuple[Ids, int, int]], limit: int) -> Document:
        """Take whole paragraphs while they fit; cut one that alone is too long after a sentence."""
        room = limit - 2
        parts: list[Ids] = []
        units: list[int] = []
        used = characters = 0
        while paragraphs:
            ids, unit, length = paragraphs[0]
            if used + len(ids) <= room:
                paragraphs.popleft()
                parts.append(ids)
                used += len(ids)
                characters += length
                units += [unit] if unit >= 0 else []
                continue
            # Half a chunk is enough; fill up a nearly empty one with part of the paragraph that does not fit.
            if used < room // 2:
                ends = np.flatnonzero(self.encoder.sentence_end[ids[: room - used]])
                cut = int(ends[-1]) + 1 if len(ends) and (parts or ends[-1] > 16) else room - used
                parts.append(ids[:cut])
                share = cut / len(ids)
                characters += int(length * share)
                units += [unit] if unit >= 0 else []
                paragraphs[0] = (ids[cut:], unit, length - int(length * share))
            break
        special = self.encoder.special
        end = [] if paragraphs else [special[END]]
        ids = np.concatenate([np.array([special[BOS]], np.uint16), *parts, np.array(end, np.uint16)])
        learnt = np.ones(len(ids), np.uint8)
        learnt[0] = 0  # nothing stands before the first token to predict it from
        return Document(ids, learnt, tuple(units), characters)


class ChatLane(Lane):
    """Conversations in a given order; one that is too long now waits until longer documents are allowed."""

    def __init__(self, encoder: Encoder, turns: Iterable[exercises.Conversation], rng: random.Random) -> None:
        self.encoder, self.rng = encoder, rng
        self.turns = iter(turns)
        self.ready: deque[Document] = deque()
        self.waiting: deque[Document] = deque()
        self.too_long = 0

    def next(self, limit: int) -> Document | None:
        # Waiting ones are mixed in one by one, not all at once.
        if self.waiting and limit == LONG and self.rng.random() < 0.3:
            return self.waiting.popleft()
        while self.ready or self._fill():
            document = self.ready.popleft()
            if len(document.ids) <= limit:
                return document
            if len(document.ids) <= LONG:
                self.waiting.append(document)
            else:
                self.too_long += 1
        return self.waiting.popleft() if self.waiting and limit == LONG else None

    def _fill(self) -> bool:
        batch = [turns for _, turns in zip(range(500), self.turns, strict=False)]
        # Prompts are learnt too in half of the conversations: they are language as well.
        self.ready.extend(self.encoder.conversations(batch, [self.rng.random() < 0.5 for _ in batch]))
        return bool(batch)


class RepeatLane(Lane):
    """Random sequences of ordinary tokens that come again one to three times; only the repetitions are learnt.

    What a small model learns to look back by: without them copying from the prompt (induction) comes late, if at all,
    as it pays in few places of ordinary text. In half of them a repetition may have the same words with the space
    before them where there was none, and without where there was one.
    """

    def __init__(self, encoder: Encoder, rng: random.Random) -> None:
        vocabulary = encoder.tokenizer.get_vocab()
        self.bos = encoder.special[BOS]
        self.all = np.arange(len(SPECIAL), len(vocabulary))
        self.partner = np.arange(len(vocabulary))
        for piece, i in vocabulary.items():
            if piece.startswith(SPACE) and piece[1:] in vocabulary:
                j = vocabulary[piece[1:]]
                self.partner[i], self.partner[j] = j, i
        self.paired = np.flatnonzero(self.partner != np.arange(len(vocabulary)))
        self.draw = np.random.default_rng(rng.getrandbits(64))

    def next(self, limit: int) -> Document | None:
        changing = bool(self.draw.integers(2)) and len(self.paired) > 0
        part = self.draw.choice(self.paired if changing else self.all, self.draw.integers(6, 64))
        again = [
            self.partner[part] if changing and self.draw.integers(2) else part for _ in range(self.draw.integers(1, 4))
        ]
        ids = np.concatenate([[self.bos], part, *again])[:limit].astype(np.uint16)
        learnt = np.ones(len(ids), np.uint8)
        learnt[: 1 + len(part)] = 0
        return Document(ids, learnt, (), 0)


# --- the mix ---------------------------------------------------------------------------------------------------------


def planned_share(chat: bool, progress: float, chat_share: float, early: float) -> float:
    """Part of a lane's own tokens that should be out when `progress` (0 to 1) of all tokens are.

    Conversations: `early` of them evenly over the first three quarters, the others in the last. Plain text takes what
    is left of the stream, so both together always fill it.
    """
    given = float(np.interp(progress, (0, 3 / 4, 1), (0, early, 1)))
    return given if chat else (progress - chat_share * given) / (1 - chat_share)


@dataclass
class Tally:
    """What one source gave; the names are those of `mix.json`."""

    documents: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    characters: int = 0
    tokens_in_last_third: int = 0


@dataclass
class Stream:
    """What was written: where each document begins, what each source gave, the hashes of all units of text."""

    offsets: list[int] = field(default_factory=lambda: [0])
    tallies: dict[str, Tally] = field(default_factory=dict)
    units: set[int] = field(default_factory=set)


def write_stream(
    lanes: dict[str, Lane], shares: dict[str, float], budget: int, folder: Path, early: float, begun: Stream
) -> Stream:
    """Add `budget` tokens to what `folder` holds already (`begun`): the lane furthest behind its plan goes next."""
    stream = begun
    start = stream.offsets[-1]
    given = dict.fromkeys(lanes, 0)
    chat_share = sum(share for name, share in shares.items() if name in CHAT)
    open_lanes = dict(lanes)
    with (folder / "train.bin").open("ab") as ids_file, (folder / "mask.bin").open("ab") as mask_file:
        while stream.offsets[-1] < start + budget and open_lanes:
            progress = (stream.offsets[-1] - start) / budget

            def behind(name: str, progress: float = progress) -> float:
                return planned_share(name in CHAT, progress, chat_share, early) * shares[name] * budget - given[name]

            name = max(open_lanes, key=behind)
            document = open_lanes[name].next(SHORT if progress < SHORT_DOCUMENTS_UNTIL else LONG)
            if document is None:
                if progress >= SHORT_DOCUMENTS_UNTIL or isinstance(open_lanes[name], TextLane):
                    del open_lanes[name]
                    continue
                raise ValueError(f"source {name} is spent at {progress:.0%} of the budget; lower --tokens")
            document.ids.tofile(ids_file)
            document.learnt.tofile(mask_file)
            stream.offsets.append(stream.offsets[-1] + len(document.ids))
            stream.units.update(document.units)
            given[name] += len(document.ids)
            tally = stream.tallies.setdefault(name, Tally())
            tally.documents += 1
            tally.tokens += len(document.ids)
            tally.learnt_tokens += int(document.learnt.sum())
            tally.characters += document.characters
            tally.tokens_in_last_third += len(document.ids) if progress >= 2 / 3 else 0
    np.save(folder / "documents.npy", np.array(stream.offsets, dtype=np.int64))
    return stream
