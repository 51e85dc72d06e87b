"""The four costs that `check` states before anything is spent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pipeline.conftest import edit
from tests.tiny import save_base
from tunesmith.data.reading import source_sha256
from tunesmith.runs import RunFolder, write_json

COSTS = ("base", "data", "effort", "compute")


def tuning_costs(tunesmith, *more: str) -> dict:
    said = tunesmith("check", "recipe.yaml", "--json", "--quick", *more)
    assert said.code == 0, said.out
    return said.json["tuning_costs"]


def test_effort_is_rows_missing_times_minutes_and_the_hours_of_work(project, tunesmith):
    edit(
        project,
        "name: tones",
        "name: tones\nverdict:\n  min_gain: 0.1\n"
        "  prices: {minutes_per_row: 3, hours_of_work: 5, work_per_hour: 40, currency: EUR}",
    )
    found = tuning_costs(tunesmith)
    data, effort = found["data"], found["effort"]
    # 50 training rows; by thumb 200 for three labels. A gain of 10 points asks for 0.12 · (2.8016 / 0.1)² = 95 rows.
    assert (data["train_rows"], data["wanted"]["rows"], data["train_rows_missing"]) == (50, 200, 150)
    assert "rule of thumb" in data["wanted"]["how"]
    assert (data["test_rows"], data["test_rows_wanted"], data["test_rows_missing"]) == (40, 95, 55)
    assert data["detectable_difference"] == pytest.approx(2.8016 * (0.12 / 40) ** 0.5, rel=1e-3)
    assert effort["train_rows_hours"] == pytest.approx(7.5) and effort["test_rows_hours"] == pytest.approx(2.75)
    assert effort["hours_to_begin"] == pytest.approx(12.5) and effort["hours"] == pytest.approx(15.25)
    assert effort["money"] == pytest.approx(610) and effort["money_to_begin"] == pytest.approx(500)
    assert effort["currency"] == "EUR" and data["state"] == "look" and effort["state"] == "fine"


def test_compute_is_training_and_hosting(project, tunesmith):
    edit(
        project,
        "name: tones",
        "name: tones\ngoal: {requests_per_month: 5000}\nverdict:\n"
        "  prices: {hosting_hours_per_month: 200, hardware_per_hour: 0.5, power_watts: 100, electricity_per_kwh: 0.3}",
    )
    said = tunesmith("check", "recipe.yaml", "--json", "--quick")
    compute, estimate = said.json["tuning_costs"]["compute"], said.json["estimate"]
    assert compute["hosting_money"] == pytest.approx(100) and compute["hosting_electricity"] == pytest.approx(6)
    assert compute["hosting_per_1000"] == pytest.approx(20)
    spent = estimate["training_seconds"] + estimate["validation_seconds"]
    assert compute["training_seconds"] == pytest.approx(spent)
    assert compute["training_money"] == pytest.approx(spent / 3600 * 0.5)
    assert compute["peak_memory_bytes"] == estimate["peak_memory_bytes"]
    places = {cost["place"]: cost for cost in said.json["numbers"]["costs"]}
    assert compute["elsewhere_money"] == places[compute["elsewhere"]]["money"]
    rented = [cost["money"] for cost in places.values() if cost["kind"] == "estimated" and cost["money"] is not None]
    assert compute["elsewhere_money"] == min(rented)


def test_a_forbidden_use_says_stop_and_ends_as_before(project, tunesmith):
    base = save_base(project / "nc")
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    more = ("--set", "base.model=nc")
    found = tuning_costs(tunesmith, *more, "--set", "goal.use=commercial")
    assert found["base"]["state"] == "stop" and found["base"]["licence"]["permission"] == "forbidden"
    assert found["base"]["licence"]["where"] == ["README.md (license): cc-by-nc-4.0"]
    assert "Do not tune this base" in found["summary"] and "tunesmith bases" in found["summary"]
    assert tuning_costs(tunesmith, *more, "--set", "goal.use=research")["base"]["state"] == "look"
    assert tuning_costs(tunesmith, *more)["base"]["state"] == "look"  # nobody said what it is for


def test_a_free_base_with_rows_enough_is_fine(project, tunesmith, base):
    free = save_base(project / "free")
    (free / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    found = tuning_costs(tunesmith, "--set", "base.model=free", "--set", "verdict.min_gain=0")
    assert found["base"]["state"] == "fine"
    assert (found["base"]["files"]["weights"], found["base"]["files"]["obstacles"]) == ("safetensors", [])
    assert found["base"]["bytes"] == (free / "model.safetensors").stat().st_size
    assert found["base"]["context"] == 512 > found["base"]["longest_row"] > 10
    assert found["data"]["test_rows_wanted"] is None and found["data"]["test_rows_missing"] == 0


def kept_curve(project: Path, answer: str, *, train_rows: int = 50) -> None:
    """A run with a learning curve of the project's rows."""
    run = RunFolder.create(project / "runs", "earlier")
    run.update_manifest(
        data={"files_sha256": {"train": source_sha256(str(project / "rows.csv"))}, "rows": {"train": train_rows}}
    )
    prediction = {"rows": 100, "value": 0.9, "low": 0.85, "high": 0.95, "gain": 0.042, "gain_low": 0, "gain_high": 0.1}
    curve = {"extrapolation": {"answer": answer, "predictions": [prediction], "a": 1, "b": 1, "c": 0}}
    (run.path / "learning_curve").mkdir()
    write_json(run.path / "learning_curve" / "learning_curve.json", curve)


@pytest.mark.parametrize(
    ("answer", "wanted", "how"),
    [
        ("more_data_helps", 100, "100 rows bring +4.2 points"),
        ("more_data_does_not_help", 50, "should not help"),
        ("cannot_tell", 200, "rule of thumb"),
    ],
)
def test_a_learning_curve_knows_better_than_the_thumb(project, tunesmith, answer, wanted, how):
    kept_curve(project, answer)
    found = tuning_costs(tunesmith)["data"]
    assert found["wanted"]["rows"] == wanted and how in found["wanted"]["how"]
    assert found["train_rows_missing"] == max(0, wanted - 50)


def test_a_curve_of_other_rows_says_nothing(project, tunesmith):
    kept_curve(project, "more_data_does_not_help", train_rows=25)
    assert tuning_costs(tunesmith)["data"]["wanted"]["rows"] == 200


def test_for_people_in_the_terminal_and_on_a_page(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--quick", "--html", "costs.html")
    words = " ".join(said.out.split())
    assert said.code == 0 and "what tuning would cost" in words and "page: costs.html" in words
    for section in COSTS:
        assert re.search(rf"^\s*{section}\s+(fine|look at this|stop)", said.out, re.MULTILINE), section
    page = (project / "costs.html").read_text()
    for question in ("Can and may this base be tuned?", "Are there enough rows?", "How much work is it?"):
        assert question in page
    assert "What do machines cost?" in page and "Where the training could run" in page and "NVIDIA H100" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page and len(page) < 100_000


def test_a_page_of_data_with_errors_says_what_to_mend(project, tunesmith):
    (project / "rows.csv").write_text("phrase,tone\nhello,\n")
    said = tunesmith("check", "recipe.yaml", "--json", "--html", "costs.html")
    assert said.code == 3 and said.json["tuning_costs"] is None
    page = (project / "costs.html").read_text()
    assert "The data cannot be used as it is" in page and 'class="flag error"' in page


def test_a_bare_file_has_no_costs(project, tunesmith):
    said = tunesmith("check", "rows.csv", "--html", "costs.html", "--json")
    assert said.code == 2 and "no costs" in said.error["what"]
    assert not (project / "costs.html").exists()


def test_all_of_it_is_json(project, tunesmith):
    found = tuning_costs(tunesmith)
    assert set(found) == {*COSTS, "summary"}
    assert json.loads(json.dumps(found)) == found


def test_where_no_row_fits_the_training_is_not_known_and_that_is_said(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json", "--quick", "--set", "train.max_length=3")
    assert said.code == 3
    found = said.json["tuning_costs"]
    assert found["compute"]["training_money"] is None and found["compute"]["state"] == "look"
    assert found["base"]["rows_too_long"] == 50 and found["base"]["state"] == "look"
    assert "without the training" in found["summary"]


def test_prices_in_two_currencies_are_not_compared(project, tunesmith):
    prices = "verdict.prices.currency=JPY", "verdict.prices.devices={NVIDIA H100 SXM: 9000}"
    found = tuning_costs(tunesmith, *(word for price in prices for word in ("--set", price)))["compute"]
    # Another place for less dollars than these are yen would be no bargain.
    assert (found["elsewhere"], found["elsewhere_currency"]) == ("NVIDIA H100 SXM", "JPY")


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("mybase", 6, "has no tokenizer"),
        ("/no/such/folder", 2, "there is no folder"),
        ("empty", 2, "not a model folder"),
    ],
)
def test_a_base_that_cannot_be_loaded_still_gives_the_other_costs(project, tunesmith, model, code, words):
    (project / "empty").mkdir()
    for path in save_base(project / "mybase").glob("tokenizer*"):
        path.unlink()
    (project / "mybase" / "README.md").write_text("---\nlicense: mit\n---\n")
    said = tunesmith(
        "check", "recipe.yaml", "--json", "--quick", "--set", f"base.model={model}", "--html", "costs.html"
    )
    assert said.code == code == said.error["exit_code"] and words in said.error["what"]
    found = said.json["tuning_costs"]
    assert found["base"]["state"] == "stop" and words in found["base"]["problem"] and words in found["summary"]
    assert found["compute"]["training_money"] is None and found["compute"]["hosting_money"] >= 0
    assert (found["data"]["train_rows"], found["data"]["wanted"]["rows"]) == (50, 200)  # labels are known without it
    if model == "mybase":
        assert found["base"]["licence"]["name"] == "MIT" and found["base"]["parameters"] > 0
    assert any(f["severity"] == "error" and words in f["message"] for f in said.json["findings"])
    page = (project / "costs.html").read_text()
    assert "cannot be loaded" in page and words in page and "How much work is it?" in page
    shown = tunesmith("check", "recipe.yaml", "--quick", "--set", f"base.model={model}")
    assert shown.code == code and "cannot be loaded" in shown.out and words in shown.err


def test_a_setting_that_is_wrong_is_no_matter_of_the_base(project, tunesmith):
    said = tunesmith("check", "recipe.yaml", "--json", "--quick", "--set", "goal.metric=bleu")
    assert said.code == 2 and said.error["where"] == "goal.metric" and "tuning_costs" not in said.json


def test_a_base_that_cannot_be_loaded_and_rows_with_errors_are_told_at_once(project, tunesmith):
    rows = (project / "rows.csv").read_text().splitlines()
    (project / "rows.csv").write_text("\n".join([*rows, "only a phrase,"]) + "\n")
    said = tunesmith("check", "recipe.yaml", "--json", "--quick", "--set", "base.model=/no/such/folder")
    errors = {f["code"] for f in said.json["findings"] if f["severity"] == "error"}
    assert "cannot_go_on" in errors and said.json["tuning_costs"]["base"]["state"] == "stop"
    assert said.code == (3 if len(errors) > 1 else 2)
