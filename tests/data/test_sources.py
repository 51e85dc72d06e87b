"""Rows from packed files, Parquet and Arrow, folders of data sets, hubs and databases: the same rows, wherever from."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import sqlite3
import sys
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.data.makers import by_code, jsonl, spec, write
from tunesmith.data import ReadResult, load_examples, propose, read_rows, source_sha256
from tunesmith.data.sources import address_of, packed
from tunesmith.data.sources.records import UnreadableError, plain_value
from tunesmith.errors import DataError

ROWS = [{"prompt": f"question {n} é", "completion": f"answer {n}"} for n in range(5)]


def values(result: ReadResult) -> list[dict[str, Any]]:
    return [dict(row.values) for row in result.rows]


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "place", "part", "shown"),
    [
        ("rows.jsonl", "file", "rows.jsonl", None, "rows.jsonl"),
        ("org/rows.jsonl", "file", "org/rows.jsonl", None, "org/rows.jsonl"),
        ("org/name", "hub", "org/name", None, "hf://org/name"),
        ("org/name#train[:100]", "hub", "org/name", "train[:100]", "hf://org/name#train[:100]"),
        ("hf://org/name#test", "hub", "org/name", "test", "hf://org/name#test"),
        ("hf://datasets/org/name", "hub", "org/name", None, "hf://datasets/org/name"),
        ("sqlite:///a.db#t", "sqlite", "sqlite:///a.db", "t", "sqlite:///a.db#t"),
        ("sqlite:////a.db#select '#' from t", "sqlite", "sqlite:////a.db", "select '#' from t",
         "sqlite:////a.db#select '#' from t"),
        ("postgres://me:se@cret@host/db?sslmode=require#t", "postgresql", "postgres://me:se@cret@host/db?sslmode=require",
         "t", "postgres://me:***@host/db?sslmode=require#t"),
    ],
)  # fmt: skip
def test_addresses(text: str, kind: str, place: str, part: str | None, shown: str) -> None:
    address = address_of(text)
    assert (address.kind, address.place, address.part, address.shown) == (kind, place, part, shown)


def test_a_file_that_exists_is_a_file_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    write(tmp_path, "org/name", "a,b\n1,2\n")
    write(tmp_path, "a#b.csv", "a,b\n1,2\n")
    assert address_of("org/name").kind == "file"
    assert address_of("a#b.csv").part is None
    assert address_of(str(tmp_path) + "#train").kind == "folder"


@pytest.mark.parametrize("text", ["https://example.org/a.jsonl", "s3://bucket/a", "mysql://host/db", "hf://name"])
def test_addresses_nobody_reads(text: str) -> None:
    with pytest.raises(DataError):
        address_of(text)


# --- packed files --------------------------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


PACK: dict[str, Any] = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", list(PACK))
@pytest.mark.parametrize("inner", ["jsonl", "json", "csv"])
def test_packed_files_read_as_what_is_in_them(tmp_path: Path, ending: str, inner: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = {
        "jsonl": "\n".join(lines),
        "json": "[" + ",\n".join(lines) + "]",
        "csv": "\n".join(["prompt,completion", *(",".join(row.values()) for row in ROWS)]),
    }[inner]
    result = read_rows(write(tmp_path, f"a.{inner}.{ending}", PACK[ending](text.encode())))
    assert values(result) == ROWS
    assert (result.kind, result.findings, result.left_out) == (inner, [], 0)


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_a_broken_archive_keeps_what_came_before_and_says_so(tmp_path: Path, ending: str) -> None:
    rows = [{"a": "".join(chr(97 + (n * k * k) % 26) for k in range(400)), "n": n} for n in range(4000)]
    data = PACK[ending]("".join(json.dumps(row) + "\n" for row in rows).encode())
    result = read_rows(write(tmp_path, f"a.jsonl.{ending}", data[: len(data) * 3 // 4]))
    assert 0 < len(result.rows) < 4000
    found = by_code(result.findings)
    assert "damaged" in found["rest_unread"].message
    assert result.left_out == 2  # the line that broke off, and the rest
    with pytest.raises(DataError, match="nothing can be unpacked"):
        read_rows(write(tmp_path, f"b.jsonl.{ending}", data[:20]))


def test_an_archive_that_grows_beyond_reason_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_HARMLESS", 1 << 20)
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(b" " * (8 << 20)))
    with pytest.raises(DataError, match="unpacks to more than"):
        read_rows(path)


# --- text ----------------------------------------------------------------------------------------------------------


def test_paragraphs_and_lines(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.txt", "One.\nTwo, and more.\n\n\n  Three.\r\n"))
    assert result.kind == "text"
    assert [(row.line, row.values["text"]) for row in result.rows] == [(1, "One.\nTwo, and more."), (5, "  Three.")]
    lines = read_rows(write(tmp_path, "b.md", "\ufeffOne.\nTwo.\n"))
    assert [(row.line, row.values["text"]) for row in lines.rows] == [(1, "One."), (2, "Two.")]


def test_text_with_bad_bytes_and_nul(tmp_path: Path) -> None:
    result = read_rows(write(tmp_path, "a.txt", b"good\n\ncaf\xe9\n\nn\0l\n\nlast"))
    assert [row.values["text"] for row in result.rows] == ["good", "last"]
    found = by_code(result.findings)
    assert (found["wrong_encoding"].lines, found["nul_byte"].lines, result.left_out) == ((3,), (5,), 2)


def test_a_table_called_txt_is_a_table(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, "a.txt", "text,label\na,x\nb,y\n")).kind == "csv"


CONLL = "-DOCSTART- -X- O O\n\nAnn NNP B-NP B-PER\nsmiles VBZ B-VP O\n. . O O\n\nIn IN B-PP O\nOslo NNP B-NP B-LOC\n"


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a"])
def test_tagged_lines(tmp_path: Path, name: str) -> None:
    result = read_rows(write(tmp_path, name, CONLL))
    assert result.kind == "conll"
    assert [(row.line, row.values["tokens"], row.values["tags"]) for row in result.rows] == [
        (3, ["Ann", "smiles", "."], ["B-PER", "O", "O"]),
        (7, ["In", "Oslo"], ["O", "B-LOC"]),
    ]
    loaded = load_examples(spec(tmp_path / name), tmp_path / name)
    assert [(e.question, e.expected) for e in loaded.examples] == [
        ("Ann smiles.", '{"PER": ["Ann"]}'),
        ("In Oslo", '{"LOC": ["Oslo"]}'),
    ]
    broken = read_rows(write(tmp_path, "b.conll", CONLL.replace("smiles VBZ B-VP O", "smiles")))
    assert len(broken.rows) == 1
    assert by_code(broken.findings)["broken_tags"].lines == (3,)
    assert broken.left_out == 1


# --- Parquet and Arrow ---------------------------------------------------------------------------------------------


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow")


def parquet(folder: Path, name: str, rows: list[dict[str, Any]], metadata: Any = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    if metadata is not None:
        note = json.dumps({"info": {"features": metadata}})
        table = table.replace_schema_metadata({"huggingface": note})
    pyarrow.parquet.write_table(table, folder / name, row_group_size=2)
    return folder / name


def test_parquet_and_arrow_give_the_same_rows(tmp_path: Path, arrow: Any) -> None:
    import pyarrow.feather
    import pyarrow.ipc

    table = arrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=2)
    with pyarrow.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=2)
    pyarrow.feather.write_feather(table, str(tmp_path / "f.feather"))
    parquet(tmp_path, "p.parquet", ROWS)
    for name, kind in (
        ("p.parquet", "parquet"),
        ("file.arrow", "arrow"),
        ("stream.arrow", "arrow"),
        ("f.feather", "arrow"),
    ):
        result = read_rows(tmp_path / name)
        assert values(result) == ROWS, name
        assert (result.kind, [row.line for row in result.rows]) == (kind, [1, 2, 3, 4, 5])
    assert propose(tmp_path / "p.parquet").format == "prompt_completion"


def test_messages_out_of_parquet_have_no_keys_that_only_other_rows_have(tmp_path: Path, arrow: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call], "weight": 1}]},
    ]
    path = parquet(tmp_path, "m.parquet", rows)
    assert values(read_rows(path))[0] == rows[0]
    loaded = load_examples(spec(path), path, learns={"answer", "tools"})
    assert (len(loaded.examples), loaded.findings) == (2, [])


def test_class_labels_become_their_names(tmp_path: Path, arrow: Any) -> None:
    rows = [{"text": f"a {n}", "label": n % 2, "tags": [0, 1]} for n in range(4)]
    features = {
        "label": {"names": ["good", "bad"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "List"},
    }
    result = read_rows(parquet(tmp_path, "a.parquet", rows, features))
    assert [row.values["label"] for row in result.rows] == ["good", "bad", "good", "bad"]
    assert result.rows[0].values["tags"] == ["O", "B-X"]


def test_cells_that_are_no_text_are_reported_by_row(tmp_path: Path, arrow: Any) -> None:
    texts = arrow.array([b"good", b"caf\xe9", b"fine"]).view(arrow.string())
    images = arrow.array([b"\x89PNG\xff", b"x", b"text"])
    path = tmp_path / "a.parquet"
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table({"text": texts, "image": images, "x": [float("nan"), 1.0, None]}), path)
    result = read_rows(path)
    assert values(result) == [{"text": "fine", "image": "text", "x": None}]
    found = by_code(result.findings)
    assert (found["cell_not_text"].lines, found["wrong_encoding"].lines, result.left_out) == ((1,), (2,), 2)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "s.arrow"])
def test_broken_tables_are_errors(tmp_path: Path, arrow: Any, name: str, cut: float) -> None:
    import pyarrow.ipc

    table = arrow.Table.from_pylist(ROWS)
    if name == "a.parquet":
        parquet(tmp_path, name, ROWS)
    else:
        new = pyarrow.ipc.new_file if name == "a.arrow" else pyarrow.ipc.new_stream
        with new(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table)
    data = (tmp_path / name).read_bytes()
    broken = write(tmp_path, name, data[: int(len(data) * cut)])
    if name == "s.arrow":  # a stream has no table of contents: what came before the break is there
        result = read_rows(broken)
        assert len(result.rows) in (0, 5)
        assert by_code(result.findings)["rest_unread"].count == result.left_out == 1
    else:
        with pytest.raises(DataError, match="cannot be read"):
            read_rows(broken)


def test_tables_without_pyarrow_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.parquet", b"PAR1xxxx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"tunesmith\[parquet\]"):
        read_rows(path)
    with pytest.raises(DataError, match=r"tunesmith\[parquet\]"):
        read_rows(write(tmp_path, "a.jsonl.zst", b"\x28\xb5\x2f\xfdx"))


# --- folders and hubs ----------------------------------------------------------------------------------------------


def test_a_folder_of_shards_is_read_by_split(tmp_path: Path, arrow: Any) -> None:
    (tmp_path / "data").mkdir()
    parquet(tmp_path, "data/train-00000-of-00002.parquet", ROWS[:2])
    parquet(tmp_path, "data/train-00001-of-00002.parquet", ROWS[2:4])
    parquet(tmp_path, "data/test-00000-of-00001.parquet", ROWS[4:])
    assert values(read_rows(tmp_path)) == ROWS[:4]
    assert values(read_rows(f"{tmp_path}#test")) == ROWS[4:]
    assert values(read_rows(f"{tmp_path}#train[1:3]")) == ROWS[1:3]
    assert values(read_rows(f"{tmp_path}#train[:50%]")) == ROWS[:2]
    assert [row.line for row in read_rows(f"{tmp_path}#train[2:]").rows] == [1, 2]
    with pytest.raises(DataError, match="no split 'dev'") as caught:
        read_rows(f"{tmp_path}#dev")
    assert "test, train" in str(caught.value)
    with pytest.raises(DataError, match="names no part"):
        read_rows(f"{tmp_path}#train[a:b]")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(6)]
    made = datasets.Dataset.from_list(rows, features=labels)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "two"))
    expected = [{"text": f"t{n}", "label": ("no", "yes")[n % 2]} for n in range(6)]
    assert values(read_rows(tmp_path / "one")) == expected
    assert values(read_rows(tmp_path / "two")) == expected
    assert values(read_rows(f"{tmp_path / 'two'}#test")) == expected[:1]
    assert propose(str(tmp_path / "two")).data["columns"] == {"prompt": "text", "answer": "label"}
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="the folder lacks data-"):
        read_rows(tmp_path / "one")


def test_a_state_file_leads_to_no_other_folder(tmp_path: Path) -> None:
    secret = jsonl(tmp_path, ROWS, "secret.jsonl")
    (tmp_path / "folder").mkdir()
    write(tmp_path, "folder/state.json", json.dumps({"_data_files": [{"filename": f"../{secret.name}"}]}))
    with pytest.raises(DataError, match="lacks secret"):
        read_rows(tmp_path / "folder")


def test_a_folder_without_tables_names_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path, ROWS, "mine.jsonl")
    with pytest.raises(DataError, match="this is a folder") as caught:
        read_rows(tmp_path)
    assert "mine.jsonl" in str(caught.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub in this process: what it was asked for, and what it gives."""
    asked: dict[str, Any] = {}

    class Table:
        column_names = ("text", "label")

        def __init__(self) -> None:
            self.features = {"text": SimpleNamespace(), "label": SimpleNamespace(names=["no", "yes"])}

        def __len__(self) -> int:
            return 4

        def __getitem__(self, rows: slice) -> dict[str, list[Any]]:
            numbers = range(4)[rows]
            return {"text": [f"t{n}" for n in numbers], "label": [n % 2 for n in numbers]}

    def load(name: str, config: str | None, *, split: str | None) -> Any:
        asked.update(name=name, config=config, split=split)
        if name == "org/gone":
            raise FileNotFoundError("Couldn't find it\nmore")
        return Table() if split else {"train": Table(), "test": Table()}

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="datasets")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_data_set_of_the_hub(hub: dict[str, Any]) -> None:
    result = read_rows("hf://org/name#small/train[1:3]")
    assert hub == {"name": "org/name", "config": "small", "split": "train"}
    assert values(result) == [{"text": "t1", "label": "yes"}, {"text": "t2", "label": "no"}]
    assert len(read_rows("org/name").rows) == 4
    with pytest.raises(DataError, match=r"Couldn't find it$|Couldn't find it\n") as caught:
        read_rows("hf://org/gone")
    assert caught.value.where == "hf://org/gone"


# --- databases -----------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "reviews.db"
    with sqlite3.connect(path) as connection:
        connection.execute('create table "the reviews" (text, label, stars)')
        rows = [("good é", "pos", 5), ("bad", "neg", 1.5), (b"\x89\xff", "neg", None)]
        connection.executemany('insert into "the reviews" values (?, ?, ?)', rows)
        connection.execute("insert into \"the reviews\" values (cast(x'636166e9' as text), 'neg', 2)")
    connection.close()
    yield path


def test_sqlite(database: Path) -> None:
    result = read_rows(f"sqlite:///{database}")
    assert (result.kind, result.columns) == ("sql", ("text", "label", "stars"))
    assert values(result)[0] == {"text": "good é", "label": "pos", "stars": 5}
    assert [row.line for row in result.rows] == [1, 2]
    found = by_code(result.findings)
    assert (found["cell_not_text"].lines, found["wrong_encoding"].lines, result.left_out) == ((3,), (4,), 2)
    assert len(read_rows(f"sqlite:///{database}#the reviews").rows) == 2
    query = f'sqlite:///{database}#select text, label, label from "the reviews" where stars > 2;'
    assert values(read_rows(query)) == [{"text": "good é", "label": "pos", "label_2": "pos"}]
    assert propose(query.replace(", label,", ",")).data["columns"] == {"prompt": "text", "answer": "label"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("#nothing", "no table 'nothing'"),
        ("#select x from nowhere", "no such table"),
        ("#select 1 where 0", "there are no rows"),
        ('#delete from "the reviews"', "readonly"),
        ("#select 1; select 2", "one statement"),
        ("#pragma user_version = 3", "readonly"),
    ],
)
def test_queries_that_fail(database: Path, part: str, message: str) -> None:
    before = database.read_bytes()
    with pytest.raises(DataError, match=message) as caught:
        read_rows(f"sqlite:///{database}{part}")
    assert str(database) in str(caught.value.where)
    assert database.read_bytes() == before


def test_databases_that_are_none(tmp_path: Path, database: Path) -> None:
    with pytest.raises(DataError, match="no database file"):
        read_rows(f"sqlite:///{tmp_path}/missing.db")
    assert not (tmp_path / "missing.db").exists()
    write(tmp_path, "no.db", "just text, long enough to be taken for a database file" * 30)
    with pytest.raises(DataError, match="not a database"):
        read_rows(f"sqlite:///{tmp_path}/no.db")
    with sqlite3.connect(database) as connection:
        connection.execute("create table more (a)")
    connection.close()
    with pytest.raises(DataError, match="does not say which rows") as caught:
        read_rows(f"sqlite:///{database}")
    assert "more, the reviews" in str(caught.value)


class FakePostgres(ModuleType):
    """As much of psycopg as is used, on an SQLite database, noting how it was asked."""

    class Error(Exception):
        pass

    def __init__(self, path: Path) -> None:
        super().__init__("psycopg")
        self.path, self.asked = path, dict[str, Any]()
        self.__spec__ = SimpleNamespace(name="psycopg")  # type: ignore[assignment]

    def connect(self, url: str) -> Any:
        if "nobody" in url:
            raise self.Error('connection failed: password authentication failed for user "nobody"\nmore')
        fake, self.asked["url"] = self, url
        inner = sqlite3.connect(self.path)

        class Cursor:
            itersize = 0

            def execute(self, query: str) -> None:
                fake.asked["query"] = query
                try:
                    self.found = inner.execute(query.replace('"public".', ""))
                except sqlite3.Error as error:
                    raise fake.Error(str(error)) from error
                self.description = [SimpleNamespace(name=column[0]) for column in self.found.description]

            def __iter__(self) -> Any:
                return iter(self.found)

        class Connection:
            read_only = False

            def execute(self, query: str) -> Any:
                return SimpleNamespace(fetchall=lambda: [("public.reviews",)])

            def cursor(self, name: str) -> Cursor:
                fake.asked.update(read_only=self.read_only, name=name)
                return Cursor()

            def close(self) -> None:
                inner.close()

        return Connection()


def test_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("create table reviews (text, label)")
        connection.execute("insert into reviews values ('good', 'pos')")
    connection.close()
    fake = FakePostgres(tmp_path / "x.db")
    monkeypatch.setitem(sys.modules, "psycopg", fake)
    url = "postgresql://me@host/db"
    result = read_rows(f"{url}#reviews")
    assert values(result) == [{"text": "good", "label": "pos"}]
    assert fake.asked == {"url": url, "read_only": True, "name": "tunesmith_rows",
                          "query": 'select * from "public"."reviews"'}  # fmt: skip
    assert values(read_rows(f"{url}#select label from reviews")) == [{"label": "pos"}]
    for address in (f"{url}#select 1 from nowhere", "postgresql://nobody:secret@host/db"):
        with pytest.raises(DataError) as caught:
            read_rows(address)
        assert "secret" not in str(caught.value)
        assert "more" not in str(caught.value)


def test_a_source_is_hashed_by_what_it_holds(database: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path, ROWS)
    assert source_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    address = f"sqlite:///{database}"
    before = source_sha256(address)
    assert source_sha256(f'{address}#select text, label, stars from "the reviews"') == before
    with sqlite3.connect(database) as connection:
        connection.execute("update \"the reviews\" set stars = 4 where label = 'pos'")
    connection.close()
    assert source_sha256(address) != before


# --- values --------------------------------------------------------------------------------------------------------


def test_plain_values() -> None:
    given = {
        "a": Decimal("1.50"),
        "b": date(2026, 1, 2),
        "c": datetime(2026, 1, 2, 3, 4),
        "d": float("inf"),
        "e": None,
        "f": ({"x": None, "y": b"text"},),
    }
    assert plain_value(given) == {"a": "1.50", "b": "2026-01-02", "c": "2026-01-02T03:04:00", "d": None,
                                  "f": [{"y": "text"}]}  # fmt: skip
    for bad in (object(), b"\xff", "\ud800", {1, 2}):
        with pytest.raises(UnreadableError):
            plain_value(bad)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(UnreadableError, match="nested"):
        plain_value(deep)
