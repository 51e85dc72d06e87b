"""From conversations to a store of tokenised rows: once, on all cores, with a few blocks in memory at a time.

    store = tokenise_source("rows.jsonl", spec, renderer, folder, converse=converse, loss="assistant")

A source is cut into blocks of rows (`data.streaming`); a worker parses, renders and tokenises each and leaves its
arrays in a file, and this process joins the files in the order of the source. A store is named by `store_key`, a hash
of all that decides its content, so the second time it is only opened.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.examples import scan_examples
from tunesmith.data.findings import FindingLog
from tunesmith.data.types import Example, Finding, Message
from tunesmith.recipe.schema import Data
from tunesmith.runs.atomic import staged_folder
from tunesmith.text.render import Loss, Renderer
from tunesmith.text.store import Packed, StoredSamples, StoreWriter, id_type, pack

_BLOCK = 2_000
"""Conversations tokenised together where they come one by one."""
_TOOLS = "tools.pickle"
_FORMAT = 1
"""Of what is written here; a change of rendering or of the files must change it."""

Converse = Callable[[Example], Sequence[Message]]
"""The turns that an example is learnt as, such as `partial(training_conversation, task)`; it must be picklable."""


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A source as tokens. `rows` counts all its records: those in the store, and those that are only in findings.

    `format` is the name of the rows' format.
    """

    samples: StoredSamples
    findings: tuple[Finding, ...]
    format: str
    rows: int


def store_key(content: str, renderer: Renderer, loss: Loss, *more: str) -> str:
    """A name for a store, 32 hexadecimal characters: a hash of content, template, tokenizer, loss and `more`.

    content: a hash of the rows. more: what else decides the turns, such as the task's instruction and the recipe's
    mapping of columns.
    """
    digest = hashlib.sha256()
    for part in (str(_FORMAT), content, renderer.source, tokenizer_text(renderer.tokenizer), loss, *more):
        digest.update(f"{len(part.encode())}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()[:32]


def tokenizer_text(tokenizer: Any) -> str:
    """All that decides the ids a tokenizer gives: its own serialised form, or its vocabulary where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text: str = backend.to_str()
        return text
    return repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)))


def tokenise_conversations(
    renderer: Renderer, conversations: Iterable[tuple[str, Sequence[Message]]], folder: Path, *, loss: Loss
) -> StoredSamples:
    """A store in `folder` of conversations with their names; what is there already is opened instead.

    The conversations may come from a generator: a few thousand are held at a time.
    """
    if (folder / "index.json").is_file():
        return StoredSamples.open(folder)
    rest = iter(conversations)
    with staged_folder(folder) as staged, StoreWriter(staged, len(renderer.tokenizer)) as writer:
        while block := list(islice(rest, _BLOCK)):
            writer.add(_packed(renderer, [turns for _, turns in block], loss, [name for name, _ in block]))
        writer.finish({})
    return StoredSamples.open(folder)


def tokenise_source(
    source: str | Path,
    spec: Data,
    renderer: Renderer,
    folder: Path,
    *,
    converse: Converse,
    loss: Loss,
    task_type: str = "auto",
    processes: int | None = None,
) -> Tokenised:
    """A store in `folder` of all rows of a source; what is there already is opened instead.

    Rows are named by a hash of their content; equal rows in different blocks of the source have the same name.
    `processes` is the number of workers, by default one per core. Raises what reading the source raises.
    """
    if (folder / "index.json").is_file():
        store = StoredSamples.open(folder)
        facts = store.facts
        found = tuple(Finding(**{**kept, "lines": tuple(kept["lines"])}) for kept in facts["findings"])
        return Tokenised(store, found, facts["format"], facts["rows"])
    with staged_folder(folder) as staged:
        room = staged / "parts"
        room.mkdir()
        (room / _TOOLS).write_bytes(pickle.dumps((renderer, converse)))
        work = partial(_tokenise_block, room=str(room), loss=loss)
        scan = scan_examples(spec, source, work, task_type=task_type, processes=processes)
        with StoreWriter(staged, len(renderer.tokenizer)) as writer:
            for part in scan.results:
                if part is not None:
                    writer.add(_read_part(room / part))
                    (room / part).unlink()
            kept = [asdict(finding) for finding in scan.findings]
            writer.finish({"findings": kept, "format": scan.format, "rows": scan.rows})
        shutil.rmtree(room)
    return Tokenised(StoredSamples.open(folder), tuple(scan.findings), scan.format, scan.rows)


def _packed(renderer: Renderer, turns: Sequence[Sequence[Message]], loss: Loss, names: Sequence[str]) -> Packed:
    return pack(renderer.samples(turns, loss, names), id_type(len(renderer.tokenizer)))


def _tokenise_block(examples: Sequence[Example], log: FindingLog, *, room: str, loss: Loss) -> str | None:
    """The work on one block, in a worker: its arrays go into a file, whose name is returned."""
    if not examples:
        return None
    renderer, converse = _tools(room)
    packed = _packed(renderer, [converse(e) for e in examples], loss, [e.id for e in examples])
    name = f"{examples[0].line}.npz"
    np.savez(Path(room) / name, ids=packed.ids, rows=packed.rows, spans=packed.spans)
    return name


@lru_cache(maxsize=1)
def _tools(room: str) -> tuple[Renderer, Converse]:
    """What a worker renders with, as the process that began this wrote it down a moment ago."""
    renderer, converse = pickle.loads((Path(room) / _TOOLS).read_bytes())
    return renderer, converse


def _read_part(path: Path) -> Packed:
    with np.load(path) as arrays:
        return Packed(arrays["ids"], arrays["rows"], arrays["spans"])
