from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from tests.tasks.rows import example
from tunesmith.errors import DataError
from tunesmith.tasks.classification import Classification, MacroF1
from tunesmith.tasks.metrics import quick_score, value_of

TASK = Classification(("card_arrival", "lost_card", "top_up", "reverted_card_payment?"))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("card_arrival", "card_arrival"),
        ("  Card Arrival.  ", "card_arrival"),
        ('"LOST  CARD"', "lost_card"),
        ("'lost_card'.", "lost_card"),
        ("“lost_card.”", "lost_card"),
        ("top_up\nBecause the user wants to add money.", "top_up"),
        ("\n\ntop_up\nlost_card", "top_up"),
        ("reverted_card_payment?", "reverted_card_payment?"),
        ("Reverted card payment", "reverted_card_payment?"),
        ("", None),
        ("   \n ", None),
        ("The label is top_up", None),
        ("top_up, lost_card", None),
        ("top", None),
        ("?", None),
    ],
)
def test_parse_is_strict_but_fair(text: str, label: str | None) -> None:
    assert TASK.parse(text) == label


def test_every_label_parses_to_itself_even_when_labels_differ_only_in_form() -> None:
    task = Classification(("yes", "Yes", "YES!", "no", "no."))
    assert [task.parse(label) for label in task.labels] == list(task.labels)
    # Fits `yes` and `Yes` equally well: unreadable rather than a guess.
    assert task.parse("yEs") is None
    assert task.parse("NO") == "no"


def test_closing_text_of_a_template_is_taken_off() -> None:
    task = Classification(("calm", "angry"), closing='" <end>')
    assert task.parse('calm" <end>') == "calm"
    assert task.parse("calm") == "calm"


@given(st.text())
def test_parse_gives_a_label_or_none_for_any_text(text: str) -> None:
    assert TASK.parse(text) in (None, *TASK.labels)


def test_target_names_the_row_of_an_unknown_label() -> None:
    assert TASK.target(example("q", " Card arrival ")) == "card_arrival"
    with pytest.raises(DataError, match=r"rows\.csv:7"):
        TASK.target(example("q", "refund", line=7))


def test_full_instruction_lists_labels_and_keeps_the_users_words() -> None:
    task = Classification(("a", "b"), given_instruction="Which team is asked?")
    assert task.instruction == "Which team is asked?"
    assert task.full_instruction.startswith("Which team is asked?\n")
    assert task.full_instruction.endswith(":\na\nb")
    silent = Classification(("a", "b"), given_instruction="")
    assert silent.instruction == "" and silent.full_instruction.startswith("Classify")


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["a", "b", "c", "d", "e", None])), min_size=1))
def test_metrics_equal_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    expected, parsed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    task = Classification(tuple("abcde"))
    predicted = ["<unreadable>" if label is None else label for label in parsed]
    occurring = sorted({*expected, *predicted} - {"<unreadable>"})
    f1 = f1_score(expected, predicted, average="macro", labels=occurring, zero_division=0)
    assert value_of(task.metrics["macro_f1"], parsed, expected) == pytest.approx(f1)
    assert value_of(task.metrics["accuracy"], parsed, expected) == pytest.approx(accuracy_score(expected, predicted))


def test_macro_f1_of_stacked_sums_is_that_of_each() -> None:
    metric = MacroF1(("a", "b"))
    statistics = metric.statistics(["a", None, "b"], ["a", "b", "a"])
    sums = np.stack([statistics.sum(axis=0), statistics[:1].sum(axis=0)])
    # First: F1(a) = 2/3, F1(b) = 0 of predicted once and expected once. Second: only class a occurs.
    assert metric.finish(sums) == pytest.approx([1 / 3, 1.0])
    assert metric.item(statistics).tolist() == [1.0, 0.0, 0.0]


def test_quick_score_counts_unreadable_answers_as_wrong() -> None:
    rows = [example("1", "top_up"), example("2", "lost_card")]
    assert quick_score(TASK, ["top up", "I do not know"], rows) == pytest.approx({"accuracy": 0.5, "macro_f1": 0.5})
    assert next(iter(TASK.metrics)) == "accuracy"
