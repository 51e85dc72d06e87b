"""Asking an endpoint: what it may do wrong, what is tried again, and what it may cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.inference.server import Server, refusal, reply, serving
from tunesmith.errors import RecipeError
from tunesmith.inference.endpoint import (
    AskError,
    Budget,
    Endpoint,
    OverBudgetError,
    RefusedError,
    UnreadableError,
    token_bound,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def waited() -> list[float]:
    return []


@pytest.fixture
def endpoint(server, waited) -> Endpoint:
    return Endpoint(server.url, "teacher", "secret-key", timeout=5, attempts=4, sleep=waited.append)


def budget(**changes: Any) -> Budget:
    return Budget(**{"max_tokens": 10_000_000, **changes})


TURNS = [{"role": "user", "content": "hi"}]


def test_a_question_and_its_answer(server, endpoint):
    server.answer = lambda body, number: reply("yes", {"prompt_tokens": 7, "completion_tokens": 3})
    spent = budget(input_price=1.0, output_price=2.0)
    got = endpoint.ask(TURNS, spent, max_tokens=20, options={"temperature": 0.5})
    assert (got.text, got.input_tokens, got.output_tokens, got.counted, got.model) == ("yes", 7, 3, True, "teacher-2")
    assert (spent.tokens, spent.money) == (10, pytest.approx((7 + 2 * 3) / 1e6))
    (asked,) = server.asked
    assert asked == {"path": "/v1/chat/completions", "model": "teacher", "messages": TURNS, "max_tokens": 20,
                     "temperature": 0.5}  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(endpoint)


def test_what_passes_is_tried_again_and_waits_as_asked(server, endpoint, waited):
    answers = [refusal(429, **{"Retry-After": "7"}), None, refusal(503), reply("at last")]
    server.answer = lambda body, number: answers[number]
    spent = budget()
    assert endpoint.ask(TURNS, spent, max_tokens=5, options={}).text == "at last"
    assert waited[0] == 7 and len(waited) == 3
    assert 0.1 <= waited[1] <= 2 and 0.1 <= waited[2] <= 4
    # The attempt that was lost may have been charged: it stays counted at its most.
    assert spent.tokens == 40 + token_bound(TURNS) + 5


def test_a_server_that_never_answers_ends_after_all_attempts(server, endpoint, waited):
    server.answer = lambda body, number: refusal(500)
    spent = budget()
    with pytest.raises(Exception, match="did not answer in 4 attempts: status 500"):
        endpoint.ask(TURNS, spent, max_tokens=5, options={})
    assert len(server.asked) == 4 and spent.tokens == 0


def test_what_took_too_long_behind_the_server_may_have_been_charged(server, endpoint):
    server.answer = lambda body, number: refusal(504) if number == 0 else reply("at last")
    spent = budget()
    assert endpoint.ask(TURNS, spent, max_tokens=5, options={}).lost == (token_bound(TURNS), 5)
    assert spent.tokens == 40 + token_bound(TURNS) + 5


def test_what_lasts_is_not_tried_again(server, endpoint):
    server.answer = lambda body, number: refusal(400, "content filter")
    with pytest.raises(RefusedError, match="400: content filter"):
        endpoint.ask(TURNS, budget(), max_tokens=5, options={})
    for status in (401, 404, 302):
        server.asked.clear()
        server.answer = lambda body, number, status=status: refusal(
            status, "no such model", Location="http://x.invalid/"
        )
        with pytest.raises(Exception, match=f"refuses \\({status}\\)"):
            endpoint.ask(TURNS, budget(), max_tokens=5, options={})
        assert len(server.asked) == 1
    server.answer = lambda body, number: (200, {}, b"<html>hello</html>")
    with pytest.raises(Exception, match="something else than chat completions"):
        endpoint.ask(TURNS, budget(), max_tokens=5, options={})


def test_no_usage_counts_as_the_most_it_can_be(server, endpoint):
    server.answer = lambda body, number: reply("x", {})
    spent = budget()
    got = endpoint.ask(TURNS, spent, max_tokens=50, options={})
    assert not got.counted and spent.tokens == token_bound(TURNS) + 50


@pytest.mark.parametrize("ceiling", [{"max_tokens": 100}, {"max_tokens": None, "max_money": 0.0001}])
def test_a_ceiling_is_checked_before_the_request(server, endpoint, ceiling):
    spent = budget(input_price=1.0, output_price=1.0, **ceiling)
    with pytest.raises(OverBudgetError):
        endpoint.ask(TURNS, spent, max_tokens=101, options={})
    assert not server.asked and spent.tokens == 0 and spent.money == 0


def test_a_key_is_not_sent_in_the_clear_and_an_address_is_one():
    with pytest.raises(RecipeError, match="unencrypted"):
        Endpoint("http://example.com/v1", "m", "key").check()
    Endpoint("http://example.com/v1", "m").check()
    Endpoint("https://example.com/v1", "m", "key").check()
    for url in ("example.com/v1", "file:///etc/passwd", "http://", "https://example.com/a b", "https://example.com/ü"):
        with pytest.raises(RecipeError, match="no address"):
            Endpoint(url, "m").check()
    with pytest.raises(RecipeError, match="holds a user name or password") as told:
        Endpoint("https://me:secret-word@example.com/v1", "m").check()
    assert "secret-word" not in str(told.value)


@pytest.mark.parametrize("key", ["secret-word\n", "secret-word 2", "secret-wörd"])
def test_a_key_that_cannot_be_sent_is_told_without_showing_it(key):
    with pytest.raises(RecipeError, match="characters that cannot be sent") as told:
        Endpoint("https://example.com/v1", "m", key).check()
    assert "secret-w" not in str(told.value)


def test_a_server_that_repeats_the_key_does_not_spread_it(server, endpoint):
    asking = replace(endpoint, key="secret-word")
    for answer, error in (
        (refusal(401, "the key secret-word is wrong"), "the key \\(the key\\) is wrong"),
        (refusal(400, "secret-word may not"), "\\(the key\\) may not"),
        ((200, {}, b'{"error": {"message": "secret-word is spent"}}'), "\\(the key\\) is spent"),
    ):
        server.answer = lambda body, number, answer=answer: answer
        with pytest.raises(AskError, match=error) as told:
            asking.ask(TURNS, budget(), max_tokens=5, options={})
        assert "secret-word" not in str(told.value)


def test_a_form_is_counted_as_a_part_of_the_prompt():
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["x" * 500]}}}
    assert token_bound(TURNS, {"response_format": form}) >= token_bound(TURNS, {"temperature": 0}) + 500


def test_a_wait_may_be_told_as_a_date(server, endpoint, waited):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    answers = [refusal(429, **{"Retry-After": later}), refusal(429, **{"Retry-After": "soon"}), reply("at last")]
    server.answer = lambda body, number: answers[number]
    assert endpoint.ask(TURNS, budget(), max_tokens=5, options={}).text == "at last"
    assert 35 <= waited[0] <= 40 and 0.1 <= waited[1] <= 2


def test_an_answer_that_drips_in_ends_when_its_time_is_over(server, endpoint, waited):
    def slowly(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    server.speak = slowly
    began = time.monotonic()
    with pytest.raises(Exception, match="did not answer in 2 attempts: timed out"):
        replace(endpoint, timeout=0.3, attempts=2).ask(TURNS, budget(), max_tokens=5, options={})
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None}, ""),
    ],
)
def test_texts_in_other_places(server, endpoint, message, text):
    body = {"choices": [{"message": message}], "system_fingerprint": "fp_1"}
    server.answer = lambda _, number: (200, {}, json.dumps(body).encode())
    got = endpoint.ask(TURNS, budget(), max_tokens=5, options={})
    assert (got.text, got.finish_reason, got.model, got.fingerprint) == (text, "", "teacher", "fp_1")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}']
)
def test_what_is_no_completion_is_said_to_be_none(server, endpoint, body):
    server.answer = lambda _, number: (200, {}, body)
    with pytest.raises(UnreadableError, match="something else than chat completions"):
        endpoint.ask(TURNS, budget(), max_tokens=5, options={})


def test_an_error_that_is_told_as_a_success_is_passed_on(server, endpoint):
    server.answer = lambda _, number: (200, {}, b'{"error": {"message": "the model is asleep"}}')
    with pytest.raises(UnreadableError, match="something else than chat completions: the model is asleep"):
        endpoint.ask(TURNS, budget(), max_tokens=5, options={})
