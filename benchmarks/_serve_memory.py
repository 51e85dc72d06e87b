"""How much memory serving takes: after everything is imported, and at most while eight are answered at once.

    python benchmarks/_serve_memory.py BASE PROMPT_TOKENS NEW_TOKENS

Prints a line of JSON; its own process, so that the peak is nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import psutil

from _serve_models import Prompts
from _serve_sides import Direct
from tunesmith.inference.serving.torch_serving import TorchServing
from tunesmith.inference.serving.types import ModelRef

CLIENTS = 8


async def measure(base: Path, prompt: int, new: int) -> dict[str, float]:
    """Bytes: after import, at the peak, of weights, and of keys and values of all that was answered."""
    import tunesmith.service.server  # noqa: F401  # what a server has in memory before its first model

    imported = psutil.Process().memory_info().rss
    prompts = Prompts(base, prompt)
    questions = [prompts.next() for _ in range(CLIENTS)]
    engine = TorchServing()
    side = Direct(engine, [ModelRef(str(base))])
    await asyncio.gather(*(side.ask(question, 0, new) for question in questions))
    cache = engine.state()["memory_bytes"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    await engine.drain(0)
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return {"imported": imported, "peak": peak, "weights": weights, "cache": cache}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))))
