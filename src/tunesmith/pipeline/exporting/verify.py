"""Whether an export is the tuned model: every check, in the order in which they are shown.

Each is made of what the opened export says itself, through the tokenizer and template in its own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunesmith.evaluation.comparison import compare
from tunesmith.evaluation.types import Evaluation
from tunesmith.inference.gguf_engine import template_inside
from tunesmith.inference.types import Generation, ProbedEngine
from tunesmith.models.artifact import Artifact
from tunesmith.pipeline.exporting.bounds import Bounds, bounds_of
from tunesmith.pipeline.exporting.loss import decide
from tunesmith.pipeline.exporting.numbers import Parity, parity
from tunesmith.pipeline.exporting.reference import CHAT_TOKENS, CHATS, Reference, Tell, score
from tunesmith.pipeline.exporting.rows import FrozenRows
from tunesmith.pipeline.exporting.types import Check, Verification
from tunesmith.pipeline.training import TUNED
from tunesmith.recipe.schema import Recipe
from tunesmith.text.render import Renderer
from tunesmith.verdict import wording

_STOPS_LOST = 0.05
"""Share of answers that may no longer end by themselves; one may, however few there are."""


def verify(
    artifact: Artifact,
    engine: ProbedEngine,
    reference: Reference,
    *,
    adapter: str | None = None,
    max_loss: float | None = None,
    answers: Path | None = None,
    tell: Tell,
) -> Verification:
    """All checks of an opened export.

    max_loss: of the deciding metric (0-1) that is allowed; None takes the recipe's (`margin_of`).
    answers: folder for the answers to the test rows.
    """
    bounds = bounds_of(
        artifact.target,
        artifact.facts.get("dtypes") or [reference.source.config.dtype],
        half_activations=computed_in_half(artifact, engine),
    )
    name = str(artifact.target) if adapter is None else f"{artifact.target}.{quote(adapter, safe='')}"
    tell("comparing logits with the tuned model's")
    found = _parity(engine, reference)
    checks = [*_opened_by(engine), *_of_logits(found, bounds, reference), _kept(found, bounds, reference)]
    numbers: dict[str, Any] = {
        "max_logit_error": found.error,
        "relative_logit_error": found.scaled,
        "mean_kl": found.kl,
        "top1_agreement": found.top1,
        "tuning_kept": found.kept,
        "bounds": bounds.words,
    }
    checks += list(_asked(artifact, engine, reference))
    chats: tuple[Generation, ...] = ()
    evaluation: Evaluation | None = None
    if found.finite and reference.source.asked:
        chats = tuple(engine.generate(CHATS, CHAT_TOKENS))
        if isinstance(reference.rows, FrozenRows) and reference.evaluation is not None and answers is not None:
            tell(f"asking the {len(reference.rows.test)} {reference.rows.part} rows")
            evaluation = score(name, engine, reference.rows, reference.recipe, answers, tell)
    agreement, same = _agreement(reference, evaluation, chats, bounds)
    of_task, scores = _of_task(reference, evaluation, max_loss)
    checks += [agreement, of_task, _stops(reference, evaluation, chats)]
    numbers |= {"answer_agreement": same, **({"scores": scores} if scores else {})}
    return Verification(str(artifact.target), tuple(checks), adapter, _plain(numbers))


def margin_of(recipe: Recipe, max_loss: float | None) -> tuple[float, str]:
    """The loss that is allowed, and who says so."""
    if max_loss is not None:
        return max_loss, "as --max-loss allows"
    verdict = recipe.verdict
    if verdict.margin is not None:
        return float(verdict.margin), "the recipe's verdict.margin"
    if verdict.min_gain > 0:
        return float(verdict.min_gain), "the recipe's verdict.min_gain"
    return 0.01, "one point, as the recipe names none"


def read_back(engine: ProbedEngine) -> bool:
    """Whether a file was read back into `transformers`, because the runtime it is made for is not installed."""
    return getattr(engine, "reader", None) == "transformers"


def computed_in_half(artifact: Artifact, engine: ProbedEngine) -> bool:
    """Whether llama.cpp asks the file, which looks some activations up in a table of half precision."""
    by_llama_cpp = getattr(engine, "reader", None) == "llama.cpp"
    return by_llama_cpp and artifact.facts.get("activation_precision") == "f16"


def _opened_by(engine: ProbedEngine) -> Iterator[Check]:
    """Of a format that can be opened in two ways, which it was."""
    if read_back(engine):
        text = "the runtime it is made for is not installed: the file was read back into transformers, and checked so"
        yield Check("runtime", "not possible", text)
    elif reader := getattr(engine, "reader", None):
        yield Check("runtime", "passed", f"opened by {reader}")


def _parity(engine: ProbedEngine, reference: Reference) -> Parity:
    probes = reference.probes
    return parity(
        (reference.tuned(place) for place in range(len(probes))),
        lambda place: engine.logits(probes[place]),
        reference.base if reference.is_tuned else None,
        reference.real,
    )


def _of_logits(found: Parity, bounds: Bounds, reference: Reference) -> Iterator[Check]:
    """The measure that decides for this precision, and the agreement of the most probable token."""
    top = f"the most probable token is the same at {wording.percent(found.top1)} of the positions"
    if not found.finite:
        yield Check("logits", "failed", "some logits are not numbers")
        return
    if found.width < (tokens := len(reference.source.tokenizer)) and found.narrower:
        yield Check("logits", "failed", f"it has logits for {found.width:,} of {tokens:,} tokens")
        return
    if bounds.error is not None:
        said, value, bound = "logits differ by at most", found.error, bounds.error
    elif bounds.scaled is not None:
        said, value, bound = "logits differ by a relative error of", found.scaled, bounds.scaled
    else:
        assert bounds.kl is not None
        said, value, bound = "the next token's distribution differs by a mean KL of", found.kl, bounds.kl
    passed = value <= bound
    text = f"{said} {value:.2g} (allowed for {bounds.words}: {bound:g}); {top}"
    yield Check("logits", "passed" if passed else "failed", text, value, bound)


def _kept(found: Parity, bounds: Bounds, reference: Reference) -> Check:
    """Tuned is not base: what tuning changed must have arrived."""
    name = "tuning kept"
    if not reference.is_tuned:
        return Check(name, "not possible", "this is a base as it is: nothing was tuned")
    if not found.finite:
        return Check(name, "failed", "some logits are not numbers")
    if found.kept is None:
        return Check(name, "not possible", "the tuned model says the same as its base on every probe")
    text = f"{wording.percent(found.kept)} of what tuning changed arrived (allowed: within {bounds.kept:.0%} of all)"
    return Check(name, "passed" if abs(found.kept - 1) <= bounds.kept else "failed", text, found.kept, bounds.kept)


def _asked(artifact: Artifact, engine: ProbedEngine, reference: Reference) -> Iterator[Check]:
    """Template and tokens, as the export's own folder has them."""
    source = reference.source
    if not source.asked:
        yield Check("template", "not possible", "a model of pairs is asked by no template")
        return
    ours, theirs = source.renderer, engine.renderer
    wrong = []
    if ours.source != theirs.source or artifact.template_sha256 != _sha256(source.template or ""):
        wrong.append("the chat template has another text")
    if artifact.target.kind == "gguf" and template_inside(artifact) != source.template:
        wrong.append("the chat template inside the file has another text")
    if ours.stop_ids != theirs.stop_ids:
        wrong.append(f"answers end at the tokens {sorted(theirs.stop_ids)}, not at {sorted(ours.stop_ids)}")
    differing = [n for n, chat in enumerate(CHATS, 1) if _rendered(theirs, chat) != _rendered(ours, chat)]
    if differing:
        wrong.append(f"{len(differing)} of {len(CHATS)} conversations become other tokens")
    miscounted = sum(engine.count_tokens(chat) != len(ours.prompt_ids(chat)) for chat in CHATS)
    if miscounted and not differing:
        wrong.append("the engine counts other tokens than its tokenizer")
    text = "; ".join(wrong) or f"the template's text and the tokens of {len(CHATS)} conversations are the same"
    checked = artifact.facts.get("tokenizer_checked") or {}
    if not wrong and (other := checked.get("conversations_differing")):
        text += (
            f"; but the file's own tokenizer makes other tokens of {other} of {checked['conversations']}, see its notes"
        )
        yield Check("template", "unsure", text)
        return
    yield Check("template", "failed" if wrong else "passed", text)


def _rendered(renderer: Renderer, chat: Sequence[Any]) -> tuple[list[int], str]:
    return renderer.prompt_ids(chat), renderer.prompt_text(chat)


def _agreement(
    reference: Reference, evaluation: Evaluation | None, chats: Sequence[Generation], bounds: Bounds
) -> tuple[Check, float | None]:
    """The share of answers that are the tuned model's, word for word."""
    ours = [answer.text for answer in reference.chats]
    theirs = [answer.text for answer in chats]
    of = "conversations"
    if evaluation is not None and reference.evaluation is not None:
        ours = [row.answer for row in reference.evaluation.rows]
        theirs = [row.answer for row in evaluation.rows]
        of = f"{reference.rows.part} rows" if isinstance(reference.rows, FrozenRows) else of
    if not ours:
        return Check("answers", "not possible", "a model of pairs gives no answers"), None
    if len(theirs) != len(ours):
        return Check("answers", "failed", "it cannot be asked"), 0.0
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    share = 1 - differing / len(ours)
    text = f"{len(ours) - differing} of {len(ours)} {of} are answered word for word as by the tuned model"
    if bounds.differing is None:
        return Check("answers", "passed", f"{text} (no bound for {bounds.words})", share), share
    allowed = max(1, int(bounds.differing * len(ours)))
    passed = differing <= allowed
    return Check("answers", "passed" if passed else "failed", text, share, 1 - allowed / len(ours)), share


def _of_task(
    reference: Reference, evaluation: Evaluation | None, max_loss: float | None
) -> tuple[Check, dict[str, Any] | None]:
    """Non-inferiority to the tuned model in the metric that decides, on the run's rows."""
    rows, tuned = reference.rows, reference.evaluation
    if not isinstance(rows, FrozenRows):
        return Check("task", "not possible", rows), None
    if tuned is None or evaluation is None:
        return Check("task", "failed", f"the {rows.part} rows could not be asked"), None
    spec, metric = reference.recipe.evaluate, str(reference.recipe.goal.metric)
    compared = compare(
        [tuned, evaluation], rows.task, metric, resamples=spec.bootstrap, confidence=spec.confidence,
        seed=reference.recipe.train.seed, clusters=rows.clusters,
    )  # fmt: skip
    name = evaluation.candidate
    value, pair = compared.value(name), compared.difference(name, TUNED)
    margin, whose = margin_of(reference.recipe, max_loss)
    pairs = list(zip(tuned.rows, evaluation.rows, strict=True))
    identical = all(a.answer == b.answer for a, b in pairs)
    differing = sum(a.scores != b.scores for a, b in pairs)
    found = decide(
        pair.difference, pair.low, pair.n, margin, differing=differing, identical=identical,
        confidence=spec.confidence, power=reference.recipe.verdict.power,
    )  # fmt: skip
    said = (
        f"{wording.metric_name(metric)} {wording.percent(value.value)}, {wording.points(pair.difference)} against the "
        f"tuned model ({wording.interval(pair.low, pair.high, spec.confidence)}); a loss of "
        f"{wording.bare_points(margin)} points is allowed ({whose})"
    )
    scores = {
        "metric": metric,
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "n": value.n,
        "difference": pair.difference,
        "difference_low": pair.low,
        "difference_high": pair.high,
        "margin": margin,
        "margin_of": whose,
        "differing": differing,
        "p_value": found.p_value,
        "non_inferior": found.status == "passed",
        "metrics": {one.metric: one.value for one in evaluation.metrics},
        "latency_p50": evaluation.latency_p50,
        "seconds": evaluation.seconds,
    }
    if found.status == "unsure":
        more = f", about {wording.count(found.rows)} would" if found.rows else ""
        said += f": not shown with {pair.n} {rows.part} rows{more}"
    elif identical:
        said += ": every answer is the tuned model's own"
    return Check("task", found.status, said, pair.difference, -margin), scores


def _stops(reference: Reference, evaluation: Evaluation | None, chats: Sequence[Generation]) -> Check:
    """Answers end by themselves as often as the tuned model's."""
    if evaluation is not None and reference.evaluation is not None:
        ours = [row.stopped for row in reference.evaluation.rows if row.prompt_tokens]
        theirs = [row.stopped for row in evaluation.rows if row.prompt_tokens]
    else:
        ours, theirs = [one.stopped for one in reference.chats], [one.stopped for one in chats]
    if not ours:
        return Check("stops", "not possible", "a model of pairs gives no answers")
    if not theirs:
        return Check("stops", "failed", "it cannot be asked")
    before, now = sum(ours) / len(ours), sum(theirs) / len(theirs)
    text = (
        f"{wording.percent(now)} of {len(theirs)} answers end by themselves, {wording.percent(before)} of the tuned's"
    )
    if not any(ours):
        return Check("stops", "unsure", f"{text}: the tuned model never stopped within the limit", now, before)
    allowed = max(1, int(_STOPS_LOST * len(ours)))
    passed = sum(ours) - sum(theirs) <= allowed  # counted: shares would not add up to the last bit
    return Check("stops", "passed" if passed else "failed", text, now, (sum(ours) - allowed) / len(ours))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON can say: what is no number becomes None."""
    return {k: None if isinstance(v, float) and v in (float("inf"), float("-inf")) else v for k, v in numbers.items()}
