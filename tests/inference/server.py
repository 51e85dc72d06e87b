"""A chat endpoint on this machine whose answers a test decides."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers, body; None hangs up without an answer."""


class Server:
    """A chat endpoint whose answers a test decides, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any], int], Answer] = lambda body, number: reply("ok")
        self.busy = self.busiest = 0
        self.speak: Callable[[BaseHTTPRequestHandler], None] | None = None
        """In place of `answer`, where a test writes the reply itself."""
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.asked)
                    outer.asked.append({"path": self.path, **body})
                    outer.headers.append(dict(self.headers))
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                if outer.speak is not None:
                    with suppress(OSError):  # the other side may not wait for the end
                        outer.speak(self)
                    return
                try:
                    made = outer.answer(body, number)
                finally:
                    with outer.lock:
                        outer.busy -= 1
                if made is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, data = made
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def reply(text: str, usage: dict[str, int] | None = None, reason: str = "stop") -> Answer:
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "model": "teacher-2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
        "usage": usage or {"prompt_tokens": 30, "completion_tokens": 10},
    }
    if usage == {}:
        del body["usage"]
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message, "code": "x"}}).encode()


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the end of the block."""
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()
