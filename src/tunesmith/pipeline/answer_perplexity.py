"""How surprised a prompted candidate is by the expected answers, where answers are free texts.

    perplexity = exp(- sum over rows of ln p(expected answer | prompt) / tokens of the expected answers)

The end of the answer counts as a token. A text can be said well in many ways, so this complements the overlap with the
one that was expected: it needs no generated answer, and is low only where the model would have said just that.
"""

from __future__ import annotations

import hashlib
import json
import math

from tunesmith.data.types import Example, Message
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.types import Evaluation
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.stage import Stage, data_key, progress
from tunesmith.runs import RunFolder
from tunesmith.text.render import Renderer

FREE_TEXTS = ("generation", "summarisation", "translation")
_VERSION = 1


def answer_perplexity(
    candidate: PromptCandidate,
    evaluation: Evaluation,
    prepared: Prepared,
    folder: RunFolder,
    listener: Listener,
    *,
    adapter: str | None,
) -> dict[str, float]:
    """The note `perplexity` of a candidate, measured or, for the prompts of its evaluation and the same weights, read.

    Rows whose prompt and expected answer do not fit the context together are counted in `perplexity_left_out`. Empty
    where the task's answers are no free texts, for an endpoint, and where no row fits.
    """
    if prepared.task.name not in FREE_TEXTS or not isinstance(candidate.engine, TorchEngine):
        return {}
    # The prompts themselves: they follow from examples, documents, wording and room, each of which may change.
    prompts = hashlib.sha256(json.dumps([row.prompt for row in evaluation.rows]).encode()).hexdigest()
    stage = Stage(
        folder,
        f"perplexity_{candidate.name}",
        [],
        **data_key(prepared),
        prompts=prompts,
        adapter=adapter,
        version=_VERSION,
    )
    if stage.result is not None:
        return dict(stage.result)
    found = _measured(candidate, candidate.engine, prepared, listener)
    stage.finish({**found})
    return found


def _measured(
    candidate: PromptCandidate, engine: TorchEngine, prepared: Prepared, listener: Listener
) -> dict[str, float]:
    tell = progress(listener, "evaluate", f"{candidate.name}, perplexity")
    test = prepared.rows.splits.test
    prompts, answers, tokens = [], [], []
    for example in test:
        prompt = candidate.prompt(example)
        answer = _said(candidate, example)
        size = answer_tokens(prepared.renderer, prompt.messages, answer)
        if prompt.answerable and prompt.tokens + size <= engine.context:
            prompts.append(prompt.messages)
            answers.append((answer,))
            tokens.append(size)
    if not prompts:
        return {}
    nats = 0.0
    for done, (found,) in enumerate(engine.score(prompts, answers), 1):
        nats -= found
        tell(done, len(prompts))
    per_token = nats / sum(tokens)
    # A model that has come apart has no perplexity, and JSON no such number.
    measured = {"perplexity": math.exp(per_token)} if math.isfinite(per_token) and per_token < 700 else {}
    left_out = len(test) - len(prompts)
    return {**measured, **({"perplexity_left_out": float(left_out)} if left_out else {})}


def _said(candidate: PromptCandidate, example: Example) -> str:
    """What a tuned model learns to say: the expected answer (of several the first), and the template's closing text."""
    return candidate.task.reply(example.expected) + str(getattr(candidate.task, "closing", ""))


def answer_tokens(renderer: Renderer, prompt: tuple[Message, ...], answer: str) -> int:
    """Tokens of an answer as it is learnt behind a prompt, the end of the turn included."""
    sample = renderer.sample([*prompt, Message("assistant", answer)], loss="last")
    ids = sample.ids[sample.weights > 0].tolist()
    return len(ids) + (not ids or ids[-1] not in renderer.stop_ids)
