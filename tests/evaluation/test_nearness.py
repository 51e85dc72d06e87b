from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluation.nearness import WordIndex, nearest_places
from tunesmith.tasks.types import FloatArray


class Given:
    """An index whose scores a test gives."""

    def __init__(self, scores: list[float]) -> None:
        self.given = np.array(scores)

    def scores(self, question: str) -> FloatArray:
        return self.given

    def expect(self, questions: object) -> None:
        pass


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), max_size=30), st.integers(0, 40))
def test_the_first_are_those_of_a_stable_sort(scores: list[float], most: int) -> None:
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:most]
    assert nearest_places(Given(scores), "q", most) == expected


def test_words_of_any_script_are_found() -> None:
    index = WordIndex(["der Hund bellt", "今日は晴れです", "кошка спит"])
    for question, place in (("HUND", 0), ("晴れ", 1), ("Кошка", 2)):
        assert int(np.argmax(index.scores(question))) == place
    assert index.scores("…").tolist() == [0, 0, 0]
