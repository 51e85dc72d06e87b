"""The rating page in a real browser: keyboard alone, phone and desktop, light and dark, a server that is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CONTRAST, Heard, looked
from tunesmith.evaluation.rating import Pair, Rating, RatingLog, Settings, make_plan, read_ratings
from tunesmith.service.rating import RatingServer, RatingSession

pytestmark = pytest.mark.browser
A, B = "tuned", "few_shot"

QUESTION = "My card never arrived, and the app says that it was delivered three weeks ago. What can I do about it now?"
GOOD = (
    "I am sorry about that. Please order a new card under Cards > Replace; it is free and takes 2 to 3 days.\n\n"
    "- Block the old one first.\n- Tell us if your address changed."
)
BAD = "Cards arrive. " * 12


def pairs(count: int = 5) -> list[Pair]:
    first = Pair("row0", QUESTION, {A: GOOD, B: BAD}, "Order a new one in the app.")
    odd = Pair("row1", "<script>document.title='broken'</script>", {A: "<b>bold</b>", B: ""}, "")
    long = Pair("row2", "w" * 300, {A: "x" * 400, B: "\n".join("line" for _ in range(80))}, "y" * 200)
    arabic = Pair("row3", "ما هذا؟", {A: "هذا كتاب.", B: "This is a book."}, "كتاب")
    more = [Pair(f"row{i}", f"What is {i} and {i}?", {A: str(2 * i), B: str(i)}, str(2 * i)) for i in range(4, count)]
    return [first, odd, long, arabic, *more][:count]


class Page:
    """A session with its server and log, and a way to look at what was kept."""

    def __init__(self, folder: Path, made: list[Pair]) -> None:
        self.path = folder / "ratings.jsonl"
        self.log = RatingLog(self.path)
        self.session = RatingSession(make_plan(made, Settings()), read_ratings(self.path), self.log)
        self.server = RatingServer(self.session, title="support-20261121-1405")
        self.server.start()

    def kept(self) -> dict[str, Rating]:
        """By the row's id."""
        return {rating.row: rating for rating in read_ratings(self.path).latest.values()}

    def close(self) -> None:
        self.server.close()
        self.log.close()


@pytest.fixture
def served(tmp_path) -> Iterator[Page]:
    page = Page(tmp_path, pairs())
    yield page
    page.close()


def begin(page: Any, served: Page, name: str = "Ann") -> None:
    page.goto(served.server.url)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#rating:not([hidden])")


def rated(page: Any, number: int) -> None:
    """Wait until so many are rated."""
    page.locator("#count").filter(has_text=re.compile(f"^{number} of")).wait_for()


def test_everything_is_rated_by_keyboard_alone(browser, served):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    heard = Heard(page)
    begin(page, served)
    chosen = {}
    for number, key in enumerate(("1", "2", "3", "4", "1")):
        texts = {side: page.text_content(f"#{side}") for side in ("left", "right")}
        pair = served.session.plan.pairs[number]
        shown = {
            side: next(c for c, text in pair.answers.items() if (text or "empty") == texts[side]) for side in texts
        }
        assert set(shown.values()) == {A, B}
        chosen[pair.id] = {"1": shown["left"], "2": shown["right"], "3": "tie", "4": "both_bad"}[key]
        page.keyboard.press(key)
        rated(page, number + 1)
    page.wait_for_selector("#done:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "end"
    assert {row: rating.choice for row, rating in served.kept().items()} == chosen
    assert all(rating.rater == "Ann" and 0 <= rating.seconds < 60 for rating in served.kept().values())
    assert heard.said == [] and page.title().startswith("Which answer is better?")
    own = served.server.url.split("?")[0]
    assert heard.asked_beside(own, "data:") == []
    assert A not in page.content() and B not in page.content()
    page.close()


def test_back_shows_the_choice_and_changes_it(browser, served):
    page = browser.new_page()
    begin(page, served)
    first = page.text_content("#question")
    page.keyboard.press("3")
    rated(page, 1)
    page.keyboard.press("b")
    page.wait_for_selector("[data-choice=tie][aria-pressed=true]")
    assert page.text_content("#question") == first
    page.keyboard.press("4")
    page.locator("[data-choice=tie][aria-pressed=false]").wait_for()
    assert page.text_content("#question") != first
    rated(page, 1)
    assert [rating.choice for rating in served.kept().values()] == ["both_bad"]
    page.close()


def test_keys_can_be_switched_off_and_do_nothing_with_modifiers_or_held_down(browser, served):
    page = browser.new_page()
    begin(page, served)
    page.keyboard.press("Control+1")
    page.keyboard.press("Alt+2")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true, bubbles: true}))")
    page.focus("#keys")
    page.keyboard.press("Space")
    page.keyboard.press("1")
    assert served.session.given == 0
    page.keyboard.press("Shift+Tab")  # the buttons are reached all the same
    for _ in range(6):
        if page.evaluate("document.activeElement.dataset.choice") == "left":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    rated(page, 1)
    assert served.session.given == 1
    page.close()


def test_the_reference_opens_by_key_and_is_not_there_where_none_is(browser, served):
    page = browser.new_page()
    begin(page, served)
    seen = set()
    for number in range(5):
        pair = served.session.plan.pairs[number]
        hidden = page.evaluate("document.getElementById('reference').hidden")
        assert hidden == (pair.expected == "")
        seen.add(hidden)
        if not hidden and not page.evaluate("document.getElementById('reference').open"):
            page.keyboard.press("r")
            assert page.is_visible("#expected") and page.text_content("#expected") == pair.expected
        page.keyboard.press("3")
        rated(page, number + 1)
    assert seen == {True, False}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(browser, served, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.goto(served.server.url)
    looked(page, f"start-{width}-{scheme}")
    begin(page, served)
    for number in range(5):
        assert page.evaluate("document.documentElement.scrollWidth") == width
        boxes = page.evaluate(
            "[...document.querySelectorAll('[data-choice]')].map(b => b.getBoundingClientRect().toJSON())"
        )
        assert all(box["bottom"] <= 740 and box["right"] <= width and box["height"] >= 44 for box in boxes)
        assert page.evaluate(CONTRAST) == []
        looked(page, f"pair{served.session.plan.pairs[number].id}-{width}-{scheme}")
        page.keyboard.press("3")
        rated(page, number + 1)
    looked(page, f"done-{width}-{scheme}")
    page.close()


def test_everything_that_is_used_has_a_name(browser, served):
    page = browser.new_page()
    page.goto(served.server.url)
    assert page.get_by_role("textbox", name="Your name").is_visible()
    begin(page, served)
    for name in ("1 Answer 1", "2 Answer 2", "3 Equally good", "4 Both bad", "B Back to the last one"):
        assert page.get_by_role("button", name=name).is_visible(), name
    assert page.get_by_role("group", name="Your choice").is_visible()
    assert page.get_by_role("article", name="Answer 1").is_visible()
    assert page.get_by_role("progressbar").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    page.close()


def test_a_choice_that_was_not_kept_says_so_and_can_be_sent_again(browser, tmp_path):
    served = Page(tmp_path, pairs())
    page = browser.new_page()
    begin(page, served)
    question = page.text_content("#question")
    page.route("**/rate", lambda route: route.abort())
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    assert "not kept" in page.text_content("#told") and page.text_content("#question") == question
    assert served.session.given == 0
    page.unroute("**/rate")
    page.click("#again")
    rated(page, 1)
    assert page.is_hidden("#problem") and served.session.given == 1
    page.close()
    served.close()


def test_a_reload_goes_on_under_the_same_name(browser, served):
    page = browser.new_page()
    begin(page, served)
    page.keyboard.press("1")
    rated(page, 1)
    question = page.text_content("#question")
    begin(page, served, "  Ann ")
    rated(page, 1)
    assert page.text_content("#question") == question
    page.close()
