"""A judge behind a real server on this machine, and everything it may do wrong."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.engines import FakeEngine
from tests.evaluation.judges.test_rubric import GOOD, rubric_file
from tests.evaluation.rating.stored import store_run
from tests.inference.server import Server, refusal
from tunesmith.errors import DataError, EngineError, RecipeError
from tunesmith.evaluation.judges import load_rubric
from tunesmith.evaluation.rating import Rating, pairs_of, rating_log, read_preferences
from tunesmith.inference.endpoint import Budget, Endpoint
from tunesmith.pipeline.judge_replies import EndpointJudge, LocalJudge
from tunesmith.pipeline.judging import JudgeOrder, judge_run
from tunesmith.runs import RunFolder

A, B = "tuned", "few_shot"
ROWS, LABELLED = 40, 24


def said(text: str, model: str = "judge-1") -> tuple[int, dict[str, str], bytes]:
    body = {
        "id": "x",
        "model": model,
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def parts(body: dict[str, Any]) -> dict[str, str]:
    """What a judge was shown, by its name."""
    text = body["messages"][-1]["content"]
    return dict(re.findall(r"\[\w{8} ([\w ]+)\]\n(.*?)\n\[\w{8} end of \1\]", text, re.S))


def by_quality(body: dict[str, Any], number: int) -> Any:
    """A judge that knows: `good` beats `bad`, `fair` beats neither."""
    shown = parts(body)
    worth = {"good": 2, "fair": 1, "bad": 0}
    one, other = (worth[shown[name].split()[0]] for name in ("answer A", "answer B"))
    return said(json.dumps({"reason": "…", "winner": "A" if one > other else "B" if other > one else "tie"}))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def waited() -> list[float]:
    """Seconds that were to be waited; nobody waits in a test."""
    return []


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Tuned is better on two rows of three, worse on the third; one row has the same answer twice."""
    good = ["good" if i % 3 else "bad" for i in range(ROWS)]
    bad = ["bad" if i % 3 else "good" for i in range(ROWS)]
    answers = {A: [f"{word} {i}" for i, word in enumerate(good)], B: [f"{word} {i}" for i, word in enumerate(bad)]}
    return store_run(tmp_path / "run", {name: [*texts, "same"] for name, texts in answers.items()})


def order(
    run: RunFolder, labelled: int = LABELLED, truth: Callable[[int], str] | None = None, **more: Any
) -> JudgeOrder:
    pairs = pairs_of(run, A, B)
    human = truth or (lambda i: "a" if i % 3 else "b")
    labels = {pair.key: human(i) for i, pair in enumerate(pairs[:labelled])}
    return JudgeOrder(A, B, pairs, labels, **more)  # type: ignore[arg-type]


def judge(server: Server, waited: list[float], **more: Any) -> EndpointJudge:
    budget = more.pop("budget", None) or Budget(max_tokens=10_000_000, input_price=1.0, output_price=2.0)
    endpoint = Endpoint(server.url, "judge", timeout=5, attempts=2, sleep=waited.append)
    return EndpointJudge(endpoint, budget, **{"concurrency": 2, "max_tokens": 50, **more})


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.evaluation / "judge/pairs.jsonl").read_text().splitlines()]


def test_a_judge_that_agrees_with_people_counts_and_feeds_the_verdict(run, server, waited):
    server.answer = by_quality
    told: list[dict[str, Any]] = []
    found = judge_run(run, order(run), judge(server, waited), told.append)
    assert found["counts"] and found["agreement"]["value"] == 1.0 and found["agreement"]["n"] == LABELLED
    assert found["pairs"] == {"in_all": ROWS + 1, "identical": 1, "labelled": LABELLED, "judged": ROWS, "unjudged": {}}
    rate = found["win_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["n"]) == (26, 0, 14, ROWS)
    first = found["orders"].pop("first_chosen")
    assert found["orders"] == {"same_in_both_orders": ROWS, "of": ROWS}
    assert (first["chosen"], first["of"]) == (ROWS, 2 * ROWS) and first["low"] < 0.5 < first["high"]
    assert found["judge"]["answered_by"] == {"judge-1": 2 * ROWS}
    assert found["spent"]["tokens"] == 2 * ROWS * 110 and found["spent"]["money"] == pytest.approx(2 * ROWS * 120e-6)
    stored = json.loads((run.evaluation / "judge.json").read_text())
    assert {**stored, "orders": None} == {**found, "orders": None}
    (preference,) = read_preferences(run.evaluation)
    assert preference.counts and preference.win_rate.wins == 26
    assert preference.surely_better is (True if rate["low"] > 0.5 else None)
    line = lines(run)[0]
    assert line["outcome"] in (A, B) and line["people"] == line["outcome"] and set(line["replies"]) == {"ab", "ba"}
    assert told[-1]["done"] == told[-1]["total"] == 2 * ROWS
    # Labelled pairs first: what is asked after the check is not what it was checked on.
    labelled = {pair.key[:8] for pair in pairs_of(run, A, B)[:LABELLED]}
    marks = [body["messages"][-1]["content"][1:9] for body in server.asked]
    assert set(marks[: 2 * LABELLED]) == labelled
    assert all(body["temperature"] == 0.0 for body in server.asked)


def test_a_judge_that_guesses_is_asked_nothing_more_and_does_not_count(run, server, waited):
    draw = random.Random(0)
    server.answer = lambda body, number: said(json.dumps({"winner": draw.choice(["A", "B", "tie"])}))
    found = judge_run(run, order(run), judge(server, waited))
    assert not found["counts"] and "no better than chance" in found["why"]
    assert len(server.asked) == 2 * LABELLED and found["pairs"]["judged"] == LABELLED
    (preference,) = read_preferences(run.evaluation)
    assert not preference.counts and preference.surely_better is None


def test_a_judge_that_always_takes_the_first_gives_only_ties(run, server, waited):
    server.answer = lambda body, number: said('{"winner": "A"}')
    found = judge_run(run, order(run), judge(server, waited))
    assert not found["counts"]
    assert found["win_rate"]["ties"] == LABELLED
    assert found["orders"]["same_in_both_orders"] == 0
    assert found["orders"]["first_chosen"]["low"] > 0.9


def test_without_labels_nothing_is_asked_unless_it_is_wanted_and_then_it_does_not_count(run, server, waited):
    server.answer = by_quality
    with pytest.raises(RecipeError, match="3 of these pairs have a human label"):
        judge_run(run, order(run, labelled=3), judge(server, waited))
    assert server.asked == []
    found = judge_run(run, order(run, labelled=0, unproven=True), judge(server, waited))
    assert not found["counts"] and found["agreement"] is None and found["win_rate"]["n"] == ROWS
    assert "not measured" in found["why"]


def test_ratings_of_people_are_the_labels(run, server, waited):
    from tunesmith.cli.judge import _labels

    pairs = pairs_of(run, A, B)
    with rating_log(run) as log:
        for pair in pairs[:3]:
            log.append(Rating("ann", pair.key, pair.id, B, A, 1.0))
    assert _labels(run, pairs, A, B, None) == {pair.key: "b" for pair in pairs[:3]}


def test_a_repeated_command_asks_only_for_what_is_missing(run, server, waited):
    server.answer = by_quality
    first = judge_run(run, order(run, rows=30), judge(server, waited))
    assert len(server.asked) == 60 and first["pairs"]["judged"] == 30
    again = judge_run(run, order(run), judge(server, waited))
    assert len(server.asked) == 2 * ROWS and again["replies"]["kept_from_before"] == 60
    assert again["spent"]["tokens"] == 2 * ROWS * 110
    same = judge_run(run, order(run), judge(server, waited))
    assert len(server.asked) == 2 * ROWS and same["win_rate"] == again["win_rate"]
    judge_run(run, order(run), judge(server, waited, max_tokens=60))  # another question
    assert len(server.asked) == 4 * ROWS
    judge_run(run, order(run, again=True), judge(server, waited))
    assert len(server.asked) == 6 * ROWS


def test_prose_and_refusals_are_counted_and_are_no_ties(run, server, waited):
    def sometimes(body: dict[str, Any], number: int) -> Any:
        place = int(parts(body)["answer A"].split()[1])
        if place == 30:
            return said("Both answers have their merits.")
        if place == 31:
            return refusal(400, "content filter")
        return by_quality(body, number)

    server.answer = sometimes
    found = judge_run(run, order(run), judge(server, waited))
    assert found["counts"]
    assert found["pairs"]["unjudged"] == {"refused": 1, "unreadable": 1}
    assert found["replies"]["failed"] == {"refused": 2, "unreadable": 2}
    assert found["replies"]["examples"]["unreadable"] == "Both answers have their merits."
    assert "content filter" in found["replies"]["examples"]["refused"]
    assert found["win_rate"]["unjudged"] == 2 and found["win_rate"]["n"] == ROWS - 2
    assert found["win_rate"]["lowest"] < found["win_rate"]["value"] < found["win_rate"]["highest"]
    kept = {line["id"]: line for line in lines(run)}
    assert kept["row30"]["replies"]["ab"]["text"] == "Both answers have their merits."
    assert "content filter" in kept["row31"]["replies"]["ab"]["detail"]


def test_a_judge_of_prose_does_not_count(run, server, waited):
    server.answer = lambda body, number: said("I prefer the first answer.")
    found = judge_run(run, order(run), judge(server, waited))
    assert not found["counts"] and found["win_rate"] is None and found["agreement"] is None
    assert f"{LABELLED} of {LABELLED}" in found["why"]
    assert found["pairs"]["unjudged"] == {"unreadable": LABELLED}
    assert read_preferences(run.evaluation)[0].win_rate is None


def test_too_many_gaps_after_the_check_take_trust_away(run, server, waited):
    server.answer = lambda body, number: by_quality(body, number) if number < 2 * LABELLED else said("Hm.")
    found = judge_run(run, order(run), judge(server, waited))
    assert not found["counts"] and "16 of 40 pairs got no outcome" in found["why"]
    assert found["agreement"]["value"] == 1.0


def test_a_busy_server_is_waited_for_and_a_silent_question_is_passed_over(run, server, waited):
    silent = {"30"}
    turned_away: set[str] = set()

    def busy(body: dict[str, Any], number: int) -> Any:
        place = parts(body)["answer A"].split()[1]
        if place in silent:
            return None  # hangs up
        key = body["messages"][-1]["content"]
        if place in ("1", "2") and key not in turned_away:
            turned_away.add(key)
            return refusal(429, "slow down", **{"Retry-After": "7"})
        return by_quality(body, number)

    server.answer = busy
    found = judge_run(run, order(run), judge(server, waited))
    assert found["counts"] and found["ended"] == ""
    assert found["pairs"]["unjudged"] == {"unanswered": 1}
    assert found["replies"]["failed"] == {"unanswered": 2}
    assert found["replies"]["retried"] == {"connection lost": 2, "status 429": 4}
    assert 7.0 in waited
    silent.clear()
    again = judge_run(run, order(run), judge(server, waited))
    assert again["pairs"]["unjudged"] == {} and again["pairs"]["judged"] == ROWS
    assert again["replies"]["kept_from_before"] == 2 * ROWS - 2


def test_a_server_that_goes_away_ends_it_and_the_rest_is_told(run, server, waited):
    server.answer = lambda body, number: by_quality(body, number) if number < 60 else None
    found = judge_run(run, order(run), judge(server, waited, concurrency=1))
    assert "3 questions in a row got no answer" in found["ended"]
    assert found["pairs"]["judged"] == 30
    assert found["pairs"]["unjudged"] == {"not_asked": 8, "unanswered": 2}
    assert found["win_rate"]["unjudged"] == 10
    server.answer = by_quality
    assert judge_run(run, order(run), judge(server, waited))["pairs"]["judged"] == ROWS


def test_a_server_that_refuses_everything_is_an_error(run, server, waited):
    server.answer = lambda body, number: refusal(401, "wrong key")
    with pytest.raises(EngineError, match="wrong key"):
        judge_run(run, order(run), judge(server, waited))
    assert not (run.evaluation / "judge.json").exists()


def test_a_model_that_changes_meanwhile_is_told_and_does_not_count(run, server, waited):
    def changing(body: dict[str, Any], number: int) -> Any:
        status, headers, data = by_quality(body, number)
        return status, headers, data.replace(b"judge-1", b"judge-2") if number >= 60 else data

    server.answer = changing
    found = judge_run(run, order(run), judge(server, waited, concurrency=1))
    assert not found["counts"] and found["judge"]["answered_by"] == {"judge-1": 60, "judge-2": 20}
    assert "changed its model" in found["why"] and "judge-2 (20)" in found["why"]


def test_the_ceiling_is_never_exceeded_and_the_rest_is_not_asked(run, server, waited):
    server.answer = by_quality
    ceiling = Budget(max_tokens=9_000)
    found = judge_run(run, order(run), judge(server, waited, budget=ceiling, concurrency=1))
    assert found["spent"]["tokens"] <= 9_000 and "9,000 tokens" in found["ended"]
    assert found["pairs"]["unjudged"].get("not_asked", 0) > 0
    asked = len(server.asked)
    again = judge_run(run, order(run), judge(server, waited, budget=Budget(max_tokens=9_000), concurrency=1))
    assert len(server.asked) == asked and again["spent"]["tokens"] <= 9_000
    with pytest.raises(RecipeError, match="no ceiling"):
        judge_run(run, order(run), judge(server, waited, budget=Budget()))
    with pytest.raises(RecipeError, match="needs prices"):
        judge_run(run, order(run), judge(server, waited, budget=Budget(max_money=1.0)))


def test_a_rubric_gives_scores_per_criterion(run, server, waited, tmp_path):
    rubric = load_rubric(rubric_file(tmp_path, GOOD))

    def score(body: dict[str, Any], number: int) -> Any:
        good = parts(body)["answer"].startswith("good")
        return said(json.dumps({"reason": "…", "scores": {"correct": 5 if good else 2, "tone": 1}}))

    server.answer = score
    found = judge_run(run, order(run, mode="rubric", rubric=rubric), judge(server, waited))
    assert found["counts"] and found["win_rate"]["wins"] == 26 and found["orders"] is None
    assert found["criteria"]["correct"]["difference"] == pytest.approx((26 - 14) / 40 * 0.75)
    assert found["criteria"]["tone"]["difference"] == 0.0
    assert found["rubric"]["name"] == "support answers"
    assert lines(run)[0]["scores"][A]["score"] in (1.0, pytest.approx((2 * 0.25 + 1) / 3))
    with pytest.raises(RecipeError, match="no rubric"):
        judge_run(run, order(run, mode="rubric"), judge(server, waited))


def test_a_model_of_this_process_can_judge_too(run):
    def reply(messages: Any) -> str:
        body = {"messages": [{"content": message.content} for message in messages]}
        return json.loads(by_quality(body, 0)[2])["choices"][0]["message"]["content"]

    engine = FakeEngine(reply)
    found = judge_run(run, order(run), LocalJudge(engine, "embedded:base", "f" * 64, max_tokens=50))
    assert found["counts"] and found["judge"]["weights_sha256"] == "f" * 64 and found["spent"]["money"] == 0
    assert len(engine.asked) == 2
    judge_run(run, order(run), LocalJudge(engine, "embedded:base", "f" * 64, max_tokens=50))
    assert len(engine.asked) == 2
    small = FakeEngine(reply, context=60)
    found = judge_run(run, order(run, unproven=True), LocalJudge(small, "other", "e" * 64, max_tokens=50))
    assert found["pairs"]["unjudged"] == {"refused": ROWS} and found["win_rate"] is None


def test_answers_that_are_all_the_same_cannot_be_judged(tmp_path, server, waited):
    run = store_run(tmp_path / "same", {A: ["x"] * 3, B: ["x"] * 3})
    with pytest.raises(DataError, match="same answer to every row"):
        judge_run(run, JudgeOrder(A, B, pairs_of(run, A, B)), judge(server, waited))


def test_a_real_small_model_judges_through_its_own_template(run, tmp_path):
    """End to end in this process: whatever a random model says is prose, and told as such."""
    from tests.tiny import save_base
    from tunesmith.pipeline.judging import local_judge

    local = local_judge(str(save_base(tmp_path / "base")), max_tokens=4)
    found = judge_run(run, order(run, unproven=True, rows=3), local)
    assert found["pairs"]["judged"] == 0
    assert sum(found["pairs"]["unjudged"].values()) == 3
    assert not found["counts"]


def test_a_run_is_judged_by_one_process_at_a_time(run, server, waited):
    from tunesmith.errors import ResourceError

    with run.lock(), pytest.raises(ResourceError):
        judge_run(run, order(run), judge(server, waited))
    assert Path(run.path).is_dir()
