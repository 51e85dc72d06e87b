"""Rows that were written for evaluation tools: OpenAI's evals and promptfoo's tests."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import convert, load_examples
from tunesmith.data.examples import LoadResult
from tunesmith.data.findings import FindingLog
from tunesmith.data.formats import Sample, formats
from tunesmith.data.reading import read_rows
from tunesmith.data.sources import yaml_rows
from tunesmith.data.types import Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Data


def load(path: Path, text: str, **spec: object) -> LoadResult:
    path.write_text(text, encoding="utf-8")
    data = Data.model_validate({"train": str(path), **spec})
    return load_examples(data, data.train)


def lines(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def found(loaded: LoadResult) -> dict[str, tuple[int, ...]]:
    """Lines by code of finding, without those that every small file has."""
    return {finding.code: finding.lines for finding in loaded.findings}


# OpenAI's evals.


def test_samples_of_the_registry_are_read(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "2 + 2?"}]
    loaded = load(
        tmp_path / "samples.jsonl",
        lines(
            {"input": turns, "ideal": "4"},
            {"input": "Capital of France?", "ideal": ["Paris", "paris, France", "Paris"]},
            {"input": "One of them?", "ideal": ["yes"]},
            {"input": "A number?", "ideal": 7},
        ),
    )
    assert loaded.format == "openai_evals" and loaded.reason == "input and ideal"
    first, second, third, fourth = loaded.examples
    assert [m.role for m in first.messages] == ["system", "user", "assistant"] and first.expected == "4"
    assert json.loads(second.expected) == ["Paris", "paris, France"] and second.messages[-1].content == "Paris"
    assert (third.expected, fourth.expected) == ("yes", "7")
    assert found(loaded) == {"several_answers": (2,)}


def test_examples_that_were_shown_become_turns_that_are_not_learnt(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Translate."},
        {"role": "system", "name": "example_user", "content": "Hund"},
        {"role": "system", "name": "example_assistant", "content": "dog"},
        {"role": "user", "content": "Katze"},
    ]
    (row,) = load(tmp_path / "samples.jsonl", lines({"input": turns, "ideal": "cat"})).examples
    assert [(m.role, m.content, m.weight) for m in row.messages] == [
        ("system", "Translate.", 1.0),
        ("user", "Hund", 1.0),
        ("assistant", "dog", 0.0),
        ("user", "Katze", 1.0),
        ("assistant", "cat", 1.0),
    ]


def test_every_problem_of_samples_is_named_with_its_line(tmp_path: Path) -> None:
    loaded = load(
        tmp_path / "samples.jsonl",
        lines(
            {"input": "good", "ideal": "yes"},
            {"input": "no ideal"},
            {"input": "an object", "ideal": {"a": 1}},
            {"input": "nothing is right", "ideal": []},
            {"input": " ", "ideal": "x"},
            {"input": [{"role": "assistant", "content": "hm"}], "ideal": "x"},
        ),
    )
    assert len(loaded.examples) == 1 and loaded.left_out == 5
    problems = found(loaded)
    assert problems["missing_column"] == (2,) and problems["ideal_not_text"] == (3,)
    assert problems["empty_answer"] == (4,) and problems["empty_prompt"] == (5,)
    assert 6 in {line for code, named in problems.items() for line in named if code != "unused_columns"}


def test_items_of_the_evals_api_are_read_where_their_fields_say_which_is_which(tmp_path: Path) -> None:
    loaded = load(
        tmp_path / "items.jsonl",
        lines(
            {"item": {"ticket_text": "My monitor stays black", "correct_label": "Hardware"}},
            {"item": {"question": "Why?", "ground_truth": "Because", "difficulty": 3}},
            {"item": {"a": "x", "b": "y"}},
            {
                "item": {"input": [{"role": "user", "content": "Hi"}], "expected": "Hello"},
                "sample": {"output_text": "?"},
            },
        ),
    )
    assert [(e.question, e.expected) for e in loaded.examples] == [
        ("My monitor stays black", "Hardware"),
        ("Why?", "Because"),
        ("Hi", "Hello"),
    ]
    (unclear,) = [f for f in loaded.findings if f.code == "eval_item_unclear"]
    assert unclear.lines == (3,) and "a, b" in unclear.message


def test_items_with_other_names_are_mapped_by_columns_or_template(tmp_path: Path) -> None:
    text = lines({"item": {"a": "x", "b": "y"}})
    mapped = load(tmp_path / "items.jsonl", text, columns={"prompt": "item.a", "answer": "item.b"})
    written = load(tmp_path / "items.jsonl", text, template="Q: {item.a}\nA: {item.b}")
    assert [e.expected for e in (*mapped.examples, *written.examples)] == ["y", "y"]
    assert written.examples[0].question.startswith("Q: x")


# promptfoo.

CONFIG = """\
description: capitals
prompts:
  - "Name the capital of {{country}} in {{ language }}."
providers: [openai:gpt-4.1-mini]
defaultTest:
  vars: {language: English}
  assert:
    - type: latency
      threshold: 2000
tests:
  - vars: {country: France}
    assert:
      - {type: equals, value: Paris}
  - vars:
      country: Germany
      language: German
    assert:
      - type: icontains
        value: Berlin
  - vars: {country: Italy}
    assert:
      - {type: contains-any, value: [Rome, Roma]}
  - vars: {country: Spain}
    assert:
      - {type: llm-rubric, value: names the capital}
  - vars: {land: Malta}
    assert:
      - {type: equals, value: Valletta}
  - file://more.yaml
"""


@pytest.mark.parametrize("name", ["promptfooconfig.yaml", "promptfooconfig.json"])
def test_a_config_gives_prompts_and_expected_answers(tmp_path: Path, name: str) -> None:
    import yaml

    text = CONFIG if name.endswith("yaml") else json.dumps(yaml.safe_load(CONFIG), indent=1)
    loaded = load(tmp_path / name, text)
    assert loaded.format == "promptfoo"
    assert [(e.question, e.expected) for e in loaded.examples] == [
        ("Name the capital of France in English.", "Paris"),
        ("Name the capital of Germany in German.", "Berlin"),
        ("Name the capital of Italy in English.", '["Rome", "Roma"]'),
    ]
    problems = found(loaded)
    assert {"assert_unmapped", "test_variable_missing", "row_not_object", "assert_loose", "assert_unused"} <= set(
        problems
    )
    if name.endswith("yaml"):  # JSON of this kind is on lines of its own
        assert problems["assert_unmapped"] == (23,) and problems["test_variable_missing"] == (26,)
        assert problems["assert_loose"] == (14, 20) and problems["row_not_object"] == (29,)
    assert "llm-rubric" in next(f.message for f in loaded.findings if f.code == "assert_unmapped")
    assert loaded.left_out == 3 and loaded.rows == 6


def test_tests_without_a_prompt_take_their_only_variable(tmp_path: Path) -> None:
    rows = [
        {"vars": {"q": "2 + 2?"}, "assert": [{"type": "equals", "value": 4}]},
        {"vars": {"q": "Say it", "who": "me"}, "assert": [{"type": "equals", "value": "it"}]},
        {"vars": {"q": ["one", "two"]}, "assert": [{"type": "equals", "value": "it"}]},
        {"vars": {"q": "JSON?"}, "assert": [{"type": "is-json"}, {"type": "equals", "value": {"a": [1]}}]},
    ]
    loaded = load(tmp_path / "tests.json", json.dumps(rows, indent=1))
    assert [(e.question, e.expected) for e in loaded.examples] == [("2 + 2?", "4"), ("JSON?", '{"a": [1]}')]
    assert {"test_input_unclear", "test_variable_missing", "assert_unused"} <= set(found(loaded))
    by_template = load(
        tmp_path / "more.json", json.dumps(rows[1:2]), template="{vars.who}: {vars.q} → {assert[0].value}"
    )
    assert [e.expected for e in by_template.examples] == ["it"]


def test_a_prompt_of_turns_is_filled_turn_by_turn(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be {{how}}."}, {"role": "user", "content": "{{q}}"}]
    config = {
        "prompts": [json.dumps(turns)],
        "tests": [{"vars": {"how": 'so "brief"', "q": "Why?"}, "assert": [{"type": "equals", "value": "No {{how}}"}]}],
    }
    (row,) = load(tmp_path / "c.json", json.dumps(config, indent=1)).examples
    assert [m.content for m in row.messages] == ['Be so "brief".', "Why?", 'No so "brief"']


@pytest.mark.parametrize(
    ("asserts", "expected"),
    [
        ([{"type": "similar", "value": ["a b", "a c"]}], '["a b", "a c"]'),
        ([{"type": "rouge-n", "value": "a b"}, {"type": "contains", "value": "b"}], "a b"),
        ([{"type": "assert-set", "assert": [{"type": "equals", "value": "x"}]}], "x"),
        ([{"type": "contains", "value": "a"}, {"type": "contains", "value": "b"}], None),
        ([{"type": "equals", "value": "a"}, {"type": "equals", "value": "b"}], None),
        ([{"type": "not-equals", "value": "a"}], None),
        ([{"type": "equals", "value": "file://answer.txt"}], None),
        ([{"type": "contains-all", "value": ["a", "b"]}], None),
        ([{"type": "javascript", "value": "output === 'x'"}], None),
        ([{"type": "equals"}], None),
        (["equals: x"], None),
        ([], None),
    ],
)  # fmt: skip
def test_what_asserts_say_of_the_answer(tmp_path: Path, asserts: list[object], expected: str | None) -> None:
    good = {"vars": {"q": "fine"}, "assert": [{"type": "equals", "value": "ok"}]}
    loaded = load(tmp_path / "t.jsonl", lines({"vars": {"q": "?"}, "assert": asserts}, good))
    assert [e.expected for e in loaded.examples] == [*([expected] if expected else []), "ok"]
    assert ("assert_unmapped" in found(loaded)) == (expected is None)


def test_csv_of_promptfoo(tmp_path: Path) -> None:
    loaded = load(
        tmp_path / "tests.csv",
        "question,__expected,__description,__suffix\n"
        "Capital of France?,Paris,plain, Now.\n"
        'Time?,"12:30, about",not an assert,\n'
        'Colour?,"contains-any:red, blue",any,\n'
        "Like?,similar(0.8):very fine,like,\n"
        'Code?,"javascript:output.length > 3",code,\n'
        "Json?,is-json,json,\n",
    )
    assert loaded.format == "promptfoo"
    assert [(e.question, e.expected) for e in loaded.examples] == [
        ("Capital of France? Now.", "Paris"),
        ("Time?", "12:30, about"),
        ("Colour?", '["red", "blue"]'),
        ("Like?", "very fine"),
    ]
    problems = found(loaded)
    assert problems["assert_unmapped"] == (6, 7) and "unused_columns" not in problems


def test_tests_can_be_converted_and_nothing_is_lost_unsaid(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    spec = Data.model_validate({"train": str(tmp_path / "c.yaml")})
    with pytest.raises(DataError, match="llm-rubric"):
        convert(spec, "openai-chat", tmp_path / "out.jsonl")
    done = convert(spec, "openai-chat", tmp_path / "out.jsonl", lossy=True)
    rows = [json.loads(line) for line in done.out.read_text().splitlines()]
    assert (done.rows, done.written) == (6, 3)
    assert rows[0]["messages"][-1] == {"role": "assistant", "content": "Paris"}


# Whatever is in a row.

_LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["{{q}}", "equals", "contains", "file://x", "system", "user", "example_user", "{% x %}"])
)
_KEYS = ("role", "content", "name", "type", "value", "assert", "vars", "q", "raw", "prefix", "question", "answer")
_VALUE = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=10,
)
_COLUMNS = ("vars", "assert", "prompts", "options", "__expected", "__prefix", "q", "input", "ideal", "item", "sample")


@pytest.mark.parametrize("name", ["promptfoo", "openai_evals"])
@given(values=st.dictionaries(st.sampled_from(_COLUMNS), _VALUE, max_size=6))
@settings(max_examples=150, deadline=None)
def test_every_row_is_an_example_or_has_a_reason(name: str, values: dict[str, object]) -> None:
    log, row = FindingLog("rows"), Row(values, 3, "rows")
    formats()[name].recognise(Sample([row], tuple(values)))
    content = formats()[name].read(row, log)
    if content is None:
        assert log.findings()
    else:
        assert content.messages[-1].role == "assistant" and content.messages[-1].content.strip()


# YAML as a source.

BOMB = ", ".join(f"&{c} [{', '.join([f'*{b}'] * 10)}]" for b, c in itertools.pairwise("abcdefg"))


def test_rows_of_yaml_are_plain_values_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text("# rows\n- prompt: one\n  completion: 2026-01-02\n  prompt: two\n- {prompt: 3, completion: .nan}\n")
    read = read_rows(path)
    assert read.kind == "yaml"
    assert [(row.values, row.line) for row in read.rows] == [
        ({"prompt": "two", "completion": "2026-01-02"}, 2),
        ({"prompt": 3, "completion": ".nan"}, 5),
    ]
    assert [f.code for f in read.findings] == ["duplicate_key"]


def test_yaml_values_stay_as_they_are_written(tmp_path: Path) -> None:
    written = ["no", "Yes", "on", "12:30", "007", "1_000", "0x1F", "+5", "2026-1-2", ".5", "=", "1e", "y"]
    path = tmp_path / "rows.yaml"
    path.write_text("".join(f"- {{completion: {one}}}\n" for one in (*written, "-3", "1.5", "2e3", "true", "~", "''")))
    values = [row.values["completion"] for row in read_rows(path).rows]
    assert values == [*written, -3, 1.5, 2000.0, True, None, ""]
    path.write_text("- &base {prompt: a}\n- {<<: *base, completion: b}\n")  # merging still works
    assert read_rows(path).rows[1].values == {"prompt": "a", "completion": "b"}


def test_a_json_config_need_not_be_yaml(tmp_path: Path) -> None:
    text = json.dumps(
        {"tests": [{"vars": {"q": "a\x7f/\U0001f600"}}, 3, {"vars": {}}], "prompts": ["{{q}}"]}, indent="\t"
    )
    path = tmp_path / "c.json"
    path.write_text(text.replace("/", "\\/").replace('"q": ', '"q": 1, "q": '))
    read = read_rows(path)
    assert [(row.values["vars"], row.line) for row in read.rows] == [({"q": "a\x7f/\U0001f600"}, 3), ({}, 9)]
    assert all(row.values["prompts"] == ["{{q}}"] for row in read.rows)
    assert {f.code: f.lines for f in read.findings} == {"duplicate_key": (3,), "row_not_object": (8,)}


def test_half_characters_in_yaml_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text('- {completion: "\\ud83d"}\n- {completion: whole}\n')
    read = read_rows(path)
    assert [row.values["completion"] for row in read.rows] == ["whole"]
    assert {f.code: f.lines for f in read.findings} == {"unpaired_surrogate": (1,)} and read.left_out == 1


def test_what_all_tests_share_reaches_each_of_them(tmp_path: Path) -> None:
    test = "- vars: {q: Why}\n  prompts: [short]\n  options: {suffix: '!'}\n  assert: [{type: equals, value: yes}]\n"
    head = "prompts: ['Say: {{q}}']\ndefaultTest: {options: {prefix: 'Hm. ', suffix: '?'}}\ntests:\n"
    (row,) = load(tmp_path / "c.yaml", head + test).examples
    assert (row.question, row.expected) == ("Hm. Say: Why!", "yes")
    more = load(tmp_path / "d.yaml", f"scenarios: [{{tests: []}}]\n{head}{test}")
    assert "tests_elsewhere" in found(more)
    with pytest.raises(DataError, match="not in this config but in"):
        load(tmp_path / "e.yaml", f"defaultTest: file://shared.yaml\ntests:\n{test}")


def test_prompts_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    rows = [{"vars": {"q": "Why?"}, "assert": [{"type": "equals", "value": "So"}]}]
    for prompts in (["A: {{q}}", "B: {{q}}"], "file://p.txt", ["label"]):
        config = json.dumps({"prompts": prompts, "tests": rows}, indent=1)
        loaded = load(tmp_path / "c.json", config)
        assert [e.question for e in loaded.examples] == ["Why?"] and "prompts_unused" in found(loaded)
    comment = load(tmp_path / "c.json", json.dumps({"prompts": ["{{q}}{# for them #}"], "tests": rows}, indent=1))
    assert not comment.examples and "test_variable_missing" in found(comment)


def test_a_table_with_a_column_item_is_not_taken_for_evals(tmp_path: Path) -> None:
    rows = lines({"item": {"sku": 1}, "prompt": "Which?", "completion": "This"})
    assert load(tmp_path / "rows.jsonl", rows).format != "openai_evals"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a: b\n- c: \x07\n", "holds the character U+0007"),
        ("a: [1, 2", "line 1"),
        ("tests: file://t.csv\n", "the tests of this config are in t.csv"),
        ("a: 1\n", "there is no list of rows"),
        ("just a text\n", "there is no list of rows"),
        ("- !!python/object/apply:os.system [echo]\n", "not YAML"),
        ("- &a\n  x: [*a]\n", "not YAML"),
        ("- " + "[" * 100 + "]" * 100, "nested too deeply"),
        (f"- x: [&a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], {BOMB}]", "too large a row"),
    ],
)
def test_yaml_that_holds_no_rows_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert said in str(caught.value)


def test_yaml_with_other_bytes_or_of_great_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.yaml"
    path.write_bytes(b"- {a: b}\n- {a: caf\xe9}\n")
    with pytest.raises(DataError, match="line 2"):
        read_rows(path)
    monkeypatch.setattr(yaml_rows, "_MAX_TEXT", 5)
    with pytest.raises(DataError, match="JSONL"):
        read_rows(path)
