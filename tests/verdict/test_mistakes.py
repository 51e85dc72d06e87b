from __future__ import annotations

import json

from tests.verdict.cases import row
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.verdict.mistakes import (
    UNREADABLE,
    choose_mistakes,
    common_frame,
    confusion,
    item_scores,
    score_histogram,
    wrong_rows,
)


def of(rows: list[ScoredAnswer], name: str = "tuned") -> Evaluation:
    return Evaluation(name, tuple(rows), (), 0.1, 0.1, 1.0)


def test_half_of_the_chosen_are_rows_the_alternative_got_right() -> None:
    tuned = of([row(i, 0.0) for i in range(50)] + [row(i, 1.0) for i in range(50, 60)])
    other = of([row(i, float(i % 3 == 0)) for i in range(60)], "few_shot")
    chosen = choose_mistakes(tuned, other, "accuracy")
    assert len(chosen) == 20
    assert [mistake.other_right for mistake in chosen] == [True] * 10 + [False] * 10
    assert all(
        mistake.tuned_score == 0 and mistake.other and mistake.other.id == mistake.tuned.id for mistake in chosen
    )
    assert wrong_rows(tuned, "accuracy") == 50


def test_the_other_half_fills_up_where_one_is_short() -> None:
    tuned = of([row(i, 0.0) for i in range(30)])
    few_right = of([row(i, float(i < 3)) for i in range(30)], "few_shot")
    assert [m.other_right for m in choose_mistakes(tuned, few_right, "accuracy")].count(True) == 3
    all_right = of([row(i, 1.0) for i in range(30)], "few_shot")
    assert len(choose_mistakes(tuned, all_right, "accuracy")) == 20
    alone = choose_mistakes(tuned, None, "accuracy")
    assert len(alone) == 20
    assert alone[0].other is None


def test_the_lowest_scores_come_first() -> None:
    tuned = of([row(i, i / 40) for i in range(40)])
    assert [m.tuned_score for m in choose_mistakes(tuned, None, "accuracy")] == [i / 40 for i in range(20)]


class TestFrame:
    def rows(self, *prompts: str) -> list[ScoredAnswer]:
        return [row(i, 0.0, prompt=prompt) for i, prompt in enumerate(prompts)]

    def test_whole_lines_in_common_are_taken_off_and_nothing_else(self) -> None:
        rows = self.rows("Do it.\n\ncats sleep\n\nAnswer:\n", "Do it.\n\ncaps sleep\n\nAnswer:\n")
        frame = common_frame(rows)
        assert frame.inside(rows[0].prompt) == "cats sleep"
        assert frame.inside(rows[1].prompt) == "caps sleep"
        assert frame.start == "Do it.\n\n"

    def test_marks_of_a_chat_template_belong_to_the_frame(self) -> None:
        rows = self.rows("<|user|>two cats<|end|>\n<|assistant|>\n", "<|user|>two bats<|end|>\n<|assistant|>\n")
        frame = common_frame(rows)
        assert (frame.start, frame.end) == ("<|user|>", "<|end|>\n<|assistant|>\n")
        assert [frame.inside(one.prompt) for one in rows] == ["two cats", "two bats"]
        rows = self.rows("<start_of_turn>user\na cat<end_of_turn>\n", "<start_of_turn>user\nthe cat<end_of_turn>\n")
        assert [common_frame(rows).inside(one.prompt) for one in rows] == ["a cat", "the cat"]

    def test_prompts_without_lines_in_common_stay_whole(self) -> None:
        rows = self.rows("one", "two\nlines")
        assert [common_frame(rows).inside(r.prompt) for r in rows] == ["one", "two\nlines"]

    def test_equal_and_single_prompts_stay_whole(self) -> None:
        assert common_frame(self.rows("a\nb\n", "a\nb\n")).inside("a\nb\n") == "a\nb"
        assert common_frame(self.rows("a\nb")).start == ""


class TestConfusion:
    def test_counts_add_up_and_the_unreadable_have_a_column(self) -> None:
        rows = [
            row(0, 1.0, expected="A", parsed="A"),
            row(1, 0.0, expected="A", parsed="B"),
            row(2, 0.0, expected="B", parsed=None),
            row(3, 0.0, expected="A", parsed="B"),
            row(4, 1.0, expected="b ", parsed="B"),
        ]
        found = confusion(of(rows), ["A", "B"], "accuracy")
        assert found.columns == ("A", "B", "b", UNREADABLE)
        assert found.counts == ((1, 2, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0))
        assert found.totals == (3, 1, 1)
        assert found.pairs[0] == ("A", "B", 2, 3)

    def test_of_many_labels_the_most_confused_are_shown_in_their_order(self) -> None:
        labels = [f"label_{i:02d}" for i in range(77)]
        rows = [row(i, 1.0, expected=label, parsed=label) for i, label in enumerate(labels)]
        rows += [row(100 + i, 0.0, expected="label_70", parsed="label_03") for i in range(5)]
        found = confusion(of(rows), labels, "accuracy")
        assert len(found.labels) == 20
        assert found.label_count == 77
        assert {"label_03", "label_70"} <= set(found.labels)
        assert list(found.labels) == sorted(found.labels)
        at = found.labels.index("label_70")
        assert found.counts[at][found.labels.index("label_03")] == 5


class TestItems:
    def test_a_list(self) -> None:
        rows = [
            row(0, 0.5, expected=json.dumps(["Salt", "flour"]), parsed=["salt", "pan", "pan"]),
            row(1, 0.0, expected=json.dumps(["flour"]), parsed=None),
        ]
        found = item_scores(of(rows))
        assert [(s.field, s.found, s.missed, s.invented) for s in found.fields] == [("", 1, 2, 2)]
        assert found.missed == (("", "flour", 2),)
        assert found.invented == (("", "pan", 2),)
        assert found.unreadable == 1
        assert found.fields[0].precision == found.fields[0].recall == found.fields[0].f1 == 1 / 3

    def test_an_object_is_scored_by_field_with_the_sum_first(self) -> None:
        rows = [row(0, 0.5, expected='{"who": "Ann", "when": "noon"}', parsed={"who": "Ann", "when": "dusk"})]
        fields = {s.field: s.f1 for s in item_scores(of(rows)).fields}
        assert fields == {"all fields": 0.5, "when": 0.0, "who": 1.0}
        assert next(iter(fields)) == "all fields"


def test_the_histogram_keeps_every_row_and_puts_1_into_the_last_bin() -> None:
    rows = [row(i, score) for i, score in enumerate([0.0, 0.05, 0.1, 0.3, 0.95, 1.0])]
    assert score_histogram(of(rows), "accuracy") == [2, 1, 0, 1, 0, 0, 0, 0, 0, 2]
