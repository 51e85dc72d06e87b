from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tasks.rows import example
from tunesmith.data.types import Example
from tunesmith.errors import DataError
from tunesmith.evaluation.trivial import trivial_baselines
from tunesmith.evaluation.trivial_extraction import without_amount
from tunesmith.evaluation.types import Candidate
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import Task, fit_task, quick_score


def fitted(task: Task, train: Sequence[Example], validation: Sequence[Example] = ()) -> dict[str, Candidate]:
    return {baseline.name: baseline.fit(train, validation) for baseline in trivial_baselines(task)}


def texts(candidate: Candidate, rows: Sequence[Example]) -> list[str]:
    return [answer.text for answer in candidate.answer(rows)]


def task_of(kind: str, rows: Sequence[Example]) -> Task:
    return fit_task(TaskSpec(), kind, rows)  # type: ignore[call-arg]


CATS = [example(f"my cat purrs at {i}", "cat") for i in range(6)]
DOGS = [example(f"the dog barks at {i}", "dog") for i in range(4)]


def test_classification_baselines_learn_from_training_rows() -> None:
    train, validation = [*CATS[:5], *DOGS[:3]], [CATS[5], DOGS[3]]
    task = task_of("classification", train)
    found = fitted(task, train, validation)
    assert list(found) == ["trivial_majority", "trivial_tfidf_lr"]
    asked = [example("a dog that barks", "dog"), example("purring cats", "cat")]
    assert texts(found["trivial_majority"], asked) == ["cat", "cat"]
    assert found["trivial_majority"].notes == {"training_share": 5 / 8}
    assert texts(found["trivial_tfidf_lr"], asked) == ["dog", "cat"]
    notes = found["trivial_tfidf_lr"].notes
    assert notes["c"] == 1.0 and set(notes["c_chosen_on"].values()) == {1.0}


def test_tfidf_needs_neither_validation_nor_two_labels() -> None:
    task = task_of("classification", CATS + DOGS)
    without = fitted(task, CATS + DOGS)["trivial_tfidf_lr"]
    assert without.notes["c_chosen_on"] is None and texts(without, DOGS[:1]) == ["dog"]
    single = fitted(task, CATS, DOGS)["trivial_tfidf_lr"]
    assert texts(single, DOGS[:2]) == ["cat", "cat"]


def test_skip_answers_the_rest() -> None:
    for candidate in fitted(task_of("classification", CATS + DOGS), CATS + DOGS).values():
        whole = texts(candidate, CATS + DOGS)
        assert [answer.text for answer in candidate.answer(CATS + DOGS, skip=7)] == whole[7:]
        assert list(candidate.answer(CATS, skip=len(CATS))) == []


def test_no_training_rows_is_an_error() -> None:
    for baseline in trivial_baselines(task_of("generation", CATS)):
        with pytest.raises(DataError, match="no training rows"):
            baseline.fit([], CATS)


def foods(question: str, *answer: str) -> Example:
    return example(question, json.dumps(answer, ensure_ascii=False))


RECIPES = [
    foods("2 cups Sugar\n1 cup brown sugar, packed", "Sugar", "brown sugar"),
    foods("1 egg\nsugar with ice", "egg", "sugar"),
    foods("ice\negg with milk", "ice", "egg", "with", "milk"),
]


def test_dictionary_takes_the_longest_match_on_whole_words_in_order() -> None:
    task = task_of("extraction", RECIPES)
    found = fitted(task, RECIPES)
    assert list(found) == ["trivial_copy", "trivial_amount_unit", "trivial_dictionary"]
    asked = foods("BROWN SUGAR and Milk; eggplant, 2 Egg\nsugar")
    assert texts(found["trivial_dictionary"], [asked]) == ['["BROWN SUGAR", "Milk", "Egg", "sugar"]']


def test_dictionary_drops_entities_that_are_mostly_wrong_if_validation_says_so() -> None:
    task = task_of("extraction", RECIPES)
    train = [*RECIPES, foods("egg with milk", "egg", "milk"), foods("milk with egg", "milk", "egg")]
    kept = fitted(task, train, [foods("egg with milk", "egg", "with", "milk")])["trivial_dictionary"]
    dropped = fitted(task, train, [foods("egg with milk", "egg", "milk")])["trivial_dictionary"]
    assert kept.notes["min_precision"] == 0.0 and dropped.notes["min_precision"] == 0.5
    asked = [foods("milk with egg")]
    assert texts(kept, asked) == ['["milk", "with", "egg"]']
    assert texts(dropped, asked) == ['["milk", "egg"]']


def test_copy_takes_lines_or_the_elements_of_a_list() -> None:
    found = fitted(task_of("extraction", RECIPES), RECIPES)
    lines = foods("2 cups sugar\n\n  1 egg ")
    listed = foods('Pie\nIngredients: ["2 cups sugar", "1 egg"]\nLink: x')
    assert texts(found["trivial_copy"], [lines, listed]) == ['["2 cups sugar", "1 egg"]'] * 2
    assert texts(found["trivial_amount_unit"], [lines, listed]) == ['["sugar", "egg"]'] * 2


@pytest.mark.parametrize(
    ("line", "food"),
    [
        ("5 ounces rum", "rum"),
        ("1 1/2 tbsp. Tia Maria", "Tia Maria"),
        ("1⁄2 teaspoon freshly ground nutmeg", "freshly ground nutmeg"),
        ("2½ cups of milk", "milk"),
        ("2 (8 ounce) cans tomatoes, drained", "tomatoes"),
        ("2-3 large eggs, beaten", "eggs"),
        ("a pinch of salt", "salt"),
        ("3 tablespoons sugar (optional)", "sugar"),
        ("1 onion finely chopped", "onion"),
        ("salt to taste", "salt"),
        ("- 250g plain flour sifted", "plain flour"),
        ("olive oil for frying", "olive oil"),
        ("ice", "ice"),
        ("canola oil", "canola oil"),
        ("almonds", "almonds"),
        ("½ cup milk", "milk"),
        ("", ""),
    ],
)
def test_amount_and_unit(line: str, food: str) -> None:
    assert without_amount(line) == food


def test_objects_are_looked_up_key_by_key() -> None:
    train = [
        example("200 g plain flour", '{"name": "plain flour", "unit": "g", "quantity": 200}'),
        example("2 g flour", '{"name": "flour", "unit": "g", "quantity": 2}'),
        example("3 eggs", '{"name": "eggs", "unit": null, "quantity": 3}'),
        example("3 g flour", '{"name": "flour", "unit": "g", "quantity": 3}'),
    ]
    task = task_of("extraction", train)
    found = fitted(task, train)
    assert list(found) == ["trivial_majority", "trivial_dictionary"]
    asked = [example("3 Plain FLOUR and eggs", "{}")]
    assert json.loads(texts(found["trivial_majority"], asked)[0]) == {"name": "flour", "unit": "g", "quantity": 3}
    assert json.loads(texts(found["trivial_dictionary"], asked)[0]) == {
        "name": "plain flour",
        "unit": "g",
        "quantity": 3,
    }
    assert quick_score(task, texts(found["trivial_dictionary"], train), train)["valid_json"] == 1.0


def test_generation_baselines_close_their_answers_as_the_template_does() -> None:
    train = [
        example("how do I list files", "ls -l", closing="`"),
        example("how do I show hidden files", "ls -a", closing="`"),
        example("list them long", "ls -l", closing="`"),
    ]
    task = task_of("generation", train)
    found = fitted(task, train)
    assert list(found) == ["trivial_majority", "trivial_copy", "trivial_nearest"]
    asked = [example("show hidden things", "ls -a")]
    assert texts(found["trivial_majority"], asked) == ["ls -l`"]
    assert texts(found["trivial_copy"], asked) == ["show hidden things`"]
    assert texts(found["trivial_nearest"], asked) == ["ls -a`"]
    assert quick_score(task, ["ls -a`"], asked)["exact_match"] == 1.0


@pytest.mark.slow
def test_tfidf_is_strong_on_banking77(shared_data: Path) -> None:
    def read(name: str) -> list[Example]:
        with (shared_data / "banking77" / name).open(encoding="utf-8", newline="") as file:
            return [example(row["text"], row["category"], line=n) for n, row in enumerate(csv.DictReader(file), 2)]

    train, test = read("train.csv"), read("test.csv")
    task = task_of("classification", train)
    validation, rest = train[::10], [row for n, row in enumerate(train) if n % 10]
    candidate = fitted(task, rest, validation)["trivial_tfidf_lr"]
    score = quick_score(task, texts(candidate, test), test)
    print(f"\nbanking77, trivial_tfidf_lr: {score}, {dict(candidate.notes)}")
    assert score["accuracy"] > 0.88


@pytest.mark.slow
def test_dictionary_is_strong_on_tasteset(shared_data: Path) -> None:
    with (shared_data / "tasteset" / "TASTEset.csv").open(encoding="utf-8", newline="") as file:
        rows = []
        for number, row in enumerate(csv.DictReader(file), 2):
            spans = sorted(json.loads(row["ingredients_entities"]), key=lambda span: span["start"])
            answer = json.dumps([span["entity"] for span in spans if span["type"] == "FOOD"], ensure_ascii=False)
            rows.append(example(row["ingredients"], answer, line=number))
    test, validation, train = rows[::5], rows[1::10], [row for n, row in enumerate(rows) if n % 5 and n % 10 != 1]
    task = task_of("extraction", rows)
    scores = {
        name: quick_score(task, texts(candidate, test), test)["entity_f1"]
        for name, candidate in fitted(task, train, validation).items()
    }
    print(f"\ntasteset, entity F1: {scores}")
    assert scores["trivial_dictionary"] > 0.7
    assert scores["trivial_amount_unit"] > scores["trivial_copy"]


def test_the_mean_is_of_the_numbers_that_the_task_reads() -> None:
    rows = [example("a", "12 kg"), example("b", "about 2.5 kg"), example("c", "1,000 kg")]
    task = task_of("regression", rows)
    mean = fitted(task, rows)["trivial_mean"]
    assert mean.notes == {"mean": 338.167} and texts(mean, rows[:2]) == ["338.167", "338.167"]
    assert task.parse("338.167") == 338.167
