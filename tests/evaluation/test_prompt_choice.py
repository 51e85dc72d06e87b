from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.evaluation.engines import FakeEngine
from tests.tasks.rows import example
from tunesmith.data.types import Message
from tunesmith.errors import DataError
from tunesmith.evaluation.prompt_choice import Choice, Variant, choose_prompt
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.tasks.classification import Classification

TASK = Classification(("cat", "dog"))
SHOTS = tuple(example(f"shot {i}", "cat", line=i) for i in range(8))
ROWS = [example(f"q {i}", "dog") for i in range(40)]


def maker(engine: FakeEngine) -> Callable[[Variant], PromptCandidate]:
    def make(variant: Variant) -> PromptCandidate:
        task = replace(TASK, given_instruction=f"Wording {variant.instruction}")
        return PromptCandidate("few_shot", engine, task, 5, shots=SHOTS, k=variant.k)

    return make


def shown(messages: Sequence[Message]) -> int:
    return sum(message.role == "assistant" for message in messages)


def wording(messages: Sequence[Message]) -> int:
    return int(messages[0].content.split("\n")[0].split()[-1])


def choose(engine: FakeEngine, variants: Sequence[Variant], **changes: int) -> Choice:
    settings = {"rows": 6, "seed": 0, **changes}
    return choose_prompt(maker(engine), variants, ROWS, metric="accuracy", **settings)


def test_the_best_wins_and_of_equals_the_shorter_prompt() -> None:
    engine = FakeEngine(lambda messages: "dog" if shown(messages) in (2, 4) else "cat")
    progress: list[tuple[int, int]] = []
    choice = choose_prompt(
        maker(engine),
        [Variant(4), Variant(1), Variant(2)],
        ROWS,
        metric="accuracy",
        rows=6,
        seed=0,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert choice.variant == Variant(2) and choice.rows == 6
    assert {one.variant.k: one.score for one in choice.tried} == {1: 0.0, 2: 1.0, 4: 1.0}
    assert [one.variant.k for one in choice.tried] == [2, 4, 1]
    assert progress[-1] == (18, 18) and len(progress) == 18
    assert len({tuple(prompt[-1].content for prompt in asked) for asked in engine.asked}) == 1
    facts = choice.facts([])
    assert facts == {
        "chosen_on": {
            "metric": "accuracy",
            "validation_rows": 6,
            "tried": {
                "k 2, instruction 0": {"score": 1.0, "rows": 6, "prompt_tokens": choice.tried[0].prompt_tokens},
                "k 4, instruction 0": {"score": 1.0, "rows": 6, "prompt_tokens": choice.tried[1].prompt_tokens},
                "k 1, instruction 0": {"score": 0.0, "rows": 6, "prompt_tokens": choice.tried[2].prompt_tokens},
            },
        }
    }


def test_instruction_and_examples_are_chosen_together() -> None:
    """Neither alone finds it: only one combination is good."""
    engine = FakeEngine(lambda messages: "dog" if (shown(messages), wording(messages)) == (2, 1) else "cat")
    variants = [Variant(k, "diverse", n) for n in range(3) for k in (1, 2)]
    choice = choose(engine, variants, rows=16)
    assert choice.variant == Variant(2, "diverse", 1)
    facts = choice.facts(["Say which animal.", "Name it."])
    assert (facts["instruction"], facts["examples"]) == ("Say which animal.", "diverse")
    assert len(facts["chosen_on"]["tried"]) == 6


def test_many_are_halved_and_the_last_are_tried_on_all_rows() -> None:
    engine = FakeEngine(lambda messages: "dog" if wording(messages) == 13 else "cat")
    variants = [Variant(1, "", n) for n in range(16)]
    choice = choose(engine, variants, rows=40)
    assert choice.variant == Variant(1, "", 13)
    assert [len(asked) for asked in engine.asked] == [10] * 16 + [20] * 8 + [40] * 4
    assert sorted(one.rows for one in choice.tried) == [10] * 8 + [20] * 4 + [40] * 4
    assert choice.tried[0].variant == choice.variant and choice.tried[0].rows == 40


def test_few_rows_are_not_halved_into_nothing() -> None:
    engine = FakeEngine(lambda messages: "dog" if wording(messages) == 6 else "cat")
    choice = choose(engine, [Variant(1, "", n) for n in range(9)], rows=12)
    assert choice.variant.instruction == 6
    assert [len(asked) for asked in engine.asked] == [12] * 9


def test_one_variant_needs_no_validation_and_none_is_an_error() -> None:
    def never(variant: Variant) -> PromptCandidate:
        raise AssertionError("must not be asked")

    found = choose_prompt(never, [Variant(3), Variant(3)], [], metric="accuracy", rows=5, seed=0)
    assert found.variant == Variant(3) and found.facts([]) == {}
    for variants in ([Variant(1), Variant(2)], []):
        with pytest.raises(DataError, match="cannot be chosen"):
            choose_prompt(never, variants, [], metric="accuracy", rows=5, seed=0)
