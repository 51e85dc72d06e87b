"""Texts as vectors by an encoder from the hub or a folder, kept on the disk so that a corpus is encoded once.

How a model wants to be used is read from the files it comes with, as sentence-transformers writes them: the pooling
(`1_Pooling/config.json`, else the mean over tokens) and what is put before a question or a passage
(`config_sentence_transformers.json`, else nothing). Vectors have length 1 in every case.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from torch import Tensor

from tunesmith.errors import EngineError, ResourceError
from tunesmith.evaluation.nearness import Side, Vectors

Pooling = Literal["mean", "cls", "lasttoken"]
_WHERE = "evaluate.embedding_model"
_BATCH_TOKENS = 8_192
_KNOWN = ("Transformer", "Pooling", "Normalize")
"""Layers of an encoder, by their names in `modules.json`, that are computed here."""
_SIDES: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "passage": ("passage", "document", "corpus")}


class TextEncoder:
    """An encoder model with its tokenizer; implements `nearness.Encoder`.

    Attributes
    ----------
    pooling: how token states [tokens, d] become one vector. prefixes: put before a text, by its side.
    longest: tokens that are read; what is behind them is not.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        pooling: Pooling = "mean",
        prefixes: Mapping[Side, str] | None = None,
        longest: int = 512,
        cache: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.pooling, self.prefixes, self.longest = pooling, dict(prefixes or {}), longest
        self._cache = cache

    def encode(self, texts: Sequence[str], side: Side) -> Vectors:
        """Vectors [len(texts), d] of length 1, fp32; read from the cache where these texts were encoded before.

        A text alone is never kept, as the time it takes is measured.
        """
        before = self.prefixes.get(side, "")
        prefixed = [before + text for text in texts]
        path = self._path(prefixed)
        if path is not None and path.is_file():
            kept = _read(path, len(texts))
            if kept is not None:
                return kept
        made = self._encode(prefixed)
        if path is not None:
            _write(path, made)
        return made

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        """In batches of texts of like length, about `_BATCH_TOKENS` tokens each."""
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        device = next(self.model.parameters()).device
        vectors: list[Any] = [None] * len(ids)
        start = 0
        while start < len(order):
            width = max(1, len(ids[order[start]]))
            rows = order[start : start + max(1, _BATCH_TOKENS // width)]
            batch = torch.zeros(len(rows), width, dtype=torch.long)
            seen = torch.zeros(len(rows), width, dtype=torch.long)
            for place, row in enumerate(rows):
                batch[place, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.long)
                seen[place, : len(ids[row])] = 1
            states = self.model(input_ids=batch.to(device), attention_mask=seen.to(device)).last_hidden_state
            pooled = _pooled(states.float(), seen.to(device), self.pooling)
            unit = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
            for place, row in enumerate(rows):
                vectors[row] = unit[place]
            start += len(rows)
        return np.array(vectors, dtype=np.float32)

    def _path(self, texts: Sequence[str]) -> Path | None:
        if self._cache is None or len(texts) < 2:
            return None
        told = json.dumps([self.name, self.pooling, self.longest, list(texts)])
        return self._cache / f"{hashlib.sha256(told.encode()).hexdigest()}.npy"


def load_encoder(source: str, *, cache: Path | None = None, device: torch.device | str | None = None) -> TextEncoder:
    """The encoder of a folder or hub id. `cache`: the folder in which vectors are kept.

    Code that comes with a model is never run. Raises `EngineError` where it cannot be loaded, pools in another way, or
    does more to its vectors than is done here.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # Said, not left out: transformers would ask at the terminal whether to run code that comes with the model.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise EngineError(
            f"the encoder could not be loaded: {(str(error).strip().splitlines() or [type(error).__name__])[0]}",
            where=f"{_WHERE}: {source}",
            expected="an encoder with safetensors weights and a tokenizer",
            fix="check the name, the network, or give a local folder",
        ) from error
    _require_known(_settings(source, "modules.json"), source)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return TextEncoder(
        model.to(device),
        tokenizer,
        _identity(source, model),
        pooling=_pooling(_values(source, "1_Pooling/config.json"), source),
        prefixes=_prefixes(_values(source, "config_sentence_transformers.json")),
        longest=_longest(_values(source, "sentence_bert_config.json"), model, tokenizer),
        cache=cache,
    )


def _pooled(states: Tensor, seen: Tensor, pooling: Pooling) -> Tensor:
    """One vector per row [rows, d] from states [rows, tokens, d]; `seen` [rows, tokens] is 0 on padding, at the end."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        last = (seen.sum(1) - 1).clamp_min(0)
        return states[torch.arange(len(states), device=states.device), last]
    weights = seen.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def _values(source: str, name: str) -> Mapping[str, Any]:
    """The fields of a JSON file that comes with the model; empty where it has none."""
    found = _settings(source, name)
    return found if isinstance(found, dict) else {}


def _settings(source: str, name: str) -> Any:
    """What a JSON file that comes with the model holds; None where it has none."""
    if Path(source).expanduser().is_dir():
        path = Path(source).expanduser() / name
    else:
        try:
            path = Path(hf_hub_download(source, name))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
        except (HfHubHTTPError, OSError) as error:
            raise EngineError(f"{name} could not be read: {error}", where=f"{_WHERE}: {source}") from error
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{name} is no JSON: {error}", where=f"{_WHERE}: {source}") from error


def _require_known(modules: Any, source: str) -> None:
    """Raise `EngineError` where the model's vectors go through more than is computed here, such as a last layer."""
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules or () if isinstance(one, dict)]
    further = [kind for kind in kinds if kind not in _KNOWN]
    if further:
        raise EngineError(
            f"this encoder has further layers behind its pooling: {', '.join(further)}",
            where=f"{_WHERE}: {source}",
            expected=" and ".join(_KNOWN),
            fix="choose another encoder",
        )


def _pooling(settings: Mapping[str, Any], source: str) -> Pooling:
    """Told by a switch for each kind, or by name; the mean where nothing is told."""
    wanted = [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True and "mode_" in key]
    if isinstance(named := settings.get("pooling_mode"), str):
        wanted = [named]
    if not wanted:
        return "mean"
    known: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls"}
    known |= {"mean": "mean", "cls": "cls", "lasttoken": "lasttoken"}
    pooling = known.get(wanted[0]) if len(wanted) == 1 else None
    if pooling is None:
        raise EngineError(
            f"this encoder pools by {', '.join(wanted)}",
            where=f"{_WHERE}: {source}",
            expected="mean_tokens | cls_token | lasttoken",
            fix="choose another encoder",
        )
    return pooling


def _prefixes(settings: Mapping[str, Any]) -> dict[Side, str]:
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return {}
    return {
        side: next((prompts[name] for name in names if isinstance(prompts.get(name), str)), "")
        for side, names in _SIDES.items()
    }


def _longest(settings: Mapping[str, Any], model: Any, tokenizer: Any) -> int:
    """Tokens the model reads: the least of what its files say."""
    said = (
        settings.get("max_seq_length"),
        getattr(tokenizer, "model_max_length", None),
        getattr(model.config, "max_position_embeddings", None),
    )
    return min((int(one) for one in said if isinstance(one, int) and 0 < one < 1 << 20), default=512)


def _identity(source: str, model: Any) -> str:
    """What its vectors depend on: a hub model's revision, a folder's weights."""
    revision = getattr(model.config, "_commit_hash", None)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return f"{source}@{revision}"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _read(path: Path, rows: int) -> Vectors | None:
    """Kept vectors; None for a file that was damaged, which is then made anew."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.float32 and found.ndim == 2 and len(found) == rows else None


def _write(path: Path, vectors: Vectors) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, vectors)
        partial.replace(path)
    except OSError as error:
        raise ResourceError(
            f"vectors cannot be kept: {error.strerror or error}",
            where=str(path.parent),
            expected="a writable folder with space left",
            fix="set TUNESMITH_CACHE to another folder",
        ) from error
