from __future__ import annotations

import pytest

from tests.verdict.cases import cost, evaluation
from tunesmith.recipe.schema import Prices
from tunesmith.verdict.costs import TokenPrice, break_even, candidate_costs, months, total_cost
from tunesmith.verdict.longer_prompts import longer_prompts_sentences, prompt_costs
from tunesmith.verdict.types import CandidateCost

PRICES = Prices(hardware_per_hour=0.36, hours_of_work=2.0, work_per_hour=50.0)


def test_a_request_costs_the_machine_for_its_median_latency() -> None:
    found = candidate_costs(
        {"few_shot": evaluation("few_shot", (0.8, 0.7, 0.9), latency=2.0)}, prices=PRICES, training_seconds=100
    )
    # 1000 requests x 2 s = 2000 s; 0.36 an hour is 0.0001 a second.
    assert found["few_shot"].per_1000_requests == pytest.approx(0.2)
    assert found["few_shot"].prompt_tokens == 20
    assert found["few_shot"].answer_tokens == 3
    assert found["few_shot"].latency_p95 == 4.0


def test_only_what_was_tuned_has_a_one_off_cost() -> None:
    names = ["zero_shot", "trivial_majority", "tuned", "tuned_onnx"]
    found = candidate_costs(
        {name: evaluation(name, (0.8, 0.7, 0.9)) for name in names}, prices=PRICES, training_seconds=1000
    )
    assert list(found) == names
    assert [found[name].one_off for name in names] == pytest.approx([0, 0, 100.1, 100.1])


def test_break_even_is_reached_by_the_first_whole_request() -> None:
    assert break_even(cost("tuned", 1.0, one_off=10.0), cost("few_shot", 5.0)) == 2500
    assert break_even(cost("tuned", 1.0, one_off=10.001), cost("few_shot", 5.0)) == 2501


@pytest.mark.parametrize("per_1000", [1.0, 0.5])
def test_no_break_even_where_tuned_is_not_cheaper_per_request(per_1000: float) -> None:
    assert break_even(cost("tuned", 1.0, one_off=10.0), cost("few_shot", per_1000)) is None


def test_what_costs_nothing_once_pays_from_the_first_request() -> None:
    assert break_even(cost("tuned", 1.0), cost("few_shot", 1.0)) == 0


def test_months() -> None:
    assert months(25_000, 10_000) == 2.5


def test_an_endpoint_costs_its_tokens() -> None:
    found = candidate_costs(
        {
            "remote_big": evaluation("remote_big", (0.8, 0.7, 0.9), latency=2.0),
            "few_shot": evaluation("few_shot", (0.8, 0.7, 0.9)),
        },
        prices=PRICES,
        training_seconds=0,
        token_prices={"remote_big": TokenPrice(prompt=2.5, answer=10.0)},
    )
    # 20 prompt tokens at 2.5 and 3 answer tokens at 10 a million, a thousand times.
    assert found["remote_big"].per_1000_requests == pytest.approx(0.05 + 0.03)
    assert found["few_shot"].per_1000_requests == pytest.approx(1000 * 0.1 * 0.0001)


def test_what_longer_prompts_cost() -> None:
    costs = {
        "zero_shot": CandidateCost("zero_shot", 50.0, 3.0, 0.2, 0.3, 0.02, 0.0),
        "few_shot": CandidateCost("few_shot", 450.0, 3.0, 0.9, 1.2, 0.09, 0.0),
        "tuned": CandidateCost("tuned", 20.0, 3.0, 0.1, 0.2, 0.01, 100.0),
    }
    (found,) = prompt_costs(costs, requests_per_month=30_000)
    assert (found.candidate, found.extra_tokens, found.times) == ("few_shot", 400, 9)
    assert found.extra_per_1000 == pytest.approx(0.07)
    assert found.extra_latency == pytest.approx(0.7)
    assert found.extra_per_month == pytest.approx(2.1)
    (sentence,) = longer_prompts_sentences(costs, 30_000, "USD")
    assert sentence == (
        "The examples in the prompts of few-shot make them 9.0 times as long (400 tokens more), which adds 0.0700 USD "
        "to 1,000 requests and 2.10 USD to a month."
    )
    assert prompt_costs({"few_shot": costs["few_shot"]}, 30_000) == []


def test_longer_prompts_that_were_answered_sooner_or_are_not_longer() -> None:
    costs = {
        "zero_shot": CandidateCost("zero_shot", 50.0, 3.0, 0.2, 0.3, 0.02, 0.0),
        "few_shot": CandidateCost("few_shot", 50.0, 3.0, 0.2, 0.3, 0.03, 0.0),  # no example fitted
        "documents": CandidateCost("documents", 150.0, 3.0, 0.1, 0.3, 0.01, 0.0),
    }
    (sentence,) = longer_prompts_sentences(costs, 30_000, "USD")
    assert sentence == (
        "The passages in the prompts of documents make them 3.0 times as long (100 tokens more), yet 1,000 requests, "
        "by the latency measured, cost 0.0100 USD less."
    )


def test_cost_over_a_time() -> None:
    assert total_cost(cost("tuned", 0.5, one_off=240.0), 120_000) == pytest.approx(300)
