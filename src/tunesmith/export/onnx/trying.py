"""A GenAI model loaded and asked for a few tokens, in a process of its own: a graph that was built may still not run.

Run as a program it prints one line, `fine` or what went wrong; kernels that refuse a shape say so only when they run,
and one that crashes takes its process with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunesmith.export.onnx.builder import apart_environment, failure_line, run_apart
from tunesmith.export.types import StepError

_FINE = "fine"


def try_running(folder: Path, scratch: Path, instead: str) -> None:
    """Raise `StepError` where ONNX Runtime GenAI cannot load this folder and read and write on a few tokens."""
    log = scratch / "trying.log"
    status = run_apart([sys.executable, "-m", __name__, str(folder.resolve())], log, apart_environment(scratch))
    text = log.read_text(encoding="utf-8", errors="replace")
    if status == 0 and text.rstrip().endswith(_FINE):
        return
    said = failure_line(text) or f"its process ended with status {status}"
    raise StepError("running the graph", f"ONNX Runtime GenAI cannot run what its builder made: {said}", instead)


def _ask(folder: Path) -> None:
    import numpy as np

    from tunesmith.inference.genai_config import adapter_files, open_config, runtime

    og = runtime()
    model = og.Model(open_config(folder)[0])
    files = adapter_files(folder)
    adapters = og.Adapters(model) if files else None
    for name in (None, *files):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=16, do_sample=False)
        generator = og.Generator(model, params)
        if adapters is not None and name is not None:
            adapters.load(str(files[name]), name)
            generator.set_active_adapter(adapters, name)
        for ids in ([1, 2, 3], [4], [5, 6]):  # a prompt, one token behind it, several behind it
            generator.append_tokens(np.asarray([ids], dtype=np.int32))
            if not np.isfinite(np.asarray(generator.get_logits(), dtype=np.float32)).all():
                raise ValueError("the logits are no numbers")


if __name__ == "__main__":
    _ask(Path(sys.argv[1]))
    print(_FINE)
