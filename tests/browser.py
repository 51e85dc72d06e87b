"""What the tests in a real browser share: what a page said and asked for, its contrast, pictures to look at."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

SHOTS = os.environ.get("TUNESMITH_TEST_SCREENSHOTS")
"""A folder for screenshots, for people who want to look."""


class Heard:
    """What a page writes to its console and asks the network for, from now on."""

    def __init__(self, page: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def asked_beside(self, *own: str) -> list[str]:
        """Addresses that begin with none of these."""
        return [url for url in self.asked if not url.startswith(own)]


def until(page: Any, expression: str, seconds: float = 10.0) -> None:
    """Wait for a script's expression to hold; `page.wait_for_function` would need `eval`, which our pages forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"after {seconds} s it does not hold: {expression}"
        page.wait_for_timeout(30)


def looked(page: Any, name: str, *, full: bool = False) -> None:
    """A picture of the page, where somebody wants to look."""
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=full)


CONTRAST = """() => {
  // WCAG 2.2, relative luminance and contrast; every element that shows text of its own against what lies behind it.
  const parts = (text) => text.match(/[\\d.]+/g).map((part) => part * (text.startsWith('color(') ? 255 : 1));
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((c) => linear(c / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const [one, other] = [light(parts(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
