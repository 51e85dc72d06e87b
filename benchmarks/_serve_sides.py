"""Who answers in `serve.py`, each behind the same few words: ask this, and tell when text came.

`Http` is any server that streams chat completions, asked over sockets from this process. `Direct` is our engine without
a server around it. `Plain` is `transformers` generate, called once for each prompt, with adapters switched by `peft`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from _serve_models import Prompts
from tunesmith.data.types import Message
from tunesmith.inference.serving.torch_serving import TorchServing
from tunesmith.inference.serving.types import Ask, Decoding, ModelRef, Piece

STARTING = 180.0
PATIENCE = 900.0


@dataclass(frozen=True)
class Said:
    """An answer, and the seconds until its first and its last text."""

    text: str
    first: float
    seconds: float


class Side(Protocol):
    """Someone who can be asked by several at once; model 0 is the base, model i the adapter i."""

    async def ask(self, question: str, model: int, tokens: int) -> Said: ...


@dataclass(frozen=True)
class Http:
    """A server at a port of this machine, and what it calls the models."""

    port: int
    names: Sequence[str]

    async def ask(self, question: str, model: int, tokens: int) -> Said:
        body = json.dumps(
            {
                "model": self.names[model], "messages": [{"role": "user", "content": question}], "stream": True,
                "max_tokens": tokens, "temperature": 0,
            }
        ).encode()  # fmt: skip
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            # HTTP/1.0, so that the answer is the bare stream until the connection ends
            head = (
                "POST /v1/chat/completions HTTP/1.0", "Host: 127.0.0.1", "Content-Type: application/json",
                f"Content-Length: {len(body)}", "", "",
            )  # fmt: skip
            writer.write("\r\n".join(head).encode() + body)
            return await _read(reader, began)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, began: float) -> Said:
    status = await reader.readline()
    text, first = "", 0.0
    while line := await reader.readline():
        if b" 200 " not in status or not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            if b" 200 " not in status and line.startswith(b"{"):
                raise RuntimeError(f"{status.decode().strip()}: {line.decode()[:300]}")
            continue
        for choice in json.loads(line[5:]).get("choices") or ():
            new = (choice.get("delta") or {}).get("content")
            if new:
                first = first or time.perf_counter() - began
                text += new
    if b" 200 " not in status:
        raise RuntimeError(status.decode().strip())
    return Said(text, first, time.perf_counter() - began)


@dataclass(frozen=True)
class Direct:
    """Our engine in this process."""

    engine: TorchServing
    models: Sequence[ModelRef]

    async def ask(self, question: str, model: int, tokens: int) -> Said:
        began, first, text = time.perf_counter(), 0.0, ""
        ask = Ask(self.models[model], (Message("user", question),), tokens, Decoding(temperature=0.0))
        async for item in self.engine.submit(ask):
            if isinstance(item, Piece):
                first = first or time.perf_counter() - began
                text += item.text
        return Said(text, first, time.perf_counter() - began)


class Plain:
    """`transformers` as its documentation shows it."""

    def __init__(self, base: Path, adapters: Sequence[Path], prompts: Prompts) -> None:
        from transformers import AutoModelForCausalLM

        def loaded() -> Any:
            return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

        self._base, self._prompts = loaded(), prompts
        self._tuned: Any = None
        if adapters:
            from peft import PeftModel

            self._tuned = PeftModel.from_pretrained(loaded(), adapters[0], adapter_name="1").eval()
            for number, folder in enumerate(adapters[1:], 2):
                self._tuned.load_adapter(folder, adapter_name=str(number))

    @torch.inference_mode()
    def ask(self, question: str, model: int, tokens: int) -> Said:
        ids = torch.tensor([self._prompts.ids(question)])
        if model:
            self._tuned.set_adapter(str(model))
        began = time.perf_counter()
        out = (self._tuned if model else self._base).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0
        )
        seconds = time.perf_counter() - began
        return Said(self._prompts.decode(out[0, ids.shape[1] :].tolist()), 0.0, seconds)

    @torch.inference_mode()
    def prefill(self, question: str) -> float:
        """Seconds of one pass over a prompt."""
        ids = torch.tensor([self._prompts.ids(question)])
        began = time.perf_counter()
        self._base(input_ids=ids, logits_to_keep=1)
        return time.perf_counter() - began


@contextmanager
def our_server(home: Path, base: Path, adapters: Sequence[Path], threads: int) -> Iterator[Http]:
    """`tunesmith serve` with the base under the name `base` and adapters as tuned models."""
    from tunesmith.service.settings import ServeSettings
    from tunesmith.service.store import open_store
    from tunesmith.service.store.nouns import Model

    home.mkdir(parents=True)
    store, _ = open_store(ServeSettings(home=home))
    for number, folder in enumerate(adapters, 1):
        store.add(
            Model(f"tuned-{number}", int(time.time()), "benchmark", "registered", str(base), str(folder.resolve()))
        )
    store.close()
    (home / "serve.yaml").write_text(json.dumps({"aliases": {"base": str(base.resolve())}}), encoding="utf-8")
    port = _free_port()
    command = [sys.executable, "-m", "tunesmith.cli", "serve", "--home", str(home), "--port", str(port), "--no-worker"]
    names = ["base", *(f"tuned-{number}" for number in range(1, len(adapters) + 1))]
    with _process([*command, "--config", str(home / "serve.yaml")], home / "out.log", threads, f"{port}/readyz"):
        yield Http(port, names)


@contextmanager
def their_server(executable: str, base: Path, log: Path, threads: int, batching: bool) -> Iterator[Http]:
    """`transformers serve` with the base, which has no adapters; with or without its continuous batching."""
    port = _free_port()
    command = [executable, "serve", str(base), "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command.append("--continuous-batching" if batching else "--no-continuous-batching")
    with _process(command, log, threads, f"{port}/health"):
        yield Http(port, [str(base)])


@contextmanager
def _process(command: Sequence[str], log: Path, threads: int, ready: str) -> Iterator[None]:
    environment: Mapping[str, str] = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        until = time.monotonic() + STARTING
        while not _answers(f"http://127.0.0.1:{ready}"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{Path(command[0]).name} did not start: {log.read_text(errors='replace')[-600:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
