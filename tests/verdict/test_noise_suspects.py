"""Labels that the tuned model doubts: planted wrong ones are found, and a model that knows too little is not heard."""

from __future__ import annotations

import numpy as np

from tests.verdict.cases import row
from tunesmith.evaluation.calibration import beliefs_of, calibration
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.verdict.noise_suspects import FEWEST_ROWS, noise_suspects

LABELS = ("card", "refund", "transfer", "limit")


def answered(i: int, given: str, said: str, probabilities: dict[str, float] | None = None) -> ScoredAnswer:
    return row(i, float(given == said), expected=given, answer=said, parsed=said, probabilities=probabilities)


def scored(n: int = 400, wrong: int = 12, sharpness: float = 6.0, boast: float = 1.0) -> tuple[Evaluation, set[str]]:
    """A model that mostly knows the true label, with logits `boast` times too large; the first `wrong` rows carry
    another label.
    """
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        true = int(rng.integers(4))
        logits = rng.normal(0, 1, 4)
        logits[true] += sharpness
        p = np.exp(boast * logits) / np.exp(boast * logits).sum()
        given = LABELS[(true + 1) % 4] if i < wrong else LABELS[true]
        rows.append(answered(i, given, LABELS[int(p.argmax())], dict(zip(LABELS, p.tolist(), strict=True))))
    return Evaluation("tuned_scored", tuple(rows), (), 0.1, 0.2, 1.0), {f"r{i}" for i in range(wrong)}


def test_planted_wrong_labels_are_found_and_few_others() -> None:
    evaluation, planted = scored()
    found = noise_suspects([evaluation], "accuracy", limit=100)
    ids = [suspect.id for suspect in found]
    assert len(planted & set(ids)) >= 8
    assert len(set(ids) - planted) <= 1
    assert all(suspect.given != suspect.likely and suspect.row.id == suspect.id for suspect in found)
    leads = [suspect.lead or 0.0 for suspect in found]
    assert leads == sorted(leads, reverse=True) and leads[-1] >= 0.35
    assert len(noise_suspects([evaluation], "accuracy", limit=3)) == 3


def test_a_temperature_from_validation_rows_lowers_a_boastful_model() -> None:
    evaluation, _ = scored(sharpness=2.5, boast=4.0)
    beliefs, _ = beliefs_of([(r.probabilities, r.expected) for r in evaluation.rows])
    assert beliefs is not None
    found = calibration("tuned_scored", beliefs, beliefs)
    assert found.temperature is not None and found.temperature > 1
    plain = noise_suspects([evaluation], "accuracy", limit=100)
    scaled = noise_suspects([evaluation], "accuracy", calibration=(found,), limit=100)
    assert max(s.lead or 0 for s in scaled) < max(s.lead or 0 for s in plain)


def test_a_model_that_knows_little_doubts_nobody() -> None:
    evaluation, _ = scored(wrong=160)  # right on 60 % of the given labels
    assert noise_suspects([evaluation], "accuracy") == ()
    few, _ = scored(n=FEWEST_ROWS - 1, wrong=2)
    assert noise_suspects([few], "accuracy") == ()
    assert noise_suspects([], "accuracy") == ()


def test_without_probabilities_others_must_agree() -> None:
    def says(name: str, wrong: set[int]) -> Evaluation:
        rows = [
            answered(i, LABELS[i % 4], LABELS[(i + 1) % 4] if i in wrong else LABELS[i % 4], None) for i in range(80)
        ]
        return Evaluation(name, tuple(rows), (), 0.1, 0.2, 1.0)

    all_of_them = [says("tuned", {1, 2, 3}), says("few_shot", {1, 2, 9}), says("trivial_tfidf_lr", {1, 3, 30})]
    found = noise_suspects(all_of_them, "accuracy")
    assert [(s.id, s.given, s.likely, s.lead, s.agreeing) for s in found] == [
        ("r1", "refund", "transfer", None, ("few_shot", "trivial_tfidf_lr"))
    ]
    assert noise_suspects(all_of_them[:2], "accuracy") == ()  # two are not enough
    again = says("few_shot_grammar", {1, 2, 9})  # the same witness in another way
    assert noise_suspects([*all_of_them[:2], again], "accuracy") == ()
    assert noise_suspects(all_of_them[1:], "accuracy") == ()  # the tuned model is not among them


def test_two_labels_or_texts_prove_nothing_by_agreement() -> None:
    def two(name: str) -> Evaluation:
        rows = [answered(i, "yes", "no" if i < 5 else "yes", None) for i in range(60)]
        rows += [answered(60 + i, "no", "no", None) for i in range(10)]
        return Evaluation(name, tuple(rows), (), 0.1, 0.2, 1.0)

    assert noise_suspects([two("tuned"), two("few_shot"), two("zero_shot")], "accuracy") == ()


def test_a_way_that_gave_probabilities_is_asked_before_the_plain_one() -> None:
    evaluation, _ = scored()
    plain = Evaluation("tuned", tuple(answered(i, "card", "card", None) for i in range(400)), (), 0.1, 0.2, 1.0)
    assert noise_suspects([plain, evaluation], "accuracy")[0].lead is not None
    # Labels that the probabilities do not know are nobody's suspects.
    strange = [answered(i, "fee", "card", dict.fromkeys(LABELS, 0.25)) for i in range(40)]
    right = [answered(100 + i, "card", "card", {"card": 0.97, "refund": 0.01, "transfer": 0.01, "limit": 0.01})
             for i in range(200)]  # fmt: skip
    assert noise_suspects([Evaluation("tuned_scored", (*right, *strange), (), 0.1, 0.2, 1.0)], "accuracy") == ()
