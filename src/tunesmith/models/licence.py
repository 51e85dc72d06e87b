"""The licence of a base, read from what lies beside its weights, and what it says of the use that is meant.

Read are the card's front matter (`README.md`, `MODEL_CARD.md`: `license`, `license_name`), the texts of licence files,
and `config.json`. Whatever is found is named with the file it stands in. Nothing is guessed from a model's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tunesmith.models.licence_terms import Licence, Permission, licence_by_id, licence_by_text

Use = Literal["commercial", "research"]
CARDS = ("README.md", "MODEL_CARD.md")
_NAMES = ("license", "licence", "copying", "terms_of_use", "terms-of-use", "use_policy", "use-policy")
"""What names of files with terms hold: the weights' own may be in MODEL_LICENSE, beside the code's in LICENSE."""
_STRICTEST: dict[Permission, int] = {"forbidden": 0, "unknown": 1, "conditions": 2, "allowed": 3}
_WORDS: dict[Permission, str] = {
    "allowed": "allowed",
    "conditions": "allowed under conditions",
    "forbidden": "forbidden",
    "unknown": "not known",
}
_OTHER = ("other", "unknown", "")
_MOST_BYTES = 1 << 20
"""Of a card or licence that are read: the front matter and the title stand at the beginning."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One place that names a licence: the file (and key), what stands there, and the licence it means, if known."""

    where: str
    said: str
    licence: Licence | None


@dataclass(frozen=True, slots=True)
class LicenceCheck:
    """What a base's licence says of a use.

    name: of the licence, or what the card says where that is not in the table, or `not found`.
    use: what the model is for; None where the recipe does not say, and then `permission` is of commercial use.
    where: every place that was read for it. gated: whether the hub asks for an agreement before it gives the files.
    hub: whether the base comes from there.
    """

    name: str
    use: Use | None
    permission: Permission
    conditions: str
    where: tuple[str, ...]
    gated: str = "not known offline"
    hub: bool = False

    @property
    def words(self) -> str:
        """`commercial use: allowed under conditions`."""
        return f"{self.use or 'commercial'} use: {_WORDS[self.permission]}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def check_licence(folder: Path | None, use: Use | None, *, name: str = "") -> LicenceCheck:
    """The licence of the base in `folder` and what it says of `use`.

    folder: of the base's files; None for a hub base whose card is not on this machine. name: of the base, for what to
    look at instead.

    Where several places name licences of different strictness, the strictest counts, and all are named.
    """
    hub = not _is_local(name)
    gated = "not known offline" if hub else "not from the hub"
    found = list(readings(folder)) if folder is not None else []
    if not found:
        looked = "the base's folder has no card and no licence file" if folder else "no card is on this machine"
        page = f"; read it at https://huggingface.co/{name}" if hub and name else ""
        return LicenceCheck("not found", use, "unknown", f"Not known: {looked}{page}.", (), gated, hub)
    decisive = min(found, key=lambda one: _STRICTEST[_permission(one.licence, use)])
    permission = _permission(decisive.licence, use)
    if decisive.licence is None:
        known = f"{decisive.said!r} is not among the licences known here: read it before you rely on it."
        return LicenceCheck(decisive.said, use, permission, known, _places(found), gated, hub)
    others = {one.licence.name: one.licence for one in found if one.licence is not None}
    conditions = [others.pop(decisive.licence.name).conditions]
    if others:
        conditions += [one.conditions for one in others.values() if _permission(one, use) == permission]
        conditions.append(f"Another licence is named too ({', '.join(sorted(others))}); the strictest counts.")
    told = " ".join(dict.fromkeys(filter(None, conditions)))
    return LicenceCheck(decisive.licence.name, use, permission, told, _places(found), gated, hub)


def readings(folder: Path, *, above: tuple[Path, ...] = ()) -> Iterator[Reading]:
    """Every place in a base's folder that names a licence. above: folders of models that were made of this one."""
    for name in CARDS:
        if (folder / name).is_file():
            yield from _in_card(folder / name, above)
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(name in path.name.lower() for name in _NAMES):
            text = _text(path)
            licence = licence_by_text(text)
            first = next((line.strip() for line in text.splitlines() if line.strip()), "an empty file")
            yield Reading(path.name, licence.name if licence else first[:80], licence)
    config = _json(folder / "config.json")
    said = config.get("license")
    if isinstance(said, str) and said.strip():
        yield Reading("config.json (license)", said, licence_by_id(said))


def front_matter(text: str) -> Mapping[str, Any] | None:
    """The YAML between the two `---` a card begins with: empty where there is none, None where it cannot be read."""
    lines = text.lstrip("\N{ZERO WIDTH NO-BREAK SPACE} \r\n\t").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return None
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else {} if found is None else None


def _in_card(path: Path, above: tuple[Path, ...]) -> Iterator[Reading]:
    card = front_matter(_text(path))
    if card is None:  # it may have named a licence: what other files say is not all
        yield Reading(path.name, "a card whose front matter cannot be read", None)
        return
    said = card.get("license")
    names = [str(one) for one in said] if isinstance(said, list) else [str(said)] if said is not None else []
    for name in names:
        if name.strip().lower() in _OTHER:
            other = str(card.get("license_name") or card.get("license_link") or "other")
            yield Reading(f"{path.name} (license_name)", other, licence_by_id(other))
        else:
            yield Reading(f"{path.name} (license)", name, licence_by_id(name))
    if made_of := card.get("base_model"):
        origin = ", ".join(map(str, made_of)) if isinstance(made_of, list) else str(made_of)
        there = _of_origin(path, origin, above)
        if there:
            yield from there
        else:
            yield Reading(f"{path.name} (base_model)", f"that of {origin}", _made_of(origin) if names else None)


def _of_origin(card: Path, origin: str, above: tuple[Path, ...]) -> list[Reading]:
    """What names a licence in the folder a model was made of, where that lies here: a merged model names it."""
    folder, above = Path(origin), (*above, card.parent.resolve())
    if not folder.is_absolute() or not folder.is_dir() or folder.resolve() in above:
        return []
    where = f"{card.name} (base_model)"
    return [Reading(f"{where}, its {one.where}", one.said, one.licence) for one in readings(folder, above=above)]


def _made_of(origin: str) -> Licence:
    """What its own licence leaves open for a model made of another one: a free one frees nothing it was made of."""
    return Licence(
        f"that of {origin}",
        (),
        "conditions",
        "conditions",
        f"It was made of {origin}, whose licence holds too: read it.",
    )


def _permission(licence: Licence | None, use: Use | None) -> Permission:
    if licence is None:
        return "unknown"
    return licence.research if use == "research" else licence.commercial


def _places(found: list[Reading]) -> tuple[str, ...]:
    return tuple(f"{one.where}: {one.said}" for one in found)


def _is_local(name: str) -> bool:
    return name.startswith((".", "/", "~", "embedded:")) or Path(name).expanduser().is_dir()


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES).decode("utf-8", "replace")


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a file; nothing where there is none, or it is damaged (which loading the base will say)."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
