"""Runs with stored answers, made of nothing but files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.runs import RunFolder

CLOSING = '"'


def store_run(
    path: Path, answers: Mapping[str, Sequence[str]], questions: Sequence[str] | None = None, best: str | None = None
) -> RunFolder:
    """A run folder with answers by candidate. Prompts are framed as a chat template would; rules get bare questions."""
    rows = len(next(iter(answers.values())))
    asked = questions or [f"What is {i} and {i}?" for i in range(rows)]
    folder = RunFolder.create_at(path)
    (path / "task.json").write_text(json.dumps({"name": "generation", "closing": CLOSING}))
    if best is not None:
        (path / "verdict.json").write_text(json.dumps({"best_alternative": best}))
    folder.evaluation.mkdir()
    for name, texts in answers.items():
        with (folder.evaluation / f"{name}.jsonl").open("w") as file:
            for i, (text, question) in enumerate(zip(texts, asked, strict=True)):
                shots = "user: What is one?\nassistant: 1\n" if name == "few_shot" else ""
                framed = f"<s>system: Add.\n{shots}user:\n{question}</u>\nassistant:\n"
                prompt = question if name.startswith("trivial_") else framed
                row = {"id": f"row{i}", "prompt": prompt, "answer": text, "expected": str(2 * i), "scores": {}}
                file.write(json.dumps(row) + "\n")
        (folder.evaluation / f"{name}.timing.json").write_text("{}")
    return folder
