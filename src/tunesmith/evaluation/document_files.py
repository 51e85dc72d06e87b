"""Documents a person has, read as text: plain text, Markdown, HTML, and JSONL with one document per line.

A folder is read with all its subfolders, in the order of the paths. What is not understood is counted by its ending and
shown; what should be readable and is not (bytes that are no UTF-8, lines that are no JSON) is an error that names all
of them, because a document left out in silence would make retrieval look worse than it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tunesmith.data.sources.decoding import decode
from tunesmith.errors import DataError
from tunesmith.runs import RunFolder, is_run

_NAMED = 8
"""Problems that are told one by one."""
_OF_RUNS = "in the folder of a run"
_TEXT_KEYS = ("text", "content", "body", "page_content", "passage", "document", "markdown")
_TITLE_KEYS = ("title", "name", "id", "url", "source")
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the place it comes from (a path below the folder, with a line for JSONL) and what it calls itself."""

    text: str
    source: str
    title: str = ""

    @property
    def name(self) -> str:
        """What it is called beside a question."""
        return self.title or self.source


@dataclass(frozen=True, slots=True)
class Documents:
    """All that was read. skipped: files by ending that are none of the known ones, and those of runs. empty, repeated:
    documents without text, and with the text of another one, which are left out. sha256: of all that was kept, with
    the names.
    """

    documents: tuple[Document, ...]
    skipped: Mapping[str, int]
    empty: int
    repeated: int
    sha256: str


def read_documents(place: str | Path, encoding: str = "auto") -> Documents:
    """The documents of a file or folder. Raises `DataError` where there are none, or some cannot be read."""
    path = Path(place).expanduser()
    files, of_runs = _files(path)
    root = path if path.is_dir() else path.parent
    problems: list[str] = []
    skipped: Counter[str] = Counter({_OF_RUNS: of_runs} if of_runs else {})
    found: list[Document] = []
    for file in files:
        reader = _READERS.get(file.suffix.lower())
        if reader is None:
            skipped[file.suffix.lower() or "no ending"] += 1
            continue
        name = file.relative_to(root).as_posix()
        text = _text(file, name, encoding, problems)
        if text is not None:
            found += reader(text, name, problems)
    if problems:
        more = f" (and {len(problems) - _NAMED:,} more)" if len(problems) > _NAMED else ""
        raise DataError(
            f"{len(problems):,} of the documents cannot be read:\n  " + "\n  ".join(problems[:_NAMED]) + more,
            where=str(path),
            expected="UTF-8 text (or the encoding in data.encoding), and JSON objects with a text",
            fix="mend or remove these",
        )
    filled = [document for document in found if document.text.strip()]
    by_text: dict[str, Document] = {}
    for document in filled:
        by_text.setdefault(document.text, document)
    kept = tuple(by_text.values())
    if not kept:
        raise DataError(
            "there is no document here",
            where=str(path),
            expected=f"files that end in {', '.join(sorted(_READERS))}, with text in them",
            fix="point data.documents to them, or leave it out",
        )
    told = json.dumps([[document.source, document.title, document.text] for document in kept])
    return Documents(
        documents=kept,
        skipped=dict(sorted(skipped.items())),
        empty=len(found) - len(filled),
        repeated=len(filled) - len(kept),
        sha256=hashlib.sha256(told.encode()).hexdigest(),
    )


def _files(path: Path) -> tuple[list[Path], int]:
    """All files but hidden ones and those of runs, which hold test rows with their answers; how many these are."""
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(
                f"documents of the kind {path.suffix or '(no ending)'} are not read",
                where=str(path),
                expected=", ".join(sorted(_READERS)),
                fix="convert the file, or point data.documents to a folder",
            )
        return [path], 0
    if not path.is_dir():
        raise DataError("there is no such file or folder", where=f"data.documents: {path}", fix="check the path")
    inside = [file for file in path.rglob("*") if file.is_file()]
    shown = [f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    runs = [folder for folder in {file.parent for file in shown} if folder != path and _is_run(folder)]
    files = sorted(file for file in shown if not any(file.is_relative_to(run) for run in runs))
    return files, len(shown) - len(files)


def _is_run(folder: Path) -> bool:
    """Whether it holds a run, also one that has only begun. Web pages have files called manifest.json too."""
    return is_run(folder) and RunFolder(folder).events_file.is_file()


def _text(file: Path, name: str, encoding: str, problems: list[str]) -> str | None:
    try:
        data = file.read_bytes()
    except OSError as error:
        problems.append(f"{name}: {error.strerror or error}")
        return None
    try:
        decoded = decode(name, data, encoding)
    except DataError as error:
        problems.append(f"{name}: {error.what}")
        return None
    if decoded.bad_byte is not None:
        problems.append(f"{name}: {decoded.bad_byte}")
        return None
    return decoded.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str, name: str, problems: list[str]) -> Iterator[Document]:
    yield Document(text, name)


def _markdown(text: str, name: str, problems: list[str]) -> Iterator[Document]:
    body = _without_front_matter(text)
    heading = _HEADING.search(body)
    yield Document(body, name, heading[1] if heading else "")


def _without_front_matter(text: str) -> str:
    """A text without the settings it may begin with: lines like YAML between `---` and `---`, not any text there."""
    first, *lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line in ("---", "...")), None)
    if first != "---" or end is None:
        return text
    is_settings = all(not line.strip() or line[0] in " \t#-" or ":" in line for line in lines[:end])
    return "\n".join(lines[end + 1 :]) if is_settings else text


def _html(text: str, name: str, problems: list[str]) -> Iterator[Document]:
    page = _Page()
    page.feed(text)
    page.close()
    yield Document(page.text, name, page.title)


def _json_lines(text: str, name: str, problems: list[str]) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: no JSON ({error})")
            continue
        told = values if isinstance(values, str) else _first(values, _TEXT_KEYS)
        if told is None:
            keys = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            problems.append(f"{place}: no text under {' | '.join(_TEXT_KEYS)} (found: {keys[:80]})")
            continue
        yield Document(told, place, _first(values, _TITLE_KEYS) or "")


def _first(values: Any, keys: tuple[str, ...]) -> str | None:
    """The first of these fields that holds text."""
    if not isinstance(values, dict):
        return None
    return next((values[key] for key in keys if isinstance(values.get(key), str)), None)


class _Page(HTMLParser):
    """The text of a page: blocks become paragraphs; what is not shown to a reader is left out."""

    _BLOCKS = frozenset(
        {"address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt", "fieldset"}
        | {"figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main"}
        | {"nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"}
    )
    _HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._parts: list[str] = []
        self._hidden: list[str] = []
        self._in_title = False

    @property
    def text(self) -> str:
        """Paragraphs with an empty line between them."""
        blocks = (" ".join(block.split()) for block in "".join(self._parts).split("\0"))
        return "\n\n".join(block for block in blocks if block)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = not self.title
        elif tag == "body":  # a page may forget to close what stands before it
            self._hidden.clear()
        elif tag in self._HIDDEN:
            self._hidden.append(tag)
        elif tag in self._BLOCKS:
            self._parts.append("\0")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        elif tag in self._BLOCKS:
            self._parts.append("\0")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = " ".join(f"{self.title} {data}".split())
        elif not self._hidden:
            self._parts.append(data.replace("\0", ""))


_Reader = Callable[[str, str, list[str]], Iterator[Document]]
_READERS: Mapping[str, _Reader] = {
    ".txt": _plain,
    ".text": _plain,
    ".rst": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
