"""Sets of labels and tags of tokens."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from tests.tasks.rows import example
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import MultiLabel, TokenClassification, fit_task, quick_score
from tunesmith.tasks.multi_label import LabelF1
from tunesmith.tasks.token_classification import StrictEntityF1, entities, read_tags

ROWS = [example("1", "billing, login"), example("2", "none"), example("3", "login"), example("4", "Refund, lost card")]
TASK = MultiLabel(("billing", "login", "lost card", "Refund"))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("login, billing", ["billing", "login"]),
        ('["login"]', ["login"]),
        ("Login\nBILLING\n", ["billing", "login"]),
        ("lost_card.", ["lost card"]),
        ("none", []),
        ("None.", []),
        ("[]", []),
        ("login, hacking", ["hacking", "login"]),
        ('{"a": 1}', None),
        ("[1]", None),
        ('["login"', None),
    ],
)
def test_parse(text: str, labels: list[str] | None) -> None:
    assert TASK.parse(text) == labels


def test_labels_and_their_form_come_from_the_data() -> None:
    task = fit_task(TaskSpec(), "multi_label", ROWS)
    assert isinstance(task, MultiLabel) and task.labels == ("Refund", "billing", "login", "lost card")
    assert task.written == "text" and "separated by ','" in task.full_instruction
    listed = fit_task(TaskSpec(), "multi_label", [example("1", '["a, b", "c"]'), example("2", "[]")])
    assert isinstance(listed, MultiLabel) and listed.labels == ("a, b", "c") and listed.written == "list"
    piped = fit_task(TaskSpec(), "multi_label", [example("1", "a|b"), example("2", "b")])
    assert isinstance(piped, MultiLabel) and (piped.labels, piped.separator) == (("a", "b"), "|")
    with pytest.raises(DataError, match="not among the labels: lost card"):
        fit_task(TaskSpec(labels=["billing", "login", "Refund"]), "multi_label", ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_that_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    labels = tuple("abcde")
    truth = [sorted(draw.sample(labels, draw.randint(0, 3))) for _ in range(15)]
    answers = [sorted(draw.sample(labels, draw.randint(0, 3))) for _ in range(15)]
    binary = MultiLabelBinarizer(classes=labels).fit([labels])
    y, x = binary.transform(truth), binary.transform(answers)
    there = [i for i in range(5) if y[:, i].any() or x[:, i].any()]
    for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        metric = LabelF1(name, labels)  # type: ignore[arg-type]
        ours = float(metric.finish(metric.statistics(answers, truth).sum(axis=0)))
        assert ours == pytest.approx(f1_score(y, x, average=average, labels=there, zero_division=0))


def test_strangers_and_unreadable_answers_are_wrong() -> None:
    row = [ROWS[0]]
    assert quick_score(TASK, ["billing, login"], row) == {"micro_f1": 1.0, "macro_f1": 1.0, "exact_match": 1.0}
    assert quick_score(TASK, ["billing, login, hacking"], row)["micro_f1"] == pytest.approx(4 / 5)
    assert quick_score(TASK, ["[broken"], row)["micro_f1"] == 0.0
    assert quick_score(TASK, ["[broken"], [ROWS[1]])["micro_f1"] == 0.0
    assert quick_score(TASK, ["none"], [ROWS[1]])["micro_f1"] == 1.0


@pytest.mark.parametrize(
    ("tags", "scheme", "found"),
    [
        ("B-PER I-PER O B-LOC", "IOB2", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER O", "IOB2", []),
        ("B-PER I-LOC", "IOB2", [("PER", 0, 1)]),
        ("B-PER B-PER", "IOB2", [("PER", 0, 1), ("PER", 1, 2)]),
        ("S-PER B-LOC I-LOC E-LOC", "IOBES", [("PER", 0, 1), ("LOC", 1, 4)]),
        ("B-LOC I-LOC O E-LOC", "IOBES", []),
        ("U-PER B-LOC L-LOC", "IOBES", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("B-LOC E-PER", "IOBES", []),
        ("O", "IOB2", []),
    ],
)
def test_entities(tags: str, scheme: str, found: list[tuple[str, int, int]]) -> None:
    assert list(entities(tags.split(), scheme)) == found  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES"])
def test_strict_f1_is_that_of_seqeval(scheme: str) -> None:
    """seqeval is no dependency (its last release is of 2020); where it is installed both are compared."""
    seqeval = pytest.importorskip("seqeval.metrics")
    schemes = pytest.importorskip("seqeval.scheme")
    draw = random.Random(1)
    tags = ["O", *(f"{mark}-{kind}" for mark in ("BI" if scheme == "IOB2" else "BIES") for kind in ("X", "Y"))]
    truth = [draw.choices(tags, k=8) for _ in range(60)]
    answers = [[t if draw.random() < 0.8 else draw.choice(tags) for t in row] for row in truth]
    for part, of in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        metric = StrictEntityF1(scheme, part=part)  # type: ignore[arg-type]
        ours = float(metric.finish(metric.statistics(answers, truth).sum(axis=0)))
        theirs = getattr(seqeval, of)(truth, answers, mode="strict", scheme=getattr(schemes, scheme))
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("B-PER O", ["B-PER", "O"]),
        ('["B-PER", "O"]', ["B-PER", "O"]),
        ("Ada NNP B-PER\nslept VBD O\n", ["B-PER", "O"]),
        ("Ada B-PER\n", ["B-PER"]),
        ("O\nO", ["O", "O"]),
        ("B-PER and O", None),
        ("", None),
        ("[1]", None),
    ],
)
def test_tags_are_read(text: str, tags: list[str] | None) -> None:
    assert read_tags(text) == tags


def test_token_classification_scores() -> None:
    rows = [example("Ada met Bob", "B-PER O B-PER"), example("in Rome", "O B-LOC")]
    task = fit_task(TaskSpec(), "token_classification", rows)
    assert isinstance(task, TokenClassification) and (task.types, task.scheme) == (("LOC", "PER"), "IOB2")
    scores = quick_score(task, ["B-PER O O", "O B-PER"], rows)
    assert scores["entity_precision"] == pytest.approx(1 / 2) and scores["entity_recall"] == pytest.approx(1 / 3)
    assert scores["token_accuracy"] == pytest.approx(3 / 5)
    assert quick_score(task, ["", ""], rows)["entity_f1"] == 0.0
    assert quick_score(task, ["B-PER O B-PER O O", "O B-LOC"], rows)["token_accuracy"] == pytest.approx(5 / 7)
    with pytest.raises(DataError, match="sequence of tags"):
        fit_task(TaskSpec(), "token_classification", [example("a", "person")])
