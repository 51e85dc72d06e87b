"""Every alternative to tuning, end to end: models behind endpoints, documents, wordings and examples to choose from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.encoders import save_encoder
from tests.inference.server import Answer, Server, refusal, serving
from tests.pipeline.conftest import QUICK, WORDS, answers, events
from tunesmith.evaluation.encoder import TextEncoder
from tunesmith.inference.endpoint import token_bound
from tunesmith.pipeline.document_search import passage_size
from tunesmith.pipeline.remotes import remote_problems, token_prices
from tunesmith.recipe.schema import Recipe
from tunesmith.verdict.costs import TokenPrice

ONLY_REMOTE = (
    "--json",
    "--set",
    "baselines=[]",
    "--set",
    "evaluate.decoding=[free]",
    "--set",
    "evaluate.forgetting=false",
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        made.answer = right
        yield made


def said(text: str, model: str = "big-2026-01", **more: Any) -> Answer:
    body = {
        "id": "x",
        "object": "chat.completion",
        "model": model,
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42},
        **more,
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def phrase(body: dict[str, Any]) -> str:
    text: str = body["messages"][-1]["content"]
    return text


def right(body: dict[str, Any], number: int) -> Answer:
    """The tone whose words the phrase has."""
    return said(next(tone for tone, words in WORDS.items() if set(words) & set(phrase(body).split())))


def remote(server: Server, **settings: Any) -> tuple[str, str]:
    return "--set", f"remotes.big={json.dumps({'url': server.url, 'model': 'big', **settings})}"


def notes_of(run: Path, candidate: str) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((run / "comparison.json").read_text())["candidates"][candidate]
    return kept


def values(result: dict[str, Any], metric: str = "accuracy") -> dict[str, float]:
    return {row["candidate"]: row["value"] for row in result["comparison"] if row["metric"] == metric}


def test_a_model_behind_an_endpoint_is_measured_paid_for_and_recommended(project, tunesmith, server, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "very-secret-key")
    settings = {"api_key_env": "BIG_KEY", "prompt_price": 2.5, "answer_price": 10.0, "few_shot_k": 2}
    done = tunesmith("run", "recipe.yaml", *QUICK, *ONLY_REMOTE, *remote(server, **settings))
    assert done.code == 0, done
    run = Path(done.json["run"])
    assert values(done.json)["remote_big"] == 1.0 > values(done.json)["tuned"]
    assert done.json["verdict"]["decision"] == "use_remote"
    assert done.json["verdict"]["best_alternative"] == "remote_big"
    rows = answers(run, "remote_big")
    assert len(rows) == 40 and {(row["prompt_tokens"], row["answer_tokens"]) for row in rows} == {(40, 2)}
    shots = [m for m in server.asked[0]["messages"] if m["role"] == "assistant"]
    assert len(shots) == 2 and {m["content"] for m in shots} <= set(WORDS)
    assert {head["Authorization"] for head in server.headers} == {"Bearer very-secret-key"}
    notes = notes_of(run, "remote_big")
    assert notes["answered_by"] == {"big-2026-01": 40} and notes["unanswered_rows"] == 0 and notes["k"] == 2
    assert notes["latency_p50"] > 0
    # (40 × 2.5 + 2 × 10) / 1,000 for a thousand requests.
    assert "0.1200" in (run / "report.html").read_text()
    for path in run.rglob("*"):
        if path.is_file():
            assert b"very-secret-key" not in path.read_bytes(), path
    assert "prices" not in notes
    (told,) = [event["text"] for event in events(run) if event["kind"] == "note" and "are sent to" in event["text"]]
    told_of = re.fullmatch(
        r"remote_big: 40 test rows are sent to 127\.0\.0\.1 \(and 4 requests to measure latency\), "
        r"at most ([\d,]+) tokens \(\d\.\d\d USD\) if none has to be repeated", told)  # fmt: skip
    assert told_of is not None
    sent = [[{k: m[k] for k in ("role", "content")} for m in body["messages"]] for body in server.asked]
    assert len(sent) == 44 and int(told_of[1].replace(",", "")) >= sum(map(token_bound, sent)) + 44 * 4
    # The verdict is there: asked again it costs nothing.
    before = len(server.asked)
    assert tunesmith("run", "recipe.yaml", *QUICK, *ONLY_REMOTE, *remote(server, **settings)).code == 0
    assert len(server.asked) == before


def test_everything_an_endpoint_may_do_wrong_is_counted_and_told(project, tunesmith, server):
    seen: dict[str, int] = {}

    def badly(body: dict[str, Any], number: int) -> Answer:
        text = phrase(body)
        place = seen.setdefault(text, len(seen))
        tries = sum(phrase(asked) == text for asked in server.asked)
        match place:
            case 1 if tries == 1:
                return refusal(429, **{"Retry-After": "0"})
            case 2:
                return refusal(400, "content filter")
            case 4:
                return said("I would say this phrase is rather warm, but who knows?")
            case 6:
                return 200, {}, b'{"choices": []}'
            case 8:
                return 200, {}, b"{not json"
            case _ if place >= 30:
                return said("warm", "big-2026-06")
        return right(body, number)

    server.answer = badly
    done = tunesmith(
        "baselines", "recipe.yaml", *QUICK, *ONLY_REMOTE, *remote(server, retries=1, concurrency=1, timeout=5)
    )
    assert done.code == 0, done
    run = Path(done.json["run"])
    rows = answers(run, "remote_big")
    assert len(rows) == 40 and sum(row["answer"] == "" for row in rows) == 3
    prose = next(row for row in rows if "who knows" in row["answer"])
    assert prose["parsed"] is None and prose["scores"]["accuracy"] == 0
    notes = notes_of(run, "remote_big")
    assert notes["unanswered_rows"] == 3 and notes["unanswered_reasons"] == {"refused": 1, "unreadable": 2}
    assert notes["retried"]["status 429"] == 1 and notes["prices"] == "none given, so its tokens count as free"
    assert notes["answered_by"] == {"big-2026-01": 27, "big-2026-06": 10}
    warned = [event["text"] for event in events(run) if event["kind"] == "warning" and event["code"] == "remote"]
    assert len(warned) == 2
    assert warned[0] == ("remote_big: 3 of 40 rows got no answer, which counts as wrong (refused 1, unreadable 2)")
    assert "several models: big-2026-01 (27), big-2026-06 (10)" in warned[1]


def test_an_endpoint_that_ends_in_the_middle_is_gone_on_with(project, tunesmith, server):
    wanted = ("baselines", "recipe.yaml", *QUICK, *ONLY_REMOTE, *remote(server, concurrency=2))
    server.answer = lambda body, number: right(body, number) if number < 25 else refusal(401, "expired")
    stopped = tunesmith(*wanted)
    assert stopped.code == 6 and "refuses (401): expired" in stopped.error["what"]
    assert "remotes.big" in stopped.error["fix"]
    answered = {phrase(body) for body in server.asked[:25]}
    server.asked.clear()
    server.answer = right
    done = tunesmith(*wanted)
    assert done.code == 0 and values(done.json)["remote_big"] == 1.0
    latency = 1 + 3  # asked one at a time, after all rows
    again = [phrase(body) for body in server.asked[:-latency]]
    assert len(again) == 15 and not set(again) & answered


def test_what_keeps_an_endpoint_from_being_asked_is_told_at_once(project, tunesmith, server, monkeypatch):
    monkeypatch.delenv("MISSING_KEY", raising=False)
    monkeypatch.setenv("OTHER_KEY", "k")
    remotes = {
        "one": {"url": server.url, "model": "m", "api_key_env": "MISSING_KEY"},
        "two": {"url": "http://example.com/v1", "model": "m", "api_key_env": "OTHER_KEY", "max_cost": 1.0},
    }
    stopped = tunesmith("baselines", "recipe.yaml", *QUICK, *ONLY_REMOTE, "--set", f"remotes={json.dumps(remotes)}")
    assert stopped.code == 2 and not server.asked
    for part in (
        "3 settings are wrong",
        "remotes.one.api_key_env: the environment variable MISSING_KEY is not set",
        "remotes.two.url: the key would be sent unencrypted",
        "remotes.two.max_cost: a ceiling of money needs prices",
    ):
        assert part in stopped.error["what"]


def test_a_ceiling_of_money_holds_for_all_ways_and_all_processes(project, tunesmith, server):
    """The first way is answered and paid for; a repeated run does not forget that when the second way goes on."""
    wanted = ("baselines", "recipe.yaml", *QUICK, *ONLY_REMOTE[:3], "--set", "evaluate.decoding=[free, grammar]")
    priced = {"prompt_price": 1000.0, "answer_price": 1000.0, "concurrency": 1}  # 0.042 for every request
    ended = tunesmith(*wanted, *remote(server, **priced, max_cost=3.2))
    assert ended.code == 6 and "ceiling" in ended.error["what"]
    assert 44 < len(server.asked) < 0.042**-1 * 3.2  # of the second way some
    before = len(server.asked)
    again = tunesmith(*wanted, *remote(server, **priced, max_cost=3.2))
    assert again.code == 6 and len(server.asked) == before


def test_prices_are_the_users_and_problems_need_no_request():
    big = {"url": "https://api.example.com/v1", "model": "m", "prompt_price": 2.0, "answer_price": 8.0, "max_cost": 5}
    recipe = Recipe.model_validate({"data": "rows.csv", "remotes": {"big": big}})
    assert token_prices(recipe) == {"remote_big": TokenPrice(2.0, 8.0)}
    assert remote_problems(recipe, {}) == []
    # remote_big_grammar would be taken for remote_big under its grammar.
    twins = Recipe.model_validate({"data": "rows.csv", "remotes": {"big": big, "big_grammar": big, "free": big}})
    assert [problem.key for problem in remote_problems(twins, {})] == ["remotes.big_grammar", "remotes.free"]
    assert token_prices(Recipe.model_validate({"data": "rows.csv"})) == {}


def test_a_form_is_asked_of_an_endpoint_where_answers_are_held_to_one(project, tunesmith, server):
    def held(body: dict[str, Any], number: int) -> Answer:
        made = right(body, number)
        if "response_format" not in body:
            return made
        text = json.loads(made[2])["choices"][0]["message"]["content"]
        return said(json.dumps({"answer": text}))

    server.answer = held
    only = (*ONLY_REMOTE[:3], "--set", "evaluate.decoding=[grammar, free, scored]")
    done = tunesmith("baselines", "recipe.yaml", *QUICK, *only, *remote(server))
    assert done.code == 0, done
    assert values(done.json) == {"remote_big": 1.0, "remote_big_free": 1.0}
    assert answers(Path(done.json["run"]), "remote_big")[0]["answer"] in WORDS
    assert sum("response_format" in body for body in server.asked) == 40 + 4
    # One purse for all ways: when the second has its rows, the first has its rows and the four asked for latency.
    assert notes_of(Path(done.json["run"]), "remote_big_free")["spent"]["tokens"] == (40 + 4 + 40) * 42


GUIDE = {
    "warm.md": "# Warm words\n\n" + "\n\n".join(f"Who says {word} is warm." for word in WORDS["warm"]),
    "cold.txt": " ".join(f"Who says {word} is cold." for word in WORDS["cold"]),
    "page.html": "<p>Notes and tables are neutral.</p>",
    "logo.png": "",
}


def test_documents_are_found_shown_and_read_anew_when_they_change(project, tunesmith):
    guide = project / "guide"
    guide.mkdir()
    for name, text in GUIDE.items():
        (guide / name).write_text(text)
    wanted = ("baselines", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[documents]", "--set",
              "data.documents=guide", "--set", "evaluate.documents_k=[1, 2]", "--out", "made")  # fmt: skip
    done = tunesmith(*wanted)
    assert done.code == 0, done
    run = Path(done.json["run"])
    notes = notes_of(run, "documents")
    assert notes["documents"] == 3 and notes["passages"] >= 3 and notes["files_not_read"] == {".png": 1}
    assert notes["search"] == "words (BM25)" and notes["k"] in (1, 2) and notes["rows_found_in_documents"] == 0
    assert set(notes["chosen_on"]["tried"]) == {"k 1, instruction 0", "k 2, instruction 0"}
    shown = [row["prompt"] for row in answers(run, "documents")]
    assert any("Who says dear is warm." in prompt for prompt in shown)
    assert any("These passages may help:" in prompt and "cold.txt" in prompt for prompt in shown)
    (guide / "cold.txt").write_text("A shorter guide says that dear friends are warm.")
    (run / "manifest.json").write_text((run / "manifest.json").read_text().replace('"baselines": true', '"x": true'))
    again = tunesmith(*wanted)
    assert again.code == 0, again
    shown = [row["prompt"] for row in answers(run, "documents")]
    assert any("A shorter guide" in prompt for prompt in shown)
    assert not any("says never is cold" in prompt for prompt in shown)


def test_an_encoder_finds_rows_and_documents_by_meaning(project, tunesmith, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(project / "cache"))
    encoder = save_encoder(project / "encoder", [" ".join(words) for words in WORDS.values()])
    (project / "guide.txt").write_text(
        "\n\n".join(f"Who says {w} is {tone}." for tone, ws in WORDS.items() for w in ws)
    )
    settings = ("baselines=[retrieval, documents]", "data.documents=guide.txt", f"evaluate.embedding_model={encoder}",
                "evaluate.decoding=[free]", "evaluate.documents_k=[1]", "evaluate.retrieval_k=[1]")  # fmt: skip
    wanted = ("baselines", "recipe.yaml", "--json", *QUICK, *(part for one in settings for part in ("--set", one)))
    done = tunesmith(*wanted)
    assert done.code == 0, done
    run = Path(done.json["run"])
    for name in ("retrieval", "documents"):
        assert notes_of(run, name)["search"] == f"meaning ({encoder})"
    kept = list((project / "cache" / "embeddings").glob("*.npy"))
    assert len(kept) == 3  # test questions, training questions, passages
    encode, together = TextEncoder._encode, []

    def noted(self: TextEncoder, texts: Sequence[str]) -> Any:
        together.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "_encode", noted)
    again = tunesmith(*wanted, "--new")
    assert again.code == 0 and values(again.json) == values(done.json)
    assert together == [1] * 8  # only to measure how long a question takes: three and one before, of two candidates


def test_rows_that_stand_in_the_documents_are_not_shown_their_own_answer(project, tunesmith):
    rows = [line.split(",") for line in (project / "rows.csv").read_text().splitlines()[1:]]
    told = "\n".join(json.dumps({"text": f"{text} is {tone}"}) for text, tone in rows)
    (project / "answers.jsonl").write_text(told)
    done = tunesmith("baselines", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[documents]", "--set",
                     "data.documents=answers.jsonl", "--set", "evaluate.documents_k=[2]")  # fmt: skip
    assert done.code == 0, done
    run = Path(done.json["run"])
    assert notes_of(run, "documents")["rows_found_in_documents"] == 40
    (warned,) = [event for event in events(run) if event.get("code") == "row_in_documents"]
    assert warned["count"] == 40 and "40 of 40 test rows stand in the documents" in warned["text"]
    tones = dict(rows)
    for row in answers(run, "documents"):
        asked = row["prompt"].split("The question:")[-1]
        own = max((text for text in tones if text in asked), key=len)
        assert f"{own} is {tones[own]}" not in row["prompt"] and "[2]" in row["prompt"]


def test_documents_that_cannot_be_read_are_told_before_a_model_is_asked(project, tunesmith):
    wanted = ("baselines", "recipe.yaml", "--json", *QUICK, "--set", "data.documents=nowhere")
    stopped = tunesmith(*wanted)
    assert stopped.code == 3 and "no such file or folder" in stopped.error["what"]
    assert not list((project / "runs").glob("*/evaluation/*.jsonl"))


def test_instructions_and_kinds_of_examples_are_chosen_on_validation(project, tunesmith):
    done = tunesmith(
        "baselines", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[zero_shot, few_shot]",
        "--set", "evaluate.decoding=[free]", "--set", "evaluate.few_shot_choice=[diverse, fixed]",
        "--set", 'evaluate.instructions=["Name the tone.", "Which tone has this phrase?"]',
    )  # fmt: skip
    assert done.code == 0, done
    run = Path(done.json["run"])
    zero, few = notes_of(run, "zero_shot"), notes_of(run, "few_shot")
    wordings = {"the task's own", "Name the tone.", "Which tone has this phrase?"}
    assert len(zero["chosen_on"]["tried"]) == 3 and zero["instruction"] in wordings
    assert len(few["chosen_on"]["tried"]) == 12 and few["examples"] in ("diverse", "fixed")
    assert few["chosen_on"]["validation_rows"] == 8 and few["k"] in (1, 2)
    wording = few["instruction"] if few["instruction"] != "the task's own" else "Classify the input."
    assert all(
        wording in row["prompt"] and "Answer with exactly one" in row["prompt"] for row in answers(run, "few_shot")
    )


@pytest.mark.parametrize(
    ("room", "ks", "size"), [(2_000, [1, 2, 4], 256), (700, [1, 2, 4], 151), (300, [1, 2, 4], 126), (60, [2], 16)]
)
def test_passages_are_as_large_as_the_context_allows(room: int, ks: list[int], size: int) -> None:
    assert passage_size(room, ks) == size
