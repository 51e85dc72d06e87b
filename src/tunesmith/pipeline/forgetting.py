"""What tuning made the model forget: general text and general instructions, before training and after it.

Both are measured through the same engine and kept in the run, so that a repeated command asks nothing again. The
answers stand in `forgetting.json`, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.types import Message
from tunesmith.evaluation.general import GeneralSets, follows, general_sets, perplexity
from tunesmith.evaluation.statistics import difference_interval, mcnemar_exact
from tunesmith.evaluation.types import PairedDifference
from tunesmith.inference.types import Engine
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.stage import Stage, engine_of, progress
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, write_json
from tunesmith.verdict.types import Forgetting

FILE = "forgetting.json"
METRIC = "general_instructions"
_ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class General:
    """What a model does beside its task: perplexity of general text, answers to instructions and which are right."""

    perplexity: float
    answers: tuple[str, ...]
    right: tuple[bool, ...]


def sets_of(recipe: Recipe) -> GeneralSets | None:
    """What is to be measured; None where the recipe does not want it. Raises as `general_sets`."""
    spec = recipe.evaluate
    return general_sets(spec.general_text, spec.general_instructions) if spec.forgetting else None


def measure_general(
    sets: GeneralSets,
    prepared: Prepared,
    folder: RunFolder,
    listener: Listener,
    *,
    when: Literal["before", "after"],
    adapter: str | None = None,
) -> General:
    """Measure the model that is in memory, or read what was measured of it. `adapter`: the hash of what was tuned."""
    recipe = prepared.recipe
    stage = Stage(
        folder,
        f"forgetting_{when}",
        [FILE],
        sets=sets.sha256,
        base=prepared.base.weights_sha256,
        template=prepared.renderer.template,
        dtype=recipe.base.dtype,
        add_tokens=recipe.base.add_tokens,
        adapter=adapter,
    )
    if stage.result is not None:
        kept = stage.result
        return General(kept["perplexity"], tuple(kept["answers"]), tuple(kept["right"]))
    base, engine = prepared.base, engine_of(prepared)
    surprise, _ = perplexity(base.model, base.tokenizer, sets.text, base.context)
    answers = _answers(sets, engine, listener, "base" if when == "before" else "tuned")
    right = tuple(follows(said, one) for said, one in zip(answers, sets.instructions, strict=True))
    stage.finish({"perplexity": surprise, "answers": list(answers), "right": list(right)})
    return General(surprise, answers, right)


def forgetting_of(sets: GeneralSets, before: General, after: General, confidence: float) -> Forgetting:
    """Both sides together. Instructions are paired: Newcombe's interval of the difference, McNemar's exact test.

    A base that follows none has none to forget, so there is no difference then.
    """
    n = len(sets.instructions)
    shares = sum(before.right) / n, sum(after.right) / n
    return Forgetting(
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
        skill=_difference(before.right, after.right, confidence) if any(before.right) else None,
        instructions=n,
        skill_before=shares[0],
        skill_after=shares[1],
    )


def write_forgetting(folder: RunFolder, sets: GeneralSets, before: General, after: General) -> None:
    """Both models' answers side by side, for whoever wants to look."""
    rows = zip(sets.instructions, before.answers, before.right, after.answers, after.right, strict=True)
    write_json(
        folder.path / FILE,
        {
            "perplexity": {"before": before.perplexity, "after": after.perplexity},
            "instructions": [
                {
                    "skill": one.skill,
                    "prompt": one.prompt,
                    "answers": list(one.answers),
                    "before": said,
                    "before_right": ok,
                    "after": says,
                    "after_right": okay,
                }
                for one, said, ok, says, okay in rows
            ],
        },
    )


def _answers(sets: GeneralSets, engine: Engine, listener: Listener, who: str) -> tuple[str, ...]:
    """An answer to every instruction; "" to one that is too long for the context."""
    asked = [[Message("user", one.prompt)] for one in sets.instructions]
    room = engine.context - _ANSWER_TOKENS
    fitting = [i for i, turns in enumerate(asked) if engine.count_tokens(turns) <= room]
    answers = [""] * len(asked)
    tell = progress(listener, "forgetting", f"{who}: general instructions")
    made = engine.generate([asked[i] for i in fitting], _ANSWER_TOKENS)
    for done, (i, generation) in enumerate(zip(fitting, made, strict=True), start=1):
        answers[i] = generation.text
        tell(done, len(fitting))
    return tuple(answers)


def _difference(before: Sequence[bool], after: Sequence[bool], confidence: float) -> PairedDifference:
    """Tuned minus base."""
    n = len(before)
    pairs = list(zip(after, before, strict=True))
    table = (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )
    shares = sum(after) / n, sum(before) / n
    low, high = difference_interval(*shares, n, None, confidence, table=table)
    p_value = mcnemar_exact(table[1], table[2])
    return PairedDifference("tuned", "base", METRIC, shares[0] - shares[1], low, high, p_value, n)
