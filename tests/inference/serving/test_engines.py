"""Which engine answers, and passing requests on: a real HTTP server stands for the endpoint."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.inference.serving.asking import GREEDY, adapter_folder, answers, base_folder, conversation, told
from tunesmith.data.types import Message, ToolCall, offering
from tunesmith.errors import EngineError, TunesmithError
from tunesmith.inference.serving.engines import Engines, serving_engines
from tunesmith.inference.serving.remote_serving import RemoteServing
from tunesmith.inference.serving.torch_serving import TorchLimits
from tunesmith.inference.serving.types import Ask, Decoding, ModelRef, OverloadedError, answer_text
from tunesmith.inference.serving.vllm_serving import VllmServing, launch_command
from tunesmith.tasks.types import AnswerForm
from tunesmith.text.answers import read_answer

TOOL = json.dumps({"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}})


class Endpoint:
    """Says what it is told to, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str | None]] = []
        self.events: list[Any] = []
        self.status, self.headers, self.body = 200, dict[str, str](), b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                said = json.loads(self.rfile.read(length)) if length else None
                outer.asked.append((self.path, said, self.headers.get("Authorization")))
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)
                if outer.status == 200 and not outer.body:
                    for event in outer.events:
                        data = event if isinstance(event, str) else json.dumps(event)
                        self.wfile.write(f"data: {data}\n\n".encode())
                        self.wfile.flush()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def ref(endpoint: Endpoint, **more: Any) -> ModelRef:
    return ModelRef(**{"base": "their-model", "engine": "remote", "url": endpoint.url, **more})


def chunk(index: int = 0, finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}},
}


def test_a_conversation_is_passed_on_and_its_stream_back(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "sk-123")
    best = [{"token": "Hé", "bytes": [72, 195, 169], "logprob": -0.5}]
    scores = {"content": [{"token": "Hé", "bytes": [72, 195, 169], "logprob": -0.5, "top_logprobs": best}]}
    endpoint.events = [
        chunk(role="assistant", content=""), chunk(content="Hé", logprobs=scores), chunk(1, content="other"),
        chunk(content="llo"), chunk(finish="stop"), chunk(1, finish="length"), USAGE, "[DONE]",
    ]  # fmt: skip
    turns = offering(
        (
            Message("system", "be kind"), Message("user", "hi", name="ann"),
            Message("assistant", "", tool_calls=(ToolCall("c1", "find", "{}"),)),
            Message("tool", "found", tool_call_id="c1"),
        ), (TOOL,), parallel=False,
    )  # fmt: skip
    form = AnswerForm(json_schema={"type": "object"})
    decoding = Decoding(0.3, 0.9, 0.1, 0.2, {7: 2.0}, 5, ("END",), 1, form)
    ask = Ask(ref(endpoint, key_variable="THEIR_KEY"), turns, 20, decoding, count=2)
    pieces, usage = asyncio.run(told(RemoteServing(), ask))
    assert answer_text(pieces) == "Héllo" and answer_text(pieces, 1) == "other"
    assert [(p.index, p.finish) for p in pieces if p.finish] == [(0, "stop"), (1, "length")]
    assert (usage.prompt, usage.answer, usage.cached) == (9, 4, 3)
    (score,) = [one for piece in pieces for one in piece.scores]
    assert (score.text, score.data, score.logprob) == ("Hé", "Hé".encode(), -0.5) and score.top[0][2] == "Hé".encode()
    path, body, key = endpoint.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer sk-123"
    assert body["messages"][1] == {"role": "user", "content": "hi", "name": "ann"}
    assert body["messages"][2]["tool_calls"][0]["function"] == {"name": "find", "arguments": "{}"}
    assert body["messages"][3]["tool_call_id"] == "c1" and body["parallel_tool_calls"] is False
    assert body["tools"] == [json.loads(TOOL)] and body["response_format"]["json_schema"]["schema"] == form.json_schema
    assert body.items() >= {
        "model": "their-model", "n": 2, "temperature": 0.3, "top_p": 0.9, "seed": 5, "stop": ["END"], "max_tokens": 20,
        "stream": True,
    }.items()  # fmt: skip
    assert body["logit_bias"] == {"7": 2.0} and body["top_logprobs"] == 1 and body["presence_penalty"] == 0.1


def test_calls_of_tools_come_back_as_text_that_can_be_read(endpoint: Endpoint) -> None:
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "c", "function": {"name": "find", "arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": ' "é"}'}},
        {"index": 1, "id": "d", "function": {"name": "find", "arguments": "{}"}},
    ]
    endpoint.events = [chunk(content="so "), *(chunk(tool_calls=[p]) for p in parts), chunk(finish="tool_calls"), USAGE]
    pieces, _ = asyncio.run(told(RemoteServing(), Ask(ref(endpoint), conversation("hi"), 5)))
    read = read_answer(answer_text(pieces))
    assert [(call.name, json.loads(call.arguments)) for call in read.calls] == [("find", {"q": "é"}), ("find", {})]
    assert read.content == "so" and pieces[-1].finish == "stop"


def test_an_answer_that_is_held_to_labels_is_taken_out_of_its_object(endpoint: Endpoint) -> None:
    endpoint.events = [chunk(content='{"answer"'), chunk(content=': "good"}'), chunk(finish="stop"), USAGE]
    ask = Ask(ref(endpoint), conversation("hi"), 9, Decoding(form=AnswerForm(("good", "bad"))))
    pieces, _ = asyncio.run(told(RemoteServing(), ask))
    assert answer_text(pieces) == "good" and [p.finish for p in pieces] == ["stop"]


@pytest.mark.parametrize("prompt", ["a text", (5, 6, 7)])
def test_a_text_is_completed(endpoint: Endpoint, prompt: Any) -> None:
    scores = {"tokens": [" b"], "token_logprobs": [-1.5], "top_logprobs": [{" b": -1.5, " c": -2.0}]}
    endpoint.events = [
        {"choices": [{"index": 0, "text": " b", "logprobs": scores, "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}, USAGE, "[DONE]",
    ]  # fmt: skip
    pieces, _ = asyncio.run(told(RemoteServing(), Ask(ref(endpoint), prompt, 1, Decoding(top=2))))
    assert answer_text(pieces) == " b" and pieces[0].scores[0].logprob == -1.5 and len(pieces[0].scores[0].top) == 2
    path, body, key = endpoint.asked[0]
    assert path == "/v1/completions" and key is None
    assert body["prompt"] == (prompt if isinstance(prompt, str) else [5, 6, 7]) and body["logprobs"] == 2


def test_refusals_are_told(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "sk-123")
    ask = Ask(ref(endpoint, key_variable="THEIR_KEY"), conversation("hi"), 5)
    endpoint.status, endpoint.headers = 429, {"Retry-After": "17"}
    with pytest.raises(OverloadedError) as busy:
        asyncio.run(told(RemoteServing(), ask))
    assert busy.value.retry_after == 17
    endpoint.status, endpoint.body = 400, json.dumps({"error": {"message": "bad key sk-123"}}).encode()
    with pytest.raises(EngineError, match=r"refuses \(400\): bad key \(the key\)"):
        asyncio.run(told(RemoteServing(), ask))
    endpoint.status, endpoint.headers = 302, {"Location": "http://127.0.0.1:1/v1"}
    with pytest.raises(EngineError, match="302"):
        asyncio.run(told(RemoteServing(), ask))


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (["no json"], "something else"),
        ([{"choices": [{"delta": {}}]}], "something else"),
        ([chunk(content="a")], "broke off"),
        ([{"error": {"message": "out of memory"}}], "out of memory"),
    ],
)
def test_streams_that_are_none_are_told(endpoint: Endpoint, events: list[Any], words: str) -> None:
    endpoint.events = events
    with pytest.raises(EngineError, match=words):
        asyncio.run(told(RemoteServing(), Ask(ref(endpoint), conversation("hi"), 5)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoding": Decoding(grammar="start: /a/")}, "Lark"),
        ({"echo_scores": True}, "prompt"),
        ({"prompt": "x", "decoding": Decoding(form=AnswerForm(("a",)))}, "conversation"),
        ({"model": ModelRef("m", engine="remote")}, "not known where"),
        ({"model": ModelRef("m", engine="remote", url="http://h/v1", key_variable="NOT_SET_ANYWHERE")}, "not set"),
        ({"model": ModelRef("m", engine="remote", url="ftp://h")}, "no address"),
        ({"model": ModelRef("m", engine="remote", url="http://127.0.0.1:1/v1")}, "does not answer"),
    ],
)
def test_what_cannot_be_asked_is_refused(endpoint: Endpoint, change: dict[str, Any], words: str) -> None:
    ask = replace(Ask(ref(endpoint), conversation("hi"), 5), **change)
    with pytest.raises(TunesmithError, match=words):
        asyncio.run(told(RemoteServing(), ask))
    assert not endpoint.asked


# vLLM


def test_the_launch_command_of_vllm_knows_its_limits(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    good = [adapter_folder(tmp_path / f"a{rank}", base, 1, rank=rank, alpha=8.0) for rank in (4, 12)]
    command = launch_command(str(base), good, port=9001)
    assert command[:3] == ("vllm", "serve", str(base))
    assert command[command.index("--max-lora-rank") + 1] == "16" and command[command.index("--port") + 1] == "9001"
    assert command[-2:] == tuple(f"{folder.name}={folder}" for folder in good)
    assert "--enable-lora" not in launch_command(str(base), [])
    bad = {
        "no DoRA": adapter_folder(tmp_path / "dora", base, 1, use_dora=True),
        "fully trained": adapter_folder(tmp_path / "whole", base, 1, modules_to_save=("lm_head",)),
        "rank_pattern": adapter_folder(tmp_path / "ranks", base, 1, rank_pattern={"q_proj": 2}),
    }
    for words, folder in bad.items():
        with pytest.raises(EngineError, match=words):
            launch_command(str(base), [folder])


def test_an_adapter_is_loaded_into_a_running_vllm(endpoint: Endpoint, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapter = adapter_folder(tmp_path / "tuned", base, 1)
    asked = ref(endpoint, engine="vllm", base=str(base), adapter=adapter)
    endpoint.body = json.dumps({"data": [{"id": str(base)}]}).encode()
    loaded = asyncio.run(VllmServing().load(asked))
    assert loaded.renderer is None
    assert [path for path, *_ in endpoint.asked] == ["/v1/models", "/v1/load_lora_adapter"]
    assert endpoint.asked[1][1] == {"lora_name": "tuned", "lora_path": str(adapter)}
    endpoint.body = json.dumps({"data": [{"id": "tuned"}]}).encode()
    asyncio.run(VllmServing().load(asked))
    assert len(endpoint.asked) == 3, "it is there"
    with pytest.raises(EngineError, match="does not serve"):
        asyncio.run(VllmServing().load(replace(asked, adapter=None)))
    with pytest.raises(EngineError, match="vllm serve"):
        asyncio.run(VllmServing().load(replace(asked, url=None)))


# The choice


def test_models_go_to_the_engine_they_name(endpoint: Endpoint, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    endpoint.events = [chunk(content="theirs"), chunk(finish="stop"), USAGE]
    local, far = ModelRef(str(base), None, "raw"), ref(endpoint)

    async def work() -> Any:
        engines = serving_engines(TorchLimits(memory=1 << 26))
        assert engines.state() == {}
        found = await answers(engines, [Ask(m, conversation("hi"), 5, GREEDY) for m in (local, far)])
        assert (await engines.load(local)).context == 512 and (await engines.load(far)).renderer is None
        with pytest.raises(EngineError, match="no engine 'other'"):
            await engines.load(ModelRef("m", engine="other"))
        engines.register("other", lambda: RemoteServing())
        await engines.load(replace(far, engine="other"))
        state = engines.state()
        stream = engines.submit(Ask(local, conversation("hi"), 400, GREEDY))
        engines.forget(local)
        await stream.aclose()
        await engines.drain(1)
        return found, state

    found, state = asyncio.run(work())
    assert found[1] == "theirs" and state["requests"] == 2 and state["models_resident"] == 1


def test_the_choice_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, tunesmith.inference.serving.engines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert isinstance(serving_engines(), Engines)
