from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.service.jobs.made import a_job, chat_rows, completion_rows, lines, preference_rows, write
from tunesmith.service.jobs.rules import Checked, validate_job


def check(folder: Path, training: Any, validation: Any = None, **fields: Any) -> Checked:
    """The outcome for a job on these rows."""
    train = folder / "training.jsonl"
    train.write_bytes(training if isinstance(training, bytes) else lines(training))
    valid = None
    if validation is not None:
        valid = write(folder / "validation.jsonl", validation)
        fields["validation_file"] = "file-valid"
    return validate_job(a_job(**fields), train, valid)


def broken(row: int, message: int, **changes: Any) -> list[dict[str, Any]]:
    """Chat rows of which one message is changed; a None takes the key away."""
    rows = chat_rows(12)
    turn = rows[row - 1]["messages"][message - 1]
    turn.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del turn[key]
    return rows


def test_right_files(tmp_path: Path) -> None:
    assert check(tmp_path, chat_rows(10), chat_rows(2, 50)) == Checked((), "chat", 10, 2)
    assert check(tmp_path, completion_rows(11)) == Checked((), "completion", 11, 0)
    marked = b"\xef\xbb\xbf" + lines(chat_rows(10))
    assert check(tmp_path, marked, flavour="azure").faults == ()


def test_too_few_rows(tmp_path: Path) -> None:
    error = check(tmp_path, chat_rows(7)).error()
    assert error is not None
    assert (error["code"], error["param"]) == ("invalid_n_examples", "training_file")
    assert error["message"] == "Training file has 7 example(s), but must have at least 10 examples"


def test_a_role_that_is_missing_in_openais_words(tmp_path: Path) -> None:
    (fault,) = check(tmp_path, broken(4, 2, role=None)).faults
    assert fault.code == "invalid_training_file"
    assert fault.message == (
        "The job failed due to an invalid training file. Invalid file format. Example 4, message 2 Discriminator "
        "'role' is missing in value"
    )


def test_rows_of_no_known_form(tmp_path: Path) -> None:
    checked = check(tmp_path, [{"question": "q", "answer": "a"}] * 10)
    assert checked.faults[0].message == (
        "Unexpected file format, expected either prompt/completion pairs or chat messages."
    )
    assert checked.kind is None


def test_both_forms_in_one_file(tmp_path: Path) -> None:
    (fault,) = check(tmp_path, [*chat_rows(6), *completion_rows(6)]).faults
    assert fault.message == "Unexpected file format, expected either prompt/completion pairs or chat messages."
    assert fault.lines == tuple(range(7, 13))


def test_why_no_row_can_be_used(tmp_path: Path) -> None:
    rows = chat_rows(12)
    for row in rows:
        row["messages"][-1]["weight"] = 0
    weights, none = check(tmp_path, rows).faults
    assert "weight 0" in weights.message and weights.lines == tuple(range(1, 13))
    assert "No row can be used" in none.message


def test_files_of_two_forms(tmp_path: Path) -> None:
    (fault,) = check(tmp_path, chat_rows(10), completion_rows(3)).faults
    assert (fault.code, fault.param) == ("invalid_validation_file", "validation_file")
    assert "prompt/completion rows" in fault.message and "chat rows" in fault.message


def test_preferences_for_a_supervised_job(tmp_path: Path) -> None:
    assert check(tmp_path, preference_rows(10)).faults[0].code == "invalid_training_file"


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (broken(2, 1, role="robot"), "'robot'. To do: use system"),
        (broken(2, 2, content=7), "content"),
        (broken(2, 3, role="user"), "assistant"),
        (broken(2, 3, weight=0.5), "weight"),
        (broken(2, 2, extra="x"), "extra"),
    ],
)
def test_other_faults_of_a_row_name_it(tmp_path: Path, rows: list[dict[str, Any]], word: str) -> None:
    faults = check(tmp_path, rows).faults
    assert faults and 2 in faults[0].lines
    assert word in faults[0].told()


def test_every_fault_of_both_files_at_once(tmp_path: Path) -> None:
    rows = broken(2, 2, role=None)
    rows[4]["messages"][2]["weight"] = 3
    checked = check(tmp_path, rows[:9], [{"messages": "none"}])
    assert {fault.param for fault in checked.faults} == {"training_file", "validation_file"}
    assert len(checked.faults) >= 4
    error = checked.error()
    assert error is not None and len(error["details"]) == len(checked.faults)
    assert error["message"] == checked.faults[0].message


def test_one_row_again_and_again_cannot_be_learnt_from(tmp_path: Path) -> None:
    (fault,) = check(tmp_path, chat_rows(1) * 12).faults
    assert fault.code == "invalid_training_file"
    assert "same" in fault.message


@pytest.mark.parametrize("data", [b"", b"\n\n", b"{not json\n" * 12, b"\xff\xfe\x00", b"[1, 2]\n" * 12])
def test_bytes_that_are_no_rows(tmp_path: Path, data: bytes) -> None:
    checked = check(tmp_path, data)
    assert checked.faults
    assert str(tmp_path) not in str(checked.error()), "no path is told to a client"


def test_files_are_named_by_their_ids_and_not_by_their_places(tmp_path: Path) -> None:
    checked = check(tmp_path, preference_rows(3), [{"x": 1}])
    assert "training.jsonl" not in str(checked.error())
    assert str(tmp_path) not in " ".join(fault.told() for fault in checked.faults)


def test_azure_has_codes_of_its_own(tmp_path: Path) -> None:
    assert {fault.code for fault in check(tmp_path, chat_rows(3), flavour="azure").faults} == {"jsonlValidationFailed"}
