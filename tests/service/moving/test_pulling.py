"""Pulling an account: whole, in pieces, refused, cut off, and never more than once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.service.moving.hosted import COMPLETION, KEY, TUNED, Account, chat_rows, events, hosted, job
from tunesmith.errors import EngineError, RecipeError, ResourceError
from tunesmith.service.moving.asking import Asker
from tunesmith.service.moving.pulling import Pulled, pull, read_lines


def pulled(url: str, folder: Path, key: str = KEY) -> Pulled:
    return pull(Asker(url, key, sleep=lambda _: None), folder)


def test_everything_is_pulled(tmp_path: Path) -> None:
    account = Account(page=7)
    with hosted(account) as url:
        done = pulled(url, tmp_path)
    assert (done.jobs, done.files, done.evals, done.completions, done.models) == (1, 3, 1, 1, 1)
    assert not done.missing and not done.kept
    place = tmp_path / "jobs" / "ftjob-abc123"
    assert json.loads((place / "job.json").read_text()) == job()
    told = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    assert told == events(), "over several pages, oldest first, each once"
    assert len(json.loads((place / "checkpoints.json").read_text())) == 2
    assert (tmp_path / "files" / "file-train.jsonl").read_bytes() == chat_rows(20)
    assert not list(tmp_path.rglob("*photo*")), "what assistants were made of stays there"
    assert [one["id"] for one in json.loads((tmp_path / "models.json").read_text())] == [TUNED]
    runs = tmp_path / "evals" / "eval_abc" / "runs"
    assert len((runs / "evalrun_1-items.jsonl").read_text().splitlines()) == 12
    kept = json.loads((tmp_path / "completions.jsonl").read_text())
    assert kept["messages"] == [{"id": "m1", "role": "user", "content": "Two and two?"}]
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["source"] == url and about["counts"]["jobs"] == 1


def test_the_key_is_nowhere_in_the_folder(tmp_path: Path) -> None:
    with hosted(Account()) as url:
        asker = Asker(url, KEY)
        pull(asker, tmp_path)
    assert KEY not in repr(asker)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    account = Account()
    with hosted(account) as url:
        pulled(url, tmp_path)
        account.asked.clear()
        done = pulled(url, tmp_path)
    assert done.kept == 1 + 3 + 1 + 1 and not any("content" in one or "events" in one for one in account.asked)
    assert not any(one.endswith(("output_items", "messages")) for one in account.asked)


def test_a_job_that_went_on_is_asked_for_again(tmp_path: Path) -> None:
    account = Account(jobs=[job(status="running", finished_at=None)])
    with hosted(account) as url:
        pulled(url, tmp_path)
        account.jobs = [job()]
        account.asked.clear()
        pulled(url, tmp_path)
    assert "/fine_tuning/jobs/ftjob-abc123/events" in account.asked
    assert json.loads((tmp_path / "jobs/ftjob-abc123/job.json").read_text())["status"] == "succeeded"


def test_a_file_that_was_cut_off_leaves_nothing_and_comes_whole_the_next_time(tmp_path: Path) -> None:
    account = Account(cut={"/files/file-valid/content"})
    with hosted(account) as url:
        with pytest.raises(ResourceError, match="ended in the middle") as caught:
            pulled(url, tmp_path)
        assert "it goes on where it stopped" in str(caught.value)
        here = sorted(path.name for path in (tmp_path / "files").iterdir())
        assert here == ["file-train.jsonl"]
        done = pulled(url, tmp_path)
    assert done.kept >= 2 and (tmp_path / "files" / "file-valid.jsonl").read_bytes() == chat_rows(10, 100)


def test_a_moody_service_is_asked_again(tmp_path: Path) -> None:
    account = Account(refuse={"/files": [429, 503], "/fine_tuning/jobs": [500]})
    with hosted(account) as url:
        done = pulled(url, tmp_path)
    assert done.files == 3 and account.asked.count("/files") == 3


def test_what_is_shut_down_is_told_and_the_rest_is_pulled(tmp_path: Path) -> None:
    account = Account(evals=None, refuse={"/files/file-results/content": [403]})
    with hosted(account) as url:
        done = pulled(url, tmp_path)
    assert done.missing == [
        "file file-results (step_metrics.csv): 403: refused with 403",
        "evals: 404: The evals platform has been shut down",
    ]
    assert done.completions == 1 and json.loads((tmp_path / "export.json").read_text())["missing"] == done.missing


def test_whatever_is_gone_the_rest_is_pulled(tmp_path: Path) -> None:
    gone = ["/fine_tuning/jobs", "/files", "/models", "/evals/eval_abc/runs/evalrun_1/output_items"]
    with hosted(Account(refuse={path: [410] for path in gone})) as url:
        done = pulled(url, tmp_path)
    assert [one.partition(":")[0] for one in done.missing] == ["jobs", "files", "models", "items of evalrun_1"]
    assert (done.evals, done.completions) == (1, 1) and (tmp_path / "evals/eval_abc/runs/evalrun_1.json").is_file()
    with hosted(Account(refuse={"/fine_tuning/jobs/ftjob-abc123/events": [403]})) as url:
        done = pulled(url, tmp_path / "more")
    assert [one.partition(":")[0] for one in done.missing] == ["events of ftjob-abc123"]
    assert (tmp_path / "more/jobs/ftjob-abc123/job.json").is_file() and done.files == 3


@pytest.mark.parametrize("text", ["a\u2028b\x85c\x1ed", "half \ud83d of a pair"])
def test_texts_that_no_reader_of_lines_likes(tmp_path: Path, text: str) -> None:
    account = Account(completions=[{**COMPLETION, "metadata": {"odd": text}}], jobs=[job(metadata={"odd": text})])
    with hosted(account) as url:
        pulled(url, tmp_path)
        done = pulled(url, tmp_path)
    assert done.kept == 1 + 3 + 1 + 1, "it goes on with what it wrote"
    assert read_lines(tmp_path / "completions.jsonl")[0]["metadata"]["odd"] == text
    assert json.loads((tmp_path / "jobs/ftjob-abc123/job.json").read_text())["metadata"]["odd"] == text


def test_a_wrong_key_is_told_without_it(tmp_path: Path) -> None:
    with hosted(Account()) as url, pytest.raises(EngineError) as caught:
        pulled(url, tmp_path, key="sk-wrong-one")
    assert "Incorrect API key provided" in str(caught.value) and "sk-wrong-one" not in str(caught.value)


def test_a_redirect_never_carries_the_key_away(tmp_path: Path) -> None:
    account = Account(refuse={"/fine_tuning/jobs": [302]})
    with hosted(account) as url, pytest.raises(EngineError, match="302"):
        pulled(url, tmp_path)
    assert account.asked == ["/fine_tuning/jobs"]


@pytest.mark.parametrize("url", ["http://api.openai.com/v1", "ftp://127.0.0.1/v1", "api.openai.com/v1", ""])
def test_a_key_goes_over_https_only(url: str) -> None:
    with pytest.raises(RecipeError, match="https"):
        Asker(url, KEY)


def test_an_id_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    strange = "../../ftjob-x"
    account = Account(jobs=[job(strange)], files={"../../../file-y": ("../../z.jsonl", "fine-tune", b"{}\n")})
    with hosted(account) as url:
        pulled(url, tmp_path / "inside")
    outside = [path for path in tmp_path.rglob("*") if tmp_path / "inside" not in (path, *path.parents)]
    assert outside == []


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be reached"):
        pulled("http://127.0.0.1:9/v1", tmp_path)
