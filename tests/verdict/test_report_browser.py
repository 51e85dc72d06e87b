"""The report in a real browser: fits phone and desktop, follows light and dark, loads nothing, complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verdict import report_samples
from tunesmith.verdict.report import write_report

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    reports = {
        "labels": report_samples.banking(),
        "fields": report_samples.extraction("object"),
        "texts": report_samples.generation(),
    }
    for name, report in reports.items():
        write_report(folder / f"{name}.html", report)
    return {name: folder / f"{name}.html" for name in reports}


@pytest.mark.parametrize("name", ["labels", "fields", "texts"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_never_scrolls_sideways_and_loads_nothing(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main h1, main h2, main p, main dl, main figure, main article, .scroll')]
                 .filter(part => part.offsetParent && !part.closest('.scroll .scroll'))
                 .filter(part => part.getBoundingClientRect().right > innerWidth + 1 ||
                                 part.getBoundingClientRect().left < -1).map(part => part.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
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
    page.locator("summary").last.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[...document.querySelectorAll('details')].at(-1).open")
    page.close()


def test_what_is_folded_is_printed(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["labels"].as_uri())
    page.emulate_media(media="print")
    folded = "document.querySelector('#recipe details pre').checkVisibility({contentVisibilityAuto: true})"
    page.wait_for_function(folded, timeout=10_000)  # the browser unfolds in its next frame
    assert page.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
    page.close()
