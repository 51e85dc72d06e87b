"""The report in a real browser: phone and desktop, light and dark, keyboard alone, no scripts, print, no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CONTRAST, Heard, looked, until
from tests.verdict import report_samples
from tunesmith.verdict.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    reports = {
        "labels": report_samples.banking(),
        "fields": report_samples.extraction("object"),
        "texts": report_samples.generation(),
        "evidence": report_samples.evidence(400),
        "stopped": report_samples.stopped_before_training(),
        "many": report_samples.many_rows(),
    }
    for name, report in reports.items():
        write_report(folder / f"{name}.html", report)
    return {name: folder / f"{name}.html" for name in reports}


@pytest.mark.parametrize("name", ["labels", "fields", "texts", "evidence", "stopped"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_never_scrolls_sideways_and_loads_nothing(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    heard = Heard(page)
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        """() => [...document.querySelectorAll(`main h1, main h2, main p, main dl, main figure, main article,
                                                .scroll, .search, .search *, .found > li, .pager`)]
                 .filter(part => part.offsetParent && !part.closest('.scroll .scroll'))
                 .filter(part => part.getBoundingClientRect().right > innerWidth + 1 ||
                                 part.getBoundingClientRect().left < -1).map(part => part.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    assert heard.said == []
    assert heard.asked_beside("file:", "data:") == []
    looked(page, f"report-{name}-{width}", full=True)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page.goto(pages["evidence"].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.fill("#f-text", "parcel")
    page.wait_for_selector("mark")
    assert page.evaluate(CONTRAST) == []
    looked(page, f"report-evidence-{scheme}", full=True)
    page.close()


def test_dark_mode_changes_paper_ink_and_charts(browser: Any, pages: dict[str, Path]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(pages["labels"].as_uri())
        colours[scheme] = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                      getComputedStyle(document.querySelector('.whisker.tuned')).stroke,
                      getComputedStyle(document.querySelector('.card')).backgroundColor]"""
        )
        page.close()
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))


def test_the_verdict_is_seen_without_scrolling_on_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(pages["labels"].as_uri())
    assert page.evaluate("document.querySelector('.gain').getBoundingClientRect().bottom") < 740
    page.close()


def test_it_works_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(pages["labels"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#comparison")
    page.locator("#recipe summary").last.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[...document.querySelectorAll('#recipe details')].at(-1).open")
    page.close()


def test_what_is_focused_is_seen(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(pages["evidence"].as_uri())
    for selector in ("#f-text", "#f-result", "#f-clear", ".find", ".contents a"):
        page.locator(selector).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", selector
    page.close()


def status(page: Any) -> str:
    return str(page.text_content("#f-status"))


def test_rows_are_searched_and_filtered_by_keyboard_alone(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    heard = Heard(page)
    page.goto(pages["evidence"].as_uri())
    assert status(page) == "400 of 400 rows."
    assert page.locator("#f-found > li").count() == 20
    page.locator("#f-text").focus()
    page.keyboard.type("PARCEL left")
    page.wait_for_selector("mark")
    found = int(status(page).split()[0])
    shown = page.eval_on_selector_all("#f-found .asked", "parts => parts.map(part => part.textContent)")
    assert 0 < found < 400 and all("parcel was left" in text for text in shown)
    assert set(page.eval_on_selector_all("mark", "parts => parts.map(part => part.textContent)")) == {"parcel", "left"}
    page.keyboard.press("Tab")  # to the candidates
    assert page.evaluate("document.activeElement.id") == "f-candidate"
    page.keyboard.press("Tab")
    page.keyboard.press("w")  # to "wrong"
    until(page, "document.getElementById('f-result').value === 'wrong'")
    wrong = int(status(page).split()[0])
    assert 0 < wrong < found
    flags = page.eval_on_selector_all(
        "#f-found > li > .answers > div:nth-child(2) .flag", "parts => parts.map(part => part.textContent)"
    )
    assert flags == ["wrong"] * wrong
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "f-clear"
    page.keyboard.press("Enter")
    assert status(page) == "400 of 400 rows."
    assert page.input_value("#f-text") == "" and page.input_value("#f-result") == "all"
    assert heard.said == []
    page.close()


def test_pages_are_turned_and_keep_the_focus(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["evidence"].as_uri())
    first = page.text_content("#f-found > li h3")
    page.locator("#f-on").focus()
    page.keyboard.press("Enter")
    assert page.text_content("#f-page") == "page 2 of 20"
    assert page.text_content("#f-found > li h3") == "Row 21" != first
    assert page.evaluate("document.activeElement.id") == "f-on"
    for _ in range(18):
        page.keyboard.press("Enter")
    assert page.text_content("#f-page") == "page 20 of 20"
    assert page.evaluate("document.activeElement.id") == "f-back"  # the other one can no longer be pressed
    page.close()


def test_another_candidate_is_judged_by_its_own_answers(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["evidence"].as_uri())
    page.select_option("#f-candidate", label="zero-shot")
    page.select_option("#f-result", label="could not be read")
    unreadable = int(status(page).split()[0])
    assert 40 < unreadable < 120  # a fifth of 400
    head = "#f-found > li:first-child > .answers h4 span:first-child"
    assert page.eval_on_selector_all(head, "parts => parts.map(part => part.textContent)") == [
        "Expected", "Zero-shot", "Tuned",
    ]  # fmt: skip
    page.select_option("#f-result", label="wrong, tuned right")
    assert 0 < int(status(page).split()[0]) < 400
    page.locator("#f-found > li").first.locator("summary").click()
    assert page.locator("#f-found > li").first.locator(".others h4").count() == 7
    page.close()


def test_lowest_scores_come_first_where_asked(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["texts"].as_uri())
    page.select_option("#f-order", "low")
    flags = page.eval_on_selector_all(
        "#f-found > li > .answers > div:nth-child(2) .flag", "parts => parts.map(part => part.textContent)"
    )
    scores = [float(flag.split()[0]) for flag in flags if flag not in ("wrong", "right")]
    assert len(scores) > 10 and scores == sorted(scores)
    page.close()


def test_the_surest_mistakes_come_first_where_labels_were_scored(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["evidence"].as_uri())
    assert page.locator("#f-order option").count() == 3
    page.select_option("#f-candidate", label="tuned (scored)")
    page.select_option("#f-result", "wrong")
    page.select_option("#f-order", label="surest first")
    told = page.eval_on_selector_all(
        "#f-found > li > .answers > div:nth-child(2)", "parts => parts.map(part => part.textContent)"
    )
    sure = [float(found.group(1)) for text in told if (found := re.search(r"([\d.]+) % sure", text))]
    assert len(sure) == len(told) > 5 and sure == sorted(sure, reverse=True)
    assert all("wrong" in text for text in told)
    page.select_option("#f-candidate", label="tuned")
    assert page.input_value("#f-order") == "given"
    page.close()


def test_a_table_leads_to_its_rows(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["evidence"].as_uri())
    times = page.locator("#mistakes table").first.locator("tbody tr").first.locator("td").nth(1).text_content()
    page.locator("#mistakes .find").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "h-rows"
    assert re.match(rf"{times} of 400 rows, within \w+ → \w+\.", status(page))
    page.locator("#slices .find").first.focus()
    page.keyboard.press("Enter")
    assert re.match(r"50 of 400 rows, within label \w+\.", status(page))
    page.close()


def test_ten_thousand_rows_are_searched_at_once(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    heard = Heard(page)
    page.goto(pages["many"].as_uri())
    all_of_them = int(status(page).split()[0].replace(",", ""))
    assert all_of_them > 2_000
    seconds = page.evaluate(
        """() => { const text = document.getElementById('f-text'); text.value = 'pana relo';
                   const started = performance.now();
                   document.getElementById('f-result').dispatchEvent(new Event('change'));
                   return (performance.now() - started) / 1000; }"""
    )
    assert 0 < int(status(page).split()[0].replace(",", "")) < all_of_them
    assert seconds < 2  # 0.05 on a machine that does nothing else
    assert heard.said == []
    page.close()


def test_without_scripts_it_is_whole_but_for_the_search(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(pages["evidence"].as_uri())
    assert page.locator("article.mistake").count() == 20
    assert page.is_visible(".unscripted")
    assert not page.is_visible(".finder")
    assert not page.is_visible(".find >> nth=0")
    for section in ("comparison", "slices", "reliability", "cost", "next", "training", "mistakes"):
        assert page.is_visible(f"#h-{section}")
    context.close()


def test_what_is_used_has_a_name(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["evidence"].as_uri())
    assert page.get_by_role("searchbox", name="Words in question or answers").is_visible()
    for name in ("Answers of", "Result", "Group", "Order"):
        assert page.get_by_role("combobox", name=name).is_visible(), name
    assert page.get_by_role("status").count() == 1
    assert page.get_by_role("img", name=re.compile("Total cost in USD by requests")).count() == 1
    assert (
        page.get_by_role("img", name=re.compile(r"share right by confidence\. as answered: \d+ answers")).count() == 2
    )
    unnamed = page.evaluate(
        "[...document.querySelectorAll('table')].filter(one => !one.caption?.textContent.trim()).length"
    )
    assert unnamed == 0
    page.close()


def test_what_is_folded_is_printed_and_what_is_searched_is_not(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["labels"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 31, 35)"  # dark on white paper
    folded = "document.querySelector('#recipe details pre').checkVisibility({contentVisibilityAuto: true})"
    until(page, folded)  # the browser unfolds in its next frame
    assert page.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
    assert not page.is_visible("#rows")
    assert page.is_visible("article.mistake >> nth=0")
    page.close()
