"""Rows become examples, by mapping, template, span types or messages; what cannot is reported by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import by_code, jsonl, spec, write
from tunesmith.data import LoadResult, load_examples
from tunesmith.errors import DataError, RecipeError


def load(path: Path, task_type: str = "auto", **keys: Any) -> LoadResult:
    return load_examples(spec(path, **keys), path, task_type=task_type)


def turns(result: LoadResult, index: int = 0) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in result.examples[index].messages]


def pairs(result: LoadResult) -> list[tuple[str, str]]:
    return [(example.question, example.expected) for example in result.examples]


# --- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "question", "answer", "name"),
    [
        ({"prompt": "a", "completion": "b"}, "a", "b", "prompt_completion"),
        ({"prompt": "a", "response": "b", "id": 1}, "a", "b", "prompt_completion"),
        ({"id": 1, "Question": "a", "Answer": "b"}, "a", "b", "prompt_completion"),
        ({"question": "a", "context": "c", "answer": "b"}, "c\n\na", "b", "prompt_completion"),
        ({"question": "a", "context": "", "answer": "b"}, "a", "b", "prompt_completion"),
        ({"instruction": "a", "input": "c", "output": "b"}, "a\n\nc", "b", "alpaca"),
        ({"instruction": "a", "input": "", "output": "b"}, "a", "b", "alpaca"),
        ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, "a\n\nc", "b", "prompt_completion"),
        ({"instruction": "a", "output": "b"}, "a", "b", "alpaca"),
        ({"input": "a", "output": "b", "id": 1}, "a", "b", "prompt_completion"),
        ({"text": "a", "category": "b", "id": 1}, "a", "b", "columns"),
        ({"utterance": "a", "intent": "b", "id": 1}, "a", "b", "columns"),
        ({"anything": "a", "else": "b"}, "a", "b", "columns"),
    ],
)
def test_well_known_columns(tmp_path: Path, row: dict[str, Any], question: str, answer: str, name: str) -> None:
    result = load(jsonl(tmp_path, [row]))
    assert pairs(result) == [(question, answer)]
    assert result.format == name


@pytest.mark.parametrize(
    "columns",
    [
        ("a", "b", "c"),
        ("prompt", "completion", "response"),
        ("prompt", "question", "answer"),
        ("question", "context", "passage", "answer"),
        ("Question", "Body", "Answer"),
        ("text", "sentence", "label"),
        ("text", "label", "category"),
        ("only",),
    ],
)
def test_unclear_columns_are_named_with_the_way_out(tmp_path: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="not clear") as caught:
        load(jsonl(tmp_path, [dict.fromkeys(columns, "x")]))
    assert ", ".join(columns) in str(caught.value)
    assert "data.columns" in str(caught.value)
    assert "data.template" in str(caught.value)


def test_mapping_wins_over_names(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": "a", "completion": "b", "title": "c"}])
    assert pairs(load(path, columns={"prompt": "completion", "answer": "title"})) == [("b", "c")]
    assert pairs(load(path, template="{title} {prompt}")) == [("c ", "a")]


def test_mapping_to_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,b\n")
    with pytest.raises(DataError, match=r"data\.columns names 'txt'") as caught:
        load(path, columns={"prompt": "txt", "answer": "label"})
    assert "text, label" in str(caught.value)
    with pytest.raises(DataError, match=r"data\.template names 'phrase', 'tone'") as caught:
        load(path, template="{phrase} {tone}")
    assert "text, label" in str(caught.value)
    with pytest.raises(DataError, match=r"data\.columns\.answer is not set"):
        load(path, columns={"prompt": "text"})
    with pytest.raises(DataError, match="no pair such as"):
        load(path, format="prompt_completion")
    with pytest.raises(DataError, match="no row has messages"):
        load(path, format="chat")


@pytest.mark.parametrize(
    "keys",
    [
        {"template": "{text} {label}", "columns": {"prompt": "text", "answer": "label"}},
        {"template": "{text} {label}", "format": "chat"},
        {"template": "{text} {label}", "format": "columns"},
        {"format": "chat", "span_types": ["FOOD"]},
    ],
)
def test_contradictions_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="contradict"):
        load(write(tmp_path, "a.csv", "text,label\na,b\n"), **keys)


def test_template_keeps_its_closing_text_out_of_the_expected_answer(tmp_path: Path) -> None:
    result = load(write(tmp_path, "a.csv", "phrase,tone\nOh no,sad\n"), template='"{phrase}" → "{tone}"')
    assert turns(result) == [("user", '"Oh no" → "'), ("assistant", 'sad"')]
    assert result.examples[0].expected == "sad"
    assert result.format == "template"


def test_system_message_goes_before_rows_that_have_none(tmp_path: Path) -> None:
    own = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    path = jsonl(tmp_path, [{"messages": own}, {"messages": own[1:]}])
    result = load(path, system="Be brief.")
    assert turns(result, 0)[0] == ("system", "system")
    assert turns(result, 1)[0] == ("system", "Be brief.")
    with pytest.raises(RecipeError, match=r"data\.system"):
        load(path, system=" ")


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a"},
        {"completion": "b"},
        {"prompt": " ", "completion": "b"},
        {"prompt": "a", "completion": "\n\t"},
        {"prompt": "a", "completion": None},
        {"prompt": "", "completion": ""},
        {"prompt": "c", "completion": 4},
    ]
    result = load(jsonl(tmp_path, rows))
    assert pairs(result) == [("a", "b"), ("c", "4")]
    assert (result.rows, result.left_out) == (8, 6)
    kinds = {(finding.code, finding.field): (finding.severity, finding.lines) for finding in result.findings}
    assert kinds == {
        ("missing_column", "completion"): ("error", (2,)),
        ("missing_column", "prompt"): ("error", (3,)),
        ("empty_prompt", "prompt"): ("warning", (4, 7)),
        ("empty_answer", "completion"): ("warning", (5, 6, 7)),
    }


def test_broken_lines_and_rows_come_together(tmp_path: Path) -> None:
    content = '{"prompt": "a", "completion": "b"}\n{"prompt": \n{"prompt": "a"}\n'
    result = load(write(tmp_path, "a.jsonl", content))
    found = by_code(result.findings)
    assert found["broken_json"].lines == (2,)
    assert found["missing_column"].lines == (3,)
    assert (result.rows, len(result.examples)) == (3, 1)


def test_no_readable_row_still_lists_findings(tmp_path: Path) -> None:
    result = load(write(tmp_path, "a.jsonl", "x\ny\n"))
    assert (result.examples, result.rows) == ([], 2)
    assert by_code(result.findings)["broken_json"].count == 2


def test_unused_columns_are_mentioned_once(tmp_path: Path) -> None:
    result = load(jsonl(tmp_path, [{"prompt": "a", "completion": "b", "id": 1, "note": 2}] * 3))
    finding = by_code(result.findings)["unused_columns"]
    assert (finding.severity, finding.count, finding.lines) == ("info", 2, ())
    assert "id, note" in finding.message


def test_extraction_wants_json(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": "a", "completion": ["x"]}, {"prompt": "b", "completion": "['x']"}])
    result = load(path, task_type="extraction")
    assert pairs(result) == [("a", '["x"]')]
    assert by_code(result.findings)["answer_not_json"].lines == (2,)
    assert len(load(path).examples) == 2


# --- ids -----------------------------------------------------------------------------------------------------------


def test_ids_come_from_content_and_count_repeats(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}] * 2
    ids = [example.id for example in load(jsonl(tmp_path, rows)).examples]
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[1]}-2"]
    assert all(len(identity) == 16 and int(identity, 16) >= 0 for identity in ids[:2])
    turned = [example.id for example in load(jsonl(tmp_path, rows[::-1])).examples]
    assert sorted(turned) == sorted(ids)


def test_ids_tell_roles_boundaries_and_weights_apart(tmp_path: Path) -> None:
    def chat(*messages: tuple[str, str, int]) -> dict[str, Any]:
        return {
            "messages": [
                {"role": r, "content": c} | ({"weight": w} if r == "assistant" else {}) for r, c, w in messages
            ]
        }

    rows = [
        chat(("user", "ab", 1), ("assistant", "c", 1)),
        chat(("user", "a", 1), ("assistant", "bc", 1)),
        chat(("user", "a", 1), ("assistant", "b", 1), ("user", "a", 1), ("assistant", "c", 1)),
        chat(("user", "a", 1), ("assistant", "b", 0), ("user", "a", 1), ("assistant", "c", 1)),
    ]
    assert len({example.id for example in load(jsonl(tmp_path, rows)).examples}) == 4


# --- chat ----------------------------------------------------------------------------------------------------------


def message(role: Any, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": arguments}}


U, A, S = message("user"), message("assistant", "y"), message("system", "s")
CALL, RESULT = called('{"x": 1}'), message("tool", "found", tool_call_id="1")


def test_chat_rows_are_read(tmp_path: Path) -> None:
    rows = [{"messages": [message("developer", "d"), U, message("assistant", "z", weight=0), U, A]}]
    result = load(jsonl(tmp_path, rows))
    assert result.format == "chat"
    assert result.findings == []
    assert [m.weight for m in result.examples[0].messages] == [1, 1, 0, 1, 1]
    assert result.examples[0].expected == "y"


@pytest.mark.parametrize(
    ("messages", "codes"),
    [
        ([], {"messages_not_list"}),
        ("hello", {"messages_not_list"}),
        ([U, "text"], {"message_not_object"}),
        ([message("bot"), A], {"unknown_role"}),
        ([message(None), A], {"role_missing"}),
        ([message(["user"]), A], {"unknown_role"}),
        ([{"content": "x"}, A], {"role_missing"}),
        ([message("user", None), A], {"content_not_text"}),
        ([message("user", [{"type": "image_url", "image_url": {}}]), A], {"content_not_text"}),
        ([message("user", []), A], {"content_not_text"}),
        ([message("bot", 3), A], {"unknown_role", "content_not_text"}),
        ([U], {"no_final_answer"}),
        ([U, A, U], {"no_final_answer"}),
        ([S], {"no_final_answer"}),
        ([A], {"roles_out_of_order"}),
        ([U, U, A], {"roles_out_of_order"}),
        ([U, A, A], {"roles_out_of_order"}),
        ([U, S, A], {"roles_out_of_order"}),
        ([S, S, U, A], {"roles_out_of_order"}),
        ([U, S], {"roles_out_of_order", "no_final_answer"}),
        ([message("user", " "), A], {"empty_prompt"}),
        ([U, message("assistant", "")], {"empty_answer"}),
        ([message("user", ""), message("assistant", "")], {"empty_prompt", "empty_answer"}),
        ([U, message("assistant", "y", weight=0)], {"nothing_to_learn"}),
        ([U, message("assistant", "y", weight=2)], {"bad_weight"}),
        ([U, message("assistant", "y", weight=True)], {"bad_weight"}),
        ([U, message("assistant", "y", weight=None)], {"bad_weight"}),
        ([message("user", "x", weight=0), A], {"bad_weight"}),
        ([U, message("assistant", None, tool_calls=[{"id": "1"}])], {"tool_call_broken"}),
        ([U, message("assistant", None, tool_calls=[called("{'x': 1}")])], {"tool_call_broken"}),
        ([U, message("assistant", None, tool_calls=[called("[1]")])], {"tool_call_broken"}),
        ([U, message("assistant", None, tool_calls=[called('{"x": NaN}')])], {"tool_call_broken"}),
        ([U, message("assistant", None, tool_calls=[called('{"x": "\\ud800"}')])], {"tool_call_broken"}),
        ([message("user", "x", tool_calls=[CALL]), A], {"tool_call_broken"}),
        ([U, RESULT, A], {"tool_result_unmatched"}),
        (
            [U, message("assistant", None, tool_calls=[CALL]), {**RESULT, "tool_call_id": "2"}, A],
            {"tool_result_unmatched"},
        ),
        ([U, message("assistant", None, tool_calls=[CALL]), U, A], {"roles_out_of_order"}),
        ([U, message("assistant", None, tool_calls=[CALL, {**CALL, "id": "2"}]), RESULT, A], {"roles_out_of_order"}),
    ],
)
def test_faults_of_conversations(tmp_path: Path, messages: Any, codes: set[str]) -> None:
    good = {"messages": [U, A]}
    result = load(jsonl(tmp_path, [good, {"messages": messages}, good]))
    assert {finding.code for finding in result.findings} == codes
    assert all(finding.lines == (2,) and finding.field == "messages" for finding in result.findings)
    assert [example.line for example in result.examples] == [1, 3]
    assert result.rows == 3


def test_tool_definitions_and_other_keys_are_tolerated(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look_up"}}
    row = {"messages": [message("user", "x", name="Ann", mood=1), A], "tools": [tool], "parallel_tool_calls": False}
    result = load(jsonl(tmp_path, [row]))
    assert len(result.examples) == 1
    found = by_code(result.findings)
    assert "mood" in found["unknown_message_key"].message
    assert set(found) == {"unknown_message_key"}
    assert json.loads(result.examples[0].tools[0]) == tool and result.examples[0].parallel_tool_calls is False


@pytest.mark.parametrize(
    "messages",
    [
        [U, message("assistant", None, tool_calls=[CALL])],
        [U, message("assistant", None, tool_calls=[CALL]), RESULT, A],
        [U, message("assistant", None, function_call=CALL["function"])],
    ],
)
def test_rows_with_tool_calls_are_learnt(tmp_path: Path, messages: Any) -> None:
    result = load(jsonl(tmp_path, [{"messages": messages}]))
    assert result.findings == [] and result.examples[0].has_tools
    assert result.examples[0].messages[1].tool_calls[0].name == CALL["function"]["name"]


def test_several_calls_where_the_row_forbids_them_are_told(tmp_path: Path) -> None:
    several = message("assistant", None, tool_calls=[CALL, {**CALL, "id": "2"}])
    rows = [
        {"messages": [U, several], "parallel_tool_calls": said} if said is not None else {"messages": [U, several]}
        for said in (None, True, False)
    ]
    result = load(jsonl(tmp_path, rows))
    assert by_code(result.findings)["parallel_calls_clash"].lines == (3,)
    assert "message 2" in result.findings[0].message and len(result.examples) == 3


def test_rows_without_messages_among_rows_with(tmp_path: Path) -> None:
    result = load(jsonl(tmp_path, [{"messages": [U, A]}, {"text": "x"}]))
    assert by_code(result.findings)["messages_not_list"].lines == (2,)


# --- spans ---------------------------------------------------------------------------------------------------------


def spans(*items: tuple[int, str, str], key: str = "entity") -> str:
    return json.dumps([{"start": start, "end": start + 1, "type": kind, key: text} for start, kind, text in items])


def test_span_types_make_lists_in_order_of_start(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "marks": spans((9, "FOOD", "crème"), (2, "FOOD", "rum"), (0, "UNIT", "cup"))},
        {"text": "b", "marks": json.loads(spans((0, "FOOD", "egg"), key="text"))},
        {"text": "c", "marks": spans((0, "UNIT", "cup"))},
    ]
    result = load(jsonl(tmp_path, rows), span_types=["FOOD"])
    assert [example.expected for example in result.examples] == ['["rum", "crème"]', '["egg"]', "[]"]
    both = load(jsonl(tmp_path, rows), span_types=["FOOD", "UNIT"])
    assert both.examples[0].expected == '["cup", "rum", "crème"]'


def test_span_column_is_found_wherever_it_stands(tmp_path: Path) -> None:
    rows = [{"marks": spans((0, "FOOD", "rum")), "text": "a"}]
    assert pairs(load(jsonl(tmp_path, rows), span_types=["FOOD"])) == [("a", '["rum"]')]
    three = [{**rows[0], "more": "b"}]
    with pytest.raises(DataError, match="not clear which column is the input"):
        load(jsonl(tmp_path, three), span_types=["FOOD"])
    mapped = load(jsonl(tmp_path, three), span_types=["FOOD"], columns={"prompt": "more", "answer": "marks"})
    assert pairs(mapped) == [("b", '["rum"]')]


def test_span_types_in_a_template(tmp_path: Path) -> None:
    rows = [{"marks": spans((0, "FOOD", "rum")), "text": "a"}]
    result = load(jsonl(tmp_path, rows), span_types=["FOOD"], template="<{text}> {marks}!")
    assert turns(result) == [("user", "<a> "), ("assistant", '["rum"]!')]


def test_span_type_that_never_occurs(tmp_path: Path) -> None:
    rows = [{"text": "a", "marks": spans((0, "FOOD", "rum"), (1, "UNIT", "cup"))}]
    with pytest.raises(DataError, match="FODO") as caught:
        load(jsonl(tmp_path, rows), span_types=["FOOD", "FODO"])
    assert "FOOD, UNIT" in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    ["not json", "3", '{"start": 1}', "[3]", '[{"type": "FOOD", "entity": "x"}]', '[{"start": 0, "entity": "x"}]',
     '[{"start": 0, "type": "FOOD"}]', '[{"start": true, "type": "FOOD", "entity": "x"}]'],
)  # fmt: skip
def test_broken_spans(tmp_path: Path, cell: str) -> None:
    rows = [{"text": "a", "marks": spans((0, "FOOD", "rum"))}, {"text": "b", "marks": cell}, {"text": "c", "marks": ""}]
    result = load(jsonl(tmp_path, rows), span_types=["FOOD"], columns={"prompt": "text", "answer": "marks"})
    found = by_code(result.findings)
    assert found["bad_spans"].lines == (2,)
    assert found["empty_answer"].lines == (3,)
    assert len(result.examples) == 1


def test_text_parts_and_loss_weights_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "value": "Who "}, {"type": "text", "text": "are you?"}]
    row = {
        "messages": [
            message("user", parts, loss_weight=0.0),
            message("assistant", "I am.", loss_weight=0.0),
            message("user", loss_weight=0.0),
            message("assistant", "Yes.", loss_weight=1.0),
        ]
    }
    result = load(jsonl(tmp_path, [row]))
    assert turns(result)[0] == ("user", "Who are you?")
    assert [m.weight for m in result.examples[0].messages] == [1, 0, 1, 1]
    assert result.findings == []
    odd = {"messages": [message("user", loss_weight=1.0), A]}
    assert by_code(load(jsonl(tmp_path, [odd])).findings)["bad_weight"].lines == (1,)


def test_kinds_that_cannot_be_learnt_yet_are_said_and_what_can_is_kept(tmp_path: Path) -> None:
    chosen = jsonl(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], "chosen.jsonl")
    result = load(chosen)
    assert pairs(result) == [("a", "b")]
    assert result.examples[0].rejected[-1].content == "c"
    assert by_code(result.findings)["rejected_not_learnt"].lines == (1,)
    assert load_examples(spec(chosen), chosen, learns={"preference"}).findings == []
    judged = jsonl(tmp_path, [{"messages": [U, A], "label": good} for good in (True, False)], "judged.jsonl")
    result = load(judged)
    assert [e.line for e in result.examples] == [1]
    assert by_code(result.findings)["bad_answer_left_out"].lines == (2,)
    asked = jsonl(tmp_path, [{"messages": [U], "reference": "b"}] * 2, "asked.jsonl")
    result = load(asked)
    assert (result.examples, result.rows) == ([], 2)
    assert by_code(result.findings)["no_answer_given"].lines == (1, 2)


# --- mappings ------------------------------------------------------------------------------------------------------


def test_paths_look_inside_cells_and_defaults_fill_in(tmp_path: Path) -> None:
    rows = [{"q": {"text": "a", "more": [{"x": "b"}]}, "label": "y"}, {"q": {"text": "c", "more": []}, "label": "z"}]
    path = jsonl(tmp_path, rows)
    result = load(path, template="{q.text} {q.more[0].x} → {label}")
    assert pairs(result) == [("a b → ", "y")]
    assert by_code(result.findings)["missing_column"].lines == (2,)
    filled = load(path, template="{q.text} {q.more[0].x} → {label}", defaults={"q.more[0].x": "nothing"})
    assert pairs(filled) == [("a b → ", "y"), ("c nothing → ", "z")]
    assert "unused_columns" not in by_code(filled.findings)
    mapped = load(path, columns={"prompt": "q.text", "answer": "label"})
    assert pairs(mapped) == [("a", "y"), ("c", "z")]
    with pytest.raises(DataError, match=r"data\.template names 'r\.text'") as caught:
        load(path, template="{r.text} {label}")
    assert "q, label" in str(caught.value)


def test_a_column_called_like_a_path_wins_over_the_path(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"a.b": "flat", "a": {"b": "deep"}, "y": "z"}])
    assert pairs(load(path, columns={"prompt": "a.b", "answer": "y"})) == [("flat", "z")]


def test_answer_names_the_placeholders_that_are_learnt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"q": "2+2", "why": "two twos", "result": 4}])
    template = "Q: {q}\nBecause {why}: {result}."
    assert turns(load(path, template=template))[1] == ("assistant", "4.")
    result = load(path, template=template, answer=["why", "result"])
    assert turns(result) == [("user", "Q: 2+2\nBecause "), ("assistant", "two twos: 4.")]
    assert result.examples[0].expected == "two twos: 4"
    with pytest.raises(RecipeError, match="behind the beginning of the answer"):
        load(path, template=template, answer=["why"])
    with pytest.raises(RecipeError, match=r"no placeholder \{y\}"):
        load(path, template=template, answer=["y"])
    with pytest.raises(RecipeError, match="nothing of the template is input"):
        load(path, template="{q} {why}", answer=["q", "why"])
    with pytest.raises(RecipeError, match="of a template"):
        load(path, answer=["q"], columns={"prompt": "q", "answer": "result"})


def test_several_answer_columns_make_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'line,name,unit\n"2 cups ""fine"" flour","fine ""00"" flour",cup\nx,,\n')
    result = load(path, columns={"prompt": "line", "answer": ["name", "unit"]})
    assert json.loads(result.examples[0].expected) == {"name": 'fine "00" flour', "unit": "cup"}
    assert by_code(result.findings)["empty_answer"].lines == (4 - 1,)


def test_a_column_with_the_unwanted_answer(tmp_path: Path) -> None:
    rows = [
        {"q": "a", "good": "b", "bad": "c"},
        {"q": "a", "good": "b", "bad": "b"},
        {"q": "a", "good": "b", "bad": ""},
    ]
    result = load(jsonl(tmp_path, rows), columns={"prompt": "q", "answer": "good", "rejected": "bad"})
    assert [m.content for m in result.examples[0].rejected] == ["a", "c"]
    found = by_code(result.findings)
    assert (found["preference_equal"].lines, found["empty_answer"].lines) == ((2,), (3,))
    assert len(result.examples) == 1


def test_a_list_of_texts_is_written_as_lines_in_the_input_and_as_json_in_the_answer(tmp_path: Path) -> None:
    result = load(jsonl(tmp_path, [{"prompt": ["a", "b"], "completion": ["c"]}]))
    assert pairs(result) == [("a\nb", '["c"]')]
