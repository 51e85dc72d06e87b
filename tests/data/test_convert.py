"""A round trip loses nothing: what any format writes, it reads back as the same example, or it says what is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.data.makers import jsonl, spec, write
from tunesmith.data import Content, Example, Message, Row, ToolCall, convert, load_examples, targets
from tunesmith.data.convert import FAMILIES
from tunesmith.data.examples import EVERYTHING
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import Sample, Writer, formats, recognise
from tunesmith.data.making import ExampleMaker
from tunesmith.errors import DataError, RecipeError

WRITERS = [format for format in formats().values() if isinstance(format, Writer)]

plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(str.strip)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
names = st.sampled_from(["look_up", "add", "é"])
weights = st.sampled_from([1.0] * 6 + [0.0, 0.5])
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(-1e300, 1e300) | anything
values = scalars | st.lists(scalars, max_size=2)
arguments = st.builds(
    lambda value, tight: json.dumps(value, ensure_ascii=tight, indent=None if tight else 1),
    st.dictionaries(anything, values, max_size=2),
    st.booleans(),
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": names}, optional={"parameters": values}),
        },
        optional={"strict": st.booleans()},
    ).map(lambda tool: json.dumps(tool, ensure_ascii=False)),
    max_size=2,
)


@st.composite
def turns(draw: st.DrawFn, *, rich: bool = True, ends: str = "assistant") -> tuple[Message, ...]:
    made: list[Message] = []
    if draw(st.booleans()):
        role = draw(st.sampled_from(["system"] * 4 + ["developer"] if rich else ["system"]))
        made.append(Message(role, draw(anything if rich else plain)))
    name = st.sampled_from([None] * 30 + ["Ann"]) if rich else st.none()
    weight = weights if rich else st.just(1.0)
    count = 0
    for _ in range(draw(st.integers(1, 3))):
        made.append(Message("user", draw(plain), 1.0, draw(name)))
        for _ in range(draw(st.sampled_from([0, 0, 1, 2])) if rich else 0):
            ids = [f"{draw(st.sampled_from(['call_', 'x']))}{count + i}" for i in range(draw(st.integers(1, 2)))]
            count += len(ids)
            calls = tuple(ToolCall(id, draw(names), draw(arguments)) for id in ids)
            made.append(Message("assistant", draw(anything), draw(weight), draw(name), calls))
            made += [Message("tool", draw(anything), 1.0, draw(name), (), id) for id in draw(st.permutations(ids))]
        made.append(Message("assistant", draw(plain), draw(weight), draw(name)))
    if ends == "user":
        return (*made, Message("user", draw(plain)))
    answers = [m for m in made if m.role == "assistant"]
    return tuple(made) if any(m.weight for m in answers) else (*made[:-1], replace(made[-1], weight=1.0))


@st.composite
def contents(draw: st.DrawFn, *, rich: bool = True) -> Content:
    kind = draw(st.sampled_from(["answer", "answer", "preference", "rated", "text", "prompt"]))
    if kind == "text":
        return Content((Message("assistant", draw(plain)),))
    messages = draw(turns(rich=rich, ends="user" if kind == "prompt" else "assistant"))
    more: dict[str, Any] = {}
    if rich:
        more = {"tools": tuple(draw(tools)), "parallel_tool_calls": draw(st.sampled_from([None] * 5 + [True, False]))}
    if kind == "preference":
        other = draw(plain.filter(lambda text: text != messages[-1].content))
        return Content(messages, rejected=(*messages[:-1], replace(messages[-1], content=other)), **more)
    return Content(messages, rating=draw(st.booleans()) if kind == "rated" else None, **more)


def made(content: Content) -> Example:
    return ExampleMaker(None).make(content, Row({}, 1, "x"))


def read_back(writer: Writer, example: Example) -> Content:
    row = json.loads(json.dumps(writer.write(example), ensure_ascii=False))
    log = FindingLog("x")
    content = writer.read(Row(row, 1, "x"), log)
    assert content is not None, [finding.message for finding in log.findings()]
    found = recognise(Sample([Row(row, 1, "x")], tuple(row)), "x")
    assert found is not None
    assert found[0].read(Row(row, 1, "x"), log) == content, f"taken for {found[0].name}"
    return content


@settings(max_examples=300, deadline=None)
@given(contents())
def test_what_is_written_is_read_back_or_said_to_be_lost(content: Content) -> None:
    example = made(content)
    for writer in WRITERS:
        if content.kind not in writer.kinds:
            continue
        if losses := writer.losses(example):
            event(f"{writer.name} loses something")
            assert all(losses)
            continue
        event(f"{writer.name} writes {content.kind}")
        assert made(read_back(writer, example)).id == example.id, writer.name


@settings(max_examples=100, deadline=None)
@given(contents(rich=False))
def test_plain_turns_are_lost_by_nobody(content: Content) -> None:
    example = made(content)
    # A completion is one answer; the others of its family write the rest.
    able = [writer for writer in WRITERS if content.kind in writer.kinds and writer.name != "trl_completion"]
    assert able
    for writer in able:
        assert not writer.losses(example), writer.name
        assert made(read_back(writer, example)).id == example.id


@settings(max_examples=150, deadline=None)
@given(contents())
def test_openai_and_trl_take_every_conversation_with_its_tools(content: Content) -> None:
    """So that the first test cannot pass by everything being called lost."""
    messages = tuple(replace(m, weight=1.0) for m in content.messages)
    example = made(replace(content, messages=messages, rejected=(), rating=None, parallel_tool_calls=None))
    for name in ("chat", "trl", "openai_rft"):
        writer = formats()[name]
        assert isinstance(writer, Writer)
        if example.kind in writer.kinds:
            assert not writer.losses(example)
            assert made(read_back(writer, example)).id == example.id


def load(path: Path) -> Sequence[Example]:
    return load_examples(spec(path), path, learns=EVERYTHING).examples


CALL = {"id": "a1", "type": "function", "function": {"name": "look_up", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "tool_call_id": "a1", "content": "Here."},
        {"role": "assistant", "content": "There."},
    ],
    "tools": [TOOL],
}
PLAIN = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize("to", list(FAMILIES))
@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
def test_files_are_converted_and_back(tmp_path: Path, to: str, name: str) -> None:
    rows = [PLAIN, {"messages": [*PLAIN["messages"], *PLAIN["messages"]]}]
    path = jsonl(tmp_path, rows)
    done = convert(spec(path), to, tmp_path / name)
    assert (done.rows, done.written, done.losses, done.format) == (2, 2, (), "chat")
    there = load(done.out)
    assert [e.id for e in there] == [e.id for e in load(path)]
    back = convert(spec(done.out), "openai-chat", tmp_path / "back.jsonl")
    assert [json.loads(line) for line in back.out.read_text().splitlines()] == rows


def test_tools_go_to_sharegpt_and_come_back(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [CHAT, PLAIN])
    done = convert(spec(path), "sharegpt", tmp_path / "s.jsonl")
    row = json.loads(done.out.read_text().splitlines()[0])
    assert row["conversations"][2] == {
        "from": "function_call",
        "value": '{"name": "look_up", "arguments": {"x": 1}}',
        "weight": 0,
    }
    assert json.loads(row["tools"]) == [TOOL["function"]]
    back = convert(spec(done.out), "openai-chat", tmp_path / "b.jsonl")
    assert [e.id for e in load(back.out)] == [e.id for e in load(path)]


@pytest.mark.parametrize(
    "tool",
    [
        {**TOOL, "type": "custom"},
        {**TOOL, "strict": True},
        {"type": "function", "function": {"name": "f", "function": {"name": "g"}}},
    ],
)
def test_what_a_definition_says_around_its_function_is_kept(tmp_path: Path, tool: dict[str, Any]) -> None:
    path = jsonl(tmp_path, [{**PLAIN, "tools": [tool]}])
    shared = convert(spec(path), "sharegpt", tmp_path / "s.jsonl").out
    assert [json.loads(e.tools[0]) for e in load(shared)] == [tool]


def test_what_would_be_lost_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PLAIN, CHAT, {**PLAIN, "mood": "fine"}])
    out = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="would lose something") as caught:
        convert(spec(path), "alpaca", out)
    text = str(caught.value)
    assert "tools and their calls (1 rows: 2)" in text
    assert "weights of answers" in text
    assert "mood" not in text
    assert "--lossy" in text
    assert not out.exists()
    done = convert(spec(path), "alpaca", out, lossy=True)
    assert (done.rows, done.written) == (3, 3)
    assert {loss.lines for loss in done.losses} == {(2,)}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written[1] == {"instruction": "Where?", "input": "", "output": "There.", "system": "Be brief."}
    assert written[2]["mood"] == "fine"


def test_other_columns_are_kept_where_there_is_room_and_lost_where_not(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "", "output": "a", "category": "x", "messages": "y"}
    path = jsonl(tmp_path, [row])
    with pytest.raises(DataError, match="the column 'category'"):
        convert(spec(path), "openai-chat", tmp_path / "o.jsonl")
    with pytest.raises(DataError) as caught:
        convert(spec(path), "trl", tmp_path / "t.jsonl")
    assert "'messages'" in str(caught.value)
    assert "category" not in str(caught.value)
    shared = convert(spec(path), "sharegpt", tmp_path / "s.jsonl").out
    assert json.loads(shared.read_text())["messages"] == "y"


def test_rows_that_cannot_be_read_and_keys_nobody_knows_are_losses(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": "q", "mood": 1}, {"role": "assistant", "content": "a"}]}
    text = "\n".join([json.dumps(PLAIN), "{oops", json.dumps({"messages": []}), json.dumps(odd)])
    path = write(tmp_path, "a.jsonl", text)
    with pytest.raises(DataError, match="would lose") as caught:
        convert(spec(path), "trl", tmp_path / "b.jsonl")
    assert "not valid JSON" in str(caught.value)
    assert "mood" in str(caught.value)
    done = convert(spec(path), "trl", tmp_path / "b.jsonl", lossy=True)
    assert (done.rows, done.written) == (4, 2)
    assert sorted(line for loss in done.losses for line in loss.lines) == [2, 3, 4]


def test_kinds_a_format_has_no_place_for_are_left_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"text": "a story"}])
    with pytest.raises(DataError, match="texts without a question, which alpaca has no place for"):
        convert(spec(path), "alpaca", tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="no row would be written"):
        convert(spec(path), "alpaca", tmp_path / "b.jsonl", lossy=True)
    assert json.loads(convert(spec(path), "trl", tmp_path / "c.jsonl").out.read_text()) == {"text": "a story"}


def test_families_write_each_kind_in_its_own_way(tmp_path: Path) -> None:
    preference = {"prompt": "q", "chosen": "a", "rejected": "b"}
    done = convert(spec(jsonl(tmp_path, [preference])), "openai-chat", tmp_path / "o.jsonl")
    assert json.loads(done.out.read_text()) == {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
    rated = {"prompt": "q", "completion": "a", "label": True}
    with pytest.raises(DataError, match="rated answers, which openai-chat has no place for"):
        convert(spec(jsonl(tmp_path, [rated])), "openai-chat", tmp_path / "p.jsonl")


def test_one_file_holds_one_kind(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a"}] * 2 + [{"instruction": "q", "output": "b", "kto_tag": True}]
    path = jsonl(tmp_path, rows)
    with pytest.raises(DataError, match=r"rated answers among conversations with an answer.*\(1 rows: 3\)"):
        convert(spec(path), "trl", tmp_path / "t.jsonl")
    assert convert(spec(path), "trl", tmp_path / "t.jsonl", lossy=True).written == 2


def test_of_a_family_the_format_that_loses_least_is_taken_for_all_rows(tmp_path: Path) -> None:
    two = [*PLAIN["messages"], *PLAIN["messages"]]
    last_only = {"messages": [two[0], {**two[1], "weight": 0}, *two[2:]]}
    done = convert(spec(jsonl(tmp_path, [PLAIN, last_only])), "trl", tmp_path / "a.jsonl")
    assert [sorted(json.loads(line)) for line in done.out.read_text().splitlines()] == [["completion", "prompt"]] * 2
    with pytest.raises(DataError, match="weights of answers"):
        convert(spec(jsonl(tmp_path, [{"messages": two}, last_only])), "trl", tmp_path / "b.jsonl")


def test_mapped_tables_are_converted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "phrase,tone\nOh no,sad\n")
    done = convert(spec(path, template='"{phrase}" → {tone}', system="Judge."), "openai-chat", tmp_path / "o.jsonl")
    assert [m["content"] for m in json.loads(done.out.read_text())["messages"]] == ["Judge.", '"Oh no" → ', "sad"]


def test_nothing_is_overwritten_and_nonsense_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PLAIN])
    with pytest.raises(RecipeError, match="never overwritten"):
        convert(spec(path), "trl", path)
    with pytest.raises(RecipeError, match=r"files that end with \.csv"):
        convert(spec(path), "trl", tmp_path / "a.csv")
    for unknown in ("trlx", "conll"):
        with pytest.raises(RecipeError, match="cannot be written as"):
            convert(spec(path), unknown, tmp_path / "a.jsonl")
    assert set(FAMILIES) < set(targets())
    assert "conll" not in targets()
