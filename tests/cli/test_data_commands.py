"""`tunesmith init` on what people have, and `tunesmith data`: what is printed, written, asked and refused."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith.cli.main import COMMANDS, invoke

PLAIN = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
TOOLS = {**PLAIN, "tools": [{"type": "function", "function": {"name": "f"}}]}


@pytest.fixture(autouse=True)
def data_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "data", ("tunesmith.cli.data", "Work with rows before anything is trained."))


def rows(folder: Path, *given: object, name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder / name


def test_init_in_a_pipe_takes_the_proposal_and_prints_it(here, capsys):
    rows(
        here,
        *[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"a{n}"}]} for n in range(3)],
    )
    assert invoke(["init", "rows.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "ShareGPT: conversations of from and value, recognised by" in shown
    assert "format: sharegpt" in shown
    assert yaml.safe_load((here / "recipe.yaml").read_text())["data"] == {"train": "rows.jsonl", "format": "sharegpt"}


def test_init_asks_nothing_with_yes_even_on_a_terminal(here, monkeypatch):
    rows(here, PLAIN)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: pytest.fail("asked"))
    assert invoke(["init", "rows.jsonl", "--yes"]) == 0


def test_init_never_overwrites_and_says_so_before_anything_is_read(here, capsys):
    (here / "recipe.yaml").write_text("mine")
    assert invoke(["init", "missing.jsonl", "--yes"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (here / "recipe.yaml").read_text() == "mine"


def test_init_on_a_database_names_it_for_any_folder(here, capsys):
    with sqlite3.connect(here / "my reviews.db") as connection:
        connection.execute("create table reviews (text, label)")
        connection.executemany("insert into reviews values (?, ?)", [(f"t{n}", "ab"[n % 2]) for n in range(8)])
    connection.close()
    assert invoke(["init", "sqlite:///my reviews.db#reviews", "--out", "sub/r.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = yaml.safe_load((here / "sub" / "r.yaml").read_text())
    assert told["rows"] == 8
    assert written["data"]["train"] == f"sqlite:///{here / 'my reviews.db'}#reviews"
    assert (written["name"], written["task"]["type"]) == ("my-reviews", "classification")


def test_init_shows_no_password(here, capsys):
    assert invoke(["init", "postgresql://me:secret@localhost:1/db"]) == 3
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err


def test_convert_writes_beside_the_source_and_says_what_was_read(here, capsys):
    rows(here, PLAIN, PLAIN)
    assert invoke(["data", "convert", "rows.jsonl", "--to", "sharegpt"]) == 0
    shown = capsys.readouterr().out
    assert "2 rows, chat (conversations under messages)" in shown
    assert "rows.sharegpt.jsonl, 2 rows as sharegpt" in shown
    assert len((here / "rows.sharegpt.jsonl").read_text().splitlines()) == 2
    assert invoke(["data", "convert", "rows.jsonl", "--to", "sharegpt"]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_convert_refuses_to_lose_and_says_what_it_lost(here, capsys):
    rows(here, PLAIN, TOOLS)
    assert invoke(["data", "convert", "rows.jsonl", "--to", "alpaca", "--out", "a.json"]) == 3
    assert "tools and their calls (1 rows: 2)" in capsys.readouterr().err
    assert not (here / "a.json").exists()
    assert invoke(["data", "convert", "rows.jsonl", "--to", "alpaca", "--out", "a.json", "--lossy", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["written"], told["format"]) == (2, 2, "chat")
    assert told["losses"] == [{"what": "tools and their calls", "lines": [2]}]
    assert [row["output"] for row in json.loads((here / "a.json").read_text())] == ["a", "a"]


def test_convert_takes_the_settings_of_data(here, capsys):
    (here / "t.csv").write_text("phrase,tone,note\nOh no,sad,x\n")
    command = ["data", "convert", "t.csv", "--to", "openai_dpo", "--out", "o.jsonl"]
    assert invoke([*command, "--set", "data.columns={prompt: phrase, answer: tone, rejected: note}"]) == 0
    assert json.loads((here / "o.jsonl").read_text())["non_preferred_output"][0]["content"] == "x"
    assert invoke(["data", "convert", "t.csv", "--to", "trl", "--set", "train.epochs=1"]) == 2
    assert "only data can be set" in capsys.readouterr().err
    assert invoke(["data", "convert", "t.csv", "--to", "xml"]) == 2
    assert "openai-chat" in capsys.readouterr().err


def test_formats_are_listed(capsys):
    assert invoke(["data", "formats"]) == 0
    assert "sharegpt       ShareGPT" in capsys.readouterr().out
    assert invoke(["data", "formats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"name", "title", "columns", "written"} == set(told["formats"][0])
    assert told["targets"]["openai-chat"] == ["chat", "openai_dpo", "openai_rft"]
    assert invoke(["data", "--help"]) == 0
    assert "convert" in capsys.readouterr().out
