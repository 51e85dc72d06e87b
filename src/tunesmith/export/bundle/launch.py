"""How a bundle is started: a shell script, and a compose file where there is an image for the server.

Both listen on this machine alone unless they are told otherwise, and call the model by its name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tunesmith.errors import RecipeError
from tunesmith.export.bundle.types import Server
from tunesmith.models.artifact import Artifact
from tunesmith.models.servable import VLLM_MAX_RANKS

MODEL = "model"
"""Folder of the export within a bundle."""
START, COMPOSE = "start.sh", "compose.yaml"
_PORTS: dict[Server, int] = {"vllm": 8000, "llama.cpp": 8080, "ollama": 11434, "tunesmith": 8000}
_TEMPLATE = "chat_template.jinja"
_IMAGES: dict[Server, str] = {
    "vllm": "${VLLM_IMAGE:-vllm/vllm-openai:v0.33.0}",
    "llama.cpp": "${LLAMA_IMAGE:-ghcr.io/ggml-org/llama.cpp:server}",
    "tunesmith": "${TUNESMITH_IMAGE:-tunesmith}",
}
_WHERE = '--host "$HOST" --port "$PORT" "$@"'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


@dataclass(frozen=True, slots=True)
class Launch:
    """The files that start a bundle, by name; `needs` is what must be installed, as one sentence."""

    files: dict[str, str]
    needs: str
    url: str


def launch(artifact: Artifact, server: Server, name: str) -> Launch:
    """Start script and compose file of an export for a server, in which clients call it `name`.

    Raises `RecipeError` for a name that shells or servers would read as something else, and for an export that lacks
    what the server needs.
    """
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r} cannot be a model's name", where="--name", expected="letters, digits and . _ : / - only"
        )
    match server:
        case "vllm":
            return _vllm(artifact, name)
        case "llama.cpp":
            return _llama(artifact, name)
        case "ollama":
            return _ollama(artifact, name)
        case "tunesmith":
            return _tunesmith(artifact, name)


def _vllm(artifact: Artifact, name: str) -> Launch:
    needs = "a GPU that vLLM supports, and either vLLM (pip install vllm) or Docker"
    if artifact.target.kind == "adapter":
        rank = _served_rank(artifact)
        common = ["--enable-lora", "--max-lora-rank", str(rank)]
        inside = [_base_setting(artifact), *common, "--lora-modules", f"{name}=/{MODEL}"]
        outside = f'"{_base_setting(artifact)}" {_joined(common)} --lora-modules {shlex.quote(f"{name}=./{MODEL}")}'
    else:
        common = ["--served-model-name", name, "--max-model-len", str(artifact.context)]
        inside = [f"/{MODEL}", *common]
        outside = f"./{MODEL} {_joined(common)}"
    if artifact.target.kind == "adapter" and (artifact.folder / _TEMPLATE).is_file():
        inside += ["--chat-template", f"/{MODEL}/{_TEMPLATE}"]
        outside += f" --chat-template ./{MODEL}/{_TEMPLATE}"
    script = _script(f"Serves {name} with vLLM.", needs, "vllm", f"vllm serve {outside} {_WHERE}")
    compose = _compose("vllm", ["vllm", "serve"], inside, gpu=True)
    return Launch({START: script, COMPOSE: compose}, needs, _url("vllm"))


def _base_setting(artifact: Artifact) -> str:
    """The base as shell and compose read it: a hub's name by default, anything else has to be given."""
    if _is_hub(artifact.base):
        return f"${{BASE:-{artifact.base}}}"
    return f"${{BASE:?name the folder or hub id of the base, weights {artifact.base_sha256[:16]}}}"


def _is_hub(base: str) -> bool:
    """Whether it is a hub's `owner/name`, in the characters that the hub allows: it goes into a shell script."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base, re.ASCII) is not None


def _served_rank(artifact: Artifact) -> int:
    """The smallest of vLLM's limits that this adapter's rank fits."""
    rank = int(artifact.facts.get("rank", VLLM_MAX_RANKS[-1]))
    fitting = [limit for limit in VLLM_MAX_RANKS if limit >= rank]
    if not fitting:
        raise RecipeError(
            f"the adapter's rank {rank} is above vLLM's largest, {VLLM_MAX_RANKS[-1]}",
            where=str(artifact.folder),
            fix="bundle the merged model: tunesmith export RUN --to merged",
        )
    return fitting[0]


def _llama(artifact: Artifact, name: str) -> Launch:
    needs = "llama.cpp's llama-server, or Docker"
    file = _gguf_file(artifact)
    common = ["--alias", name, "--ctx-size", str(artifact.context), "--jinja"]
    script = _script(
        f"Serves {name} with llama.cpp.",
        needs,
        "llama-server",
        f"llama-server --model {shlex.quote(f'./{MODEL}/{file}')} {_joined(common)} {_WHERE}",
        port=_PORTS["llama.cpp"],
    )
    inside = ["--model", f"/{MODEL}/{file}", *common, "--host", "0.0.0.0", "--port", str(_PORTS["llama.cpp"])]
    compose = _compose("llama.cpp", None, inside)
    return Launch({START: script, COMPOSE: compose}, needs, _url("llama.cpp"))


def _ollama(artifact: Artifact, name: str) -> Launch:
    if "Modelfile" not in artifact.files:
        raise RecipeError("this export has no Modelfile", where=str(artifact.folder), fix="export it again for ollama")
    needs = "Ollama, running"
    create = f"ollama create {shlex.quote(name)} -f ./{MODEL}/Modelfile"
    script = _script(f"Makes {name} known to Ollama, and opens a chat with it.", needs, "ollama",
                     f"ollama run {shlex.quote(name)} \"$@\"", before=[create])  # fmt: skip
    return Launch({START: script}, needs, _url("ollama"))


def _tunesmith(artifact: Artifact, name: str) -> Launch:
    extra = "serve,onnx" if artifact.target.kind in ("onnx", "onnx-multi") else "serve"
    needs = f"Tunesmith (pip install 'tunesmith[{extra}]'), or Docker and an image made of its Dockerfile"
    if artifact.target.kind == "merged":
        setting = ["--config", f"{MODEL}.yaml"]
        files = {f"{MODEL}.yaml": yaml.safe_dump({"aliases": {name: f"./{MODEL}"}}, sort_keys=False)}
        volumes = [f"./{MODEL}.yaml:/{MODEL}.yaml:ro"]
        inside = ["serve", "--config", f"/{MODEL}.yaml", "--no-worker"]
    else:
        setting = ["--artifact", f"{name}=./{MODEL}"]
        files, volumes = {}, []
        inside = ["serve", "--artifact", f"{name}=/{MODEL}", "--no-worker"]
    script = _script(
        f"Serves {name} with Tunesmith.",
        needs,
        "tunesmith",
        f"tunesmith serve {_joined(setting)} --no-worker {_WHERE}",
    )
    inside += ["--host", "0.0.0.0", "--port", str(_PORTS["tunesmith"])]
    compose = _compose("tunesmith", None, inside, volumes=volumes)
    return Launch({START: script, COMPOSE: compose, **files}, needs, _url("tunesmith"))


def _gguf_file(artifact: Artifact) -> str:
    found = [name for name in artifact.files if name.endswith(".gguf")]
    if len(found) != 1:
        raise RecipeError(
            f"{len(found)} GGUF files are here", where=str(artifact.folder), expected="the one of a merged model"
        )
    return found[0]


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{_PORTS[server]}/v1"


def _joined(arguments: Sequence[str]) -> str:
    return " ".join(shlex.quote(one) for one in arguments)


def _script(title: str, needs: str, program: str, command: str, *, before: Sequence[str] = (), port: int = 8000) -> str:
    lines = [
        "#!/bin/sh",
        f"# {title}",
        f"# Needs {needs}. Options given here are passed on.",
        "set -eu",
        'cd "$(dirname "$0")"',
        f"command -v {program} > /dev/null || {{ echo {shlex.quote(f'this needs {needs}')} >&2; exit 127; }}",
    ]
    if "$HOST" in command:
        lines += ['HOST="${HOST:-127.0.0.1}"', f'PORT="${{PORT:-{port}}}"']
    return "\n".join([*lines, *before, f"exec {command}"]) + "\n"


def _compose(
    server: Server,
    entrypoint: Sequence[str] | None,
    command: Sequence[str],
    *,
    gpu: bool = False,
    volumes: Sequence[str] = (),
) -> str:
    port = _PORTS[server]
    service: dict[str, Any] = {
        "image": _IMAGES[server],
        **({"entrypoint": list(entrypoint)} if entrypoint else {}),
        "command": list(command),
        "ports": [f"127.0.0.1:${{PORT:-{port}}}:{port}"],
        "volumes": [f"./{MODEL}:/{MODEL}:ro", *volumes],
        "restart": "unless-stopped",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if gpu:
        devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        service |= {"ipc": "host", "deploy": {"resources": {"reservations": {"devices": devices}}}}
    return yaml.safe_dump({"services": {"model": service}}, sort_keys=False, width=120)
