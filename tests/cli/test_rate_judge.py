"""`tunesmith rate` and `tunesmith judge`: what they ask for, print and keep, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.evaluation.rating.stored import store_run
from tests.pipeline.conftest import listen_to_interrupts
from tests.pipeline.test_judging import by_quality, said
from tests.pipeline.test_synthetic import Server
from tunesmith.cli.main import invoke
from tunesmith.evaluation.rating import Rating, pairs_of, rating_log, read_preferences
from tunesmith.runs import RunFolder

A, B = "tuned", "few_shot"
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    answers = {
        A: [f"{'good' if i % 4 else 'bad'} {i}" for i in range(40)],
        B: [f"{'bad' if i % 4 else 'good'} {i}" for i in range(40)],
    }
    return store_run(tmp_path / "runs" / "tones-20261121-120000", answers, best=B)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.answer = by_quality
    threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    made.http.shutdown()
    made.http.server_close()


def rate(run: RunFolder, raters: tuple[str, ...] = ("ann", "bob"), rows: int = 24) -> None:
    """Ratings that know the better answer."""
    with rating_log(run) as log:
        for rater in raters:
            for place, pair in enumerate(pairs_of(run, A, B)[:rows]):
                log.append(Rating(rater, pair.key, pair.id, A if place % 4 else B, A if place % 2 else B, 2.0))


def asked(server: Server, *more: str) -> list[str]:
    return ["judge", "last", "--endpoint", server.url, "--model", "judge", "--max-tokens", "1000000", *more]


def test_a_summary_is_printed_and_kept_for_the_verdict(run, capsys):
    rate(run)
    assert invoke(["rate", "last", "--summary"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "24 of 40 pairs rated; 0 others are equal", "ann: 24", "bob: 24", "tuned 36, few shot 12, tie 0, both bad 0",
        "Cohen's kappa: 1.00 (95 % CI", "24 pairs, 2 raters",
        "People: tuned is preferred to few-shot in 75.0 % (95 % CI", "18 won, 0 tied, 6 lost", "Tuned is surely better",
    ):  # fmt: skip
        assert text in printed, text
    (preference,) = read_preferences(run.evaluation)
    assert preference.surely_better is True
    assert invoke(["rate", "last", "--summary", "--json", "--candidates", B, A]) == 0
    assert json.loads(capsys.readouterr().out)["win_rate"]["wins"] == 6


def test_a_summary_of_nothing_says_so(run, capsys):
    assert invoke(["rate", "last", "--summary"]) == 0
    assert "no result for tuned against few-shot; nothing was rated" in capsys.readouterr().out


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])}
RATE = [sys.executable, "-m", "tunesmith.cli", "rate", "last", "--json"]


@contextmanager
def serving(*more: str) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    """The command in a process of its own, ended by Ctrl-C; what it printed is the first of the two."""
    process = subprocess.Popen(
        [*RATE, *more], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=listen_to_interrupts,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            text += line
        yield json.loads(text), process
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "--summary" in err


def post(told: dict[str, str], path: str, body: dict[str, object]) -> dict[str, object]:
    url, token = told["url"].split("?token=")
    headers = {"X-Rating-Token": token, "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, object] = json.loads(answer.read())
    return found


def test_the_page_is_served_until_it_is_interrupted_and_settings_are_kept(run):
    with serving("--seed", "7", "--rows", "5", "--overlap", "2") as (told, process):
        first = post(told, "next", {"rater": "ann"})
        assert first["progress"] == {"rated": 0, "total": 5}
        post(told, "rate", {"rater": "ann", "pair": first["pair"], "choice": "left", "seconds": 1})
        other = subprocess.run(RATE, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
        assert other.returncode == 4 and str(process.pid) in other.stdout
    with serving() as (told, _):
        shown = post(told, "next", {"rater": "ann"})
        assert shown["progress"] == {"rated": 1, "total": 5} and shown["pair"] != first["pair"]


def test_the_verdict_shows_what_people_and_judges_said(run, server, fake, capsys):
    rate(run)
    assert invoke(["rate", "last", "--summary"]) == 0
    capsys.readouterr()
    assert invoke(["verdict", "last"]) == 0
    assert "People: tuned is preferred to few-shot in 75.0 %" in capsys.readouterr().out
    assert invoke(["verdict", "last", "--json"]) == 0
    (preference,) = json.loads(capsys.readouterr().out)["preferences"]
    assert preference["source"] == "people" and preference["counts"] and preference["win_rate"]["wins"] == 18


def test_a_judge_is_asked_and_its_result_shown_with_the_verdict(run, server, capsys):
    rate(run)
    assert invoke(asked(server)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "against people: it agrees with people better than chance: Cohen's kappa 1.00 on 24 pairs",
        "40 judged", "both orders agree in 40 of 40 pairs", "first was chosen in 40 of 80 replies", "8,800 tokens",
        "Judge: tuned is preferred to few-shot in 75.0 %",
    ):  # fmt: skip
        assert text in printed, text
    assert invoke(asked(server, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["replies"]["kept_from_before"] == 80


def test_a_judge_by_chance_ends_with_the_code_of_a_failed_verification(run, server, capsys):
    rate(run)
    server.answer = lambda body, number: said('{"winner": "A"}')
    assert invoke(asked(server)) == 5
    printed = capsys.readouterr()
    assert "the judge does not count" in printed.err and "Does not count" in printed.out
    assert invoke(asked(server, "--json")) == 5
    assert json.loads(capsys.readouterr().out)["counts"] is False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "who shall judge?"),
        (["--local", "embedded:tiny", "--endpoint", "http://127.0.0.1:1/v1"], "who shall judge?"),
        (["--endpoint", "http://127.0.0.1:1/v1"], "which model"),
        (["--endpoint", "ftp://x", "--model", "m", "--max-tokens", "9"], "no address"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--model", "m"], "no ceiling"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--max-tokens", "9", "--rubric", "no.yaml"], "rubric"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--mode", "rubric"], "no rubric"),
        (["--local", "embedded:tiny", "--candidates", "a", "b"], "no stored answers of 'a'"),
    ],
)
def test_orders_that_make_no_sense_are_refused(run, capsys, arguments, told):
    rate(run)
    assert invoke(["judge", "last", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_without_labels_the_way_to_them_is_told(run, server, capsys):
    assert invoke(asked(server)) == 2
    assert "tunesmith rate" in capsys.readouterr().err
    assert invoke(asked(server, "--unproven", "--rows", "3")) == 0
    printed = capsys.readouterr()
    assert "does not count" in printed.err and "Does not count" in printed.out
    labels = Path("labels.jsonl")
    pairs = pairs_of(run, A, B)
    labels.write_text("".join(f'{{"id": "{p.id}", "winner": "{A if i % 4 else B}"}}\n' for i, p in enumerate(pairs)))
    assert invoke(asked(server, "--labels", str(labels))) == 0
