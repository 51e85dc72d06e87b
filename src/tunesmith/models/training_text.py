"""What a base model was trained on, as hashes: enough to ask "has it seen this row?", too little to read it back.

A test row that the base saw in its own training measures memory, not learning. A base therefore ships a
`training_text.hashes` beside its weights. Each *unit* of training text (a prompt, a response, a paragraph or a line)
is normalised and reduced to 48 bits of BLAKE2b; the hashes are kept sorted, so a look-up is a binary search.

False positives: a text that was never seen is found with probability n / 2^48 for n units. With 400,000 units that is
1.4e-9 per look-up, about 1 in 7,000 for 100,000 look-ups. Equal normalised texts are always found; a reworded or
shortened copy is not.

File format (version 1), integers little-endian: 8 bytes magic, uint32 version, uint64 number of hashes, then zlib. It
holds the differences of neighbouring hashes as 6-byte integers, stored byte plane by byte plane (all lowest bytes
first, all highest last): differences of n sorted hashes need about 48 - log2(n) bits, and the planes that are nearly
all zero compress away, which leaves about 4 bytes a hash.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunesmith.data.types import Example
from tunesmith.errors import EngineError

MIN_TEXT = 20
"""Characters from which a whole prompt, question or answer is telling: "Yes" or "42" is in every corpus."""

MIN_LINE = 40
"""Characters from which a single line is telling: shorter ones are headings, greetings and list items."""

_HASH_BYTES = 6
_MAGIC = b"TSTEXT\r\n"
_HEADER = struct.Struct("<8sIQ")
_VERSION = 1


_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"))  # soft hyphen, zero-width space, byte order mark


def normalise(text: str) -> str:
    """The form under which two texts count as the same: composed (NFC), without invisible characters, case folded,
    runs of whitespace one space, ends stripped.
    """
    composed = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    return " ".join(composed.casefold().split())


def text_hash(text: str) -> int:
    """The first 48 bits of BLAKE2b over the normalised text in UTF-8, as an integer."""
    digest = hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES)
    return int.from_bytes(digest.digest(), "big")


def text_units(text: str) -> Iterator[str]:
    """The units of one text: the whole if it has `MIN_TEXT` characters, and each line of at least `MIN_LINE`.

    Lengths are those of the normalised text. A text of one line is yielded once.
    """
    whole = normalise(text)
    if len(whole) >= MIN_TEXT:
        yield whole
    for line in text.splitlines():
        unit = normalise(line)
        if len(unit) >= MIN_LINE and unit != whole:
            yield unit


@dataclass(frozen=True, slots=True, eq=False)
class TrainingTextRecord:
    """The sorted, distinct hashes of everything a base was trained on: uint64 `[N]`, each below 2^48."""

    hashes: npt.NDArray[np.uint64]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> TrainingTextRecord:
        """Record each text as one unit, whatever its length (what is too short to tell is the caller's decision)."""
        return cls.from_hashes(text_hash(text) for text in texts)

    @classmethod
    def from_hashes(cls, hashes: Iterable[int]) -> TrainingTextRecord:
        """Record units that were hashed with `text_hash` where they were met."""
        return cls(np.unique(np.fromiter(hashes, dtype=np.uint64)))

    def __len__(self) -> int:
        return int(self.hashes.size)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self._found([text])[0])

    def count(self, texts: Iterable[str]) -> int:
        """How many of the texts (repetitions included) are recorded as whole units."""
        return int(self._found(list(texts)).sum())

    def false_positive_probability(self, lookups: int = 1) -> float:
        """Chance that at least one of `lookups` unseen texts is found: 1 - (1 - N / 2^48)^lookups."""
        return float(-np.expm1(lookups * np.log1p(-len(self) / 2.0**48)))

    def save(self, path: Path) -> None:
        """Write the record, through a temporary name so that no half file is left behind."""
        steps = np.diff(self.hashes, prepend=np.uint64(0)).astype("<u8")
        planes = steps.view(np.uint8).reshape(-1, 8)[:, :_HASH_BYTES].T
        body = zlib.compress(np.ascontiguousarray(planes).tobytes(), 9)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(_HEADER.pack(_MAGIC, _VERSION, len(self)) + body)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TrainingTextRecord:
        """Read what `save` wrote.

        Raises
        ------
        EngineError: the file is no training-text record, of another version, or damaged.
        """
        data = path.read_bytes()
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise _unreadable(path, "is not a record of training text")
        _, version, count = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise _unreadable(path, f"is a training-text record of version {version}, not {_VERSION}")
        try:
            body = zlib.decompress(data[_HEADER.size :])
        except zlib.error as error:
            raise _unreadable(path, f"is damaged ({error})") from error
        if len(body) != count * _HASH_BYTES:
            raise _unreadable(path, f"is damaged: {len(body)} bytes for {count} hashes")
        steps = np.zeros((count, 8), dtype=np.uint8)
        steps[:, :_HASH_BYTES] = np.frombuffer(body, dtype=np.uint8).reshape(_HASH_BYTES, count).T
        return cls(np.cumsum(steps.view("<u8").reshape(-1), dtype=np.uint64))

    def _found(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each text is recorded: bool `[len(texts)]`."""
        if not texts or not len(self):
            return np.zeros(len(texts), dtype=np.bool_)
        wanted = np.fromiter((text_hash(text) for text in texts), dtype=np.uint64, count=len(texts))
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self) - 1)
        return np.asarray(self.hashes[places] == wanted, dtype=np.bool_)


def seen_in_training(record: TrainingTextRecord, examples: Iterable[Example]) -> list[str]:
    """The ids of the examples that the base has met: their question, a line of it, or their expected answer.

    Questions and answers of at least `MIN_TEXT` characters count as wholes, lines of the question from `MIN_LINE` on.
    Shorter texts prove nothing and are not looked up.
    """
    return [example.id for example in examples if record.count(_telling(example))]


def _telling(example: Example) -> Iterator[str]:
    yield from text_units(example.question)
    if len(normalise(example.expected)) >= MIN_TEXT:
        yield example.expected


def _unreadable(path: Path, what: str) -> EngineError:
    return EngineError(
        f"the file {what}",
        where=str(path),
        expected="a training_text.hashes written with the base model",
        fix="take the base model's folder again as a whole, or write the record anew",
    )
