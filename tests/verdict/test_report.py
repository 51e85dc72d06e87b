from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.verdict import report_samples
from tests.verdict.cases import cost, decided, evaluation
from tunesmith.data.types import Finding
from tunesmith.recipe.schema import Goal, Prices
from tunesmith.verdict.headline import title_of
from tunesmith.verdict.report import render_report, write_report
from tunesmith.verdict.report_data import ReportData

HOSTILE = "</script></style></pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}{% raw %}"
VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG_EMPTY = {"rect", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Collects tags and attributes, and complains about tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture(
    scope="module", params=["classification", "many_labels", "list", "object", "generation", "evidence", "stopped"]
)
def sample(request: pytest.FixtureRequest) -> ReportData:
    return {
        "classification": lambda: report_samples.classification(160),
        "many_labels": report_samples.banking,
        "list": report_samples.extraction,
        "object": lambda: report_samples.extraction("object"),
        "generation": report_samples.generation,
        "evidence": lambda: report_samples.evidence(240),
        "stopped": report_samples.stopped_before_training,
    }[request.param]()


def test_it_is_well_formed_small_and_says_the_verdict_first(sample: ReportData) -> None:
    html = render_report(sample)
    page = Page(html)
    assert len(html.encode()) < 1_000_000
    assert f"<h1>{title_of(sample.verdict)}</h1>" in html
    assert html.index("<h1>") < html.index("<h2")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_it_loads_nothing_and_runs_its_own_script_alone(sample: ReportData) -> None:
    html = render_report(sample)
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form", "img"}
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,"))
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "row-data"},
        {},
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    allowed = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]*);", policy) == [f"'sha256-{allowed}'"]
    assert "innerHTML" not in script and "fetch(" not in script


def test_every_table_has_headers_and_every_wide_one_its_own_box(sample: ReportData) -> None:
    html = render_report(sample)
    for table in re.findall(r"<table.*?</table>", html, re.S):
        assert '<th scope="col"' in table
        assert '<th scope="row"' in table
    assert html.count("<table") == html.count('class="scroll"') == html.count("<caption")


def test_what_each_kind_of_task_shows() -> None:
    assert "Confusion matrix<" in render_report(report_samples.classification(160))
    many = render_report(report_samples.banking())
    assert "the 20 most confused of 77 labels" in many
    assert "57 other labels" in many
    as_list = render_report(report_samples.extraction())
    assert "Most missed by tuned" in as_list
    assert '<th scope="col">Field</th><th scope="col">Item</th>' not in as_list
    assert "all fields" in render_report(report_samples.extraction("object"))
    assert "Rows by ROUGE-L of the answer" in render_report(report_samples.generation())


def test_numbers_of_the_run_are_there() -> None:
    report = report_samples.classification(384, target=0.85, goal=Goal(requests_per_month=1234, improve="Sarcasm."))
    html = render_report(report)
    for value in report.comparison:
        assert f"{100 * value.value:.1f} %" in html
    for text in (
        "48,231",
        "1.12 GiB",
        "target 85.0 %",
        "1,234 requests",
        "LoRA default",
        "duplicate_rows",
        "best, step 90",
    ):
        assert text in html
    assert "Sarcasm." in html
    assert html.count('<article class="mistake">') == 20


def test_hostile_text_stays_text() -> None:
    report = report_samples.evidence(160)
    by_name = {evaluation.candidate: evaluation for evaluation in report.evaluations}
    rows = tuple(
        replace(row, prompt=f"{row.id} {HOSTILE}", answer=HOSTILE, parsed=HOSTILE, scores={"accuracy": 0.0})
        for row in by_name["tuned"].rows
    )
    by_name["tuned"] = replace(by_name["tuned"], rows=rows, notes={HOSTILE: HOSTILE})
    assert report.training is not None and report.seeds is not None
    hostile = replace(
        report,
        name=HOSTILE,
        created=HOSTILE,
        recipe_yaml=HOSTILE,
        manifest={HOSTILE: HOSTILE},
        goal=Goal(use_case=HOSTILE, improve=HOSTILE),
        prices=Prices(currency=HOSTILE),
        verdict=replace(
            report.verdict, reason=HOSTILE, sensitivity=(HOSTILE,), benefits={"quality": {"text": HOSTILE}}
        ),
        evaluations=tuple(by_name.values()),
        findings=(Finding(HOSTILE, "error", HOSTILE, HOSTILE, 1, (1,), HOSTILE, HOSTILE),),
        splits_explanation=HOSTILE,
        split_sizes={HOSTILE: 3},
        training={HOSTILE: HOSTILE, "diagnoses": [dict.fromkeys(report.training["diagnoses"][0], HOSTILE)]},
        history=({"kind": "validation", "step": 1, "loss": 1.0, "metrics": {HOSTILE: 0.5}, "best": True},),
        choices=((HOSTILE, HOSTILE, HOSTILE),),
        warnings=(HOSTILE,),
        extra_assumptions={HOSTILE: HOSTILE},
        slices={HOSTILE: [row.id for row in rows[:40]]},
        preferences=tuple(replace(one, a=HOSTILE, why=HOSTILE, agreement=None) for one in report.preferences),
        calibration=tuple(replace(one, candidate=HOSTILE) for one in report.calibration),
    )
    hostile.training["diagnoses"][0].update(changes={HOSTILE: HOSTILE}, overrides=[HOSTILE])  # type: ignore[index]
    html = render_report(hostile)
    page = Page(html)
    assert [tag for tag, _ in page.tags if tag in {"script", "img"}] == ["script", "script"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert html.count("&lt;script&gt;alert(1)") > 60
    assert "{{ 7 * 7 }}" in html
    (kept,) = re.findall(r'<script type="application/json" id="row-data">(.*?)</script>', html, re.S)
    assert HOSTILE in json.loads(kept)["texts"]


def test_sections_are_there_only_where_there_is_something_to_show() -> None:
    def sections(report: ReportData) -> list[str]:
        html = render_report(report)
        there = re.findall(r'<section id="(\w+)"', html)
        assert re.findall(r'<li><a href="#(\w+)">', html) == there  # the contents name them all, and no other
        return there

    few = sections(report_samples.stopped_before_training())
    assert few == ["comparison", "differences", "cost", "mistakes", "errors", "rows", "data", "recipe", "assumptions"]
    more = {"slices", "reliability", "preferences", "next", "training"}
    assert set(sections(report_samples.evidence(240))) == {*few, *more}


def test_a_run_that_stopped_before_training_is_told_of_what_was_chosen() -> None:
    html = render_report(report_samples.stopped_before_training())
    assert "<h1>Keep prompting (few-shot)</h1>" in html
    assert "Where few-shot goes wrong" in html
    assert "Retrieval, the next best" in html
    assert "Nothing was tuned." in html
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", html, flags=re.S)
    assert not re.search(r"\btuned (brings|answered|minus|was)\b", text, re.I)
    assert 'id="training"' not in html


def test_ten_thousand_rows_stay_under_three_megabytes() -> None:
    html = render_report(report_samples.many_rows(10_000))
    assert 1_000_000 < len(html.encode()) < 3_000_000
    said = re.search(r"([\d,]+) of 10,000 test rows are here, .*? ([\d,]+) are left out", html)
    assert said is not None
    here, left = (int(part.replace(",", "")) for part in said.groups())
    assert here + left == 10_000
    (kept,) = re.findall(r'<script type="application/json" id="row-data">(.*?)</script>', html, re.S)
    assert len(json.loads(kept)["rows"]) == here


def test_a_verdict_without_alternatives_training_or_findings() -> None:
    alone = evaluation("tuned", (0.9, 0.85, 0.94))
    report = ReportData(
        name="alone", created="", task="classification", recipe_yaml="", manifest={}, goal=Goal(), prices=Prices(),
        verdict=decided([alone], []), evaluations=(alone,), comparison=alone.metrics, differences=(),
        costs=(cost("tuned", 0.1, 240.0),), findings=(), splits_explanation="", split_sizes={},
    )  # fmt: skip
    html = render_report(report)
    Page(html)
    for text in ("Nothing to compare with", "Nothing was found wrong", "no differences"):
        assert text in html


def test_it_is_written_whole_even_with_half_a_surrogate(tmp_path: Path) -> None:
    report = report_samples.classification(160)
    write_report(tmp_path / "new" / "report.html", replace(report, name="half \ud83d of one"))
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "half ? of one" in text
    assert text.rstrip().endswith("</html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_enough_contrast_in_light_and_dark() -> None:
    html = render_report(report_samples.classification(160))
    schemes = re.findall(r":root \{([^}]*--paper[^}]*--bad-soft[^}]*)\}", html)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        pairs = [(text, ground) for text in ("ink", "muted", "tuned") for ground in ("paper", "card")]
        pairs += [(tone, f"{tone}-soft") for tone in ("good", "plain", "unsure", "bad")]
        pairs += [("ink", f"{tone}-soft") for tone in ("good", "plain", "unsure", "bad")]
        for text, ground in pairs:
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
