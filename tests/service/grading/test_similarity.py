from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.service.grading.similarity import (
    LONGEST,
    MEASURES,
    TooLongError,
    fuzzy_match,
    gleu,
    lcs_length,
    meteor,
    rouge_l,
    similarity,
)

texts = st.text(alphabet="ab c.", max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(MEASURES)), texts, texts)
def test_between_0_and_1(measure: str, said: str, reference: str) -> None:
    assert 0 <= similarity(measure, said, reference) <= 1 + 1e-9


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_a_text_is_most_like_itself(measure: str) -> None:
    text = "the small brown fox jumps over the lazy dog today"
    # METEOR's penalty for one chunk of ten words is 0.5 / 10³.
    assert similarity(measure, text, text) == pytest.approx(0.9995 if measure == "meteor" else 1.0, abs=1e-4)
    assert similarity(measure, "nothing shared", text) < 0.5


def longest_common(a: str, b: str) -> int:
    """The textbook's table."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a)), range(len(b))):
        rows[i + 1][j + 1] = rows[i][j] + 1 if a[i] == b[j] else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_longest_common_characters(a: str, b: str) -> None:
    assert lcs_length(a, b) == longest_common(a, b)


@settings(deadline=None)
@given(st.text(alphabet="abc", max_size=90), st.text(alphabet="abc", max_size=90))
def test_longest_common_characters_of_few_letters(a: str, b: str) -> None:
    assert lcs_length(a, b) == longest_common(a, b)


def test_fuzzy_match_as_rapidfuzz_documents_its_ratio() -> None:
    assert fuzzy_match("this is a test", "this is a test!") == pytest.approx(0.9655172413793103)
    assert fuzzy_match("", "") == 1.0
    assert fuzzy_match("", "a") == 0.0


def test_gleu_against_another_implementation() -> None:
    from nltk.translate.gleu_score import sentence_gleu

    said = "It is a guide to action which ensures that the military always obeys the commands of the party"
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert gleu(said, reference) == pytest.approx(sentence_gleu([reference.split()], said.split()))
    assert gleu("a", "") == gleu("", "") == 0.0


def test_bleu_against_sacrebleu() -> None:
    from sacrebleu import sentence_bleu

    said, reference = "The cat sat on a mat, quietly.", "The cat sat on the mat quietly."
    expected = sentence_bleu(said, [reference]).score / 100
    assert similarity("bleu", said, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "expected"),
    # The worked examples of en.wikipedia.org/wiki/METEOR, against "the cat sat on the mat".
    [("on the mat sat the cat", 0.5), ("the cat sat on the mat", 0.9977), ("the cat was sat on the mat", 0.9654)],
)
def test_meteor_on_published_examples(said: str, expected: float) -> None:
    assert similarity("meteor", said, "the cat sat on the mat") == pytest.approx(expected, abs=5e-5)


def test_meteor_matches_stems() -> None:
    # One match of two words on each side, in one chunk: Fmean 1/2, penalty 1/2.
    assert similarity("meteor", "running home", "runs away") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("measure", "expected"),
    # The sentences of Lin 2004, section 3: ROUGE-L 3/4, one of three bigrams.
    [("rouge_1", 0.75), ("rouge_2", 1 / 3), ("rouge_3", 0.0), ("rouge_l", 0.75)],
)
def test_rouge_on_the_papers_example(measure: str, expected: float) -> None:
    assert similarity(measure, "police kill the gunman", "police killed the gunman") == pytest.approx(expected)


def test_rouge_of_other_scripts() -> None:
    assert similarity("rouge_1", "η γάτα κοιμάται", "η γάτα τρώει") == pytest.approx(2 / 3)


WORDS = ["the", "cat", "cats", "sat", "sitting", "on", "mat", "mats", "running", "runs"]
sentences = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


@settings(deadline=None)
@given(sentences, sentences)
def test_meteor_and_rouge_against_other_implementations(said: str, reference: str) -> None:
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    class Nothing:
        def synsets(self, word: str) -> list[str]:
            return []

    theirs = single_meteor_score(reference.split(), said.split(), preprocess=str, wordnet=Nothing()) if said else 0.0
    assert meteor(said, reference) == pytest.approx(theirs)
    longest = RougeScorer(["rougeL"], use_stemmer=False).score(reference, said)["rougeL"].fmeasure
    assert rouge_l(said, reference) == pytest.approx(longest)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_the_longest_texts_take_seconds_and_longer_ones_are_refused(measure: str) -> None:
    said = " ".join(f"w{place % 9_973}" for place in range(LONGEST))[:LONGEST]
    began = time.process_time()
    assert 0 <= similarity(measure, said, " ".join(f"v{place}" for place in range(LONGEST))[:LONGEST]) < 0.9
    assert time.process_time() - began < 10, "what is quadratic in a loop of Python takes minutes"
    with pytest.raises(TooLongError, match="the reference has 100,001 characters"):
        similarity(measure, "a", "a" * (LONGEST + 1))
