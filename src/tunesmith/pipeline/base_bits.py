"""Bits per byte of a base on the user's own rows: how well it foresees them, comparable across tokenizers.

    bits per byte = (sum of negative log-probabilities of the tokens, in nats) / ln 2 / UTF-8 bytes of the text

A tokenizer that cuts a text into fewer tokens has fewer, larger surprises; over bytes they compare. Three figures:

- *inputs*: what is asked, as bare text without any template, behind the token a document begins with. A tokenizer that
  has no such token is charged log2(vocabulary) for the first one: nothing tells it what comes.
- *answers*: the answer to learn behind its question, both as they are rendered for training.
- *answers, with examples*: the same behind some rows with their answers, which show the form and leave the task.

Marks around an answer are no text of the user's and are left out: a base that was never tuned cannot know them, and
learns them in a few steps. Inside it every token counts, or bytes would come for nothing. A row with a token that
stands for whatever the tokenizer does not know is left out: it would be foreseen without being known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tunesmith.data.types import Example
from tunesmith.evaluation.statistics import bca_interval, bootstrap, jackknife
from tunesmith.models.forward import LanguageModel
from tunesmith.ops.cross_entropy import CHUNK
from tunesmith.pipeline.base_types import BitsPerByte
from tunesmith.tasks.conversation import answer_message, asking_conversation
from tunesmith.tasks.types import Task
from tunesmith.text.render import Renderer
from tunesmith.text.types import Sample
from tunesmith.training.batching import micro_batches

FloatArray = npt.NDArray[np.float64]
_TOKENS_AT_ONCE = 4_096
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class TextBits:
    """Bits and bytes of each row that fits the context: [n] each. `left_out` rows were too long, had no text, or have
    characters that the tokenizer does not know.

    shots: examples that stood before each row.
    """

    bits: FloatArray
    bytes: FloatArray
    ids: tuple[str, ...]
    left_out: int
    shots: int = 0


def input_bits(model: LanguageModel, renderer: Renderer, rows: Sequence[Example], context: int) -> TextBits:
    """Bits of each row's questions as bare text."""
    start, unknown = _start_of_text(renderer.tokenizer), _unknown(renderer.tokenizer)
    texts, samples, first = [], [], 0.0
    vocabulary = int(model.model.get_input_embeddings().weight.shape[0])
    for row in rows:
        text = asked_text(row)
        ids = list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        if start is not None:
            ids = [start, *ids]
        weights = np.ones(len(ids), np.float32)
        weights[: len(ids) if unknown in ids else 1] = 0
        texts.append(text)
        samples.append(Sample(np.asarray(ids, np.int64), weights, row.id))
    if start is None:
        first = math.log2(vocabulary)
    return _bits_of(model, samples, texts, context, first)


def answer_bits(
    model: LanguageModel,
    renderer: Renderer,
    task: Task,
    rows: Sequence[Example],
    context: int,
    shots: Sequence[Example] = (),
) -> TextBits:
    """Bits of each row's answer behind its question, and behind `shots` with their answers where there are some.

    Of the shots the first ones are shown, as many as leave room for every row that fits without any.
    """
    texts = [answer_message(task, row).content for row in rows]
    samples = bare = _answer_samples(renderer, task, rows, ())
    room = 0
    fits = [len(sample.ids) <= context for sample in bare]
    for shown in range(len(shots), 0, -1):
        made = _answer_samples(renderer, task, rows, shots[:shown])
        if all(len(sample.ids) <= context for sample, fit in zip(made, fits, strict=True) if fit):
            samples = [one if fit else alone for one, alone, fit in zip(made, bare, fits, strict=True)]
            room = shown
            break
    return replace(_bits_of(model, samples, texts, context), shots=room)


def bits_per_byte(found: TextBits, *, confidence: float, seed: int) -> BitsPerByte | None:
    """Sum of bits over sum of bytes, with a BCa bootstrap interval over rows; None where no row could be measured."""
    n = len(found.bits)
    if not n:
        return None
    statistics = np.stack([found.bits, found.bytes], axis=1)
    value = float(_ratio(statistics.sum(axis=0)))
    low: float | None = None
    high: float | None = None
    if n > 1:
        draws = bootstrap([statistics], _ratio, resamples=_RESAMPLES, seed=seed)[0]
        low = high = value
        if np.ptp(draws):
            low, high = bca_interval(draws, value, jackknife(statistics, _ratio), confidence)
    return BitsPerByte(value, low, high, n, found.left_out)


def asked_text(row: Example) -> str:
    """What a row's user says, all turns of it."""
    return "\n\n".join(message.content for message in row.prompt if message.role == "user")


def _answer_samples(renderer: Renderer, task: Task, rows: Sequence[Example], shots: Sequence[Example]) -> list[Sample]:
    """Rows behind shots, learning the tokens of the last answer that are text."""
    turns = [
        (*asking_conversation(task, row, [shot for shot in shots if shot.id != row.id]), answer_message(task, row))
        for row in rows
    ]
    marks = np.array(sorted(renderer.stop_ids | renderer.special_ids))
    unknown = _unknown(renderer.tokenizer)
    return [
        replace(made, weights=_text_weights(made, marks, unknown))
        for made in renderer.samples(turns, "last", [row.id for row in rows])
    ]


def _text_weights(sample: Sample, marks: npt.NDArray[np.int64], unknown: int | None) -> npt.NDArray[np.float32]:
    """Weights of what is learnt between the marks before and after it; none where a token of it is the unknown one."""
    weights = np.zeros(len(sample.ids), np.float32)
    learnt = np.flatnonzero(sample.weights)
    text = np.flatnonzero(~np.isin(sample.ids[learnt], marks))
    if len(text):
        between = learnt[text[0] : text[-1] + 1]
        if unknown is None or not (sample.ids[between] == unknown).any():
            weights[between] = sample.weights[between]
    return weights


def _bits_of(
    model: LanguageModel, samples: Sequence[Sample], texts: Sequence[str], context: int, first: float = 0.0
) -> TextBits:
    """Bits of what is learnt of each sample, over the bytes of its text; `first` bits are added to each."""
    places = [i for i, s in enumerate(samples) if s.supervised and len(s.ids) <= context and texts[i]]
    nats = _nats(model, [samples[i] for i in places])
    return TextBits(
        bits=nats / math.log(2) + first,
        bytes=np.array([len(texts[i].encode()) for i in places], float),
        ids=tuple(samples[i].example_id for i in places),
        left_out=len(samples) - len(places),
    )


@torch.inference_mode()
def _nats(model: LanguageModel, samples: Sequence[Sample]) -> FloatArray:
    """Of each sample, the sum of -ln p over its tokens of weight above 0 [n], in double precision."""
    found = np.zeros(len(samples))
    numbered = [Sample(s.ids, s.weights, str(i)) for i, s in enumerate(samples)]
    was_training = model.model.training
    model.model.eval()
    try:
        with model.packed():
            weight, bias = model.head()
            for batch in micro_batches(numbered, _TOKENS_AT_ONCE, model.device):
                hidden = model.hidden(batch.ids, batch.packing)
                before, targets, owners = _predictions(batch.documents, batch.rows)
                for part in _chunks(len(before)):
                    states = hidden[before[part].to(hidden.device)]
                    logits = model.rule(F.linear(states, weight, bias).float())
                    loss = F.cross_entropy(logits, targets[part].to(hidden.device), reduction="none")
                    np.add.at(found, owners[part], loss.double().cpu().numpy())
    finally:
        model.model.train(was_training)
    return found


def _predictions(
    documents: Sequence[torch.Tensor], rows: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.int64]]:
    """For every learnt token of every document: the stream place before it, its id, and its document's number."""
    before, targets, owners = [], [], []
    for places, row in zip(documents, rows, strict=True):
        learnt = np.flatnonzero(row.weights)
        before.append(places.cpu()[torch.from_numpy(learnt - 1)])
        targets.append(torch.from_numpy(row.ids[learnt]))
        owners.append(np.full(len(learnt), int(row.example_id), np.int64))
    return torch.cat(before), torch.cat(targets), np.concatenate(owners)


def _chunks(count: int) -> Iterable[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _start_of_text(tokenizer: object) -> int | None:
    """The token a document begins with: the tokenizer's own, else the one that ends the document before."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    return None


def _unknown(tokenizer: object) -> int | None:
    """The token for whatever the tokenizer does not know. Some name one that ends or fills, and need none."""
    found = getattr(tokenizer, "unk_token_id", None)
    others = {getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return found if isinstance(found, int) and found not in others else None


def _ratio(sums: FloatArray) -> FloatArray:
    """Bits over bytes [...] from sums [..., 2]."""
    quotient: FloatArray = sums[..., 0] / sums[..., 1]
    return quotient
