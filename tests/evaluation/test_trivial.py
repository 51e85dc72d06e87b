from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert list(found) == ["trivial_majority", "trivial_knn", "trivial_tfidf_lr"]
    asked = [example("a dog that barks", "dog"), example("purring cats", "cat")]
    assert texts(found["trivial_majority"], asked) == ["cat", "cat"]
    assert found["trivial_majority"].notes == {"training_share": 5 / 8}
    assert texts(found["trivial_tfidf_lr"], asked) == texts(found["trivial_knn"], asked) == ["dog", "cat"]
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


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=12),
)
def test_dictionary_takes_what_trying_every_length_finds(entities: list[list[str]], words: list[str]) -> None:
    known, wanted, place = {tuple(entity) for entity in entities}, [], 0
    while place < len(words):
        sizes = [size for size in range(len(words) - place, 0, -1) if tuple(words[place : place + size]) in known]
        if sizes:
            wanted.append(" ".join(words[place : place + sizes[0]]))
        place += sizes[0] if sizes else 1
    train = [foods("nothing", *(" ".join(entity) for entity in entities))]
    rule = fitted(task_of("extraction", train), train)["trivial_dictionary"]
    assert json.loads(texts(rule, [foods(" ".join(words))])[0]) == wanted


def test_long_entities_do_not_make_the_dictionary_slow() -> None:
    long = " ".join(f"w{i}" for i in range(3_000))
    train = [foods(long, long), foods("egg", "egg")]
    rule = fitted(task_of("extraction", train), train)["trivial_dictionary"]
    asked = foods(" ".join(f"v{i}" for i in range(20_000)) + " egg")
    before = process_time()
    assert texts(rule, [asked]) == ['["egg"]']
    assert process_time() - before < 5  # trying every length took minutes


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


def test_neighbours_vote_and_k_is_chosen_on_validation_rows() -> None:
    train = [example("a red rose", "red"), example("a red rose today", "blue"), example("a red rose again", "blue")]
    train += [example(f"green grass {i}", "green") for i in range(4)]
    task = task_of("classification", train)
    close = fitted(task, train, [example("a red rose", "red")])["trivial_knn"]
    assert close.notes == {"k": 1, "k_chosen_on": {"1": 1.0, "3": 0.0, "5": 0.0}}
    far = fitted(task, train, [example("a red rose", "blue")])["trivial_knn"]
    assert far.notes["k"] == 3 and texts(far, [example("a red rose", "?")]) == ["blue"]
    # What is like nothing gets what most rows have, and without validation rows k is said to be no choice.
    without = fitted(task, train)["trivial_knn"]
    assert without.notes == {"k": 5, "k_chosen_on": None}
    assert texts(without, [example("Ω", "?"), example("grass", "?")]) == ["green", "green"]


def test_neighbours_with_an_order_meet_in_the_middle() -> None:
    rows = [example(f"slow service {i}", str(stars)) for i, stars in enumerate((1, 1, 2, 5, 5))]
    rows += [example(f"kind people {i}", "3") for i in range(5)]
    task = fit_task(TaskSpec(labels=["1", "2", "3", "4", "5"]), "ordinal", rows)  # type: ignore[call-arg]
    found = fitted(task, rows)
    assert list(found) == ["trivial_majority", "trivial_median", "trivial_knn", "trivial_tfidf_lr"]
    assert texts(found["trivial_knn"], [example("slow service", "?")]) == ["2"]  # neither 1 nor 5, as most say


def test_neighbours_share_labels_and_average_numbers() -> None:
    rows = [example("wet cold", "rain, wind"), example("wet cold night", "rain"), example("warm dry", "sun, wind")] * 2
    task = task_of("multi_label", rows)
    knn = fitted(task, rows[:3])["trivial_knn"]
    assert texts(knn, [example("wet cold night", "?")]) == ["rain"]
    assert task.parse(texts(knn, [example("warm dry day", "?")])[0]) == ["sun", "wind"]
    numbers = [example("small hut", "10"), example("small hut here", "20"), example("huge castle", "900")]
    numbers += [example(f"other {word}", str(n)) for n, word in enumerate(("aa", "bb", "cc"))]
    found = fitted(task_of("regression", numbers), numbers)
    assert list(found) == [
        "trivial_mean", "trivial_median", "trivial_number", "trivial_knn", "trivial_tfidf_ridge",
    ]  # fmt: skip
    assert 10 < float(texts(found["trivial_knn"], [example("small hut", "?")])[0]) < 30  # the mean is 155


def test_a_number_of_the_input_and_the_median() -> None:
    rows = [example(f"invoice {i}: 3 parts, total {100 + i} EUR", str(100 + i)) for i in range(1, 40)]
    found = fitted(task_of("regression", rows), rows)
    assert found["trivial_number"].notes == {"number": "last", "training_score": 1.0}
    asked = [example("invoice 7: 9 parts, total 1,250.5 EUR", "?"), example("nothing here", "?")]
    assert texts(found["trivial_number"], asked) == ["1250.5", "120"]
    assert texts(found["trivial_median"], asked) == ["120", "120"]


def test_neighbours_are_the_same_however_many_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [example(f"{word} word {i}", word) for i in range(30) for word in ("one", "two", "three")]
    task = task_of("classification", rows)
    whole = texts(fitted(task, rows[:60], rows[60:])["trivial_knn"], rows)
    monkeypatch.setattr("tunesmith.evaluation.trivial_nearest._PAIRS", 100)
    assert texts(fitted(task, rows[:60], rows[60:])["trivial_knn"], rows) == whole


@pytest.mark.parametrize("kind", ["classification", "ordinal", "multi_label", "regression", "maths", "generation"])
@pytest.mark.parametrize("asked", ["🙂", "?!", "١٢ كتاب", "好", "a", "x" * 500])
def test_odd_inputs_are_answered_by_every_rule(kind: str, asked: str) -> None:
    rows = [example(asked * (1 + i % 3), str(1 + i % 3)) for i in range(12)]
    task = task_of(kind, rows)
    for name, candidate in fitted(task, rows[:8], rows[8:]).items():
        said = texts(candidate, [*rows, example("", "1")])
        assert len(said) == 13, name
        assert set(quick_score(task, said[:12], rows)) == set(task.metrics)
