"""What the frozen layers compute, kept on disk.

With training in the last k of L layers only, the hidden states that enter layer L - k are the same for a row each time
it is learnt. They are computed once before the first step, written to one file, and mapped into memory; from then on a
step costs what its last k layers cost. It is worth its time from the second epoch on, and its disk where rows are few:
a token takes `hidden size x bytes of a number`.

Documents are laid into streams as for training, so that a beginning many of them share is stored once per stream. A
document is found again by the hash of its ids. The folder appears whole or not at all, and is used again where base,
first layer, number type and rows are still the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.runs.atomic import staged_folder, write_json
from tunesmith.text.types import Group, Sample
from tunesmith.training import processes
from tunesmith.training.batching import Batch, collate, streams

Row = Sample | Group
Ids = npt.NDArray[np.int64]
_BLOCK = 512
"""Documents among which shared beginnings are looked for at once; neighbours in the order of their ids."""


@dataclass(frozen=True, slots=True)
class TrunkCache:
    """States entering decoder layer `first_layer`, by document.

    `stored` [N, H]: the streams end to end. `places`: per document (by `_digest` of its ids) first row and number of
    rows of the prefix it shares, and of its own.
    """

    first_layer: int
    stored: Tensor
    places: dict[bytes, tuple[int, int, int, int]]

    def states(self, document: Ids, begin: int = 0) -> Tensor | None:
        """States [L - begin, H] of a document's ids [L] from a place on; None for a document that is not known."""
        found = self.places.get(_digest(document))
        if found is None:
            return None
        prefix, shared, own, count = found
        if begin >= shared:
            return self.stored[own + begin - shared : own + count]
        return torch.cat([self.stored[prefix + begin : prefix + shared], self.stored[own : own + count]])

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.stored.numel() * self.stored.element_size()


def estimate_bytes(rows: Sequence[Row], hidden: int, dtype: torch.dtype, token_budget: int = 4096) -> int:
    """At most so many bytes on disk, for states of `hidden` numbers of a type."""
    blocks = _blocks(_documents(rows))
    tokens = sum(size for block in blocks for _, size in streams(block, token_budget))
    return tokens * hidden * dtype.itemsize


def trunk_cache(
    model: LanguageModel,
    rows: Sequence[Row],
    folder: Path,
    *,
    base: str,
    token_budget: int = 4096,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrunkCache:
    """The states of `rows` that enter the lowest trained layer: those in `folder` if they fit, else computed anew.

    Parameters
    ----------
    base: what identifies the frozen weights, and their quantisation if any.
    autocast: the type of matrix products, where it is another than the weights'.
    progress: told how many documents of how many are done.

    One process computes, the others wait. The cache is compared with what the model computes before it is returned.

    Raises `EngineError` where nothing below the trained layers is frozen, or where the model cannot be run from a
    layer on, and `ResourceError` where the disk does not take it.
    """
    first = model.frozen_layers
    model.require_constant(first)
    documents = _documents(rows)
    key = _key(base, first, next(model.trunk.parameters()).dtype, autocast, documents)
    probe = max(documents, key=lambda ids: (len(ids), ids.tobytes()))
    if processes.first():
        kept = _open(folder, key)
        if kept is None or not _same(_alone(model, first, probe, autocast), kept.states(probe), autocast):
            _build(model, first, documents, folder, key, token_budget, autocast, progress)
    processes.wait()
    cache = _open(folder, key)
    if cache is None:
        raise EngineError("the states of the frozen layers are not there", where=str(folder))
    _check(model, cache, probe, autocast)
    return cache


def _build(
    model: LanguageModel,
    first: int,
    documents: Sequence[Ids],
    folder: Path,
    key: dict[str, Any],
    token_budget: int,
    autocast: torch.dtype | None,
    progress: Callable[[int, int], None],
) -> None:
    if (folder / "cache.json").exists():
        shutil.rmtree(folder)  # room for the new one
    places: list[tuple[int, int, int, int]] = []
    digests: list[bytes] = []
    at, width, dtype = 0, 0, ""
    with staged_folder(folder) as staged:
        with (staged / "states").open("wb") as file:
            for batch in _batches(documents, token_budget, model.device):
                states = _states(model, first, batch, autocast).cpu().contiguous()
                width, dtype = states.shape[1], str(states.dtype).removeprefix("torch.")
                file.write(states.view(torch.uint8).numpy().data)
                for row, (prefix, own) in zip(batch.rows, batch.spans, strict=True):
                    shared = prefix.stop - prefix.start
                    places.append((at + prefix.start, shared, at + own.start, own.stop - own.start))
                    digests.append(_digest(row.ids))
                at += len(states)
                progress(len(places), len(documents))
        np.save(staged / "places.npy", np.array(places, np.int64))
        np.save(staged / "documents.npy", np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
        write_json(staged / "cache.json", {"key": key, "tokens": at, "hidden": width, "dtype": dtype})


def _open(folder: Path, key: dict[str, Any]) -> TrunkCache | None:
    """The finished cache of a folder, if it is the one that `key` names."""
    if not (folder / "cache.json").is_file():
        return None
    about = json.loads((folder / "cache.json").read_text())
    shape, dtype = (about["tokens"], about["hidden"]), getattr(torch, about["dtype"])
    if about["key"] != key or (folder / "states").stat().st_size != shape[0] * shape[1] * dtype.itemsize:
        return None
    stored = torch.from_file(str(folder / "states"), shared=False, size=shape[0] * shape[1], dtype=dtype)
    places = np.load(folder / "places.npy").tolist()
    digests = np.load(folder / "documents.npy")
    return TrunkCache(
        first_layer=key["first_layer"],
        stored=stored.view(shape),
        places={digest.tobytes(): tuple(place) for digest, place in zip(digests, places, strict=True)},
    )


def _key(
    base: str, first: int, dtype: torch.dtype, autocast: torch.dtype | None, documents: Iterable[Ids]
) -> dict[str, Any]:
    """Everything the states depend on."""
    rows = hashlib.sha256()
    for ids in documents:  # in the order of their ids: shuffled rows are the same rows
        rows.update(_digest(ids))
    return {
        "base": base,
        "first_layer": first,
        "dtype": str(dtype),
        "autocast": None if autocast is None else str(autocast),
        "rows": rows.hexdigest(),
        "libraries": [torch.__version__, transformers.__version__],
    }


def _documents(rows: Sequence[Row]) -> list[Ids]:
    """Documents that training will meet, each once, in the order of their ids."""
    samples = (s for row in rows for s in (row.samples if isinstance(row, Group) else (row,) if row.supervised else ()))
    unique = {s.ids.astype(">u4").tobytes(): s.ids for s in samples}
    return [unique[key] for key in sorted(unique)]


def _blocks(documents: Sequence[Ids]) -> Iterator[list[Row]]:
    """Documents as rows that are never left out."""
    for start in range(0, len(documents), _BLOCK):
        yield [Group((Sample(ids, np.zeros(len(ids), np.float32)),)) for ids in documents[start : start + _BLOCK]]


def _batches(documents: Sequence[Ids], token_budget: int, device: torch.device) -> Iterator[Batch]:
    for block in _blocks(documents):
        for stream, _ in streams(block, token_budget):
            yield collate(stream, device, share_prefixes=True)


@torch.no_grad()
def _states(model: LanguageModel, first: int, batch: Batch, autocast: torch.dtype | None) -> Tensor:
    with model.packed(), torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
        return model.states_entering(first, batch.ids, batch.packing)


def _alone(model: LanguageModel, first: int, document: Ids, autocast: torch.dtype | None) -> Tensor:
    """States [L, H] of one document as the model computes them now, on the CPU."""
    sample = Sample(document, np.zeros(len(document), np.float32))
    return _states(model, first, collate([sample], model.device), autocast).cpu()


@torch.no_grad()
def _check(model: LanguageModel, cache: TrunkCache, document: Ids, autocast: torch.dtype | None) -> None:
    """Last hidden states from the cache on are the model's own. Raises `EngineError` if not."""
    batch = collate([Sample(document, np.zeros(len(document), np.float32))], model.device)
    was_training = model.model.training
    model.model.eval()
    try:
        with model.packed(), torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
            model.use_trunk_cache(None)
            expected = model.hidden(batch.ids, batch.packing)
            model.use_trunk_cache(cache)
            ours = model.hidden(batch.ids, batch.packing)
    finally:
        model.use_trunk_cache(None)
        model.model.train(was_training)
    if not _same(expected, ours, autocast):
        raise EngineError(
            f"run from layer {cache.first_layer} on, the model computes something else than from its beginning",
            where=type(model.model).__name__,
            fix="set train.cache_trunk: off",
        )


def _same(expected: Tensor, found: Tensor | None, autocast: torch.dtype | None) -> bool:
    """Whether states agree to rounding, which differs with the stream a document is computed in."""
    if found is None or found.shape != expected.shape:
        return False
    allowed = 0.03 if autocast or expected.dtype in (torch.float16, torch.bfloat16) else 1e-3
    error = (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    return bool(error <= allowed)


def _digest(document: Ids) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(document, np.int64).data, digest_size=16).digest()
