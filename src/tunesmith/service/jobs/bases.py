"""The weights a job begins with: a base as it is, or a tuned model merged into the base it was tuned on.

A job on a tuned model (or on a checkpoint of one) learns a new adapter on weights that hold what was learnt before, so
its start answers exactly as that model does. The merged folder lies under `home/models/merged`, named after the
adapter's content, and is shared by all jobs that begin there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.runs import staged_folder
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Job, Model

_MERGED = Path("models") / "merged"
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def starting_base(job: Job, store: Store, settings: ServeSettings) -> str:
    """The base that the job's recipe names: `embedded:NAME`, a hub id, or a folder.

    Merges a tuned model that the job goes on from, once. Raises `ResourceError` where that model is gone, and whatever
    loading and merging raise.
    """
    record = started_from(job, store)
    if record is None or record.adapter is None:
        return job.base
    adapter = settings.home / record.adapter
    if not (adapter / _CONFIG).is_file():
        raise ResourceError(
            f"the weights of {record.id}, which this job goes on from, are not there any more", fix="train it again"
        )
    target = settings.home / _MERGED / _content_of(adapter, record.base)
    if not (target / "config.json").is_file():
        _merge(record, adapter, target)
    return str(target)


def started_from(job: Job, store: Store) -> Model | None:
    """The tuned model that the job goes on from; None where it begins with a base.

    Raises `ResourceError` where it was deleted.
    """
    name = job.extra.get("starts_from")
    if name is None:
        return None
    record = store.get(Model, str(name))
    if record is None:
        raise ResourceError(f"the model {name}, which this job goes on from, was deleted", fix="choose another model")
    return record


def parameters_of(base: str) -> int:
    """Parameters of a base, from its files where they are on this machine, else by loading it."""
    from tunesmith.models.base_files import cached_folder, look_at_files
    from tunesmith.models.load import base_folder, load_base
    from tunesmith.recipe.schema import Base

    folder = base_folder(base) or cached_folder(base, None)
    known = look_at_files(folder, name=base).parameters
    return known if known is not None else load_base(Base(model=base)).parameters


def adapter_facts(adapter: Path) -> dict[str, Any]:
    """What an adapter's folder says of itself: rank, alpha, and the kinds of layers it changes."""
    config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    targets = config.get("target_modules") or []
    return {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
    }


def _merge(record: Model, adapter: Path, target: Path) -> None:
    from tunesmith.export.merged.in_memory import merge
    from tunesmith.models.load import load_base
    from tunesmith.models.methods import load_tuned
    from tunesmith.models.writing import system_errors
    from tunesmith.recipe.schema import Base, Method

    base = load_base(Base(model=record.base, chat_template=record.chat_template))
    dtype = base.model.dtype
    tuning = load_tuned(base, adapter, Method())
    merge(base.model, tuning, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged_folder(target) as staged, system_errors(target):
        base.model.save_pretrained(staged)
        base.tokenizer.save_pretrained(staged)


def _content_of(adapter: Path, base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for name in (_CONFIG, _WEIGHTS):
        with (adapter / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
