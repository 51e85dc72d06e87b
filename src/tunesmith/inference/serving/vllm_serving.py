"""vLLM beside Tunesmith: it runs in an environment of its own, serves the same adapter folders, and is reached by URL.

`launch_command` writes how to start it for a base and its adapters, after looking whether vLLM can load them
(`models.servable` knows its limits). `VllmServing` then passes requests on. An adapter that vLLM was not started with
is loaded while it runs, where it was allowed to (`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shlex
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.inference.endpoint import Endpoint
from tunesmith.inference.serving.adapters import read_config
from tunesmith.inference.serving.remote_serving import RemoteServing, endpoint_of, opened
from tunesmith.inference.serving.types import Loaded, ModelRef
from tunesmith.models.adapter import adapter_names, unsupported
from tunesmith.models.load import base_folder
from tunesmith.models.servable import VLLM_MAX_RANKS, servable
from tunesmith.recipe.schema import Method

_SECONDS = 30.0


class VllmServing(RemoteServing):
    """A `ServingEngine` of vLLM servers. An adapter is called by the name of its folder."""

    async def load(self, ref: ModelRef) -> Loaded:
        await asyncio.to_thread(self._load, ref)
        return await super().load(ref)

    def name(self, ref: ModelRef) -> str:
        return served_base(ref.base) if ref.adapter is None else ref.adapter.name

    def _load(self, ref: ModelRef) -> None:
        command = launch_command(ref.base, [ref.adapter] if ref.adapter is not None else [])
        if not ref.url:
            raise EngineError(
                "it is not known where vLLM serves this model",
                where=ref.base,
                expected="its address (url)",
                fix=f"start it in its own environment and give its address: {shlex.join(command)}",
            )
        endpoint = endpoint_of(ref)
        name = self.name(ref)
        served = [model["id"] for model in _asked(endpoint, "models", None).get("data", ())]
        if name in served:
            return
        if ref.adapter is None:
            raise EngineError(f"vLLM does not serve {name}", where=endpoint.host, expected=", ".join(served))
        _asked(endpoint, "load_lora_adapter", {"lora_name": name, "lora_path": str(ref.adapter.resolve())})


def served_base(base: str) -> str:
    """What vLLM is to call a base: its own name, as folders are no names."""
    return base.removeprefix("embedded:") if base.startswith("embedded:") else base


def launch_command(base: str, adapters: Sequence[Path], port: int = 8001) -> tuple[str, ...]:
    """How vLLM is started for a base with adapters. Raises `EngineError` where it cannot load one, with all reasons."""
    from transformers import AutoConfig

    folder = base_folder(base)
    command = ["vllm", "serve", str(folder or base), "--served-model-name", served_base(base), "--port", str(port)]
    if not adapters:
        return tuple(command)
    config = AutoConfig.from_pretrained(str(folder or base))
    ranks = [_checked_rank(adapter, config) for adapter in adapters]
    most = next(rank for rank in VLLM_MAX_RANKS if rank >= max(ranks))
    command += ["--enable-lora", "--max-lora-rank", str(most), "--max-loras", str(min(8, len(adapters)))]
    return (*command, "--lora-modules", *(f"{adapter.name}={adapter.resolve()}" for adapter in adapters))


def _checked_rank(adapter: Path, config: Any) -> int:
    """The rank of an adapter that vLLM can load."""
    found = read_config(adapter)
    problems = unsupported(found, adapter_names(adapter))
    rank = int(found.get("r") or 0)
    if not problems:
        targets = found.get("target_modules")
        method = Method.model_validate(
            {
                "type": "lora",
                "rank": rank,
                "use_dora": bool(found.get("use_dora")),
                "modules_to_save": found.get("modules_to_save") or [],
                "target_modules": "all-linear" if isinstance(targets, str) else sorted(targets or ()),
                "rank_pattern": found.get("rank_pattern") or {},
                "alpha_pattern": found.get("alpha_pattern") or {},
            }
        )
        verdict = next(one for one in servable(method, config) if one.server == "vllm")
        problems = list(verdict.reasons)
    if problems:
        raise EngineError(
            f"vLLM cannot load this adapter: {'; '.join(problems)}",
            where=adapter.name,
            fix="serve it with torch, or merge it into its base",
        )
    return rank


def _asked(endpoint: Endpoint, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """What vLLM says to a request of its management; `load_lora_adapter` answers with a plain text."""
    try:
        with opened(endpoint, path, body, _SECONDS) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        raise EngineError(
            f"vLLM refuses {path} ({error.code})",
            where=endpoint.host,
            fix="start it with the adapter, or with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        why = getattr(error, "reason", error)
        raise EngineError(f"vLLM does not answer: {why}", where=endpoint.host) from error
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
