"""From rows to a store: the same tokens as one by one, once, on several cores, in constant memory."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.text.tokenizers import CHATML, merging, with_special
from tests.tiny import byte_tokenizer
from tunesmith.data import streaming
from tunesmith.data.examples import load_examples
from tunesmith.data.types import Message, ToolCall, Toolset
from tunesmith.recipe.schema import Data
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.tasks import fit_task
from tunesmith.tasks.conversation import training_conversation
from tunesmith.text import tokenising
from tunesmith.text.render import Renderer
from tunesmith.text.tokenising import store_key, tokenise_conversations, tokenise_source, turns_hash


def chat_rows(count: int) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"question {i} é " + "a b " * (i % 7)},
                {"role": "assistant", "content": f"answer {i}\n" * (1 + i % 3)},
            ]
        }
        for i in range(count)
    ]


def write_rows(path, rows) -> Data:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Data(train=str(path))


def converse_for(spec: Data):
    examples = load_examples(spec, spec.train).examples
    task = fit_task(TaskSpec(), "generation", examples)
    return examples, partial(training_conversation, task)


def expected(renderer, examples, converse):
    return list(renderer.samples([converse(e) for e in examples], ids=[e.id for e in examples]))


def assert_same(store, samples):
    assert len(store) == len(samples) > 0
    for a, b in zip(store, samples, strict=True):
        assert a.example_id == b.example_id
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_source_becomes_the_samples_that_rendering_gives(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(streaming, "BLOCK", 6_000)
    monkeypatch.setattr(streaming, "_WORTH_PROCESSES", 0)
    spec = write_rows(tmp_path / "rows.jsonl", chat_rows(150))
    examples, converse = converse_for(spec)
    renderer = Renderer(with_special(CHATML))
    made = tokenise_source(
        spec.train, spec, renderer, tmp_path / "store", converse=converse, loss="assistant", processes=processes
    )
    assert (made.rows, made.format) == (150, load_examples(spec, spec.train).format)
    assert_same(made.samples, expected(renderer, examples, converse))
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["ids.bin", "index.json", "rows.bin", "spans.bin"]


def test_rows_that_cannot_be_used_are_reported_and_not_lost(tmp_path):
    rows = chat_rows(20)
    rows[4] = {"messages": [{"role": "user", "content": "no answer"}]}
    spec = write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"messages": broken\n')
    examples, converse = converse_for(spec)
    made = tokenise_source(
        spec.train, spec, Renderer(byte_tokenizer()), tmp_path / "s", converse=converse, loss="assistant", processes=1
    )
    assert made.rows == 21 and len(made.samples) == 19 == len(examples)
    assert {5, 21} <= {line for finding in made.findings for line in finding.lines}


def test_what_is_there_is_opened_and_not_made_again(tmp_path, monkeypatch):
    spec = write_rows(tmp_path / "rows.jsonl", [*chat_rows(10), {"messages": []}])
    _, converse = converse_for(spec)
    renderer = Renderer(byte_tokenizer())
    first = tokenise_source(spec.train, spec, renderer, tmp_path / "s", converse=converse, loss="all", processes=1)
    monkeypatch.setattr(tokenising, "scan_examples", None)
    again = tokenise_source(spec.train, spec, renderer, tmp_path / "s", converse=converse, loss="all", processes=1)
    assert_same(again.samples, list(first.samples))
    assert (again.rows, again.format, again.findings) == (first.rows, first.format, first.findings)
    assert again.findings


def test_conversations_from_a_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "_BLOCK", 3)
    renderer = Renderer(with_special(CHATML))
    turns = [(f"c{i}", [Message("user", f"hi {i}"), Message("assistant", "no" * i)]) for i in range(8)]
    store = tokenise_conversations(renderer, (t for t in turns), tmp_path / "s", loss="assistant")
    assert_same(store, list(renderer.samples([t for _, t in turns], "assistant", [n for n, _ in turns])))
    opened = tokenise_conversations(renderer, iter(()), tmp_path / "s", loss="assistant")
    assert len(opened) == 8


def test_progress_is_told_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "_BLOCK", 3)
    turns = ((f"c{i}", [Message("user", "hi"), Message("assistant", "no")]) for i in range(8))
    told: list[int] = []
    tokenise_conversations(Renderer(byte_tokenizer()), turns, tmp_path / "s", loss="assistant", done=told.append)
    assert told == [3, 6, 8]


def test_a_store_made_by_other_code_is_not_used(monkeypatch):
    renderer = Renderer(byte_tokenizer())
    before = store_key("rows", renderer, "assistant")
    monkeypatch.setattr(tokenising, "_versions", lambda: "tomorrow")
    assert store_key("rows", renderer, "assistant") != before


def test_an_interrupted_store_is_none(tmp_path):
    renderer = Renderer(byte_tokenizer())

    def broken():
        yield "a", [Message("user", "hi"), Message("assistant", "no")]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenise_conversations(renderer, broken(), tmp_path / "s", loss="assistant")
    assert list(tmp_path.iterdir()) == []


def test_the_key_changes_with_all_that_decides_the_tokens():
    plain, chatml = Renderer(byte_tokenizer()), Renderer(with_special(CHATML))
    keys = {
        store_key("rows", plain, "assistant"),
        store_key("other rows", plain, "assistant"),
        store_key("rows", Renderer(byte_tokenizer(), "raw"), "assistant"),
        store_key("rows", chatml, "assistant"),
        store_key("rows", Renderer(merging()), "assistant"),
        store_key("rows", plain, "last"),
        store_key("rows", plain, "assistant", "an instruction"),
    }
    assert len(keys) == 7
    assert store_key("rows", Renderer(byte_tokenizer()), "assistant") in keys


@pytest.mark.parametrize("role", ["eos_token", "bos_token", "unk_token"])
def test_the_key_has_what_its_tokens_are_to_a_tokenizer(role):
    """The serialised tokenizer does not say it, and templates write these tokens."""
    tokenizer = with_special()
    before = store_key("rows", Renderer(tokenizer), "assistant")
    setattr(tokenizer, role, "<|eot|>")
    assert store_key("rows", Renderer(tokenizer), "assistant") != before


def test_the_key_has_where_answers_end_and_how_system_messages_are_taken():
    renderer = Renderer(with_special(CHATML))
    keys = {store_key("rows", renderer, "assistant")}
    renderer.folds_system = not renderer.folds_system
    keys.add(store_key("rows", renderer, "assistant"))
    renderer.stop_ids |= {3}
    keys.add(store_key("rows", renderer, "assistant"))
    assert len(keys) == 3


def test_all_of_a_turn_is_in_its_hash():
    tool = '{"type": "function", "function": {"name": "look"}}'
    call = Message("assistant", "so", tool_calls=(ToolCall("1", "look", '{"at": 1}'),))
    turns = [
        Message("assistant", "so"),
        Message("user", "so"),
        Message("assistant", "so."),
        Message("assistant", "so", 0.5),
        Message("assistant", "so", name="ann"),
        call,
        replace(call, tool_calls=(ToolCall("1", "look", '{"at": 2}'),)),
        replace(call, tool_calls=(ToolCall("1", "see", '{"at": 1}'),)),
        Message("assistant", "so", tool_call_id="1"),
        Message("assistant", "so", tools=Toolset((tool,))),
        Message("assistant", "so", tools=Toolset((tool,), parallel=False)),
    ]
    said = [[("a", [turn])] for turn in turns]
    more = [[("b", turns[:1])], [("a", turns[:2])], [("a", turns[:1]), ("a", turns[1:2])], []]
    hashes = [turns_hash(iter(one)) for one in (*said, *more)]
    assert len(set(hashes)) == len(hashes) == 15
    assert turns_hash([("a", [replace(turns[0])])]) == hashes[0]
