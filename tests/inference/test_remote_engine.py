"""A model behind a real server on this machine as an engine, with everything the server may do wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.server import Answer, Server, refusal, reply, serving
from tunesmith.data.types import Message, Toolset
from tunesmith.errors import EngineError
from tunesmith.inference.endpoint import Budget, Endpoint, token_bound
from tunesmith.inference.remote_engine import RemoteEngine
from tunesmith.inference.response_format import response_format, unwrapped
from tunesmith.inference.types import Engine, Generation, Sampling
from tunesmith.tasks.types import AnswerForm

PROMPTS = [(Message("system", "Be brief."), Message("user", f"question {i}")) for i in range(12)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        made.answer = echo
        yield made


class Waits:
    """Nobody waits in a test; what was to be waited is noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, stop: threading.Event, seconds: float) -> bool:
        self.seconds.append(seconds)
        return stop.is_set()


def number_of(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split()[-1])


def said(text: str, model: str = "big-1", fingerprint: str = "", **more: Any) -> Answer:
    body = {
        "id": "x",
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": more.pop("reason", "stop")}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 3},
        **more,
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def echo(body: dict[str, Any], number: int) -> Answer:
    return said(f"answer {number_of(body)}")


def engine_at(server: Server, **changes: Any) -> RemoteEngine:
    asking = {"timeout": changes.pop("timeout", 5.0), "attempts": changes.pop("attempts", 3), "set_by": "remotes.big"}
    budget = changes.pop("budget", None) or Budget(input_price=1.0, output_price=2.0)
    endpoint = Endpoint(server.url, "big", changes.pop("key", None), **asking)
    return RemoteEngine(endpoint, budget, **{"wait": Waits(), **changes})


def texts(generations: Iterator[Generation]) -> list[str]:
    return [generation.text for generation in generations]


EXPECTED = [f"answer {i}" for i in range(len(PROMPTS))]


def test_it_is_an_engine_and_answers_in_order(server):
    def slow_ones_first(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.03 if number_of(body) % 3 == 0 else 0)
        return echo(body, number)

    server.answer = slow_ones_first
    engine: Engine = engine_at(server, key="secret")
    made = list(engine.generate(PROMPTS, 7))
    assert [one.text for one in made] == EXPECTED
    assert (made[0].prompt_tokens, made[0].answer_tokens, made[0].stopped) == (20, 3, True)
    assert made[0].prompt == "system: Be brief.\n\nuser: question 0"
    assert 2 <= server.busiest <= 4
    asked = min(server.asked, key=number_of)
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 0"}]
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("big", 7, 0.0)
    assert "response_format" not in asked
    assert engine.context > 10**8 and engine.count_tokens(PROMPTS[0]) >= len("Be brief.question 0")
    with pytest.raises(EngineError, match="cannot score labels"):
        engine.score(PROMPTS, [["a"]] * len(PROMPTS))


def test_the_notes_of_a_quiet_run(server):
    engine = engine_at(server)
    assert texts(engine.generate(PROMPTS, 7)) == EXPECTED
    assert engine.notes() == {
        "model": "big",
        "endpoint": server.url.split("/")[2],
        "answered_by": {"big-1": 12},
        "unanswered_rows": 0,
        "spent": {"tokens": 12 * 23, "money": pytest.approx(12 * (20 + 6) / 1e6)},
    }


def test_what_passes_is_tried_again_and_counted(server):
    first = {2: refusal(429, **{"Retry-After": "9"}), 5: refusal(500), 7: None}
    waits = Waits()

    def sometimes(body: dict[str, Any], number: int) -> Answer:
        which = number_of(body)
        return first.pop(which) if which in first else echo(body, number)

    server.answer = sometimes
    engine = engine_at(server, wait=waits)
    assert texts(engine.generate(PROMPTS, 7)) == EXPECTED
    assert engine.notes()["retried"] == {"status 429": 1, "status 500": 1, "connection lost": 1}
    assert 9 in waits.seconds and len(waits.seconds) == 3
    assert engine.notes()["unanswered_rows"] == 0


def test_a_row_without_an_answer_is_counted_by_its_reason_and_never_dropped(server):
    def badly(body: dict[str, Any], number: int) -> Answer:
        return {
            1: refusal(500),
            4: refusal(400, "the content filter says no"),
            6: (200, {}, b"<html>oops</html>"),
            9: (200, {}, b'{"choices": []}'),
            11: refusal(503),
        }.get(number_of(body)) or echo(body, number)

    server.answer = badly
    engine = engine_at(server)
    made = list(engine.generate(PROMPTS, 7))
    assert [one.text for one in made] == ["" if i in (1, 4, 6, 9, 11) else f"answer {i}" for i in range(12)]
    assert not any(made[i].prompt_tokens or made[i].answer_tokens for i in (1, 4, 6, 9, 11))
    assert all(one.stopped for one in made)  # none was cut by a limit
    notes = engine.notes()
    assert notes["unanswered_rows"] == 5
    assert notes["unanswered_reasons"] == {"no answer": 2, "refused": 1, "unreadable": 2}
    assert notes["unanswered_example"]
    # Three tries of each that may pass; the refusal is asked once.
    tries = [number_of(body) for body in server.asked]
    assert [tries.count(i) for i in (0, 1, 4, 6, 9, 11)] == [1, 3, 1, 3, 3, 3]


def test_a_slow_server_is_not_waited_for(server):
    def slow(body: dict[str, Any], number: int) -> Answer:
        if number_of(body) == 3:
            time.sleep(0.6)
        return echo(body, number)

    server.answer = slow
    engine = engine_at(server, timeout=0.2, attempts=2)
    assert texts(engine.generate(PROMPTS, 7))[3] == ""
    assert engine.notes()["retried"] == {"timed out": 1}
    assert engine.notes()["unanswered_reasons"] == {"no answer": 1}


@pytest.mark.parametrize("answer", [refusal(500), (200, {}, b"<html>a page</html>")])
def test_an_endpoint_that_is_gone_ends_the_list_with_an_error(server, answer):
    server.answer = lambda body, number: answer
    with pytest.raises(EngineError, match="gives no answers") as told:
        list(engine_at(server).generate(PROMPTS, 7))
    assert "remotes.big" in str(told.value)
    with pytest.raises(EngineError, match="gives no answers"):
        list(engine_at(server).generate(PROMPTS[:2], 7))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_for_good_ends_it_at_once(server, status):
    server.answer = lambda body, number: refusal(status, "no such model")
    with pytest.raises(EngineError, match=f"refuses \\({status}\\): no such model") as told:
        list(engine_at(server).generate(PROMPTS, 7))
    assert "check remotes.big and the key" in str(told.value)
    assert len(server.asked) <= 4


def test_a_change_of_the_model_is_noticed_by_its_name_and_by_its_fingerprint(server):
    server.answer = lambda body, number: said("x", "big-1" if number_of(body) < 8 else "big-2", "fp_a")
    engine = engine_at(server)
    list(engine.generate(PROMPTS, 7))
    notes = engine.notes()
    assert notes["answered_by"] == {"big-1": 8, "big-2": 4}
    assert notes["model_changed"] == "the endpoint answered with several models: big-1 (8), big-2 (4)"
    assert "fingerprint_changed" not in notes
    server.answer = lambda body, number: said("x", "big-1", "fp_a" if number_of(body) < 3 else "fp_b")
    engine = engine_at(server)
    list(engine.generate(PROMPTS, 7))
    assert engine.notes()["fingerprint_changed"].endswith("fp_a (3), fp_b (9)")
    assert "model_changed" not in engine.notes()


def test_an_interrupted_list_pays_for_nothing_twice(server, tmp_path):
    journal = tmp_path / "replies" / "remote_big.jsonl"
    generations = engine_at(server, journal=journal, key="very-secret").generate(PROMPTS, 7)
    begun = [next(generations).text for _ in range(3)]
    generations.close()
    paid = len(server.asked)
    assert begun == EXPECTED[:3] and paid >= 3
    server.answer = lambda body, number: said(f"answer {number_of(body)}", "big-2")
    again = engine_at(server, journal=journal)
    assert texts(again.generate(PROMPTS, 7, skip=3)) == EXPECTED[3:]
    asked = [number_of(body) for body in server.asked]
    assert sorted(asked) == list(range(12))
    # What is told is of all rows, also those another process had asked about.
    assert again.notes()["answered_by"] == {"big-1": paid, "big-2": 12 - paid}
    assert again.notes()["spent"]["tokens"] == 12 * 23
    assert "very-secret" not in journal.read_text()
    last = engine_at(server, journal=journal)
    assert texts(last.generate(PROMPTS, 7, skip=12)) == [] and last.notes() == again.notes()
    assert len(server.asked) == 12


def test_what_was_under_way_when_a_process_died_counts_as_charged(server, tmp_path):
    journal = tmp_path / "replies.jsonl"
    list(engine_at(server, journal=journal, concurrency=1).generate(PROMPTS[:2], 7))
    events = journal.read_text().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in events] == ["asked", "reply"] * 2
    journal.write_text("".join(events[:3]) + events[3][:40])
    budget = Budget()
    assert len(list(engine_at(server, journal=journal, budget=budget).generate(PROMPTS[:2], 7))) == 2
    assert len(server.asked) == 3
    turns = [{"role": m.role, "content": m.content} for m in PROMPTS[1]]
    assert budget.tokens == 2 * 23 + token_bound(turns) + 7


def test_a_journal_of_other_prompts_answers_nothing(server, tmp_path):
    journal = tmp_path / "replies.jsonl"
    list(engine_at(server, journal=journal).generate(PROMPTS, 7))
    for changed in ({"max_new_tokens": 8}, {"prompts": PROMPTS[:5]}, {"sampling": Sampling(0.5, 1)}):
        server.asked.clear()
        list(engine_at(server, journal=journal).generate(**{"prompts": PROMPTS, "max_new_tokens": 7, **changed}))
        assert len(server.asked) == len(changed.get("prompts", PROMPTS))


def test_one_prompt_is_always_asked_so_that_its_time_can_be_measured(server, tmp_path):
    """What it costs is not forgotten for that."""
    for times in (3, 2):
        engine = engine_at(server, journal=tmp_path / "replies.jsonl")
        for _ in range(times):
            assert texts(engine.generate(PROMPTS[:1], 7)) == EXPECTED[:1]
    assert len(server.asked) == 5 and engine.notes()["spent"]["tokens"] == 5 * 23
    assert texts(engine.generate(PROMPTS, 7)) == EXPECTED
    assert engine.notes()["spent"]["tokens"] == (5 + 12) * 23


def test_half_characters_become_question_marks(server, tmp_path):
    server.answer = lambda body, number: said("cat \ud83d dog", "big\udc00")
    engine = engine_at(server, journal=tmp_path / "replies.jsonl")
    assert texts(engine.generate(PROMPTS[:2], 7)) == ["cat ? dog"] * 2
    assert engine.notes()["answered_by"] == {"big?": 2}


def test_a_spent_budget_ends_it_and_more_of_it_goes_on(server, tmp_path):
    journal = tmp_path / "replies.jsonl"
    ceiling = {"input_price": 1.0, "output_price": 1.0}
    with pytest.raises(EngineError, match=r"the ceiling of 0\.0004 of money is reached") as told:
        tight = Budget(max_money=0.0004, **ceiling)
        list(engine_at(server, journal=journal, budget=tight).generate(PROMPTS, 7))
    assert "remotes.big" in str(told.value)
    before = len(server.asked)
    assert 0 < before < 12 and tight.money <= 0.0004
    wide = Budget(max_money=1.0, **ceiling)
    assert texts(engine_at(server, journal=journal, budget=wide).generate(PROMPTS, 7)) == EXPECTED
    assert len(server.asked) == 12 and wide.tokens == 12 * 23


FORM = AnswerForm(choices=("cat", "dog"))


def test_a_form_is_asked_for_and_its_object_undone(server):
    def held(body: dict[str, Any], number: int) -> Answer:
        schema = body["response_format"]["json_schema"]["schema"]
        labels = schema["properties"]["answer"]["enum"]
        return said("I think: a cat" if number_of(body) == 5 else json.dumps({"answer": labels[number_of(body) % 2]}))

    server.answer = held
    engine = engine_at(server)
    got = texts(engine.generate(PROMPTS, 7, forms=[FORM] * 12))
    assert got[:3] == ["cat", "dog", "cat"] and got[5] == "I think: a cat"
    assert "not_taken_by_the_endpoint" not in engine.notes()


@pytest.mark.parametrize("message", ["response_format is not supported", "bad request"])
def test_a_form_that_is_refused_is_left_out_and_told(server, message):
    server.answer = lambda body, number: refusal(400, message) if "response_format" in body else echo(body, number)
    engine = engine_at(server, concurrency=1)
    assert texts(engine.generate(PROMPTS, 7, forms=[FORM] * 12)) == EXPECTED
    assert engine.notes()["not_taken_by_the_endpoint"] == ["the form of the answer (response_format)"]
    assert engine.notes()["unanswered_rows"] == 0
    assert len(server.asked) == 13


def test_a_refused_question_is_not_taken_for_a_refused_form(server):
    server.answer = lambda body, number: refusal(400, "filtered") if number_of(body) == 0 else said('{"answer": "cat"}')
    engine = engine_at(server, concurrency=1)
    assert texts(engine.generate(PROMPTS, 7, forms=[FORM] * 12)) == ["", *["cat"] * 11]
    assert engine.notes()["unanswered_reasons"] == {"refused": 1}
    assert "not_taken_by_the_endpoint" not in engine.notes()


def test_newer_models_that_take_other_fields_are_understood(server):
    def newer(body: dict[str, Any], number: int) -> Answer:
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return refusal(400, "'temperature' does not support 0.0 with this model.")
        return echo(body, number)

    server.answer = newer
    engine = engine_at(server)
    assert texts(engine.generate(PROMPTS, 7)) == EXPECTED
    assert server.asked[-1]["max_completion_tokens"] == 7
    assert engine.notes()["not_taken_by_the_endpoint"] == ["a temperature, so its answers are drawn by chance"]
    assert engine.notes()["unanswered_rows"] == 0


def test_answers_that_are_cut_filtered_or_not_counted(server):
    def ends(body: dict[str, Any], number: int) -> Answer:
        which = number_of(body)
        if which == 2:
            return reply("no usage", {})
        return said("x", reason={0: "length", 1: "content_filter"}.get(which, "stop"))

    server.answer = ends
    engine = engine_at(server)
    made = list(engine.generate(PROMPTS, 7))
    assert [one.stopped for one in made[:3]] == [False, True, True]
    assert engine.notes()["filtered_rows"] == 1 and engine.notes()["rows_with_tokens_at_most"] == 1


def test_drawn_answers_differ_by_their_place(server):
    list(engine_at(server).generate(PROMPTS, 7, sampling=Sampling(0.7, 100)))
    assert {body["seed"] - 100 for body in server.asked} == set(range(12))
    assert {body["temperature"] for body in server.asked} == {0.7}


def test_tools_are_told_in_plain_words_and_calls_are_read(server):
    tool = json.dumps({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})
    asked = (Message("user", "Weather in Oslo? 1", tools=Toolset((tool,))),)
    server.answer = lambda body, number: said('call weather {"city": "Oslo"}')
    (made,) = engine_at(server).generate([asked], 20)
    assert json.loads(made.text)[0]["name"] == "weather"
    assert made.calls[0].name == "weather" and json.loads(made.calls[0].arguments) == {"city": "Oslo"}
    assert "You may call these tools" in server.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("form", "answer", "text"),
    [
        (FORM, '{"answer": "cat"}', "cat"),
        (FORM, "cat", "cat"),
        (FORM, '{"answer": "cat", "why": 1}', '{"answer": "cat", "why": 1}'),
        (AnswerForm(choices=("a", "b"), separator="; ", none="none"), '{"answer": ["a", "b"]}', "a; b"),
        (AnswerForm(choices=("a", "b"), separator="; ", none="none"), '{"answer": []}', "none"),
        (AnswerForm(json_schema={"type": "array", "items": {"type": "string"}}), '{"answer": ["é"]}', '["é"]'),
        (AnswerForm(json_schema={"type": "object", "properties": {}}), '{"answer": "kept"}', '{"answer": "kept"}'),
    ],
)
def test_answers_in_the_object_they_were_asked_for(form, answer, text):
    assert unwrapped(answer, form) == text
    schema = response_format(form)["json_schema"]["schema"]
    assert schema["type"] == "object"


def test_strict_is_asked_for_where_every_object_is_closed():
    def strict(schema: dict[str, Any]) -> bool:
        found: bool = response_format(AnswerForm(json_schema=schema))["json_schema"]["strict"]
        return found

    closed = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    assert strict(closed) and strict({"type": "array", "items": closed})
    assert not strict({**closed, "required": []})
    assert not strict({**closed, "properties": {"a": {"type": "object"}}})
    assert response_format(FORM)["json_schema"]["strict"]


def test_the_journal_survives_a_process_that_is_killed(server, tmp_path: Path):
    """A torn last line is cut off, and all that was whole before it is used."""
    journal = tmp_path / "replies.jsonl"
    list(engine_at(server, journal=journal).generate(PROMPTS, 7))
    journal.write_bytes(journal.read_bytes()[:-25])
    server.asked.clear()
    assert texts(engine_at(server, journal=journal).generate(PROMPTS, 7)) == EXPECTED
    assert len(server.asked) == 1


def test_tries_that_may_have_been_charged_are_kept_when_the_list_is_stopped(server, tmp_path):
    """Lost on the way, then stopped while it waited to try again: a later process counts it as spent."""
    journal = tmp_path / "replies.jsonl"
    waiting = threading.Event()

    def ends(body: dict[str, Any], number: int) -> Answer:
        if number_of(body) == 0:
            return None
        assert waiting.wait(5)
        return refusal(401, "expired")

    def wait(stop: threading.Event, seconds: float) -> bool:
        waiting.set()
        return stop.wait(5)

    server.answer = ends
    with pytest.raises(EngineError, match="expired"):
        list(engine_at(server, journal=journal, concurrency=2, wait=wait).generate(PROMPTS[:2], 7))
    assert sorted(map(number_of, server.asked)) == [0, 1]
    server.answer = echo
    budget = Budget()
    assert texts(engine_at(server, journal=journal, budget=budget).generate(PROMPTS[:2], 7)) == EXPECTED[:2]
    turns = [{"role": m.role, "content": m.content} for m in PROMPTS[0]]
    assert budget.tokens == 2 * 23 + token_bound(turns) + 7


def test_unreadable_answers_stay_counted_when_the_last_try_is_lost(server, tmp_path):
    journal = tmp_path / "replies.jsonl"
    answers = iter([(200, {}, b"{}"), (200, {}, b"{}"), *[refusal(500)] * 3])
    server.answer = lambda body, number: next(answers) if number_of(body) == 0 else echo(body, number)
    engine = engine_at(server, journal=journal, concurrency=1)
    assert texts(engine.generate(PROMPTS[:2], 7)) == ["", "answer 1"]
    budget = Budget()
    list(engine_at(server, journal=journal, budget=budget).generate(PROMPTS[:2], 7, skip=2))
    turns = [{"role": m.role, "content": m.content} for m in PROMPTS[0]]
    assert budget.tokens == engine.budget.tokens == 23 + 2 * (token_bound(turns) + 7)
