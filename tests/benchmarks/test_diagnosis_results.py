"""What benchmarks/diagnosis.py does around its runs: it keeps results, continues, names its base, tells the time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it; its cases are carried out by threads and made up by `work`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the script sets it for its processes; here it is put back
    import diagnosis

    monkeypatch.setattr(diagnosis, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(diagnosis, "publish", lambda *_: None)
    return diagnosis


def made_up(name: str, expected: str | None, *, right: bool = True, weights: str = "ab12") -> dict[str, Any]:
    """A record as `judge` gives it."""
    probe = {"train_loss": 0.5, "loss": 0.75}
    record: dict[str, Any] = {
        "name": name, "expected": expected, "codes": [expected] if expected else [], "diagnoses": [],
        "told_at": {expected: 7} if expected else {}, "metric": "accuracy", "scores": {"accuracy": 0.25},
        "seconds": 1.0, "base": {"name": "embedded:base", "weights_sha256": weights}, "right": right,
        "history": [{"kind": "validation", "step": 8, "probe": probe}],
    }  # fmt: skip
    if expected:
        record |= {"remedy": ["method.rank=16"], "rows_mended": False, "scores_after": {"accuracy": 0.5}}
        record["codes_after"] = []
    return record


@pytest.fixture
def worked(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that were carried out."""
    names: list[str] = []

    def work(seed: int, few: bool, name: str, folder: Path) -> dict[str, Any]:
        names.append(name)
        case = next(c for c in bench.all_cases(seed, few) if c.name == name)
        return made_up(name, case.expected, right=name != "dates, LoRA")

    monkeypatch.setattr(bench, "work", work)
    return names


def test_it_continues_where_it_was_interrupted(bench, worked, tmp_path, capsys, monkeypatch):
    base = ["--results", str(tmp_path), "--seed", "9"]
    assert bench.main([*base, "--jobs", "2", "rank 1", "codes"]) == 0
    assert sorted(worked) == ["codes, rank 32", "rank 1 on a hard task"]
    assert "2 of 2 done, about 0.0 min left" in capsys.readouterr().out
    assert bench.main([*base, "--jobs", "2"]) == 5
    told = capsys.readouterr().out
    assert len(worked) == len(set(worked)) == 20
    assert "kept: codes, rank 32, right" in told and "20 of 20 done" in told
    assert "not as they must be: dates, LoRA" in told
    assert bench.main([*base, "--fresh", "rank 1"]) == 0 and len(worked) == 21
    assert bench.main([*base, "rank 1"]) == 0 and len(worked) == 21
    monkeypatch.setattr(bench, "code_digest", lambda: "another base or another sign")
    assert bench.main([*base, "rank 1"]) == 0 and len(worked) == 22
    assert bench.main(["--results", str(tmp_path), "--seed", "10", "rank 1"]) == 0 and len(worked) == 23


def test_what_was_done_is_kept_when_a_run_fails(bench, worked, tmp_path, monkeypatch):
    fine = bench.work

    def work(seed: int, few: bool, name: str, folder: Path) -> dict[str, Any]:
        if len(worked) == 3:
            raise RuntimeError("the machine is switched off")
        return fine(seed, few, name, folder)

    monkeypatch.setattr(bench, "work", work)
    base = ["--results", str(tmp_path), "--seed", "9"]
    with pytest.raises(RuntimeError, match="switched off"):
        bench.main(base)
    monkeypatch.setattr(bench, "work", fine)
    assert bench.main(base) == 5 and len(worked) == 20


def test_the_longest_begins_first_and_the_time_left_falls(bench, worked):
    cases = bench.all_cases(9)
    expected = {case.name: float(i + 1) for i, case in enumerate(cases)}
    ended = list(bench.carried_out(cases, expected, Path(), seed=9, few=False, jobs=1))
    assert [case.name for case, _, _ in ended] == [case.name for case in reversed(cases)]
    assert ended[-1][2] == 0.0 and all(left >= 0 for _, _, left in ended)
    assert bench.expected_seconds(cases).keys() == {case.name for case in cases}


def test_a_case_is_known_by_its_rows_and_settings(bench):
    first, again, other = bench.all_cases(1), bench.all_cases(1), bench.all_cases(2)
    assert [c.digest for c in first] == [c.digest for c in again]
    assert not {c.digest for c in first} & {c.digest for c in other}
    assert replace(first[0], settings={}).digest != first[0].digest
    nan = next(c for c in first if c.expected == "row_not_finite")
    assert replace(nan, spoil=None).digest != nan.digest
    assert len({bench.slug(c) for c in first}) == 20 and not any(set(bench.slug(c)) & set("/% ") for c in first)


def test_the_page_names_base_and_figures(bench):
    records = [made_up("rank 1", "rank_too_small"), made_up("tones", None), made_up("dates", None, right=False)]
    shown = bench.page(records, 3)
    assert "`embedded:base`" in shown and "`ab12`" in shown and "--seed 3" in shown
    assert "1 of 1 spoiled runs" in shown and "1 of 1 remedies" in shown and "1 of 2 healthy runs" in shown
    row = "| rank 1 | `rank_too_small` | 7 | 0.5, 0.75 | `method.rank=16` | accuracy | 25 % | 50 % | nothing |"
    assert row in shown.splitlines()
    with pytest.raises(ValueError, match="2 bases"):
        bench.page([*records, made_up("codes", None, weights="cd34")], 3)


def test_names_are_listed_and_unknown_ones_refused(bench, worked, capsys):
    assert bench.main(["--list"]) == 0
    assert "rank 1 on a hard task: rank_too_small" in capsys.readouterr().out
    assert bench.main(["no such run"]) == 2 and not worked


def test_what_is_published_can_be_read_again(bench, tmp_path):
    case = bench.all_cases(0)[0]
    kept = bench.Kept(tmp_path, "code")
    assert kept.read(case) is None
    record = made_up(case.name, case.expected) | {"history": [{"loss": float("inf")}]}
    kept.write(case, record)
    assert kept.read(case) == json.loads(json.dumps(record)) and kept.read(replace(case, metric="macro_f1")) is None
    assert bench.Kept(tmp_path, "other code").read(case) is None
