from __future__ import annotations

import pytest

from tests.verdict.cases import decided, evaluation, pair
from tunesmith.verdict.benefits import Weights
from tunesmith.verdict.types import CandidateCost, Volume

TUNED = evaluation("tuned", (0.861, 0.82, 0.89))
FEW_SHOT = evaluation("few_shot", (0.749, 0.70, 0.79))
CLEAR = pair("few_shot", (0.112, 0.089, 0.136), p_value=0.0001)
COSTS = {
    "tuned": CandidateCost("tuned", 24.0, 2.0, 0.1, 0.2, 1.0, 6.0),
    "few_shot": CandidateCost("few_shot", 336.0, 2.0, 0.3, 0.5, 3.0, 0.0),
}


def test_quality_shorter_prompts_and_a_shared_base() -> None:
    found = decided(
        [TUNED, FEW_SHOT], [CLEAR], costs=COSTS, volume=Volume(10_000), weights=Weights(2 * 2**20, 40 * 2**20, True)
    ).benefits
    assert [one["text"] for one in found.values()] == [
        "Quality: +11.2 points accuracy over few-shot (95 % CI 8.9 to 13.6).",
        "Prompts: 312 tokens fewer per request than few-shot, the best prompt (24 in place of 336), 3,120,000 a month.",
        "Base: shared. The adapter takes 2.0 MiB beside the 40.0 MiB of the base, which serves other adapters too.",
    ]
    assert found["prompts"]["tokens_saved_per_month"] == 3_120_000
    assert found["quality"]["difference"] == pytest.approx(0.112)


def test_the_best_prompt_is_the_one_with_the_highest_score() -> None:
    zero = evaluation("zero_shot_grammar", (0.76, 0.70, 0.80))
    costs = {**COSTS, "zero_shot_grammar": CandidateCost("zero_shot_grammar", 20.0, 2.0, 0.3, 0.5, 3.0, 0.0)}
    pairs = [CLEAR, pair("zero_shot_grammar", (0.101, 0.05, 0.15), p_value=0.001)]
    found = decided([TUNED, FEW_SHOT, zero], pairs, costs=costs).benefits["prompts"]
    assert found["text"] == (
        "Prompts: 4 tokens more per request than zero-shot (grammar), the best prompt (24 in place of 20)."
    )
    assert found["tokens_saved"] == -4


def test_what_is_not_known_is_left_out() -> None:
    trivial = evaluation("trivial_tfidf", (0.749, 0.70, 0.79))
    found = decided([TUNED, trivial], [pair("trivial_tfidf", (0.112, 0.089, 0.136), p_value=0.001)]).benefits
    assert list(found) == ["quality"]
    whole = decided([TUNED, FEW_SHOT], [CLEAR], weights=Weights(3 * 2**30, 3 * 2**30, False)).benefits
    assert whole["base"]["text"] == "Base: not shared. The tuned model is a whole one of 3.0 GiB."
