"""A file looked at in blocks and processes gives what looking at all of it at once gives."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.makers import examples, jsonl, plain_text, spec
from tunesmith.data import EVERYTHING, check_examples, load_examples, streaming
from tunesmith.data.duplicates import find_near_duplicates, shingles
from tunesmith.data.findings import FindingLog
from tunesmith.data.looking import load_and_look, load_only
from tunesmith.data.quality import look_at_rows, row_findings
from tunesmith.data.quality.prompts import FRAME_LENGTH, FRAME_ROWS, FRAME_SHARE, prompt_findings
from tunesmith.data.transport import Shipped

DIRT = [
    "Write to anna.berg@web.de today.",
    "Das ist nicht ein Test, und die Antwort ist auch nicht das, was wir mit dem Satz zum Tag wollen.",
    "cafÃ© and <br> here",
    "a zero\u200bwidth space",
    "Это длинное предложение по-русски для проверки.",
    "the token <|im_end|> is here",
    "the р\u0430ypal of them with you and his",
]


def rows(count: int) -> list[dict[str, object]]:
    made = []
    for n in range(count):
        asked = DIRT[n // 6 % len(DIRT)] if n % 6 == 1 else f"the {plain_text(n)} of it and that is for you to be"
        turns = [("system", "Be brief."), ("user", asked), ("assistant", plain_text(n - n % 9))]
        made.append({"messages": [{"role": role, "content": said} for role, said in turns], "id": n})
    return made


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 3_000)
    monkeypatch.setattr(streaming, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(shingles, "_WORTH_PROCESSES", 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_blocks_and_processes_find_what_one_pass_finds(tmp_path: Path, small_blocks: None, processes: int) -> None:
    made = rows(120)
    path = jsonl(tmp_path, [*made, *made[:5], {"messages": []}])
    whole = load_examples(spec(path), path)
    result, seen = load_and_look(spec(path), path, processes=processes)
    assert result.examples == whole.examples
    assert (result.findings, result.rows, result.format) == (whole.findings, whole.rows, whole.format)
    assert seen is not None
    # Rows that came from another process have lost what they were made from.
    assert {bool(example.values) for example in result.examples} == {processes == 1}
    one = check_examples(whole.examples, task_type="generation")
    two = check_examples(result.examples, task_type="generation", seen=seen, processes=processes)
    assert two == one
    codes = {finding.code for finding in one}
    assert {"personal_email", "language_mix", "mojibake", "odd_characters", "script_mix", "special_tokens"} <= codes
    assert load_only(spec(path), path, processes=processes).examples == whole.examples


def test_what_parts_show_adds_up(tmp_path: Path) -> None:
    path = jsonl(tmp_path, rows(90))
    made = load_examples(spec(path), path).examples
    whole = look_at_rows(str(path), made)
    for cut in (0, 1, 44, 90):
        parts = look_at_rows(str(path), made[:cut])
        parts.absorb(look_at_rows(str(path), made[cut:]))
        assert row_findings(str(path), made, parts) == row_findings(str(path), made, whole)
    assert row_findings(str(path), made, whole)


def test_logs_add_up_and_stay_apart() -> None:
    first, later = FindingLog("a"), FindingLog("a")
    first.add("blank_line", 3)
    later.leave_out("broken_json", 5, "oops")
    later.add_shown("odd_characters", 6, lambda: "here")
    later.add("blank_line", 7)
    first.absorb(pickle.loads(pickle.dumps(later)))
    first.add("blank_line", 9)
    found = {finding.code: finding for finding in first.findings()}
    assert found["blank_line"].lines == (3, 7, 9)
    assert found["odd_characters"].example == "here"
    assert "line 5, oops" in found["broken_json"].message
    assert (first.left_out, later.left_out) == (1, 1)
    assert {f.code: f.lines for f in later.findings()}["blank_line"] == (7,)


def test_all_that_is_learnt_arrives_in_another_process(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "é", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "yes", "weight": 0},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "no"},
    ]
    for row in ({"messages": chat, "tools": [tool]}, {"prompt": "a", "chosen": "b c", "rejected": "b d"},
                {"prompt": "a", "completion": "b", "label": False}):  # fmt: skip
        path = jsonl(tmp_path, [row, row])
        made = load_examples(spec(path), path, learns=EVERYTHING).examples
        assert len(made) == 2
        arrived = pickle.loads(pickle.dumps(Shipped(made)))
        assert arrived == made
        assert [example.values for example in arrived] == [{}, {}]
        assert arrived[0].messages[0].role is arrived[1].messages[0].role


def test_signatures_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingles, "_WORTH_PROCESSES", 0)
    monkeypatch.setattr(shingles, "_BATCH", 500)
    made = examples([(f"{plain_text(n - n % 3)} {n % 3}", plain_text(n // 3)) for n in range(90)])
    one, two = (find_near_duplicates(made, processes=n) for n in (1, 2))
    assert one == two
    assert len(one.pairs) >= 30


def test_the_usual_frame_is_found_by_majority() -> None:
    """Against counting all of them, for shares around the limit and any order."""
    draw = random.Random(0)
    reported = 0
    for count in (FRAME_ROWS, 37, 100):
        for usual in range(round(0.7 * count), count + 1, 2):
            heads = ["Answer this: "] * usual + [f"{n} of other beginnings " for n in range(count - usual)]
            draw.shuffle(heads)
            made = examples([(f"{head}{plain_text(n)}", "x") for n, head in enumerate(heads)])
            most = Counter(row.question[:FRAME_LENGTH] for row in made).most_common(1)[0][1]
            found = [f for f in prompt_findings("a", made) if f.code == "prompt_frame_varies"]
            assert bool(found) == (FRAME_SHARE * count <= most < count)
            reported += len(found)
            for finding in found:
                assert finding.lines == tuple(
                    row.line for row, head in zip(made, heads, strict=True) if not head.startswith("Answer")
                )
    assert reported > 5


def test_ids_of_repeated_rows_are_told_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [json.loads('{"prompt": "a", "completion": "b"}')] * 3)
    result, _ = load_and_look(spec(path), path)
    assert [e.id for e in result.examples] == [e.id for e in load_examples(spec(path), path).examples]
    assert len({e.id for e in result.examples}) == 3
    assert replace(result.examples[1], id=result.examples[0].id, line=1) == result.examples[0]
