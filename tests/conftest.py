"""Shared fixtures. Real data sets are found only here, through TUNESMITH_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunesmith.cli.environment import set_defaults

set_defaults()  # before torch: spinning OpenMP threads make tests several times slower on a few cores

PROJECT = Path(__file__).resolve().parent.parent


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
