"""The benchmark of serving on a tiny model: all sides answer the same questions, and the page tells the figures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.inference.serving.asking import adapter_folder
from tests.tiny import build, byte_tokenizer
from tunesmith.inference.serving.torch_serving import TorchLimits, TorchServing
from tunesmith.inference.serving.types import ModelRef

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serve

    return serve


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small base with a chat template that never ends an answer."""
    import torch

    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[256:] = 0
    model.save_pretrained(tmp_path / "base")
    turns = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    byte_tokenizer(turns + "{% if add_generation_prompt %}assistant: {% endif %}").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_all_sides_answer_the_same_questions(bench: Any, base: Path, tmp_path: Path) -> None:
    from _serve_models import Prompts
    from _serve_sides import Direct, Plain

    adapters = [adapter_folder(tmp_path / f"a{i}", base, i) for i in range(2)]
    work = bench.Work(1, prompt=70, new=6, each=2, compared=4)
    prompts = Prompts(base, work.prompt)
    plain = Plain(base, adapters, prompts)
    engine = TorchServing(TorchLimits(memory=1 << 26))
    side = Direct(engine, [ModelRef(str(base)), *(ModelRef(str(base), one) for one in adapters)])
    cells = [bench.Cell("tiny", "ours", clients, count) for clients, count in ((1, 0), (3, 2))]
    for cell in cells:
        bench.measure([cell], {"ours": side}, plain, prompts, work)
        assert cell.same == cell.compared == 4 and cell.times is not None and cell.times > 0
    first = bench.lone(side, plain, prompts, 1)
    asyncio.run(engine.drain(0))
    assert [cell.asked for cell in cells] == [4, 6] and len(cells[1].first) == 6 and all(cells[1].first)
    texts = [prompts.next() for _ in range(3)]
    assert [len(prompts.ids(text)) for text in texts] == [70] * 3 and len({text[:2] for text in texts}) == 3

    held = {"imported": 1e8, "peak": 3e8, "weights": 1e8, "cache": 1e8, "times": 1.0}
    figures = [{**bench.asdict(cell), "times": cell.times} for cell in cells]
    figures.append({**bench.asdict(bench.Cell("tiny", "serve", 8, 0, skipped="it is not there")), "times": None})
    report = {
        "date": "2026-01-02T03:04:05", "machine": "a machine", "threads": 2, "load_before": 0.1, "direct": True,
        "bases": {"tiny": {"cells": figures, "first": first, "memory": held}},
    }  # fmt: skip
    page = bench.page(report)
    assert "| tunesmith | 3 | 2 |" in page and "4 of 4" in page
    assert "| transformers serve | 8 | base | left out: it is not there |" in page
    figures[1] |= {"clients": 8, "times": 1.5, "same": 3}
    assert [line.split(": ")[1] for line in bench.missed(report)][:2] == ["1.50 times", "1 answers differ"]


def test_peers_that_fail_or_take_too_long_are_left_out_and_the_rest_goes_on(
    bench: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from _serve_models import Prompts
    from _serve_sides import Plain, Said

    class Peer:
        def __init__(self, seconds: float, error: Exception | None = None) -> None:
            self.seconds, self.error = seconds, error

        async def ask(self, question: str, model: int, tokens: int) -> Said:
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            return Said("something else", 0.1, 0.2)

    monkeypatch.setattr(bench, "PEER_PATIENCE", 0.2)
    prompts = Prompts(base, 40)
    found = {"ours": Peer(0), "serve": Peer(5), "batching": Peer(0, ConnectionError("gone"))}
    cells = [bench.Cell("tiny", side, 2, 0) for side in found]
    bench.measure(cells, found, Plain(base, [], prompts), prompts, bench.Work(1, prompt=40, new=2, compared=1))
    assert [cell.skipped for cell in cells] == ["", "took more than 0 s", "ConnectionError: gone"]
    assert cells[0].compared == 1 and cells[0].same == 0 and cells[1].times is None


def test_without_transformers_serve_its_rows_say_why(
    bench: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argparse import Namespace

    monkeypatch.setenv("TUNESMITH_TRANSFORMERS", str(tmp_path / "no such program"))
    with bench.sides(tmp_path, base, [], Namespace(direct=True, peers=["serve", "batching"], threads=1)) as found:
        assert all("FileNotFoundError" in found[name] for name in ("serve", "batching"))


def test_a_server_is_asked_over_sockets(bench: Any) -> None:
    from _serve_sides import Http

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
        good = b'"model": "base"' in body
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if good else b"HTTP/1.1 404 Not Found\r\n\r\n")
        said = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
        writer.write(said % b"" + said % b"so " + said % b"it is" + b"data: [DONE]\n\n" if good else b'{"error": "no"}')
        await writer.drain()
        writer.close()

    async def work() -> tuple[Any, str]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        side = Http(server.sockets[0].getsockname()[1], ["base", "other"])
        said = await side.ask("hello", 0, 5)
        with pytest.raises(RuntimeError, match=r"404 Not Found.*no"):
            await side.ask("hello", 1, 5)
        server.close()
        return said, said.text

    said, text = asyncio.run(work())
    assert text == "so it is" and 0 < said.first <= said.seconds
