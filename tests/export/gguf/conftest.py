from importlib.util import find_spec
from typing import cast

import pytest

from tests.export.gguf.models import READERS
from tunesmith.inference.gguf_engine import Reader


@pytest.fixture(params=READERS)
def using(request: pytest.FixtureRequest) -> Reader:
    """Each program that reads GGUF files here; llama.cpp where it is installed."""
    if request.param == "llama.cpp" and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return cast(Reader, request.param)
