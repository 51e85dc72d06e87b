"""How a server is set up: from flags, the environment and an optional YAML file, in this order of weight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.errors import ResourceError

ResultsEncoding = Literal["plain", "base64", "auto"]

OPENAI_NAMES = (
    "gpt-4o-mini-2024-07-18",
    "gpt-4o-mini",
    "gpt-4o-2024-08-06",
    "gpt-4o",
    "gpt-4.1-2025-04-14",
    "gpt-4.1",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-mini",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4.1-nano",
    "gpt-4-0613",
    "gpt-4",
    "gpt-3.5-turbo-0125",
    "gpt-3.5-turbo-1106",
    "gpt-3.5-turbo-0613",
    "gpt-3.5-turbo",
    "gpt-35-turbo-0125",
    "gpt-35-turbo-1106",
    "gpt-35-turbo-0613",
    "gpt-35-turbo",
    "babbage-002",
    "davinci-002",
    "o4-mini-2025-04-16",
    "o4-mini",
    "o3-mini",
    "gpt-5",
    "Ministral-3B",
    "Qwen-32B",
    "Llama-3.3-70B",
    "gpt-oss-20b",
)
"""Names in code written for OpenAI and Azure; without a configuration each stands for `embedded:base`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes. Sizes in bytes, times in seconds, rates per key and minute (0: no limit).

    `home` is what may be kept in all (0: no limit), `free_disk` what stays free on the disk. `connections` is how many
    connections there may be, and how many requests in hand; `waiting_requests` and `batch_rows` are answers of each
    model that wait and that are written together. `request_seconds` is how long a model may take until its answer
    begins.
    """

    file: int = 512_000_000
    batch_file: int = 200_000_000
    upload: int = 8_000_000_000
    part: int = 64_000_000
    body: int = 32_000_000
    home: int = 0
    free_disk: int = 1_000_000_000
    requests_per_minute: int = 0
    connections: int = 2_000
    waiting_requests: int = 256
    batch_rows: int = 32
    queued_jobs: int = 1_000
    request_seconds: int = 600


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model at an OpenAI-compatible address that is passed on to. `api_key_env` names the variable with its key."""

    url: str
    model: str
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """One server.

    Attributes
    ----------
    home: folder of everything that is kept: store, blobs, runs, models.
    database: SQLAlchemy URL; None is `home/store.sqlite`.
    wait_jobs: `retrieve` of a job that goes on is answered when it has ended.
    results_encoding: of a job's result CSV; auto is base64 for chat rows and plain for prompt/completion rows.
    aliases: names in requests to bases (`embedded:NAME`, a local folder, a hub id).
    remotes: names in requests to models elsewhere; they answer, and nothing is trained on them.
    vllm: bases to the addresses (up to and including /v1) at which a vLLM of your own serves them and their adapters.
    artifacts: names in requests to folders of exported models; what they hold is asked, and nothing is trained on them.
    organization: stands in the names of tuned models and in jobs.
    adapters_resident: adapters kept in memory; the longest unused goes first.
    python_graders: graders written in Python may run (in a sandbox).
    devices: one job at a time on each.
    fetch_urls: files may be imported from http(s) addresses (Azure's `files/import`); off, none is ever opened.
    fetch_private: such an address may lie in a private network, or be this machine.
    require_key: ask for a key on loopback too.
    worker: jobs are worked on by this server's own worker; off where `tunesmith worker` does it.
    drain_seconds: how long answers may still go on once the server is told to end.
    log: file of the log, None for standard error.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    database: str | None = None
    wait_jobs: bool = False
    results_encoding: ResultsEncoding = "plain"
    aliases: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(OPENAI_NAMES, "embedded:base"))
    remotes: Mapping[str, RemoteModel] = field(default_factory=dict)
    vllm: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    organization: str = "tunesmith"
    adapters_resident: int = 32
    python_graders: bool = False
    devices: tuple[str, ...] = ("cpu",)
    evidence: bool = True
    fetch_urls: bool = False
    fetch_private: bool = False
    require_key: bool = False
    worker: bool = True
    drain_seconds: int = 30
    log: Path | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server; then no key is needed."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    @property
    def keys_required(self) -> bool:
        """Whether every request must come with a key."""
        return self.require_key or not self.loopback

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.home / 'store.sqlite'}"


def make_home(home: Path) -> None:
    """The folder of everything that is kept, which only its owner can read; one that exists stays as it is.

    Raises `ResourceError` where there can be no such folder.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"the home folder cannot be used: {(error.strerror or str(error)).lower()}",
            where=str(home),
            fix="choose a folder that you may write to with --home",
        ) from error


def default_home() -> Path:
    """`$TUNESMITH_HOME`, else `~/.local/share/tunesmith`."""
    given = os.environ.get("TUNESMITH_HOME")
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "tunesmith"
