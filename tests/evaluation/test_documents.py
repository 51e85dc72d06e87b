"""Documents read in every kind of file, and cut into passages without losing anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.rows import example
from tunesmith.errors import DataError
from tunesmith.evaluation.document_files import Document, read_documents
from tunesmith.evaluation.passages import OVERLAP, PassageFinder, _spoken, cut, cut_all, with_passages
from tunesmith.tasks.words import words


def words_of(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def letters_of(texts: Sequence[str]) -> list[int]:
    return list(map(len, texts))


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


PAGE = """<!doctype html><html><head><title>Opening
 hours</title><style>p {}</style></head><body><script>var x = "<p>no</p>";</script>
<h1>Hours &amp; days</h1><p>We open at <b>nine</b>.<p>Closed on<br>Sunday.</p><ul><li>Monday</li><li>Tuesday</li></ul>
<noscript>Switch it on</noscript></body></html>"""


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    rows = [{"title": "Fees", "text": "A card costs 5."}, {"content": "No title here."}, "A bare text."]
    folder = write(
        tmp_path,
        {
            "b/hours.html": PAGE,
            "a.txt": "\ufeffFirst line.\r\nSecond.\n",
            "guide.md": "---\ntitle: x\n---\n# The guide #\n\nRead it.\n",
            "rows.jsonl": "\n".join(map(json.dumps, rows)) + "\n\n",
            "copy.txt": "First line.\nSecond.\n",
            "empty.txt": "  \n",
            "photo.jpg": b"\xff\xd8",
            "Makefile": "all:",
            ".hidden/secret.txt": "hidden",
        },
    )
    found = read_documents(folder)
    named = {document.source: document for document in found.documents}
    assert list(named) == ["a.txt", "b/hours.html", "guide.md", "rows.jsonl, line 1", "rows.jsonl, line 2",
                           "rows.jsonl, line 3"]  # fmt: skip
    assert named["a.txt"].text == "First line.\nSecond.\n" and named["a.txt"].name == "a.txt"
    page = named["b/hours.html"]
    assert page.title == "Opening hours"
    assert page.text == "Hours & days\n\nWe open at nine.\n\nClosed on\n\nSunday.\n\nMonday\n\nTuesday"
    assert named["guide.md"].title == "The guide" and named["guide.md"].text.startswith("# The guide")
    assert named["rows.jsonl, line 1"].name == "Fees" and named["rows.jsonl, line 3"].text == "A bare text."
    assert (dict(found.skipped), found.empty, found.repeated) == ({".jpg": 1, "no ending": 1}, 1, 1)


def test_a_line_at_the_beginning_is_no_front_matter(tmp_path: Path) -> None:
    rule = "---\nAsk at the desk.\n---\nIt opens at nine.\n"
    settings_ = "---\ntitle: Hours\ntags:\n  - a\n# note\n---\nIt opens at nine.\n"
    folder = write(tmp_path, {"rule.md": rule, "set.md": settings_, "open.md": "---\nNever closed: this."})
    told = {document.source: document.text for document in read_documents(folder).documents}
    assert told == {"rule.md": rule, "set.md": "It opens at nine.\n", "open.md": "---\nNever closed: this."}


def test_runs_below_the_documents_are_not_read(tmp_path: Path) -> None:
    """Their reports and answers hold the test rows."""
    run = {"manifest.json": "{}", "events.jsonl": "{}", "report.html": "<p>x</p>", "evaluation/tuned.jsonl": "{}"}
    files = {"a.txt": "one", "site/manifest.json": "{}", "site/index.html": "<p>two</p>"}
    found = read_documents(write(tmp_path, {**files, **{f"runs/a-1/{name}": text for name, text in run.items()}}))
    assert [document.source for document in found.documents] == ["a.txt", "site/index.html"]
    assert dict(found.skipped) == {".json": 1, "in the folder of a run": 4}


def test_the_hash_is_of_what_was_read(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    before = read_documents(folder).sha256
    assert read_documents(folder).sha256 == before
    write(folder, {"c.bin": "ignored"})
    assert read_documents(folder).sha256 == before
    write(folder, {"b.txt": "three"})
    assert read_documents(folder).sha256 != before


def test_all_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "good.txt": "fine",
            "latin.txt": "caf\xe9".encode("latin-1"),
            "rows.jsonl": 'not json\n{"answer": 3}\n{"text": "good"}\n[1]\n',
        },
    )
    with pytest.raises(DataError, match="4 of the documents cannot be read") as told:
        read_documents(tmp_path)
    for part in ("latin.txt: ", "rows.jsonl, line 1: no JSON", "line 2: no text under text | content", "line 4"):
        assert part in str(told.value)
    write(tmp_path, {"rows.jsonl": '{"text": "good"}'})
    assert read_documents(tmp_path, "latin-1").documents[1].text == "caf\xe9"


def test_no_documents_are_an_error_that_says_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_documents(tmp_path / "missing")
    with pytest.raises(DataError, match="there is no document here"):
        read_documents(write(tmp_path / "x", {"photo.png": b"", "empty.md": ""}))
    pdf = write(tmp_path / "y", {"book.pdf": b"%PDF"}) / "book.pdf"
    with pytest.raises(DataError, match=r"documents of the kind \.pdf are not read") as told:
        read_documents(pdf)
    assert ".html" in str(told.value)
    assert read_documents(write(tmp_path / "z", {"a.md": "x"}) / "a.md").documents[0].source == "a.md"


TEXT = (
    "The first sentence has six words. The second one has six too! Is the third a question?\n\n"
    "A new paragraph begins right here. It has two sentences.\n\n"
    "And the last one stands alone at the end of it all."
)


def test_passages_end_where_sentences_and_paragraphs_end() -> None:
    found = cut(Document(TEXT, "t"), 16, words_of)
    assert [passage.text.strip() for passage in found] == [
        "The first sentence has six words. The second one has six too!",
        "Is the third a question?\n\nA new paragraph begins right here. It has two sentences.",
        "And the last one stands alone at the end of it all.",
    ]
    assert [passage.tokens for passage in found] == [12, 15, 12]
    assert all(TEXT[passage.start :].startswith(passage.text) for passage in found)


def test_a_paragraph_that_fits_into_the_next_passage_is_not_torn() -> None:
    found = cut(Document(TEXT, "t"), 24, words_of)
    assert [passage.text.strip().split()[0] for passage in found] == ["The", "A"]
    assert found[0].text.strip().endswith("Is the third a question?")


def test_neighbours_overlap_by_whole_sentences() -> None:
    text = " ".join(f"Number {i} is a sentence." for i in range(40))
    found = cut(Document(text, "t"), 40, words_of)
    assert len(found) > 4
    for one, other in pairwise(found):
        assert other.start < one.start + len(one.text) and other.start > one.start
        shared = text[other.start : one.start + len(one.text)]
        assert len(shared.split()) == 5 <= 40 // OVERLAP and shared.startswith("Number")


def test_a_sentence_longer_than_a_passage_is_cut_between_words() -> None:
    text = " ".join(f"word{i}" for i in range(50))
    found = cut(Document(text, "t"), 8, words_of)
    assert [passage.tokens for passage in found] == [8] * 6 + [2]
    assert " ".join(passage.text.strip() for passage in found) == text


def test_scripts_without_spaces_are_cut_at_their_full_stop() -> None:
    found = cut(Document("今日は晴れです。明日は雨でしょう。週末は雪かも。", "t"), 9, letters_of)
    assert [passage.text for passage in found] == ["今日は晴れです。", "明日は雨でしょう。", "週末は雪かも。"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "bb ", "c. ", "d! ", "\n\n", "\n", " - e", "。", "f" * 30 + " ", "\t"]), max_size=60
    ),
    st.integers(1, 20),
)
def test_nothing_is_lost_and_nothing_is_made_up(parts: list[str], size: int) -> None:
    text = "".join(parts)
    found = cut(Document(text, "t"), size, words_of)
    covered = [False] * len(text)
    for passage in found:
        assert text[passage.start : passage.start + len(passage.text)] == passage.text and passage.text.strip()
        assert len(passage.text.split()) <= max(size, 1)
        for place in range(passage.start, passage.start + len(passage.text)):
            covered[place] = True
    assert all(covered[place] for place, letter in enumerate(text) if not letter.isspace())
    assert [passage.start for passage in found] == sorted({passage.start for passage in found})


def test_a_title_is_searched_with_its_passages() -> None:
    documents = [
        Document("It takes three days.", "a", "Delivery abroad"),
        Document("It takes one day.", "b", "At home"),
    ]
    finder = PassageFinder(cut_all(documents, 50, words_of))
    assert finder.nearest(example("how long is delivery abroad", "x"), 1)[0].document.source == "a"
    assert finder.nearest(example("…", "x"), 5) == finder.passages
    assert PassageFinder([]).nearest(example("anything", "x"), 3) == ()


def test_a_row_without_a_question_is_asked_as_it_is() -> None:
    row = example("how long", "x")
    (passage,) = cut(Document("It takes one day.", "b", "At home"), 9, words_of)
    assert with_passages(row, []) is row
    asked = with_passages(row, [passage])
    assert asked.id == row.id and asked.messages[-1] == row.messages[-1]
    assert asked.messages[0].content == (
        "These passages may help:\n\n[1] At home\nIt takes one day.\n\nThe question:\nhow long"
    )


QUESTION = "why was my card declined at the till on friday"


def test_a_row_told_over_several_passages_is_not_given_away() -> None:
    """A dump of the rows, cut between a question and its answer: what says the answer is held back too."""
    told = f"{QUESTION}.\n\nIt had expired on the first.\n\nA card may be declined for other reasons too."
    finder = PassageFinder(cut_all([Document(told, "rows.txt")], 10, words_of))
    assert len(finder.passages) == 3
    row = example(QUESTION, "It had expired on the first")
    assert [passage.text.split()[0] for passage in finder.nearest(row, 3)] == ["why", "A"]
    assert finder.held_out == {row.id}
    other = example(QUESTION, "The till was broken")
    assert len(finder.nearest(other, 3)) == 3 and other.id not in {*finder.held_out} - {row.id}


def test_a_part_of_a_long_answer_is_held_back() -> None:
    answer = "first we look at your account. then we send you a letter. at last we call you back."
    finder = PassageFinder(cut_all([Document(f"{QUESTION}.\n\n{answer}", "rows.txt")], 10, words_of))
    assert len(finder.passages) >= 3
    assert [passage.text.strip() for passage in finder.nearest(example(QUESTION, answer), 9)] == [f"{QUESTION}."]


def test_an_answer_far_from_the_question_is_no_solution() -> None:
    apart = "The till is next to the door. " * 80
    finder = PassageFinder(cut_all([Document(f"{QUESTION}.\n\n{apart}\n\nIt had expired.", "a")], 10, words_of))
    row = example(QUESTION, "It had expired")
    assert len(finder.nearest(row, len(finder.passages))) == len(finder.passages) and not finder.held_out


def test_an_answer_without_words_stands_where_its_question_does() -> None:
    finder = PassageFinder(cut_all([Document(f"{QUESTION} ★★", "a")], 20, words_of))
    assert finder.nearest(example(QUESTION, "★★"), 1) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["one two.", "Three. ", "\n\n", "a,b ", "ﬁn é", "你好。", " 中 "]), max_size=30))
def test_the_words_of_passages_are_found_in_those_of_their_document(parts: list[str]) -> None:
    passages = dict(enumerate(cut(Document("".join(parts), "a"), 12, letters_of)))
    if not passages:
        return
    spoken = _spoken(passages)
    for place, passage in passages.items():
        start, end = spoken.spans[place]
        assert spoken.text[start:end].split() == words(passage.text)
