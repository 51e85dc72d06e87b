"""The figures of one base on the user's rows: bits per byte, scores, speed and memory, before it is tuned."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.evaluation.comparison import metric_values
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.scoring import answer_and_score, measure_latency
from tunesmith.evaluation.shots import draw_shots
from tunesmith.models.forward import LanguageModel
from tunesmith.models.servable import servable
from tunesmith.pipeline.base_bits import TextBits, answer_bits, asked_text, bits_per_byte, input_bits
from tunesmith.pipeline.base_types import BitsPerByte, Figure, Measured, RowBits, Score
from tunesmith.pipeline.estimating import estimate_training
from tunesmith.pipeline.prepare import Listener, Prepared, Rows, prepare, trainable_samples
from tunesmith.pipeline.stage import engine_of, progress
from tunesmith.recipe.schema import Decoding, Recipe
from tunesmith.tasks.conversation import answer_message, asking_conversation
from tunesmith.text.numbers import sample_counts
from tunesmith.text.render import Renderer
from tunesmith.training.memory_model import weight_bytes
from tunesmith.training.memory_trace import Answering, Shapes

SHOTS = 4
"""Examples shown, where `evaluate.few_shot_k` allows so many."""
_LOOKED_AT = 2_000
"""Training rows tokenised to know lengths, memory and time."""


def measure_base(recipe: Recipe, read: Rows, folder: Path, at_most: int, listener: Listener) -> Measured:
    """All figures of one base, on at most `at_most` rows. The training's come last, as it attaches adapters.

    folder: where answers are kept as they come. Raises what loading, planning and answering raise, and `DataError`
    where no row fits the context.
    """
    began = time.monotonic()
    prepared = prepare(recipe, read, at_most=_LOOKED_AT)
    samples = trainable_samples(prepared)
    if not any(sample.supervised for sample in samples):
        raise DataError(
            f"no row fits its context of {prepared.base.context:,} tokens", fix="use a base with a longer context"
        )
    model = LanguageModel(prepared.base.model)
    model.verify()
    shots = shots_of(prepared)
    rows = measured_rows(read, recipe, at_most, shots)
    lengths = _row_lengths(prepared, rows)
    bits = _bits(prepared, model, rows, shots)
    zero, few = _scores(prepared, rows, shots, folder, listener)
    seconds, speed = _answer_speed(prepared, rows, lengths)
    memory = _serving_memory(prepared)
    servers = servable(prepared.recipe.method, prepared.base.model.config, prepared.added is not None)
    figure: Figure = "inputs" if _one_of_labels(prepared, rows) else "shown"
    estimate = estimate_training(prepared, samples)
    spec = recipe.evaluate

    def per_byte(found: TextBits) -> BitsPerByte | None:
        return bits_per_byte(found, confidence=spec.confidence, seed=recipe.train.seed)

    return Measured(
        architecture=str(prepared.base.model.config.model_type),
        parameters=prepared.base.parameters,
        context=prepared.base.context,
        rows=len(rows),
        rows_too_long=sum(length > prepared.base.context for length in lengths),
        longest_row=int(sample_counts(prepared.train)[0].max(initial=0)),
        tokens_per_byte=_tokens_per_byte(prepared, rows),
        metric=str(prepared.recipe.goal.metric),
        inputs=per_byte(bits["inputs"]),
        answers=per_byte(bits["answers"]),
        shown=per_byte(bits["shown"]),
        shots=bits["shown"].shots,
        zero_shot=zero,
        few_shot=few,
        tune_memory_bytes=estimate.memory.predicted_peak_bytes,
        serve_memory_bytes=memory,
        train_tokens_per_second=estimate.tokens_per_second,
        training_seconds=estimate.time.seconds,
        answer_seconds=seconds,
        answer_tokens_per_second=speed,
        servers=tuple(one.server for one in servers if one.ok),
        not_servable={one.server: "; ".join(one.reasons) for one in servers if not one.ok},
        seconds=time.monotonic() - began,
        ranked_by=figure,
        row_bits=_row_bits(bits[figure]),
    )


def measured_rows(read: Rows, recipe: Recipe, at_most: int, shots: Sequence[Example]) -> tuple[Example, ...]:
    """Validation rows drawn by seed; where there are too few of them, training rows that are not shown as examples."""
    draw = random.Random(recipe.train.seed)
    shown = {shot.id for shot in shots}
    validation = list(read.splits.validation)
    chosen = draw.sample(validation, min(at_most, len(validation)))
    rest = [row for row in read.splits.train if row.id not in shown]
    return (*chosen, *draw.sample(rest, min(at_most - len(chosen), len(rest))))


def shots_of(prepared: Prepared) -> tuple[Example, ...]:
    """The examples shown to a base, the same to all: diverse training rows, drawn by seed."""
    k = max((k for k in prepared.recipe.evaluate.few_shot_k if k <= SHOTS), default=SHOTS)
    return draw_shots(prepared.rows.splits.train, prepared.task, k, prepared.recipe.train.seed)


def _bits(
    prepared: Prepared, model: LanguageModel, rows: Sequence[Example], shots: Sequence[Example]
) -> dict[str, TextBits]:
    renderer, context = prepared.renderer, prepared.base.context
    return {
        "inputs": input_bits(model, renderer, rows, context),
        "answers": answer_bits(model, renderer, prepared.task, rows, context),
        "shown": answer_bits(model, renderer, prepared.task, rows, context, shots),
    }


def _scores(
    prepared: Prepared, rows: Sequence[Example], shots: Sequence[Example], folder: Path, listener: Listener
) -> tuple[Score | None, Score | None]:
    """Zero-shot and few-shot on `selection_rows` of the rows that are validation rows; none where there are none.

    Where the answer is one of a few labels, the most probable one is taken: a base that was not tuned may know it long
    before it can say it alone.
    """
    held_out = {row.id for row in prepared.rows.splits.validation}
    asked = [row for row in rows if row.id in held_out][: prepared.recipe.evaluate.selection_rows]
    if not asked:
        return None, None
    spec, engine = prepared.recipe.evaluate, engine_of(prepared)
    way: Decoding = "scored" if _one_of_labels(prepared, asked) else "free"
    found = []
    for name, k in (("zero_shot", 0), ("few_shot", len(shots))):
        candidate = PromptCandidate(
            name, engine, prepared.task, int(spec.max_new_tokens), shots=tuple(shots), k=k, decoding=way
        )
        answered = answer_and_score(
            candidate,
            prepared.task,
            asked,
            folder / f"{name}.jsonl",
            on_progress=progress(listener, "bases", f"{prepared.base.name}: {name}"),
        )
        values = metric_values(
            name,
            answered,
            prepared.task,
            resamples=spec.bootstrap,
            confidence=spec.confidence,
            seed=prepared.recipe.train.seed,
        )
        value = next(one for one in values if one.metric == prepared.recipe.goal.metric)
        found.append(Score(value.value, value.low, value.high, value.n, k, way))
    return found[0], found[1]


def _one_of_labels(prepared: Prepared, rows: Sequence[Example]) -> bool:
    """Whether the answer to every row is one of a few labels."""
    forms = [prepared.task.answer_form(row) for row in rows]
    return all(form is not None and form.choices for form in forms)


def _answer_speed(prepared: Prepared, rows: Sequence[Example], lengths: Sequence[int]) -> tuple[float, float]:
    """Median seconds of one request, asked as a tuned model is, and tokens per second of a batch of them.

    A base that was not tuned does not know when to stop: its answers have the length that the limit allows.
    """
    spec, engine = prepared.recipe.evaluate, engine_of(prepared)
    limit = int(spec.max_new_tokens)
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length + limit <= prepared.base.context]
    asked = (fitting or list(rows))[: spec.latency_rows]
    candidate = PromptCandidate("speed", engine, prepared.task, limit, full=False)
    median, _ = measure_latency(candidate, asked, spec.latency_rows)
    began = time.perf_counter()
    tokens = sum(answer.answer_tokens for answer in candidate.answer(asked))
    return median, tokens / (time.perf_counter() - began)


def _serving_memory(prepared: Prepared) -> int | None:
    """Weights, and what one request as long as the longest training row takes; None where shapes do not tell."""
    answer = int(prepared.recipe.evaluate.max_new_tokens)
    longest = min(int(sample_counts(prepared.train)[0].max(initial=1)), prepared.base.context - answer)
    if longest < 1:
        return None
    model = prepared.base.model
    request = Answering(prompts=1, prompt_tokens=longest, answer_tokens=answer, shared_tokens=0)
    try:
        return weight_bytes(model) + Shapes(model).answering(request)
    except RuntimeError:  # an operation of this architecture that needs numbers
        return None


def _row_lengths(prepared: Prepared, rows: Sequence[Example]) -> list[int]:
    """Tokens of each row as it is trained on."""
    task = prepared.task
    turns = [(*asking_conversation(task, row), answer_message(task, row)) for row in rows]
    return [len(sample.ids) for sample in prepared.renderer.samples(turns)]


def _tokens_per_byte(prepared: Prepared, rows: Sequence[Example]) -> float:
    """Tokens of questions and answers as bare text, over their bytes."""
    texts = [text for row in rows for text in (asked_text(row), answer_message(prepared.task, row).content) if text]
    tokens = sum(len(_ids(prepared.renderer, text)) for text in texts)
    return tokens / max(1, sum(len(text.encode()) for text in texts))


def _ids(renderer: Renderer, text: str) -> Sequence[int]:
    found: Sequence[int] = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _row_bits(found: TextBits) -> tuple[RowBits, ...]:
    return tuple(
        RowBits(name, float(bits), float(size))
        for name, bits, size in zip(found.ids, found.bits, found.bytes, strict=True)
    )
