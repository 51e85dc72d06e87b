"""The rating page's server: who may ask, what is kept, and that nothing names a candidate."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.evaluation.rating.stored import store_run
from tunesmith.errors import RecipeError
from tunesmith.evaluation.rating import (
    Pair,
    RatingLog,
    Settings,
    make_plan,
    pairs_of,
    read_ratings,
)
from tunesmith.service.rating import RatingServer, RatingSession
from tunesmith.service.rating import server as server_module
from tunesmith.service.rating.server import LARGEST_BODY

A, B = "tuned", "few_shot"


def pairs(count: int) -> list[Pair]:
    return [Pair(f"row{i}", f"question {i}", {A: f"good {i}", B: f"bad {i}"}, f"expected {i}") for i in range(count)]


@pytest.fixture
def log(tmp_path) -> Iterator[RatingLog]:
    made = RatingLog(tmp_path / "ratings.jsonl")
    yield made
    made.close()


def session(log: RatingLog, tmp_path, count: int = 6, overlap: int = 2, **more: Any) -> RatingSession:
    plan = make_plan(pairs(count), Settings(overlap=overlap))
    return RatingSession(plan, read_ratings(tmp_path / "ratings.jsonl"), log, **more)


# The session.


def test_a_session_goes_from_pair_to_pair_and_ends(log, tmp_path):
    one = session(log, tmp_path)
    shown = one.next("ann")
    for done in range(6):
        assert shown["progress"] == {"rated": done, "total": 6}
        left = one.plan.left(one._pair(shown["pair"]), "ann")
        assert shown["left"].startswith("good") == (left == A)
        assert {shown["left"].split()[1]} == {shown["right"].split()[1]} == {shown["question"].split()[1]}
        shown = one.rate("ann", shown["pair"], "left", 1.5)
    assert shown == {"pair": None, "progress": {"rated": 6, "total": 6}}
    kept = read_ratings(tmp_path / "ratings.jsonl").latest
    assert len(kept) == 6 and all(r.choice == r.left for r in kept.values())


def test_it_goes_on_where_it_was_left(log, tmp_path):
    first = session(log, tmp_path)
    shown = first.rate("ann", first.next("ann")["pair"], "tie", 1)
    again = session(log, tmp_path)
    assert again.next("ann") == shown and again.given == 1
    assert again.next("bob")["pair"] == again.plan.pairs[0].key


def test_a_choice_can_be_looked_at_and_changed(log, tmp_path):
    one = session(log, tmp_path)
    first = one.next("ann")
    second = one.rate("ann", first["pair"], "right", 1)
    back = one.back("ann", second["pair"])
    assert (back["pair"], back["before"], back["left"]) == (first["pair"], "right", first["left"])
    assert one.back("ann", first["pair"])["pair"] == first["pair"]
    assert one.rate("ann", first["pair"], "both_bad", 1)["pair"] == second["pair"]
    assert one.back("ann", second["pair"])["before"] == "both_bad"
    assert one.given == 1
    for _ in range(5):
        last = one.next("ann")["pair"]
        one.rate("ann", last, "left", 1)
    assert one.back("ann", None)["pair"] == last
    assert one.back("bob", None)["pair"] == one.next("bob")["pair"]


def test_two_people_at_once_do_not_get_the_same_single_pair(log, tmp_path):
    now = [0.0]
    one = session(log, tmp_path, overlap=0, clock=lambda: now[0])
    ann, bob = one.next("ann")["pair"], one.next("bob")["pair"]
    assert ann != bob
    assert one.next("ann")["pair"] == ann
    now[0] = 601.0  # ann went away
    assert one.next("bob")["pair"] in (ann, bob)
    one.rate("bob", ann, "left", 1)
    assert ann not in (one.next("ann")["pair"], one.next("bob")["pair"])


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_what_makes_no_sense_is_refused_and_not_kept(log, tmp_path, seconds):
    one = session(log, tmp_path)
    key = one.next("ann")["pair"]
    wrong = [("ann", "x" * 32, "left", 1.0), ("ann", key, A, 1.0), ("", key, "left", 1.0), ("ann", key, "tie", seconds)]
    for arguments in wrong:
        with pytest.raises(RecipeError):
            one.rate(*arguments)
    assert one.given == 0 and not read_ratings(tmp_path / "ratings.jsonl").latest


# The server.


class Client:
    """Sends requests as it is told, right or wrong."""

    def __init__(self, server: RatingServer) -> None:
        self.server = server
        self.port = urlsplit(server.url).port
        self.host = f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent: dict[str, str | None] = {"Host": self.host, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, body, {k: v for k, v in sent.items() if v is not None})
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def post(self, path: str, body: Any, **headers: str | None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given: dict[str, str | None] = {"X_Rating_Token": self.server.token, "Content_Type": "application/json"}
        status, answer, _ = self.ask("POST", path, data, **{**given, **headers})
        return status, json.loads(answer)


@pytest.fixture
def server(log, tmp_path) -> Iterator[RatingServer]:
    made = RatingServer(session(log, tmp_path), title="tones <1>", rater='An "n')
    made.start()
    yield made
    made.close()


@pytest.fixture
def client(server) -> Client:
    return Client(server)


def test_the_page_comes_with_the_token_alone_and_loads_nothing(server, client):
    path = server.url.removeprefix(f"http://{client.host}")
    status, page, headers = client.ask("GET", path)
    assert status == 200 and b"tones &lt;1&gt;" in page and b"An &#34;n" in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe-inline" not in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"'.encode()) == 2
    assert nonce not in client.ask("GET", path)[2]["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert b"http" not in page.replace(b"http-equiv", b"")
    for wrong in ("/", "/?token=", "/?token=x", "/?token=%ff", f"/?token={server.token}x", f"/x?token={server.token}"):
        status, answer, _ = client.ask("GET", wrong)
        assert status in (403, 404) and b"question" not in answer and b"<" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", None, "10.0.0.1:80"])
def test_a_strange_host_is_refused(server, client, host):
    path = server.url.removeprefix(f"http://{client.host}")
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()
    assert client.post("/next", {"rater": "ann"}, Host=host or "x")[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1", "[::1]:8000"])
def test_a_tunnel_to_another_port_is_let_in(client, host):
    assert client.post("/next", {"rater": "ann"}, Host=host)[0] == 200


def test_requests_want_the_token_in_a_header_and_our_own_origin(client, server):
    assert client.post("/next", {"rater": "ann"})[0] == 200
    assert client.post("/next", {"rater": "ann"}, Origin=f"http://{client.host}")[0] == 200
    assert client.post("/next", {"rater": "ann"}, Origin="http://evil.example")[0] == 403
    assert client.post("/next", {"rater": "ann"}, Origin="null")[0] == 403
    assert client.post("/next", {"rater": "ann"}, X_Rating_Token=None)[0] == 403
    assert client.post("/next", {"rater": "ann"}, X_Rating_Token="x")[0] == 403
    assert client.post(f"/next?token={server.token}", {"rater": "ann"}, X_Rating_Token=None)[0] == 403
    assert client.post("/next", {"rater": "ann"}, Content_Type="text/plain")[0] == 415


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/ratings.jsonl", "/rate/", "/next/", "/%2e%2e/next", "/next?x"])
def test_there_is_nothing_but_the_table(client, path):
    assert client.post(path, {"rater": "ann"})[0] == 404
    assert client.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/next", b"{", 400),
        ("/next", b"[]", 400),
        ("/next", b"\xff", 400),
        ("/next", b"[" * 10_000, 400),
        ("/next", {}, 400),
        ("/next", {"rater": 7}, 400),
        ("/next", {"rater": ""}, 400),
        ("/next", {"rater": "ann\ud800"}, 400),
        ("/rate", {"rater": "ann", "pair": "x", "choice": "left", "seconds": 1}, 400),
        ("/rate", {"rater": "ann", "pair": "x", "choice": "left", "seconds": True}, 400),
        ("/rate", {"rater": "ann", "pair": "x", "choice": "left", "seconds": 10**400}, 400),
        ("/back", {"rater": "ann", "pair": 3}, 400),
        ("/next", b"x" * (LARGEST_BODY + 1), 413),
    ],
)
def test_bad_requests_are_answered_with_words(client, path, body, status):
    found, answer = client.post(path, body)
    assert found == status and answer["error"]
    assert client.post("/next", {"rater": "ann"})[0] == 200


@pytest.mark.parametrize(("length", "status"), [("99999999999", 413), ("-1", 411), ("x", 411), (None, 411)])
def test_lengths_are_believed_only_where_they_can_be(server, client, length, status):
    told = {"Host": client.host, "X-Rating-Token": server.token, "Content-Type": "application/json"}
    lines = ["POST /next HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    lines += [f"Content-Length: {length}"] if length else []
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        assert raw.recv(64).split()[1] == str(status).encode()


def test_a_choice_is_on_the_disk_when_it_is_answered_and_names_no_candidate(client, tmp_path):
    said: list[bytes] = []
    _, shown = client.post("/next", {"rater": "ann"})
    for choice in ("left", "right", "tie", "both_bad"):
        said.append(json.dumps(shown).encode())
        key = shown["pair"]
        status, shown = client.post("/rate", {"rater": "ann", "pair": key, "choice": choice, "seconds": 2})
        assert status == 200
        assert read_ratings(tmp_path / "ratings.jsonl").latest["ann", key].seconds == 2.0
    said.append(json.dumps(client.post("/back", {"rater": "ann", "pair": None})[1]).encode())
    assert not any(name.encode() in text for text in said for name in (A, B))
    assert {r.choice for r in read_ratings(tmp_path / "ratings.jsonl").latest.values()} >= {"tie", "both_bad"}


def test_left_stands_before_right_whoever_is_left(log, tmp_path):
    one = session(log, tmp_path, count=30, overlap=30)
    lefts = set()
    for _ in range(30):
        shown = one.next("ann")
        lefts.add(one.plan.left(one._pair(shown["pair"]), "ann"))
        assert list(shown) == ["pair", "question", "reference", "left", "right", "before", "progress"]
        one.rate("ann", shown["pair"], "tie", 1)
    assert lefts == {A, B}


def test_an_address_that_is_none_is_refused(server, client):
    for path in ("http://[", "http://[x]/"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {client.host}\r\n\r\n".encode())
            assert raw.recv(64).split()[1] == b"400"


def test_who_breaks_off_leaves_no_traceback(client, monkeypatch, capfd):
    def broken(*_: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(server_module._Handler, "_send", broken)
        with pytest.raises((http.client.HTTPException, OSError)):
            client.ask("GET", "/nothing")
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as raw:
        raw.sendall(b"GET / HT")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.2)
    assert client.post("/next", {"rater": "ann"})[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_many_at_once_lose_nothing(client, tmp_path):
    def rate(who: str) -> None:
        shown = client.post("/next", {"rater": who})[1]
        while shown["pair"]:
            shown = client.post("/rate", {"rater": who, "pair": shown["pair"], "choice": "tie", "seconds": 1})[1]

    threads = [threading.Thread(target=rate, args=(f"rater {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    kept = read_ratings(tmp_path / "ratings.jsonl").latest
    assert len(kept) == 4 * 2 + 4  # everybody the overlap, and each other pair once


def test_a_run_on_the_disk_can_be_served(tmp_path, log):
    run = store_run(tmp_path / "run", {A: ["1", "2"], B: ["2", "2"]})
    plan = make_plan(pairs_of(run, A, B), Settings())
    server = RatingServer(RatingSession(plan, read_ratings(tmp_path / "none"), log), title="run")
    server.start()
    try:
        status, shown = Client(server).post("/next", {"rater": "ann"})
        assert (
            status == 200 and shown["question"] == "What is 0 and 0?" and {shown["left"], shown["right"]} == {"1", "2"}
        )
    finally:
        server.close()
