from __future__ import annotations

import pytest

from tunesmith.verdict import wording


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.candidate_name("few_shot"), "few-shot"),
        (wording.candidate_name("tuned"), "tuned"),
        (wording.candidate_name("tuned_onnx_int8"), "tuned (onnx int8)"),
        (wording.candidate_name("trivial_tfidf"), "trivial (tfidf)"),
        (wording.candidate_name("few_shot_grammar"), "few-shot (grammar)"),
        (wording.candidate_name("tuned_scored"), "tuned (scored)"),
        (wording.candidate_name("remote_big_model_scored"), "remote (big model, scored)"),
        (wording.candidate_name("scored"), "scored"),
        (wording.metric_name("entity_f1"), "entity F1"),
        (wording.metric_name("cost_of_refund"), "cost of refund"),
        (wording.points(0.1124), "+11.2 points"),
        (wording.points(-0.0004), "0.0 points"),
        (wording.bare_points(-0.031), "-3.1"),
        (wording.interval(0.089, 0.1361, 0.95), "95 % CI 8.9 to 13.6"),
        (wording.level(0.975), "97.5 %"),
        (wording.money(0, "EUR"), "0 EUR"),
        (wording.money(0.00001, "EUR"), "below 0.0001 EUR"),
        (wording.money(1234.5, "EUR"), "1,234.50 EUR"),
        (wording.short_count(12345), "12,345"),
        (wording.short_count(32_900_000), "32.9 million"),
        (wording.short_amount(0.01), "0.01"),
        (wording.short_amount(25_000), "25k"),
        (wording.short_amount(2_500_000), "2.5M"),
        (wording.size(1_204_000_000), "1.12 GiB"),
        (wording.listed([]), ""),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
        (wording.listed(list("abcdefg")), "a, b, c, d, e and 2 more"),
        (wording.duration(0.00045), "0.45 ms"),
        (wording.duration(0.9996), "1.0 s"),
        (wording.duration(99.96), "1.7 min"),
        (wording.duration(7200), "2.0 h"),
        (wording.p_value(0.0004), "p < 0.001"),
        (wording.time_to(0.3), "under a month"),
        (wording.time_to(1.2), "1 month"),
        (wording.time_to(30), "2 years"),
        (wording.time_to(5000), "over 100 years"),
    ],
)
def test_as_people_read_it(written: str, expected: str) -> None:
    assert written == expected
