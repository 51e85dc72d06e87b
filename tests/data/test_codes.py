"""The table of codes: complete, used, and of one shape."""

from __future__ import annotations

import re
from pathlib import Path

import tunesmith.data
from tunesmith.data import CODES
from tunesmith.data.codes import SUBJECTS


def test_every_code_in_the_source_is_in_the_table_and_the_other_way_round() -> None:
    folder = Path(tunesmith.data.__file__).parent
    used: set[str] = set()
    for path in folder.rglob("*.py"):
        if path.parent.name != "codes":
            used |= set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', path.read_text())) & CODES.keys()
    kinds = ("row", "prompt", "near", "near_prompt")
    used |= {f"{part}_leak_{kind}" for part in ("test", "validation") for kind in kinds}
    assert used == CODES.keys()


def test_every_code_says_what_why_and_what_to_do() -> None:
    for name, code in CODES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", name)
        assert code.title and code.why and code.fix
        assert code.severity in ("error", "warning", "info")


def test_no_code_is_in_two_subjects() -> None:
    assert sum(map(len, SUBJECTS)) == len(CODES)
