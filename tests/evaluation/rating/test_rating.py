"""Pairs from stored answers, how they are given out, and how ratings are kept and summed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.evaluation.rating.stored import store_run
from tunesmith.errors import DataError, RecipeError, ResourceError, VerificationError
from tunesmith.evaluation.rating import (
    Pair,
    Rating,
    Settings,
    choose_candidates,
    human_labels,
    make_plan,
    open_pairs,
    pairs_of,
    rater_name,
    rating_log,
    ratings_path,
    read_ratings,
    summarise,
    write_summary,
)

A, B = "tuned", "zero_shot"


def pairs(count: int) -> list[Pair]:
    return [Pair(f"row{i}", f"question {i}", {A: f"good {i}", B: f"bad {i}"}, "") for i in range(count)]


def rating(rater: str, pair: Pair, choice: str, left: str = A) -> Rating:
    return Rating(rater, pair.key, pair.id, choice, left, 1.0)


# Pairs.


def test_questions_are_shown_without_what_all_prompts_share(tmp_path):
    answers = {name: ["1", "2", "3"] for name in (A, B, "few_shot")}
    run = store_run(tmp_path / "run", answers)
    assert [p.question for p in pairs_of(run, A, B)] == [f"What is {i} and {i}?" for i in range(3)]


def test_a_rules_bare_questions_tell_where_a_question_ends(tmp_path):
    questions = ["Is 1 < 2?\nSay so.", "Is 2 < 1?\nSay so."]
    run = store_run(tmp_path / "run", {A: ["1", "2"], B: ["2", "2"], "trivial_copy": ["3", "3"]}, questions)
    assert [p.question for p in pairs_of(run, A, B)] == questions
    talks = ["Hello.\nassistant: Yes?\nuser: Why?", "Hi.\nassistant: What?\nuser: Why?"]
    run = store_run(tmp_path / "talk", {A: ["1", "2"], B: ["2", "2"], "trivial_copy": ["3", "3"]}, talks)
    with (run.evaluation / "trivial_copy.jsonl").open("w") as file:  # only the last turn of each talk
        for i in range(2):
            file.write(json.dumps({"id": f"row{i}", "prompt": "Why?", "answer": "", "expected": ""}) + "\n")
    assert [p.question for p in pairs_of(run, A, B)] == talks


def test_one_row_alone_keeps_its_whole_prompt(tmp_path):
    run = store_run(tmp_path / "run", {A: ["1"], B: ["2"]}, ["Why?"])
    assert "Why?" in pairs_of(run, A, B)[0].question


def test_closing_texts_and_half_characters_do_not_give_a_candidate_away(tmp_path):
    run = store_run(tmp_path / "run", {A: ['sad"', "a\ud800"], B: [" sad\n", "b"]})
    first, second = pairs_of(run, A, B)
    assert first.answers == {A: "sad", B: "sad"} and first.identical
    assert second.answers[A] == "a?" and not second.identical
    assert second.key.encode()


def test_a_key_is_of_answers_and_not_of_their_order():
    one = Pair("row", "q", {A: "x", B: "y"}, "e")
    assert one.key == Pair("other", "q", {B: "y", A: "x"}, "e").key
    others = [
        Pair("row", "q", {A: "y", B: "x"}, "e"),
        Pair("row", "p", one.answers, "e"),
        Pair("row", "q", {A: "x", "c": "y"}, "e"),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4


def test_candidates_are_chosen_by_the_verdict_and_faults_named(tmp_path):
    run = store_run(tmp_path / "run", {A: ["1"], B: ["2"], "few_shot": ["3"]}, best="few_shot")
    assert choose_candidates(run) == (A, "few_shot")
    assert choose_candidates(run, ("few_shot", B)) == ("few_shot", B)
    (run.path / "verdict.json").unlink()
    with pytest.raises(RecipeError, match="few_shot, tuned, zero_shot"):
        choose_candidates(run)
    assert choose_candidates(store_run(tmp_path / "two", {B: ["1"], A: ["2"]})) == (A, B)
    with pytest.raises(RecipeError, match="no stored answers of 'nobody'"):
        pairs_of(run, A, "nobody")
    with pytest.raises(RecipeError, match="with itself"):
        pairs_of(run, A, A)
    lines = (run.evaluation / f"{B}.jsonl").read_text()
    (run.evaluation / f"{B}.jsonl").write_text(lines.replace("row0", "row9"))
    with pytest.raises(DataError, match="different rows"):
        pairs_of(run, A, B)
    (run.evaluation / f"{B}.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match="line 1"):
        pairs_of(run, A, B)


# The plan.


def test_the_plan_follows_from_the_seed_and_leaves_out_equal_answers():
    made = [*pairs(40), Pair("same", "q", {A: "x", B: "x"}, ""), pairs(1)[0]]
    plan = make_plan(made, Settings(seed=1))
    assert len(plan.pairs) == 40
    assert plan == make_plan(made[::-1], Settings(seed=1))
    assert plan.pairs != make_plan(made, Settings(seed=2)).pairs
    assert make_plan(made, Settings(seed=1, rows=7)).pairs == plan.pairs[:7]


def test_sides_are_a_fair_coin_of_pair_and_rater():
    plan = make_plan(pairs(400), Settings())
    sides = {who: [plan.left(pair, who) for pair in plan.pairs] for who in ("ann", "bob")}
    for chosen in sides.values():
        assert 160 < Counter(chosen)[A] < 240
    same = sum(one == other for one, other in zip(sides["ann"], sides["bob"], strict=True))
    assert 160 < same < 240
    again = make_plan(pairs(400), Settings())
    assert sides["ann"] == [again.left(pair, "ann") for pair in plan.pairs]


def test_everybody_rates_the_overlap_and_nobody_the_rest_twice():
    plan = make_plan(pairs(30), Settings(overlap=10))
    ratings: dict[str, dict[str, Rating]] = {}
    done: dict[str, list[str]] = {"ann": [], "bob": [], "cyd": []}
    turns = 0
    while any(open_pairs(plan, ratings, who) for who in done):
        who = list(done)[turns % 3]
        turns += 1
        waiting = open_pairs(plan, ratings, who)
        if waiting:
            ratings.setdefault(waiting[0].key, {})[who] = rating(who, waiting[0], A)
            done[who].append(waiting[0].key)
    assert [len(ratings[pair.key]) for pair in plan.pairs] == [3] * 10 + [1] * 20
    assert all(keys[:10] == [pair.key for pair in plan.pairs[:10]] for keys in done.values())
    assert plan.pairs[10].key in {p.key for p in open_pairs(plan, {}, "ann")}
    assert plan.pairs[10].key not in {p.key for p in open_pairs(plan, {}, "ann", {plan.pairs[10].key})}
    assert plan.pairs[0].key in {p.key for p in open_pairs(plan, {}, "ann", {plan.pairs[0].key})}


# The log.


def test_the_last_choice_counts_and_a_torn_line_is_passed_over(tmp_path):
    run = store_run(tmp_path / "run", {A: ["1"], B: ["2"]})
    (pair,) = pairs_of(run, A, B)
    with rating_log(run) as log:
        log.begin(Settings(seed=4))
        log.append(rating("ann", pair, A))
        log.append(rating("bob", pair, B))
        log.append(rating("ann", pair, "both_bad"))
    path = ratings_path(run)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "rating", "rat')
    found = read_ratings(path)
    assert found.settings == Settings(seed=4)
    assert {who: r.choice for (who, _), r in found.latest.items()} == {"ann": "both_bad", "bob": B}
    with rating_log(run) as log:
        log.append(rating("cyd", pair, "tie"))
    assert path.read_bytes().startswith(whole) and len(read_ratings(path).latest) == 3
    path.write_text('{"kind": "rating"}\n')
    with pytest.raises(VerificationError, match="line 1"):
        read_ratings(path)


def test_a_rating_is_on_the_disk_when_it_is_answered_for(tmp_path, monkeypatch):
    """Written and flushed before `append` returns, by whatever process is killed next."""
    run = store_run(tmp_path / "run", {A: ["1"], B: ["2"]})
    (pair,) = pairs_of(run, A, B)
    flushed: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(ratings_path(run).read_bytes())
        real(descriptor)

    with rating_log(run) as log:
        monkeypatch.setattr(os, "fsync", fsync)
        log.append(rating("ann", pair, A))
        assert flushed and b'"rater": "ann"' in flushed[-1]
        monkeypatch.undo()


def test_two_processes_cannot_keep_one_log(tmp_path):
    run = store_run(tmp_path / "run", {A: ["1"], B: ["2"]})
    code = (
        "import sys; from pathlib import Path; from tunesmith.runs.lock import locked\n"
        f"with locked(Path({str(ratings_path(run).parent / '.lock')!r})):\n    print('held', flush=True); input()"
    )
    ratings_path(run).parent.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ResourceError, match=str(holder.pid)), rating_log(run):
            pass
    finally:
        holder.communicate("\n", timeout=20)
    with rating_log(run):
        pass


@pytest.mark.parametrize(("text", "name"), [("  Ann   Lee ", "Ann Lee"), ("Zoe\u0301", "Zo\u00e9")])
def test_names_are_brought_to_one_form(text, name):
    assert rater_name(text) == name


@pytest.mark.parametrize("text", ["", "  ", "x" * 41, "a\x00b", "a\u200bb", "a\u202eb"])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(RecipeError):
        rater_name(text)


# The summary.


def summed(tmp_path, given, count=12):
    run = store_run(tmp_path / "run", {A: [f"good {i}" for i in range(count)], B: [f"bad {i}" for i in range(count)]})
    made = pairs_of(run, A, B)
    with rating_log(run) as log:
        for rater, place, choice, left in given:
            log.append(rating(rater, made[place], choice, left))
    return run, made


def test_two_raters_have_cohens_kappa_and_the_majority_decides(tmp_path):
    given = [("ann", i, (A, B, "tie")[i % 3], A) for i in range(12)]
    given += [("bob", i, (A, B, "tie")[i % 3] if i < 9 else "both_bad", B) for i in range(12)]
    run, made = summed(tmp_path, given)
    found = write_summary(run, A, B)
    assert found.agreement.name == "Cohen's kappa" and found.agreement.n == 12 and found.agreement.observed == 0.75
    assert found.everybody is None and found.counts
    assert found.choices == {A: 7, B: 7, "tie": 7, "both_bad": 3}
    # A divided vote is a tie: pairs 9 and 10 were a and b for ann alone.
    assert (found.win_rate.wins, found.win_rate.ties, found.win_rate.losses) == (3, 6, 3)
    assert found.left[:2] == (7, 14)
    labels = human_labels(made, read_ratings(ratings_path(run)), A, B)
    assert Counter(labels.values()) == {"a": 3, "b": 3, "tie": 6}
    assert human_labels(made, read_ratings(ratings_path(run)), B, A)[made[0].key] == "b"
    stored = json.loads((run.evaluation / "rating.json").read_text())
    assert stored["win_rate"]["n"] == 12 and stored["counts"] is True


def test_three_raters_have_alpha_and_fleiss_kappa_on_what_all_rated(tmp_path):
    given = [(who, i, (A, B)[i % 2], A) for who in ("ann", "bob", "cyd") for i in range(6)]
    given += [("ann", 6, A, A), ("bob", 6, B, A), ("ann", 7, A, A)]
    run, _ = summed(tmp_path, given)
    found = write_summary(run, A, B)
    assert found.agreement.name == "Krippendorff's alpha" and found.agreement.n == 7 and found.agreement.raters == 3
    assert found.everybody.name == "Fleiss' kappa" and found.everybody.n == 6 and found.everybody.value == 1.0
    assert found.rated == 8


def test_raters_who_agree_by_chance_do_not_count(tmp_path):
    given = [("ann", i, (A, B)[i % 2], A) for i in range(24)] + [("bob", i, (A, B)[i // 2 % 2], A) for i in range(24)]
    run, _ = summed(tmp_path, given, 24)
    found = write_summary(run, A, B)
    assert not found.counts and "chance" in found.why


def test_few_shared_pairs_are_not_called_chance_and_one_voice_counts(tmp_path):
    few = [(who, i, (A, B)[i % 2], A) for who in ("ann", "bob") for i in range(3)]
    run, _ = summed(tmp_path / "few", few)
    found = write_summary(run, A, B)
    assert found.counts and "share 3 pairs, too few" in found.why
    run, _ = summed(tmp_path / "one", [(who, i, A, A) for who in ("ann", "bob") for i in range(24)], 24)
    found = write_summary(run, A, B)
    assert found.agreement.value is None and found.counts and "all said the same" in found.why


def test_ratings_of_other_answers_and_other_candidates_are_not_counted(tmp_path):
    run, _ = summed(tmp_path, [("ann", i, A, A) for i in range(12)])
    lines = (run.evaluation / f"{A}.jsonl").read_text().replace('"good 3"', '"better 3"')
    (run.evaluation / f"{A}.jsonl").write_text(lines)
    with rating_log(run) as log:  # of other candidates: neither counted nor stale
        log.append(Rating("ann", "f" * 32, "row1", "few_shot", "few_shot", 1.0))
    found = summarise(pairs_of(run, A, B), read_ratings(ratings_path(run)), A, B)
    assert (found.rated, found.stale) == (11, 1)
    assert "no pair was rated by two people" in found.why and found.counts
