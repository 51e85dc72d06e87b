"""Shared fixtures. Real data sets are found only here, through TUNESMITH_TEST_DATA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.environment import set_defaults

set_defaults()  # before torch: spinning OpenMP threads make tests several times slower on a few cores

PROJECT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, or a skip with the reason."""
    folder = Path(os.environ.get("TUNESMITH_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set TUNESMITH_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def examples() -> Path:
    """The project's own examples."""
    return PROJECT / "examples"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser (Debian's Chromium), or a skip with the reason; what pages are asked there is in `browser.py`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
