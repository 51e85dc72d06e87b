"""The rules of hosted services: a minimal faulty file for each, and what the service answers, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.makers import by_code, write
from tunesmith.cli.main import invoke
from tunesmith.data import CODES, check_examples
from tunesmith.data.hosted import COOKBOOK, HostedCheck, check_for_service, service_error, wrong_method_error
from tunesmith.data.hosted import rules as hosted_rules
from tunesmith.data.making import ExampleMaker
from tunesmith.data.types import Content, Message, Row

U = {"role": "user", "content": "Where is it?"}
A = {"role": "assistant", "content": "Over there."}
CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALLED = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "x", "tool_call_id": "a"}
CHAT = {"messages": [U, A]}
SIDES = {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [{**A, "content": "No idea."}]}
ASKED = {"messages": [U], "answer": "x"}
PAIR = {"prompt": "Where?", "completion": " There."}
GOOD = {"supervised": CHAT, "dpo": SIDES, "reinforcement": ASKED}
OPENING = "The job failed due to an invalid training file. Invalid file format. Example 5, "
UPLOAD = "Expected file to have JSONL format, where every line is a JSON dictionary. "
FORM = "Unexpected file format, expected either prompt/completion pairs or chat messages."
HINT = '(HINT: line starts with: "'


def lines(faulty: list[Any], good: Any = CHAT, count: int = 12) -> str:
    """So many rows, of which those from the fifth on are as given: rows, or lines as they are."""
    rows = [good] * 4 + faulty + [good] * (count - 4 - len(faulty))
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def refused(made: HostedCheck) -> dict[str, tuple[str | None, str]]:
    """Our code, to the service's code and text."""
    return {found.code: (said.code, said.message) for found, said in made.refusals}


def called(arguments: Any) -> dict[str, Any]:
    return {**CALLED, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": arguments}}]}


INVALID = "invalid_training_file"
RULES: list[tuple[str, list[Any], str, str | None, str]] = [
    # the method, the faulty rows, our code, the service's code, its text (or how it begins, where it ends in …)
    ("supervised", ["[1, 2]"], "row_not_object", None, f'{UPLOAD}Line 5 is not a dictionary {HINT}[1, 2]")'),
    ("supervised", ['{"messages": '], "broken_json", None,
     f'{UPLOAD}Line 5 is not a dictionary {HINT}{{"messages...")'),
    ("supervised", ["\0" * 3], "nul_byte", None, f"{UPLOAD}Line 5 is not a dictionary …"),
    ("supervised", [{"text": "x"}], "hosted_not_its_format", INVALID, FORM),
    ("supervised", [{"prompt": "x", "completion": 3}], "hosted_not_its_format", INVALID, FORM),
    ("supervised", [{"messages": []}], "messages_not_list", INVALID, FORM),
    ("supervised", [{"messages": "x"}], "messages_not_list", INVALID, FORM),
    ("supervised", [{"messages": [U, "x"]}], "message_not_object", INVALID, f"{OPENING}message 2"),
    ("supervised", [{"messages": [U, {"content": "x"}]}], "role_missing", INVALID,
     f"{OPENING}message 2 Discriminator 'role' is missing in value"),
    ("supervised", [{"messages": [U, {**A, "role": "bot"}]}], "unknown_role", INVALID, f"{OPENING}message 2 has 'bot'"),
    ("supervised", [{"messages": [{"role": "user"}, A]}], "content_not_text", INVALID, f"{OPENING}message 1 holds …"),
    ("supervised", [{"messages": [{**U, "content": [{"type": "image_url", "image_url": {}}]}, A]}], "content_not_text",
     INVALID, f"{OPENING}message 1 holds a list with image_url"),
    ("supervised", [{"messages": [{**U, "mood": 1}, A]}], "unknown_message_key", INVALID, f"{OPENING}mood"),
    ("supervised", [{"messages": [U]}], "no_final_answer", INVALID, f"{OPENING}it ends with user"),
    ("supervised", [{"messages": [U, {"role": "assistant"}]}], "content_not_text", INVALID, f"{OPENING}message 2 …"),
    ("supervised", [{"messages": [U, {**A, "weight": 2}]}], "bad_weight", INVALID, f"{OPENING}message 2 has weight 2"),
    ("supervised", [{"messages": [{**U, "weight": 0}, A]}], "bad_weight", INVALID, f"{OPENING}message 1 has weight 0"),
    ("supervised", [{"messages": [U, {**A, "weight": 0.5}]}], "hosted_weight", INVALID,
     f"{OPENING}message 2 has weight 0.5"),
    ("supervised", [{"messages": [U, called("{'at'}")]}], "tool_call_broken", INVALID, f"{OPENING}message 2: the …"),
    ("supervised", [{"messages": [U, called({"at": "x"})]}], "hosted_arguments", INVALID, f"{OPENING}message 2"),
    ("supervised", [{"messages": [U, RESULT, A]}], "tool_result_unmatched", INVALID, f"{OPENING}message 2 …"),
    ("supervised", [{**CHAT, "tools": [{"type": "function"}]}], "tools_broken", INVALID, f"{OPENING}tool 1 …"),
    ("supervised", [{**CHAT, "parallel_tool_calls": "no"}], "hosted_parallel", INVALID, f"{OPENING}'no'"),
    ("supervised", [{"messages": [{**U, "content": "fill <|fim_suffix|> in"}, A]}], "special_tokens", INVALID,
     "Example 5 message contains an invalid token: <|fim_suffix|>."),
    ("supervised", [PAIR], "hosted_mixed", INVALID, FORM),
    ("supervised", [{"messages": [U, {**A, "content": ""}]}], "empty_answer", INVALID, f"{OPENING}an empty answer"),
    ("supervised", [SIDES], "hosted_wrong_method", INVALID, CODES["hosted_wrong_method"].title + ": line 5, …"),
    ("dpo", [CHAT], "hosted_wrong_method", INVALID,
     "Input file rows.jsonl is in the fine-tune-chat format, but the specified fine-tuning job is not using "
     "'supervised' as the training method (provided method=dpo)."),
    ("dpo", [{**SIDES, "preferred_output": [CALLED, RESULT, A]}], "hosted_sides", INVALID, f"{OPENING}…"),
    ("dpo", [{**SIDES, "preferred_output": [U]}], "hosted_sides", INVALID, f"{OPENING}…"),
    ("dpo", [{**SIDES, "preferred_output": []}], "empty_answer", INVALID, f"{OPENING}there is no chosen answer"),
    ("dpo", [{**SIDES, "input": [U]}], "messages_not_list", INVALID, FORM),
    ("reinforcement", [CHAT], "no_final_question", INVALID, f"{OPENING}it ends with assistant"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "faulty", "ours", "code", "text"), RULES)
def test_every_rule_has_its_finding_and_the_services_words(
    tmp_path: Path, method: Any, faulty: list[Any], ours: str, code: str | None, text: str
) -> None:
    file = write(tmp_path, "rows.jsonl", lines(faulty, GOOD[method]))
    made = check_for_service(file, method=method)
    found = refused(made)
    assert ours in found, made.findings
    assert found[ours][0] == code
    said = found[ours][1]
    assert said.startswith(text[:-1]) if text.endswith("…") else said == text
    finding, answer = next(pair for pair in made.refusals if pair[0].code == ours)
    assert finding.lines == (5,) and finding.why and finding.fix and made.rows == 12
    assert answer.param == ("file" if answer.stage == "upload" else "training_file") and answer.status == 400
    assert answer.body() == {
        "message": answer.message, "type": "invalid_request_error", "param": answer.param, "code": code,
    }  # fmt: skip
    azure = dict(refused(check_for_service(file, method=method, service="azure")))
    assert azure[ours] == ("jsonlValidationFailed", said)


@pytest.mark.parametrize(
    ("method", "good"),
    [
        ("supervised", CHAT),
        ("supervised", PAIR),
        ("supervised", {"messages": [U, {**A, "weight": 0}, U, {**A, "weight": 1}]}),
        ("supervised", {"messages": [U, CALLED], "tools": [TOOL], "parallel_tool_calls": False}),
        ("supervised", {"messages": [U, CALLED, RESULT, A], "tools": [TOOL]}),
        ("supervised", {
            "messages": [U, {"role": "assistant", "function_call": CALL["function"]}], "functions": [TOOL["function"]],
        }),
        ("supervised", {"messages": [{"role": "developer", "content": "Be kind."}, {**U, "name": "Ann"}, A]}),
        ("dpo", SIDES),
        ("dpo", {
            "input": SIDES["input"], "preferred_completion": [A],
            "non_preferred_completion": SIDES["non_preferred_output"],
        }),
        ("reinforcement", ASKED),
    ],
)  # fmt: skip
def test_what_a_service_takes_is_not_refused(tmp_path: Path, method: Any, good: Any) -> None:
    file = write(tmp_path, "rows.jsonl", lines([], good))
    made = check_for_service(file, method=method)
    assert made.accepted, made.refusals
    marked = write(tmp_path, "marked.jsonl", b"\xef\xbb\xbf" + lines([], good).encode())
    assert check_for_service(marked, method=method, service="azure").accepted


def test_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write(tmp_path, "rows.jsonl", lines([], CHAT, 7))
    words = "Training file has 7 example(s), but must have at least 10 examples"
    made = check_for_service(few)
    assert refused(made) == {"hosted_too_few_rows": ("invalid_n_examples", words)}
    assert made.refusals[0][1].param == "training_file" and made.refusals[0][1].known
    assert check_for_service(few, part="validation").accepted
    assert check_for_service(write(tmp_path, "ten.jsonl", lines([], CHAT, 10))).accepted
    # The same fault where rows are checked for our own training.
    examples = [ExampleMaker(None).make(Content((Message("user", "q"), Message("assistant", "a"))), Row({}, 1, "x"))]
    ours = by_code(check_examples(examples, task_type="generation"))["too_few_rows"]
    answer = service_error(ours)
    assert answer is not None and answer.message == words.replace("7", "1")
    many = write(tmp_path, "many.jsonl", lines([], ASKED))
    monkeypatch.setattr(hosted_rules, "_MOST_ROWS", {"training": 11, "validation": 11})
    assert set(refused(check_for_service(many, method="reinforcement"))) == {"hosted_too_many_rows"}
    assert set(refused(check_for_service(many, method="reinforcement", validated=False))) == {
        "hosted_too_many_rows", "hosted_no_validation",
    }  # fmt: skip


def test_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = lines([])
    assert set(refused(check_for_service(write(tmp_path, "rows.json", text)))) == {"hosted_not_jsonl"}
    monkeypatch.setattr(hosted_rules, "LARGEST_FILE", len(text) - 1)
    file = write(tmp_path, "rows.jsonl", text)
    (refusal,) = check_for_service(file).refusals
    assert refusal[0].code == "hosted_file_too_large" and refusal[1].stage == "upload"
    azure = check_for_service(file, service="azure")
    assert refused(azure)["hosted_file_too_large"][0] == "invalidPayload"
    assert by_code(azure.findings)["hosted_no_mark"].severity == "info"  # asked for, and not refused
    wrong = write(tmp_path, "latin.jsonl", lines([]).encode() + '{"messages": "é"}\n'.encode("latin-1"))
    monkeypatch.undo()
    assert refused(check_for_service(wrong))["wrong_encoding"][0] is None


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    rows = [
        '{"messages"',
        {"messages": [{"content": "x"}, A]},
        {"messages": [U]},
        {"messages": [U, {**A, "weight": 3}]},
    ]
    made = check_for_service(write(tmp_path, "rows.jsonl", lines(rows)))
    assert {found.code: found.lines for found, _ in made.refusals} == {
        "broken_json": (5,), "role_missing": (6,), "no_final_answer": (7,), "bad_weight": (8,),
    }  # fmt: skip


def test_the_validation_file_is_called_so(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.jsonl", lines([{"messages": [{"content": "x"}, A]}]))
    ((_, answer),) = check_for_service(file, part="validation").refusals
    assert (answer.code, answer.param) == ("invalid_validation_file", "validation_file")
    assert answer.message.startswith("The job failed due to an invalid validation file.")


def test_what_no_service_has_a_rule_for_is_ours_alone(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.jsonl", lines([{"messages": [U, U, A]}]))
    made = check_for_service(file)
    assert made.accepted and by_code(made.findings)["roles_out_of_order"].lines == (5,)
    assert service_error(by_code(made.findings)["roles_out_of_order"]) is None


def test_names_of_the_notebooks_checks() -> None:
    """As in OpenAI's notebook for chat data; all of them, each by one of our codes."""
    names = "data_type missing_messages_list message_missing_key message_unrecognized_key unrecognized_role"
    assert set(COOKBOOK.values()) == {*names.split(), "missing_content", "example_missing_assistant_message"}
    assert COOKBOOK.keys() <= CODES.keys()


def test_wrong_method_names_file_and_method() -> None:
    answer = wrong_method_error("file-abc", "reinforcement")
    assert "Input file file-abc is" in answer.message and "(provided method=reinforcement)" in answer.message


def test_the_command_lists_refusals_and_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write(tmp_path, "rows.jsonl", lines([{"messages": [U]}], CHAT, 9))
    assert invoke(["data", "hosted", str(bad)]) == 3
    shown = capsys.readouterr().out
    assert "job, invalid_n_examples: Training file has 9 example(s)" in shown
    assert "it ends with user (line 5)" in shown and "to do:" in shown
    assert invoke(["data", "hosted", str(bad), "--for", "azure", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {r["error"]["code"] for r in told["refusals"]} == {"jsonlValidationFailed"}
    good = write(tmp_path, "good.jsonl", lines([]))
    assert invoke(["data", "hosted", str(good)]) == 0
    assert "nothing that openai is known to refuse" in capsys.readouterr().out
