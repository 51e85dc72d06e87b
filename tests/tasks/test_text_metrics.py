"""Summaries, answers to questions and translations, against hand-computed values and the libraries of the field."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tests.tasks.rows import example
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import QuestionAnswering, Summarisation, Translation, fit_task, quick_score, training_conversation
from tunesmith.tasks.question_answering import normalise, token_f1
from tunesmith.tasks.summarisation import copied_share, rouge
from tunesmith.tasks.translation import Bleu, ChrF, tokenizer_for
from tunesmith.tasks.words import words

SUMMARY = Summarisation()


def test_rouge_is_that_of_rouge_score_on_plain_english() -> None:
    ours = rouge("police killed the gunman", ["the gunman was shot by police", "police ended the gunman"])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    best = scorer.score_multi(["the gunman was shot by police", "police ended the gunman"], "police killed the gunman")
    assert ours == pytest.approx(tuple(best[kind].fmeasure for kind in ("rouge1", "rouge2", "rougeL")))
    assert 0 < ours[1] < ours[0]


@pytest.mark.parametrize("text", ["Η Ελλάδα νίκησε χθες", "我爱北京天安门", "Привет, большой мир"])
def test_rouge_of_a_text_with_itself_is_1_in_any_script(text: str) -> None:
    assert rouge(text, [text]) == (1.0, 1.0, 1.0)


def test_several_references_are_scored_best_and_the_first_is_learnt() -> None:
    row = example("A long text about cats.", '["cats sleep", "dogs bark loudly"]')
    assert SUMMARY.target(row) == ["cats sleep", "dogs bark loudly"]
    assert training_conversation(SUMMARY, row)[-1].content == "cats sleep"
    scores = quick_score(SUMMARY, ["dogs bark loudly"], [row])
    assert scores["rouge_l"] == scores["rouge_2"] == scores["length_ratio"] == 1.0
    assert quick_score(SUMMARY, ["dogs bark loudly"], [example("x", "cats sleep")])["rouge_l"] == 0.0


def test_the_closing_text_of_a_template_stays_after_the_first_reference() -> None:
    rows = [example("a text", '["one two", "three"]', closing='"'), example("more", "four five", closing='"')]
    task = fit_task(TaskSpec(), "summarisation", rows)
    assert training_conversation(task, rows[0])[-1].content == 'one two"'
    assert training_conversation(task, rows[1])[-1].content == 'four five"'
    assert quick_score(task, ['one two"', 'four five"'], rows)["rouge_1"] == 1.0


def test_copied_share_counts_runs_of_four_words() -> None:
    source = "the quick brown fox jumps over the lazy dog"
    assert copied_share("a quick brown fox jumps high", source) == pytest.approx(4 / 6)
    assert copied_share("quick fox brown dog jumps", source) == 0.0
    assert copied_share(source, source) == 1.0
    assert copied_share("", source) == 0.0
    scores = quick_score(SUMMARY, [source], [example(source, "a fox")])
    assert scores["copied_share"] == 1.0
    assert scores["length_ratio"] == pytest.approx(2 / 9)


def test_an_empty_summary_scores_nothing_and_breaks_nothing() -> None:
    assert set(quick_score(SUMMARY, [""], [example("text", "short one")]).values()) == {0.0}


@pytest.mark.parametrize(
    ("answer", "target", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("Eiffel", "the Eiffel Tower", 2 / 3),
        ("a b b", "b b c", 2 * 2 / 5),  # "a" is an article: b b against b b c
        ("in 1999", "1,999", 2 / 3),
        ("", "", 1.0),
        ("the", "", 0.0),
        ("A", "a.", 1.0),  # an option: nothing else is said, so the article counts
        ("", "A", 0.0),
        ("%", "$", 0.0),
        ("", "Paris", 0.0),
        ("北京大学", "北京", 2 * 2 / 6),
    ],
)
def test_token_f1_by_hand(answer: str, target: str, f1: float) -> None:
    assert token_f1(answer, target) == pytest.approx(f1)


def test_normalisation_is_squads() -> None:
    assert normalise(" The  U.S.A., an ally\n") == "usa ally"
    assert normalise("theatre and ananas") == "theatre and ananas"


def test_questions_without_an_answer() -> None:
    rows = [example("Who?", '["Ada", "Ada Lovelace"]'), example("Why?", "[]")]
    task = fit_task(TaskSpec(), "question_answering", rows)
    assert isinstance(task, QuestionAnswering) and task.unanswerable and "unanswerable" in task.full_instruction
    assert training_conversation(task, rows[1])[-1].content == "unanswerable"
    right = quick_score(task, ["Ada Lovelace.", "Unanswerable"], rows)
    assert right == {"token_f1": 1.0, "exact_match": 1.0}
    assert quick_score(task, ["unanswerable", "Ada"], rows) == {"token_f1": 0.0, "exact_match": 0.0}
    assert [task.slices(row)["answer"] for row in rows] == ["1 word", "none"]


WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "ran", ".", "fast"]


def corpus(seed: int, count: int) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)
    targets = [[" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(2)] for _ in range(count)]
    answers = [" ".join(w if draw.random() < 0.7 else draw.choice(WORDS) for w in t[0].split()) for t in targets]
    answers[0] = ""
    return answers, targets


@pytest.mark.parametrize("seed", range(6))
def test_bleu_and_chrf_are_those_of_sacrebleu(seed: int) -> None:
    answers, targets = corpus(seed, 12)
    streams = [[target[i] for target in targets] for i in range(2)]
    bleu, chrf = Bleu(), ChrF()
    ours = float(bleu.finish(bleu.statistics(answers, targets).sum(axis=0)))
    assert 100 * ours == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score, abs=1e-9)
    ours = float(chrf.finish(chrf.statistics(answers, targets).sum(axis=0)))
    assert 100 * ours == pytest.approx(sacrebleu.corpus_chrf(answers, streams).score, abs=1e-9)
    whole = [
        sacrebleu.sentence_bleu(a, t, use_effective_order=True).score for a, t in zip(answers, targets, strict=True)
    ]
    assert 100 * bleu.item(bleu.statistics(answers, targets)) == pytest.approx(whole, abs=1e-9)


def test_bleu_without_any_match_or_long_enough_text_is_0() -> None:
    bleu = Bleu()
    for answers in (["dog dog dog dog dog"], ["cat"], [""]):
        targets = [["the cat sat on the mat"]]
        expected = sacrebleu.corpus_bleu(answers, [[t[0] for t in targets]]).score
        assert 100 * float(bleu.finish(bleu.statistics(answers, targets).sum(axis=0))) == pytest.approx(expected)
    assert bleu.statistics([None], [["the cat"]])[0, -2] == 0


def test_bleu_of_many_resamples_at_once_is_that_of_each() -> None:
    answers, targets = corpus(3, 10)
    for metric in (Bleu(), ChrF()):
        statistics = metric.statistics(answers, targets)
        weights = np.random.default_rng(0).integers(0, 3, (5, 10)).astype(float)
        together = metric.finish(weights @ statistics)
        assert together == pytest.approx([float(metric.finish(w @ statistics)) for w in weights])


def test_the_tokenizer_follows_the_target_script() -> None:
    assert tokenizer_for(["我爱北京", "你好"]) == "char" and tokenizer_for(["hello", "你好", "bye"]) == "13a"
    task = fit_task(TaskSpec(), "translation", [example("I love Beijing", "我爱北京")])
    assert isinstance(task, Translation) and "tok:char" in task.signatures["bleu"]
    assert quick_score(task, ["我爱北京"], [example("x", "我爱北京")]) == pytest.approx({"chrf": 1.0, "bleu": 1.0})


def test_signatures_are_sacrebleus() -> None:
    metric = sacrebleu.BLEU()
    metric.corpus_score(["a cat"], [["a cat"]])
    assert str(metric.get_signature()) == f"nrefs:1|{Translation().signatures['bleu']}"
    chrf = sacrebleu.CHRF()
    chrf.corpus_score(["a cat"], [["a cat"]])
    assert str(chrf.get_signature()) == f"nrefs:1|{Translation().signatures['chrf']}"


@settings(max_examples=60)
@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_no_text_breaks_a_metric_or_leaves_0_to_1(answer: str, target: str) -> None:
    row = example("q", target)
    for task in (Summarisation(), QuestionAnswering(), Translation()):
        assert all(0 <= value <= 1 + 1e-9 for value in quick_score(task, [answer], [row]).values())


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_letters_are_read_as_any_others(text: str) -> None:
    assert words(text) == words(f"{text} é")[:-1]
