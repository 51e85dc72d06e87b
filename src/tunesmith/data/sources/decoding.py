"""Bytes as text: which encoding, where the first byte is that does not fit, and a file as a stream of decoded pieces.

UTF-8 is decoded piece by piece, so a file of any size takes little memory. Other encodings, which a recipe has to name,
are decoded whole.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.sources.packed import Unpacked, packing_of
from tunesmith.errors import DataError

PIECE = 1 << 20
"""Bytes read at once."""
HEAD = 1 << 20
"""Characters by which the kind of a text is recognised, where it has so many."""
_UTF8 = frozenset({"auto", "utf-8"})
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the encoding it was read with, and a note on its first bad byte (then bad bytes are lone surrogates)."""

    text: str
    encoding: str
    bad_byte: str | None = None


def decode(where: str, data: bytes, encoding: str, first_line: int = 1) -> Decoded:
    """Text of `data`; bad bytes of UTF-8 stay in it as lone surrogates (PEP 383) so that rows can be told apart.

    `first_line` is the number of the line with which `data` begins. Raises `DataError` for an encoding that does not
    exist or does not fit, and for UTF-16 and UTF-32, which are named.
    """
    name = "utf-8" if encoding == "auto" else encoding
    if encoding == "auto":
        _refuse_wide(where, data)
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        note = _bad_byte(data[: error.start], data[error.start], name, first_line)
        if name.lower().replace("_", "-") not in {"utf-8", "utf8", "utf-8-sig"}:
            raise DataError(
                f"the file is not {name}: {note}",
                where=where,
                expected=f"text in {name}",
                fix="remove data.encoding if the file is UTF-8, or try cp1252 or latin-1",
            ) from error
        return _named(data.decode("utf-8", errors="surrogateescape"), name, note)
    except (LookupError, UnicodeError, ValueError) as error:
        raise DataError(
            f"there is no text encoding called {encoding!r}",
            where="data.encoding",
            expected="auto, utf-8, latin-1, cp1252, utf-16 or another name Python knows",
        ) from error
    if _SURROGATE.search(text):  # some of Python's codecs make them
        raise DataError(f"read as {name}, the file holds half characters", where=where, fix="correct data.encoding")
    return _named(text, name, None)


def line_ends(text: str) -> int:
    """How many lines end in a text; neither of its own ends may lie inside a CRLF."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


class TextStream:
    """The text of a file, packed or not, in pieces that never end between the two characters of a CRLF.

    It is read once, by iterating; `again` gives a fresh one. As far as it is read, `bad_byte` describes the first byte
    that is not text (such bytes are lone surrogates in the pieces), `has_nul` says whether there is a NUL character and
    `encoding` what it was read with. Once all is read, `damage` says what broke an archive off, and `last_line` is the
    number of the last line. Reading raises `DataError` as `decode` does, and where the file cannot be read.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.asked = path, encoding
        self.encoding = "utf-8"
        self.bad_byte: str | None = None
        self.damage: str | None = None
        self.doubtful = False
        """Whether a one-byte encoding was asked for and the file is UTF-8."""
        self.has_nul = False
        self.last_line = 1
        self._ahead: list[str] = []
        self._pieces = self._noted(self._utf8() if encoding in _UTF8 else self._whole())

    def again(self) -> TextStream:
        """The same file from its beginning."""
        return TextStream(self.path, self.asked)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._ahead.pop(0) if self._ahead else next(self._pieces, None)) is not None:
            yield piece

    def head(self) -> tuple[str, bool]:
        """The text's beginning (`HEAD` characters, more where they are blank), and whether it is all of it."""
        while sum(map(len, self._ahead)) < HEAD or not any(map(str.strip, self._ahead)):
            piece = next(self._pieces, None)
            if piece is None:
                return "".join(self._ahead), True
            self._ahead.append(piece)
        return "".join(self._ahead), False

    def whole(self) -> str:
        """All the text, for what can only be decided with all of it; it can still be iterated."""
        self._ahead = ["".join([*self._ahead, *self._pieces])]
        return self._ahead[0]

    def drain(self) -> None:
        """Read what is left, for `damage` and `last_line`."""
        for _ in self:
            pass

    def blocks(self) -> Iterator[tuple[str, int]]:
        """The text in blocks of whole lines, each with the number of its first line."""
        parts: list[str] = []
        first = 1
        for piece in self:
            end = max(piece.rfind("\n"), piece.rfind("\r")) + 1
            parts.append(piece[:end] if end else piece)
            if end:
                text = "".join(parts)
                yield text, first
                first += line_ends(text)
                parts = [piece[end:]]
        rest = "".join(parts)
        if rest:
            yield rest, first

    def _noted(self, pieces: Iterator[str]) -> Iterator[str]:
        """The same pieces without empty ones, without a byte-order mark and with CRLFs whole; keeps count of lines."""
        held, begun = "", False
        for given in pieces:
            piece = held + given
            held = ""
            if piece and not begun:
                begun = True
                if piece.startswith("\ufeff"):
                    piece = piece[1:]
                    self.encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
            if piece.endswith("\r"):
                piece, held = piece[:-1], "\r"
            if piece:
                self.last_line += line_ends(piece)
                self.has_nul = self.has_nul or "\0" in piece
                yield piece
        if held:
            self.last_line += 1
            yield held

    def _utf8(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        place = _Place()
        for number, data in enumerate(self._with_end()):
            if number == 0 and self.asked == "auto":
                _refuse_wide(str(self.path), data)
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:  # at most once: the next decoder refuses nothing
                self.bad_byte = place.note(data, error.start - len(pending), (pending + data)[error.start])
                decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
                text = decoder.decode(pending + data, final=not data)
            yield text
            place.pass_over(data)

    def _whole(self) -> Iterator[str]:
        data = b"".join(self._chunks())
        decoded = decode(str(self.path), data, self.asked)
        self.encoding, self.bad_byte = decoded.encoding, decoded.bad_byte
        one_byte = decoded.encoding.startswith(("latin", "iso-8859", "iso8859", "cp125", "windows"))
        self.doubtful = one_byte and _is_utf8(data)
        del data
        text = decoded.text
        for begin in range(0, len(text), PIECE):
            yield text[begin : begin + PIECE]

    def _with_end(self) -> Iterator[bytes]:
        """The bytes, and nothing at the end."""
        yield from self._chunks()
        yield b""

    def _chunks(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as stream:
                packing = packing_of(stream.read(16))
                if packing is None:
                    stream.seek(0)
                    while chunk := stream.read(PIECE):
                        yield chunk
                    return
            unpacked = Unpacked(self.path, packing)
            yield from unpacked
            self.damage = unpacked.damage
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error}", where=str(self.path), expected="a readable file"
            ) from error


class _Place:
    """A place in a file: the number of its line, and how many bytes of that line lie before it."""

    def __init__(self) -> None:
        self._line, self._bytes, self._held = 1, 0, b""

    def pass_over(self, data: bytes) -> None:
        """Go on behind `data`; a CR at its end waits for what follows it."""
        seen = self._held + data
        self._held = b"\r" if seen.endswith(b"\r") else b""
        seen = seen.removesuffix(b"\r")
        begin = max(seen.rfind(b"\n"), seen.rfind(b"\r")) + 1
        self._line += seen.count(b"\n") + seen.count(b"\r") - seen.count(b"\r\n")
        self._bytes = len(seen) - begin if begin else self._bytes + len(seen)

    def note(self, data: bytes, offset: int, byte: int) -> str:
        """About a bad byte at `offset` of the data that comes next; below 0 it is in the data before."""
        return _bad_byte(self._held + data[: max(0, offset)], byte, "utf-8", self._line, self._bytes + min(0, offset))


def _named(text: str, encoding: str, bad_byte: str | None) -> Decoded:
    if text.startswith("\ufeff"):
        return Decoded(text[1:], "utf-8-sig" if encoding == "utf-8" else encoding, bad_byte)
    return Decoded(text, encoding.lower(), bad_byte)


def _bad_byte(before: bytes, byte: int, encoding: str, first_line: int, earlier: int = 0) -> str:
    """Where a bad byte is, and what it would be in the encodings people mostly mean.

    `before` are the bytes before it from line `first_line` on, of which `earlier` bytes more are known to be there.
    """
    line = line_ends(before.decode(encoding, errors="replace")) + first_line
    line_start = max(before.rfind(b"\n"), before.rfind(b"\r")) + 1
    column = len(before) - line_start + 1 + (0 if line_start else earlier)
    readings = {name: bytes([byte]).decode(name, errors="ignore") for name in ("latin-1", "cp1252")}
    guesses = ", ".join(f"{name} reads {char!r}" for name, char in readings.items() if char and char.isprintable())
    place = f"byte 0x{byte:02X} on line {line}, byte {column} of that line, is not {encoding}"
    return f"{place}; {guesses}" if guesses else place


def _refuse_wide(where: str, data: bytes) -> None:
    wide = _wide_encoding(data)
    if wide is not None:
        raise DataError(
            f"the file is not UTF-8 but looks like {wide}",
            where=where,
            expected="UTF-8",
            fix=f"set data.encoding: {wide}, or save the file as UTF-8",
        )


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or UTF-16 without one by every second byte being NUL."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:400]
    if len(head) >= 8:
        half = len(head) // 2
        if head[1::2].count(0) > 0.8 * half and head[0::2].count(0) == 0:
            return "utf-16-le"
        if head[0::2].count(0) > 0.8 * half and head[1::2].count(0) == 0:
            return "utf-16-be"
    return None


def _is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8 with at least one character beyond ASCII."""
    if data.isascii():
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
