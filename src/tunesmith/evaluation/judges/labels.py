"""Human labels from a file, for judges that are to be measured on other labels than those of `tunesmith rate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import DataError
from tunesmith.evaluation.rating.pairs import Pair
from tunesmith.evaluation.rating.win_rate import Outcome


def read_labels(path: Path, pairs: Sequence[Pair], a: str, b: str) -> dict[str, Outcome]:
    """Labels by pair key, from lines such as `{"id": "9afb1b60b85faa54", "winner": "tuned"}`.

    `id` is the row's, as in `evaluation/<candidate>.jsonl`; `winner` is a candidate's name, `tie` or `both_bad`. Rows
    that are not in this run are an error: a label that fits nothing is a mistake in the file. Raises `DataError`.
    """
    names: dict[object, Outcome] = {a: "a", b: "b", "tie": "tie", "both_bad": "tie"}
    by_id = {pair.id: pair for pair in pairs}
    labels: dict[str, Outcome] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"the labels cannot be read: {problem}", where=str(path)) from problem
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            kept = json.loads(line)
            row, winner = str(kept["id"]), kept["winner"]
        except (ValueError, KeyError, TypeError) as problem:
            raise DataError(
                "this is no label", where=where, expected='such as {"id": "9afb1b60b85faa54", "winner": "tuned"}'
            ) from problem
        if row not in by_id:
            raise DataError(f"there is no row {row!r} in this run", where=where, expected="an id of its answers")
        if not isinstance(winner, str) or winner not in names:
            raise DataError(f"{winner!r} is no winner", where=where, expected=f"{a}, {b}, tie or both_bad")
        labels[by_id[row].key] = names[winner]
    return labels
