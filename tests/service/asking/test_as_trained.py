"""A conversation that was a training row is asked in exactly the tokens that it was learnt with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.apps import client_of, make_service
from tests.service.scripted import ScriptedEngine
from tunesmith.data.chat import read_chat
from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Example
from tunesmith.tasks.conversation import asking_conversation

TASK: Any = SimpleNamespace(instruction="")  # as a job's task: nothing is put before the rows' own words
TOOL = {
    "description": "Light",
    "parameters": {"properties": {"on": {"type": "boolean"}}, "type": "object"},
    "name": "f",
}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = {"id": "call_x", "type": "function", "function": {"name": "f", "arguments": '{"on":  true}'}}
ANSWER = {"role": "assistant", "content": "Done."}
USER = {"role": "user", "content": "On, please."}
SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = [{"type": "text", "text": "On, "}, {"type": "text", "text": "please."}]
ROWS: dict[str, dict[str, Any]] = {
    "question": {"messages": [USER, ANSWER]},
    "system": {"messages": [SYSTEM, USER, ANSWER]},
    "developer": {"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER]},
    "developer with tools": {"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER], "tools": TOOLS},
    "empty system": {"messages": [{"role": "system", "content": " "}, USER, ANSWER]},
    "many turns": {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER, ANSWER]},
    "parts": {"messages": [{**USER, "content": PARTS}, ANSWER]},
    "tools": {"messages": [USER, ANSWER], "tools": TOOLS},
    "one at a time": {"messages": [SYSTEM, USER, ANSWER], "tools": TOOLS, "parallel_tool_calls": False},
    "calls": {
        "messages": [
            USER, {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_y"}]},
            {"role": "tool", "tool_call_id": "call_y", "content": "ok"},
            {"role": "tool", "tool_call_id": "call_x", "content": "ok too"}, ANSWER,
        ],
        "tools": TOOLS,
    },
    "old functions": {
        "messages": [
            USER, {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "f", "content": "ok"}, ANSWER,
        ],
        "functions": [TOOL],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, ScriptedEngine]]:
    home: Path = tmp_path_factory.mktemp("home")
    engine = ScriptedEngine("fine")
    with client_of(make_service(home, engine)) as client:
        yield client, engine


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_asked_as_they_were_learnt(asked: tuple[TestClient, ScriptedEngine], name: str) -> None:
    client, engine = asked
    row = ROWS[name]
    log = FindingLog("rows")
    content = read_chat(row, 1, log)
    assert content is not None, log.findings()
    example = Example("1", content.messages, content.expected, 1, "rows", tools=content.tools,
                      parallel_tool_calls=content.parallel_tool_calls)  # fmt: skip
    learnt = asking_conversation(TASK, example)
    assert {turn.role for turn in learnt} <= {"system", "user", "assistant", "tool"}, "what templates know"
    reply = client.post("/v1/chat/completions", json={"model": "gpt-4o", **row, "messages": row["messages"][:-1]})
    assert reply.status_code == 200, reply.text
    assert engine.asks[-1].prompt == learnt
    assert engine.prompt_ids(engine.asks[-1]) == engine.renderer.prompt_ids(learnt)


def test_several_system_messages_are_one(asked: tuple[TestClient, ScriptedEngine]) -> None:
    client, engine = asked
    said = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, USER]
    client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": said})
    first: Any = engine.asks[-1].prompt[0]
    assert (first.role, first.content) == ("system", "a\n\nb")
    nothing = [{"role": "system", "content": ""}]
    assert client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": nothing}).status_code == 200
