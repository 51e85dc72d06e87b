from __future__ import annotations

import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.service.batches.journal import Journal


def test_rows_come_back_in_the_order_of_the_input(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "batches" / "b.jsonl")
    for place in (3, 0, 2):
        journal.add(place, {"text": f"ä{place}\n"})
    journal.add(0, {"text": "again"})
    journal.close()
    again = Journal(tmp_path / "batches" / "b.jsonl")
    again.add(1, {"text": "late"})
    assert again.places == {0, 1, 2, 3}
    assert [row["text"] for _, row in again.rows()] == ["ä0\n", "late", "ä2\n", "ä3\n"]
    again.remove()
    assert list((tmp_path / "batches").iterdir()) == []


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200))
def test_cut_off_anywhere(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.jsonl"
        journal = Journal(path)
        for place in range(4):
            journal.add(place, {"n": place})
        journal.close()
        data = path.read_bytes()
        path.write_bytes(data[: min(cut, len(data))])
        whole = data[: min(cut, len(data))].count(b"\n")
        again = Journal(path)
        assert again.places == set(range(whole))
        again.add(9, {"n": 9})
        assert [row["n"] for _, row in again.rows()] == [*range(whole), 9]
        again.close()
        last = Journal(path)
        assert last.places == {*range(whole), 9}
        last.close()


def test_one_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "b.jsonl")
    first.add(0, {"n": 0})
    seen: list[frozenset[int]] = []
    other = threading.Thread(target=lambda: seen.append(Journal(tmp_path / "b.jsonl").places))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    first.add(1, {"n": 1})
    first.close()
    other.join(5)
    assert seen == [{0, 1}]


def test_texts_that_no_file_can_hold(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "b.jsonl")
    journal.add(0, {"text": "half \ud800", "other": "ä"})
    assert [row["text"] for _, row in journal.rows()] == ["half \ud800"]
