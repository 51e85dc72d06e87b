"""Which model a name in a request means: a tuned one, a deployment, a registered one, or a base behind an alias.

A name is looked up, in this order, among the tuned models and their checkpoints, the deployments, the exports and the
aliases of the configuration, and the bases themselves. Deployments come before aliases because on Azure a deployment is
often named after a model that it does not serve. Nothing in a name is ever taken for a path: a folder can be reached by
the name that the configuration gives it, and in no other way. Remote models of the configuration answer under their
names; nothing is trained on them, nor on exports.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from tunesmith.inference.serving.types import ModelRef
from tunesmith.service.errors import ApiError
from tunesmith.service.exports import export_refs
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Checkpoint, Deployment, Model

SNAPSHOTS: Mapping[str, str] = MappingProxyType(
    {
        "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
        "gpt-4o": "gpt-4o-2024-08-06",
        "gpt-4.1": "gpt-4.1-2025-04-14",
        "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
        "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
        "gpt-4": "gpt-4-0613",
        "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
        "gpt-35-turbo": "gpt-35-turbo-0125",
        "o4-mini": "o4-mini-2025-04-16",
    }
)
"""The dated name that an undated one is turned into, in jobs and in answers."""

_SHOWN_TUNED, _SHOWN_BASES = 20, 40
_EMBEDDED = "embedded:"


@dataclass(frozen=True, slots=True)
class Resolved:
    """`shown` is the name that answers carry (the asked one, or the snapshot behind an alias); `record` is None for a
    base.
    """

    shown: str
    ref: ModelRef
    record: Model | None = None


class Catalogue(Protocol):
    """All that can be asked, by name."""

    def resolve(self, name: str) -> Resolved:
        """Raises `ApiError` 404 `model_not_found`, which lists what exists."""
        ...

    def model_of(self, name: str) -> Resolved:
        """As `resolve`, but deployments are no models: what a job can be trained on, a deployment made of."""
        ...

    def base_of(self, name: str) -> str:
        """The local base that a job on `name` is trained on: `embedded:NAME`, a folder, a hub id.

        For a tuned model this is the base beneath its adapter, which `model_of(name).record` tells.
        """
        ...

    def names(self) -> tuple[Model, ...]:
        """Every model, bases by their aliases included."""
        ...

    def ref_of(self, record: Model) -> ModelRef:
        """What answers for a kept model: its adapter below the home folder, and the engine its base is served by."""
        ...


class StoreCatalogue:
    """The catalogue of a store and a configuration."""

    def __init__(self, settings: ServeSettings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._started = int(time.time())
        self._exports = export_refs(settings.artifacts)
        self._direct = frozenset(_embedded_names()) | {
            base for base in settings.aliases.values() if not _is_path(base) and not base.startswith(_EMBEDDED)
        }

    def resolve(self, name: str) -> Resolved:
        return self._tuned(name) or self._deployed(name) or self._base(name) or self._refuse(name)

    def model_of(self, name: str) -> Resolved:
        return self._tuned(name) or self._base(name) or self._refuse(name)

    def base_of(self, name: str) -> str:
        return self.model_of(name).ref.base

    def names(self) -> tuple[Model, ...]:
        bases = [self._listed(name, ref.base, ref.engine) for name, ref in self._exports.items()]
        bases += [
            self._listed(name, base) for name, base in self._settings.aliases.items() if name not in self._exports
        ]
        bases += [self._listed(name, name) for name in sorted(self._direct) if name not in self._settings.aliases]
        bases += [
            self._listed(name, remote.model, "remote")
            for name, remote in self._settings.remotes.items()
            if name not in self._settings.aliases and name not in self._exports
        ]
        return (*self._store.all(Model), *bases)

    def ref_of(self, record: Model) -> ModelRef:
        adapter = self._settings.home / record.adapter if record.adapter else None
        url = self._settings.vllm.get(record.base)
        return ModelRef(record.base, adapter, record.chat_template, "vllm" if url else record.engine, url)

    def _tuned(self, name: str) -> Resolved | None:
        record = self._store.get(Model, name)
        if record is None and name.startswith(("ftchkpt-", "ftckpt")):
            # Azure deploys a checkpoint by its id as well as by its name.
            checkpoint = self._store.get(Checkpoint, name)
            record = self._store.get(Model, checkpoint.name) if checkpoint else None
        if record is None:
            return None
        return Resolved(record.id, self.ref_of(record), record)

    def _deployed(self, name: str) -> Resolved | None:
        """The model of the newest deployment of this name; case does not matter in Azure's names."""
        found = [one for one in self._store.all(Deployment) if one.name.lower() == name.lower()]
        if not found:
            return None
        model = found[-1].model
        served = self._tuned(model) or self._base(model)
        if served is None:
            # An alias of the same name is not what was deployed.
            raise ApiError(
                404,
                f"The deployment '{found[-1].name}' serves the model '{model}', which does not exist any more; "
                "deploy another model under this name, or delete the deployment.",
                param="model",
                code="model_not_found",
            )
        return served

    def _base(self, name: str) -> Resolved | None:
        if name in self._exports:
            return Resolved(name, self._exports[name])
        aliases = self._settings.aliases
        if name in aliases:
            snapshot = SNAPSHOTS.get(name, name)
            shown = snapshot if aliases.get(snapshot) == aliases[name] else name
            return Resolved(shown, self._base_ref(aliases[name]))
        remote = self._settings.remotes.get(name)
        if remote is not None:
            return Resolved(
                name, ModelRef(remote.model, engine="remote", url=remote.url, key_variable=remote.api_key_env)
            )
        return Resolved(name, self._base_ref(name)) if name in self._direct else None

    def _base_ref(self, base: str) -> ModelRef:
        url = self._settings.vllm.get(base)
        return ModelRef(base, engine="vllm", url=url) if url else ModelRef(base)

    def _refuse(self, name: str) -> Resolved:
        tuned = [one.id for one in reversed(self._store.all(Model))]
        deployed = [one.name for one in reversed(self._store.all(Deployment))]
        bases = [*self._exports, *self._settings.aliases, *sorted(self._direct), *self._settings.remotes]
        text = f"The model '{_short(name)}' does not exist or you do not have access to it."
        near = difflib.get_close_matches(name[:200], [*deployed, *bases, *tuned[:500]], n=1, cutoff=0.75)
        if near:
            text += f" Did you mean '{near[0]}'?"
        text += _told("Tuned models", tuned, _SHOWN_TUNED) + _told("Deployments", deployed, _SHOWN_TUNED)
        text += _told("Bases", bases, _SHOWN_BASES)
        raise ApiError(404, text, param="model", code="model_not_found")

    def _listed(self, name: str, base: str, engine: str = "torch") -> Model:
        return Model(name, self._started, "system", "registered", base, engine=engine)


def shown_base(base: str) -> str:
    """A base as it is told to a client: of a folder only its name."""
    return Path(base).name if _is_path(base) else base


def _is_path(base: str) -> bool:
    """Whether a base of the configuration is a folder: not `embedded:NAME` and not a hub's `organization/name`."""
    if base.startswith(_EMBEDDED):
        return False
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base).is_dir()


def _embedded_names() -> list[str]:
    """As `models.load.embedded_names`, without torch."""
    import tunesmith.models

    folder = Path(tunesmith.models.__path__[0]) / "embedded"
    return [_EMBEDDED + config.parent.name for config in folder.glob("*/config.json")]


def _told(what: str, names: Iterable[str], most: int) -> str:
    every = list(dict.fromkeys(names))
    if not every:
        return ""
    more = f" and {len(every) - most} more (GET /v1/models)" if len(every) > most else ""
    return f" {what} here: {', '.join(every[:most])}{more}."


def _short(name: str) -> str:
    return name if len(name) <= 120 else name[:117] + "…"
