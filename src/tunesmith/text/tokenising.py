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
from functools import cache, lru_cache, partial
from importlib.metadata import version
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
_FORMAT = 2
"""Of what is written here; a change of the files, or of the turns that rows become, must change it."""

Done = Callable[[int], None]
"""Hears how many conversations are tokenised."""
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

    content: a hash of the turns as they are rendered (`turns_hash`), or of the rows; then `more` is what else decides
    the turns, such as the task's instruction and the recipe's mapping of columns. The code that renders and the
    libraries it uses count too: what another version of them made is not taken for what this one would.
    """
    digest = hashlib.sha256()
    template = f"{renderer.template}\n{renderer.source}"
    parts = (str(_FORMAT), _versions(), content, template, tokenizer_text(renderer.tokenizer), _roles(renderer), loss)
    for part in (*parts, *more):
        digest.update(f"{len(part.encode())}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()[:32]


@cache
def _versions() -> str:
    """The code of this room, and the versions of the libraries it renders and tokenises with."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    libraries = [f"{name} {version(name)}" for name in ("tunesmith", "transformers", "tokenizers", "jinja2")]
    return ", ".join([code.hexdigest(), *libraries])


def tokenizer_text(tokenizer: Any) -> str:
    """All that decides the ids a tokenizer gives: its own serialised form, or its vocabulary where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text: str = backend.to_str()
        return text
    return repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)))


def _roles(renderer: Renderer) -> str:
    """What its tokens are to a tokenizer: a template may write any of them, and an answer is learnt up to its end."""
    roles = {role: str(token) for role, token in renderer.tokenizer.special_tokens_map.items()}
    return repr((sorted(roles.items()), sorted(renderer.stop_ids), renderer.folds_system))


def turns_hash(conversations: Iterable[tuple[str, Sequence[Message]]]) -> str:
    """SHA-256 of conversations with their names, in order: of everything in them that can be rendered."""
    digest = hashlib.sha256()
    for name, turns in conversations:
        said = [
            (m.role, m.content, m.weight, m.name, m.tool_call_id, m.tool_calls, m.tools)
            if m.name or m.tool_call_id or m.tool_calls or m.tools
            else (m.role, m.content, m.weight)
            for m in turns
        ]
        digest.update(repr((name, said)).encode())
    return digest.hexdigest()


def tokenise_conversations(
    renderer: Renderer,
    conversations: Iterable[tuple[str, Sequence[Message]]],
    folder: Path,
    *,
    loss: Loss,
    done: Done = lambda count: None,
) -> StoredSamples:
    """A store in `folder` of conversations with their names; what is there already is opened instead.

    The conversations may come from a generator: a few thousand are held at a time.
    """
    if (folder / "index.json").is_file():
        return StoredSamples.open(folder)
    rest = iter(conversations)
    with staged_folder(folder) as staged, StoreWriter(staged, _vocabulary(renderer.tokenizer)) as writer:
        while block := list(islice(rest, _BLOCK)):
            samples = renderer.samples([turns for _, turns in block], loss, [name for name, _ in block])
            writer.add(pack(samples, writer.dtype))
            done(writer.rows)
        writer.finish({})
    return StoredSamples.open(folder, verify=False)


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
        vocabulary = _vocabulary(renderer.tokenizer)
        (room / _TOOLS).write_bytes(pickle.dumps((renderer, converse, id_type(vocabulary))))
        work = partial(_tokenise_block, room=str(room), loss=loss)
        scan = scan_examples(spec, source, work, task_type=task_type, processes=processes)
        with StoreWriter(staged, vocabulary) as writer:
            for part in scan.results:
                if part is not None:
                    writer.add(_read_part(room / part))
                    (room / part).unlink()
            kept = [asdict(finding) for finding in scan.findings]
            writer.finish({"findings": kept, "format": scan.format, "rows": scan.rows})
        shutil.rmtree(room)
    return Tokenised(StoredSamples.open(folder, verify=False), tuple(scan.findings), scan.format, scan.rows)


def _vocabulary(tokenizer: Any) -> int:
    """One more than the highest id; ids may have gaps."""
    highest: int = max(tokenizer.get_vocab().values())
    return max(len(tokenizer), highest + 1)


def _tokenise_block(examples: Sequence[Example], log: FindingLog, *, room: str, loss: Loss) -> str | None:
    """The work on one block, in a worker: its arrays go into a file, whose name is returned."""
    if not examples:
        return None
    renderer, converse, dtype = _tools(room)
    packed = pack(renderer.samples([converse(e) for e in examples], loss, [e.id for e in examples]), dtype)
    name = f"{examples[0].line}.npz"
    np.savez(Path(room) / name, ids=packed.ids, rows=packed.rows, spans=packed.spans)
    return name


@lru_cache(maxsize=1)
def _tools(room: str) -> tuple[Renderer, Converse, np.dtype[Any]]:
    """What a worker renders and packs with, as the process that began this wrote it down a moment ago."""
    renderer, converse, dtype = pickle.loads((Path(room) / _TOOLS).read_bytes())
    return renderer, converse, dtype


def _read_part(path: Path) -> Packed:
    with np.load(path) as arrays:
        return Packed(arrays["ids"], arrays["rows"], arrays["spans"])
