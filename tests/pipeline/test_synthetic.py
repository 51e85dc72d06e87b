"""Rows from another model: a real server on this machine answers, and everything it may do wrong is tried."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.server import Answer, Server, refusal, reply
from tests.pipeline.conftest import tone_rows, write_csv
from tunesmith.data.examples import load_examples
from tunesmith.errors import DataError, EngineError, RecipeError
from tunesmith.inference.endpoint import Budget, Endpoint
from tunesmith.pipeline.prepare import read_data
from tunesmith.pipeline.synthesis import Order, synthesize
from tunesmith.pipeline.synthetic import read_journal, texts_in
from tunesmith.recipe import load_recipe


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def waited() -> list[float]:
    return []


@pytest.fixture
def endpoint(server, waited) -> Endpoint:
    return Endpoint(server.url, "teacher", "secret-key", timeout=5, attempts=4, sleep=waited.append)


def rewordings(body: dict[str, Any], number: int) -> Answer:
    """Two texts that no other question gets."""
    text = body["messages"][-1]["content"]
    head = " ".join(reversed(text.split()))
    return reply(
        json.dumps([f"please consider that {head} matters today", f"{number} quite differently put: {head[::-1]}"])
    )


def order(**changes: Any) -> Order:
    return Order(**{"kind": "paraphrase", "concurrency": 2, "max_tokens": 64, **changes})


def budget(**changes: Any) -> Budget:
    return Budget(**{"max_tokens": 10_000_000, **changes})


def recipe_of(project: Path, *overrides: str):
    return load_recipe(project / "recipe.yaml", list(overrides))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Rows.


def test_rewordings_become_a_folder_to_train_from(project, server, endpoint):
    server.answer = rewordings
    recipe = recipe_of(project)
    before = read_data(recipe).splits
    made = synthesize(recipe, order(rows=10), endpoint, budget(), project / "more")
    assert (made.asked, made.answered, len(made.screened.rows), made.train_rows) == (10, 10, 20, 70)
    assert made.ended == "" and not made.screened.left_out
    after = load_recipe(project / "more" / "recipe.yaml")
    splits = read_data(after).splits
    assert len(splits.train) == 70
    assert {e.id for e in splits.test} == {e.id for e in before.test}
    assert {e.id for e in splits.validation} == {e.id for e in before.validation}
    assert {e.id for e in before.train} < {e.id for e in splits.train}


def test_only_training_rows_are_ever_sent(project, server, endpoint):
    server.answer = rewordings
    recipe = recipe_of(project)
    synthesize(recipe, order(rows=None), endpoint, budget(), project / "more")
    splits = read_data(recipe).splits
    sent = {asked["messages"][-1]["content"] for asked in server.asked}
    assert sent == {e.question for e in splits.train}
    assert not sent & {e.question for e in (*splits.test, *splits.validation)}


def test_every_row_says_where_it_comes_from(project, server, endpoint):
    server.answer = rewordings
    recipe = recipe_of(project)
    spent = budget(input_price=10.0, output_price=20.0)
    synthesize(recipe, order(rows=3, options={"temperature": 0.7}), endpoint, spent, project / "more")
    parents = {e.id: e for e in read_data(recipe).splits.train}
    for row in lines(project / "more" / "synthetic.jsonl"):
        told = row["provenance"]
        parent = parents[told["parent"]["id"]]
        assert told["parent"]["line"] == parent.line and row["tone"] == parent.expected
        assert row["phrase"] != parent.question
        assert told["model"] == "teacher" and told["answered_by"] == "teacher-2" and told["kind"] == "paraphrase"
        assert told["endpoint"] == server.url.split("/")[2] and len(told["prompt_sha256"]) == 64
        assert told["cost"] == pytest.approx((30 * 10 + 10 * 20) / 1e6) and told["options"] == {"temperature": 0.7}
    assert spent.money == pytest.approx(3 * 0.0005)
    assert "secret-key" not in "".join(p.read_text() for p in (project / "more").iterdir())


def test_it_goes_on_where_it_stopped_and_the_ceiling_holds_over_both_parts(project, server, endpoint):
    server.answer = rewordings
    recipe = recipe_of(project)
    bound = 600
    first = synthesize(recipe, order(rows=20, concurrency=1), endpoint, budget(max_tokens=bound), project / "more")
    assert first.ended == "600 tokens" and 0 < first.answered < 20 and first.tokens <= bound
    asked = len(server.asked)
    second = synthesize(recipe, order(rows=20, concurrency=1), endpoint, budget(max_tokens=bound), project / "more")
    assert second.ended and second.tokens <= bound and len(server.asked) - asked <= 1
    asked = len(server.asked)
    third = synthesize(recipe, order(rows=20), endpoint, budget(), project / "more")
    assert third.answered == 20 and third.ended == "" and len(server.asked) - asked == 20 - second.answered
    assert third.tokens == 20 * 40
    last = synthesize(recipe, order(rows=20), endpoint, budget(), project / "more")
    assert last.to_dict() == third.to_dict() and len(server.asked) == asked + 20 - second.answered


def test_what_was_under_way_when_the_process_died_counts_as_charged(project, server, endpoint):
    server.answer = rewordings
    recipe = recipe_of(project)
    synthesize(recipe, order(rows=2, concurrency=1), endpoint, budget(), project / "more")
    journal = project / "more" / "journal.jsonl"
    events = journal.read_text().splitlines(keepends=True)
    assert [json.loads(e)["kind"] for e in events] == ["asked", "reply"] * 2
    journal.write_text("".join(events[:3]) + events[3][:20])  # killed while it wrote the second reply
    at_most = json.loads(events[2])["at_most"]
    known = read_journal(journal)
    assert len(known.entries) == 1 and (known.input_tokens, known.output_tokens) == (30 + at_most[0], 10 + at_most[1])
    made = synthesize(recipe, order(rows=2, concurrency=1), endpoint, budget(), project / "more")
    assert made.answered == 2 and len(server.asked) == 3


def test_a_failure_keeps_what_came_before_it(project, server, endpoint):
    server.answer = lambda body, number: rewordings(body, number) if number < 4 else refusal(401, "expired")
    recipe = recipe_of(project)
    with pytest.raises(EngineError, match=r"refuses \(401\): expired"):
        synthesize(recipe, order(rows=10), endpoint, budget(), project / "more")
    assert len(read_journal(project / "more" / "journal.jsonl").entries) == 4
    server.answer = rewordings
    asked = len(server.asked)
    assert synthesize(recipe, order(rows=10), endpoint, budget(), project / "more").answered == 10
    assert len(server.asked) - asked == 6


def test_no_more_than_so_many_at_a_time(project, server, endpoint):
    def slowly(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.03)
        return rewordings(body, number)

    server.answer = slowly
    synthesize(recipe_of(project), order(rows=12, concurrency=3), endpoint, budget(), project / "more")
    assert 2 <= server.busiest <= 3


def test_what_comes_back_is_screened(project, server, endpoint):
    recipe = recipe_of(project)
    splits = read_data(recipe).splits
    first = splits.train[0].question
    held, other = splits.test[0].question, splits.train[5].question
    replies = [
        json.dumps([first, f"{first}!", "something wholly other", held, other.upper(), "", "Something  wholly other"]),
        "I cannot do that.",
        "[]",
        '["cut off',
    ]
    server.answer = lambda body, number: reply(replies[number], reason="length" if number == 3 else "stop")
    made = synthesize(recipe, order(rows=4, concurrency=1), endpoint, budget(), project / "more")
    assert [row.example.question for row in made.screened.rows] == ["something wholly other"]
    assert made.screened.left_out == {
        "repeated": 3,  # the parent itself, another training row in capitals, and what was made just before
        "like_parent": 1,
        "leak": 1,
        "unreadable": 1,
        "empty": 1,
        "cut_off": 1,
    }


def test_a_refused_row_costs_only_itself(project, server, endpoint):
    server.answer = lambda body, number: refusal(400, "filtered") if number == 1 else rewordings(body, number)
    made = synthesize(recipe_of(project), order(rows=4, concurrency=1), endpoint, budget(), project / "more")
    assert made.screened.left_out == {"refused": 1} and len(made.screened.rows) == 6
    assert made.answered == 4  # a refusal is an answer: it is not asked again


def test_an_extraction_keeps_what_its_answer_quotes(project, server, endpoint):
    questions = [f"mix flour {i} and eggs well in bowl {i * 7} for me" for i in range(40)]
    answers = [json.dumps(["eggs", f"flour {i}"]) for i in range(40)]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(questions, answers, strict=True)
    ]
    (project / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(project, "data.train=chat.jsonl", "task=extraction", "data.split.test=8")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": str(project / "chat.jsonl")})})

    def answer(body: dict[str, Any], number: int) -> Answer:
        flour = body["messages"][-1]["content"].split()[2]
        return reply(json.dumps([f"Into the pot go flour {flour} then eggs, {number} times", "Into it goes all"]))

    server.answer = answer
    made = synthesize(recipe, order(rows=3, concurrency=1), endpoint, budget(), project / "more")
    assert len(made.screened.rows) == 3 and made.screened.left_out == {"answer_lost": 3}
    row = lines(project / "more" / "synthetic.jsonl")[0]
    assert row["messages"][-1]["role"] == "assistant" and "pot" in row["messages"][0]["content"]
    assert load_recipe(project / "more" / "recipe.yaml").task.type == "extraction"


def test_a_teacher_answers_training_rows_again_in_their_place(project, server, endpoint):
    def answer(body: dict[str, Any], number: int) -> Answer:
        assert body["messages"][0]["role"] == "system" and "neutral" in body["messages"][0]["content"]
        return reply([" Warm.", "cold", "I would rather not say"][number % 3])

    server.answer = answer
    recipe = recipe_of(project)
    splits = read_data(recipe).splits
    made = synthesize(recipe, order(kind="teacher", rows=6, concurrency=1), endpoint, budget(), project / "more")
    assert made.screened.left_out == {"unreadable": 2} and made.train_rows == len(splits.train)
    rows = lines(project / "more" / "synthetic.jsonl")
    assert [row["tone"] for row in rows] == ["warm", "cold", "warm", "cold"]
    assert made.screened.agreeing == sum(
        row["tone"] == e.expected for row, e in zip(rows, [splits.train[i] for i in (0, 1, 3, 4)], strict=True)
    )
    trained = load_recipe(project / "more" / "recipe.yaml").data
    assert len(load_examples(trained, trained.train).examples) == 50


def test_a_teacher_labels_inputs_that_have_no_answer_and_never_those_of_the_test(project, server, endpoint):
    recipe = recipe_of(project)
    splits = read_data(recipe).splits
    new = [f"an entirely new remark number {i} about {i * i} things" for i in range(5)]
    (project / "new.csv").write_text("phrase\n" + "\n".join([*new, splits.test[3].question]) + "\n")
    server.answer = lambda body, number: reply("neutral")
    asked = order(kind="teacher", inputs=str(project / "new.csv"))
    made = synthesize(recipe, asked, endpoint, budget(), project / "more")
    assert {body["messages"][-1]["content"] for body in server.asked} == set(new)
    assert [row["phrase"] for row in lines(project / "more" / "synthetic.jsonl")] == new
    assert made.train_rows == len(splits.train) + 5


def test_orders_that_make_no_sense(project, endpoint):
    recipe = recipe_of(project)
    with pytest.raises(RecipeError, match="no ceiling"):
        synthesize(recipe, order(), endpoint, Budget(), project / "x")
    with pytest.raises(RecipeError, match="needs prices"):
        synthesize(recipe, order(), endpoint, Budget(max_money=1.0), project / "x")
    with pytest.raises(RecipeError, match="only a teacher"):
        synthesize(recipe, order(inputs="x.csv"), endpoint, budget(), project / "x")
    with pytest.raises(DataError, match="no column of the input"):
        synthesize(recipe, order(column="tone"), endpoint, budget(), project / "x")
    write_csv(project / "rows.csv", [(f"{a},{a}", b) for a, b in tone_rows()], "one,two,tone")
    two = recipe_of(project, 'data.template="{one} {two}: {tone}"')
    with pytest.raises(DataError, match=r"several columns: one, two[\s\S]*--column"):
        synthesize(two, order(), endpoint, budget(), project / "x")
    assert not (project / "x").exists()


def test_texts_of_a_reply():
    assert texts_in('["a", " b "]') == ["a", "b"]
    assert texts_in('Here you are:\n```json\n["a"]\n```') == ["a"]
    for text in ("", "no list", "[1]", '{"a": "b"}', '["a"', "]["):
        assert texts_in(text) is None


def test_the_command(project, server, tunesmith, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    server.answer = rewordings
    asked = ("data", "synthesize", "recipe.yaml", "--endpoint", server.url, "--model", "m", "--out", "made",
             "--rows", "3", "--key-env", "MY_KEY")  # fmt: skip
    refused = tunesmith(*asked, "--json")
    assert refused.code == 2 and "no ceiling" in refused.error["what"] and not server.asked
    said = tunesmith(*asked, "--max-cost", "1", "--price-in", "1", "--price-out", "2")
    assert said.code == 0, said.err
    assert "asked about 3 of 3 rows; 6 rows made" in said.out and "tunesmith check made/recipe.yaml" in said.out
    assert server.headers[0]["Authorization"] == "Bearer secret-key" and "secret-key" not in said.out + said.err
