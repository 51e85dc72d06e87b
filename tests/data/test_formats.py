"""Each format: rows as people have them are recognised, read, and reported where they are broken."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from tunesmith.data import Content, Message, Row, ToolCall
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import Sample, Writer, format_named, formats, recognise, registry
from tunesmith.data.formats.tagged import joined, spans
from tunesmith.errors import DataError, RecipeError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}
HUMAN, GPT, BAD = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: So?\n\nAssistant: "
TOOL = {"name": "look_up", "parameters": {"type": "object"}}


def sample(*rows: dict[str, Any]) -> Sample:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Sample([Row(row, n, "x") for n, row in enumerate(rows, 1)], columns)


def read(row: dict[str, Any], name: str | None = None) -> tuple[Content | None, set[str]]:
    found = format_named(name) if name is not None else recognise(sample(row), "x")
    assert found is not None
    log = FindingLog("x")
    content = (found if name is not None else found[0]).read(Row(row, 7, "x"), log)
    assert all(finding.lines == (7,) for finding in log.findings())
    return content, {finding.code for finding in log.findings()}


@pytest.mark.parametrize(
    ("row", "name", "kind"),
    [
        ({"messages": [USER, ANSWER]}, "chat", "answer"),
        ({"messages": [USER, ANSWER], "tools": [TOOL]}, "chat", "answer"),
        ({"messages": [USER, ANSWER], "label": "sports"}, "chat", "answer"),
        ({"messages": [USER], "reference": "r"}, "openai_rft", "prompt"),
        ({"messages": [USER, ANSWER], "label": True}, "rated", "rated"),
        ({"prompt": "q", "completion": "a", "label": False}, "rated", "rated"),
        ({"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WORSE]}, "openai_dpo",
         "preference"),
        ({"input": {"messages": [USER]}, "preferred_completion": [ANSWER], "non_preferred_completion": [WORSE]},
         "openai_dpo", "preference"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "preference"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, "preference", "preference"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "preference", "preference"),
        ({"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, WORSE]}, "preference", "preference"),
        ({"prompt": "q", "text": "a", "rejected_text": "b"}, "preference", "preference"),
        ({"prompt": [USER], "completion": [ANSWER]}, "trl_completion", "answer"),
        ({"prompt": [USER]}, "trl", "prompt"),
        ({"text": "a story"}, "text", "text"),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", "answer"),
        ({"instruction": "q", "output": "a", "system": "s", "history": [["p", "r"]]}, "alpaca", "answer"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "alpaca", "preference"),
        ({"instruction": "q", "output": "a", "kto_tag": True}, "alpaca", "rated"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt", "answer"),
        ({"conversations": [USER, ANSWER]}, "sharegpt", "answer"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": BAD}, "sharegpt", "preference"),
        ({"conversations": [HUMAN, GPT], "kto_tag": False}, "sharegpt", "rated"),
        ({"tokens": ["Ann"], "tags": ["B-PER"]}, "conll", "answer"),
        ({"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}}, "squad", "answer"),
    ],
)  # fmt: skip
def test_rows_are_recognised_and_read(row: dict[str, Any], name: str, kind: str) -> None:
    found = recognise(sample(row), "x")
    assert found is not None
    assert found[0].name == name
    assert 0 < found[1].confidence <= 1
    content, codes = read(row)
    assert codes == set()
    assert content is not None
    assert content.kind == kind
    if kind == "preference":
        assert [m.content for m in content.messages] == ["q", "a"]
        assert [m.content for m in content.rejected] == ["q", "b"]
    if kind in ("answer", "rated") and name not in ("conll", "squad"):
        assert (content.messages[-1].content, content.expected) == ("a", "a")


@pytest.mark.parametrize(
    "columns",
    [("a", "b"), ("prompt", "completion"), ("question", "context", "answer"), ("text", "label"),
     ("instruction", "context", "response")],
)  # fmt: skip
def test_tables_are_no_format(columns: tuple[str, ...]) -> None:
    assert recognise(sample(dict.fromkeys(columns, "x")), "x") is None


@pytest.mark.parametrize(
    ("name", "row", "codes"),
    [
        ("openai_dpo", {"input": "q", "preferred_output": [ANSWER]}, {"messages_not_list"}),
        ("openai_dpo", {"input": {"messages": [USER]}, "preferred_output": [ANSWER]}, {"empty_answer"}),
        ("openai_dpo", {"input": {"messages": [USER], "tools": [{}]}, "preferred_output": [ANSWER]}, {"tools_broken"}),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, {"preference_equal"}),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": " "}, {"empty_answer"}),
        ("preference", {"prompt": "", "chosen": "a", "rejected": "b"}, {"empty_prompt"}),
        ("preference", {"prompt": 3, "chosen": "a", "rejected": "b"}, {"messages_not_list"}),
        ("preference", {"prompt": "q", "chosen": 3, "rejected": "b"}, {"messages_not_list"}),
        ("preference", {"chosen": [USER, ANSWER], "rejected": [{"role": "user", "content": "z"}, ANSWER]},
         {"preference_apart"}),
        ("preference", {"chosen": "yes", "rejected": "no"}, {"empty_prompt"}),
        ("rated", {"messages": [USER, ANSWER], "label": "maybe"}, {"rating_unclear"}),
        ("rated", {"messages": [USER, ANSWER]}, {"rating_unclear"}),
        ("rated", {"prompt": "q", "completion": None, "label": 1}, {"content_not_text"}),
        ("openai_rft", {"messages": [USER, ANSWER]}, {"no_final_question"}),
        ("trl_completion", {"prompt": [USER], "completion": [USER]}, {"roles_out_of_order", "no_final_answer"}),
        ("text", {"text": " "}, {"empty_answer"}),
        ("alpaca", {"instruction": "q"}, {"missing_column"}),
        ("alpaca", {"instruction": "", "output": "a"}, {"empty_prompt"}),
        ("alpaca", {"instruction": "q", "output": None}, {"empty_answer"}),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["x"]]}, {"messages_not_list"}),
        ("alpaca", {"instruction": "q", "output": "a", "kto_tag": "perhaps"}, {"rating_unclear"}),
        ("sharegpt", {"conversations": "q"}, {"messages_not_list"}),
        ("sharegpt", {"conversations": [HUMAN, "a"]}, {"message_not_object"}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "bot", "value": "a"}]}, {"unknown_role"}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt"}]}, {"content_not_text"}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "tool_call", "value": "look_up(3)"}]}, {"tool_call_broken"}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "[]"}]}, {"tool_call_broken"}),
        ("sharegpt", {"conversations": [HUMAN, {"from": "observation", "value": "x"}, GPT]}, {"tool_result_unmatched"}),
        ("sharegpt", {"conversations": [HUMAN, GPT], "tools": "look_up"}, {"tools_broken"}),
        ("conll", {"tokens": ["a", "b"], "tags": ["O"]}, {"broken_tags"}),
        ("conll", {"tokens": ["a"], "tags": [3]}, {"broken_tags"}),
        ("conll", {"tokens": [], "tags": []}, {"empty_prompt"}),
        ("squad", {"context": "c", "question": "", "answers": {"text": [" "]}}, {"empty_prompt", "empty_answer"}),
        ("squad", {"context": "c", "question": "", "answers": {"text": []}}, {"empty_prompt"}),
        ("squad", {"context": "c", "question": "q", "answers": None}, {"empty_answer"}),
    ],
)  # fmt: skip
def test_broken_rows_are_reported(name: str, row: dict[str, Any], codes: set[str]) -> None:
    assert read(row, name) == (None, codes)


@pytest.mark.parametrize("name", list(formats()))
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [None], [{}], {"messages": [[]]}, [{"from": 1, "role": {}}]])
def test_no_value_of_a_field_breaks_a_reader(name: str, value: Any) -> None:
    for column in format_named(name).columns:
        whole = {**dict.fromkeys(format_named(name).columns, "x"), column: value}
        for row in ({column: value}, whole):
            content, codes = read(row, name)
            assert content is not None or codes


def test_tool_turns_of_sharegpt() -> None:
    calls = [{"name": "look_up", "arguments": {"x": n}} for n in (1, 2)]
    row = {
        "conversations": [
            HUMAN,
            {"from": "gpt", "value": "Let me look."},
            {"from": "function_call", "value": json.dumps(calls)},
            {"from": "observation", "value": '["one", {"two": 2}]'},
            {"from": "gpt", "value": "a", "weight": 0},
            HUMAN,
            {"from": "function_call", "value": json.dumps(calls[0])},
            {"from": "observation", "value": '["not", "split"]'},
            GPT,
        ],
        "tools": json.dumps([TOOL]),
        "system": "Be brief.",
    }
    content, codes = read(row)
    assert codes == set()
    assert content is not None
    assert "".join(m.role[0] for m in content.messages) == "suattauata"
    asked = content.messages[2]
    assert asked.content == "Let me look."
    assert [call.name for call in asked.tool_calls] == ["look_up", "look_up"]
    assert [(m.content, m.tool_call_id) for m in content.messages[3:5]] == [
        ("one", asked.tool_calls[0].id),
        ('{"two": 2}', asked.tool_calls[1].id),
    ]
    assert [m.weight for m in content.messages if m.role == "assistant"] == [1, 0, 1, 1]
    assert content.messages[-2].content == '["not", "split"]'
    assert json.loads(content.tools[0]) == {"type": "function", "function": TOOL}


def test_old_function_calls_become_tool_calls() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "look_up", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "look_up", "content": "found"},
        ANSWER,
    ]
    content, codes = read({"messages": messages, "functions": [TOOL]})
    assert codes == set()
    assert content is not None
    assert content.messages[1].tool_calls == (ToolCall("call_1", "look_up", '{"x": 1}'),)
    assert content.messages[2] == Message("tool", "found", 1.0, "look_up", (), "call_1")
    assert json.loads(content.tools[0])["function"] == TOOL


def test_a_call_as_the_answer_is_expected_as_json() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"x":1}'}}
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "parallel_tool_calls": False}
    content, codes = read(row)
    assert codes == set()
    assert content is not None
    assert json.loads(content.expected) == [{"name": "look_up", "arguments": {"x": 1}}]
    assert content.parallel_tool_calls is False


def test_arguments_as_an_object_are_read_as_templates_have_them() -> None:
    call = {"function": {"name": "look_up", "arguments": {"x": "é"}}}
    content, _ = read({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert content is not None
    assert content.messages[1].tool_calls[0].arguments == '{"x": "é"}'


def test_a_completion_of_messages_learns_only_itself() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [{"role": "assistant", "content": "z"}]}
    content, _ = read(row)
    assert content is not None
    assert [m.weight for m in content.messages] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        (f"{DIALOGUE}Good", f"{DIALOGUE}Bad", "So?", ("Good", "Bad")),
        ("Is it so? Yes", "Is it so? Yesterday", "Is it so?", ("Yes", "Yesterday")),
    ],
)  # fmt: skip
def test_a_prompt_inside_both_answers_is_taken_out(
    chosen: str, rejected: str, prompt: str, answers: tuple[str, str]
) -> None:
    content, codes = read({"chosen": chosen, "rejected": rejected})
    assert codes == set()
    assert content is not None
    assert (content.messages[-1].content, content.rejected[-1].content) == answers
    assert content.messages[-2].content == prompt


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", [("PER", 1, 3)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("S-PER B-LOC E-LOC O", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("U-PER B-LOC I-LOC L-LOC", [("PER", 0, 1), ("LOC", 1, 4)]),
        ("O O", []),
        ("", []),
    ],
)
def test_stretches_of_tags(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert list(spans(tags.split())) == found


def test_a_tagged_sentence_becomes_a_text_and_what_is_marked_in_it() -> None:
    row = {
        "tokens": ["Ann", "(", "of", "New", "York", ")", "smiles", "."],
        "ner_tags": ["B-PER", "O", "O", "B-LOC", "I-LOC", "O", "O", "O"],
    }
    content, _ = read(row)
    assert content is not None
    assert content.messages[0].content == "Ann (of New York) smiles."
    assert json.loads(content.expected) == {"PER": ["Ann"], "LOC": ["New York"]}
    assert joined([]) == ""


class Mail:
    name, title, columns = "mail", "support mail", ("mail", "reply")

    def recognise(self, sample: Sample) -> registry.Recognition | None:
        return registry.Recognition(1.0, "mail and reply") if sample.has("mail", "reply") else None

    def read(self, row: Row, log: FindingLog) -> Content:
        return Content((Message("user", row.values["mail"]), Message("assistant", row.values["reply"])), "")

    def write(self, example: object) -> dict[str, Any]:
        return {}


MAIL = Mail()


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Any:
    def announce(name: str, value: str) -> None:
        points = [EntryPoint(name, value, registry.GROUP)]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
        registry.formats.cache_clear()

    yield announce
    monkeypatch.undo()
    registry.formats.cache_clear()


def test_a_format_of_another_package_is_found_by_its_entry_point(announced: Any) -> None:
    announced("mail", "tests.data.test_formats:MAIL")
    content, _ = read({"mail": "Where is it?", "reply": "On its way."})
    assert content is not None
    assert content.messages[1].content == "On its way."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("chat", "tests.data.test_formats:MAIL", "which there is already"),
        ("columns", "tests.data.test_formats:MAIL", "which there is already"),
        ("mail", "tests.data.test_formats:NOTHING", "does not load"),
        ("mail", "no_such_package:MAIL", "does not load"),
        ("mail", "tests.data.test_formats:USER", "has no name, columns, recognise"),
    ],
)
def test_a_format_that_is_none_is_named_with_its_package(announced: Any, name: str, value: str, message: str) -> None:
    announced(name, value)
    with pytest.raises(RecipeError, match=message):
        formats()


def test_an_unknown_format_lists_those_there_are() -> None:
    with pytest.raises(RecipeError, match="no format 'sharegtp'") as caught:
        format_named("sharegtp")
    assert "sharegpt" in str(caught.value)


def test_formats_that_are_equally_sure_are_both_named(announced: Any) -> None:
    announced("mail", "tests.data.test_formats:MAIL")
    both = {"mail": "a", "reply": "b", "input": {}, "preferred_output": [], "non_preferred_output": []}
    with pytest.raises(DataError, match=r"could be openai_dpo .* or mail"):
        recognise(sample(both), "x")


@pytest.mark.parametrize(
    ("texts", "learnt", "expected"),
    [
        (["Paris"], "Paris", "Paris"),
        (["Paris", " Paris ", "in Paris"], "Paris", '["Paris", "in Paris"]'),
        (["", "Zürich"], "Zürich", "Zürich"),
        (["[1]"], "[1]", '["[1]"]'),
        ([], "unanswerable", "[]"),
    ],
)
def test_all_references_of_a_question_are_kept(texts: list[str], learnt: str, expected: str) -> None:
    content, codes = read({"context": "c", "question": "q", "answers": {"text": texts, "answer_start": []}})
    assert codes == set() and content is not None
    assert (content.messages[-1].content, content.expected) == (learnt, expected)
    listed = [{"text": text, "answer_start": 0} for text in texts]
    assert read({"context": "c", "question": "q", "answers": listed}) == (content, set())


def test_those_that_write_say_what() -> None:
    assert {n for n, f in formats().items() if not isinstance(f, Writer)} == {
        *("conll", "squad", "openai_evals", "promptfoo")
    }
    for format in formats().values():
        if isinstance(format, Writer):
            assert format.kinds
