"""The card of a bundle (README.md): what the model is for, what it was made of, what was measured, what it cannot do.

Front matter and `model-index` are those of model cards on the Hugging Face hub, which shows them there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tunesmith.export.bundle.launch import COMPOSE, MODEL, START, Launch
from tunesmith.export.bundle.types import Server, Story
from tunesmith.models.artifact import Artifact

_LIBRARIES = {"adapter": "peft", "gguf": "gguf", "onnx": "onnx", "onnx-multi": "onnx"}


def card(artifact: Artifact, story: Story, server: Server, started: Launch) -> str:
    """The text of the card."""
    sections = [
        _head(artifact, story),
        *_purpose(story),
        *_running(story, server, started),
        *_evidence(story),
        *_data(story),
        *_making(artifact, story),
        *_limits(story),
        *_licence(story),
        *_files(),
    ]
    return "\n".join(sections).rstrip() + "\n"


def _head(artifact: Artifact, story: Story) -> str:
    front: dict[str, Any] = {
        "base_model": artifact.base,
        "license": story.licence_id or "other",
        "library_name": _LIBRARIES.get(artifact.target.kind, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", str(artifact.target)],
    }
    if story.licence_id is None:
        front["license_name"] = story.licence
    measured = next((one for one in story.scores if one.candidate == story.subject), None)
    if measured is not None:
        metric = {"type": story.metric, "value": round(measured.value, 4), "name": story.metric}
        task = {"type": "text-generation"}
        dataset = {"name": "held-out rows of the training data", "type": "own"}
        front["model-index"] = [
            {"name": story.name, "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}
        ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, width=120)}---\n\n# {story.name}\n"


def _purpose(story: Story) -> Iterator[str]:
    yield (story.purpose or "What it was tuned for is not recorded.") + "\n"
    if story.verdict:
        yield f"**{story.verdict}**\n"


def _running(story: Story, server: Server, started: Launch) -> Iterator[str]:
    yield f"## Running it\n\n`./{START}` serves it with {server}; it needs {started.needs}."
    if COMPOSE in started.files:
        yield "`docker compose up` does the same in a container."
    body = f'{{"model": "{story.name}", "messages": [{{"role": "user", "content": "…"}}]}}'
    yield (
        f"\n```sh\ncurl {started.url}/chat/completions -H 'content-type: application/json' \\\n    -d '{body}'\n```\n"
    )


def _evidence(story: Story) -> Iterator[str]:
    yield "## Evidence\n"
    if story.scores:
        sure = f"{100 * story.confidence:g} % intervals"
        yield f"Measured on {story.scores[0].rows:,} held-out rows; {sure}. {story.metric}:\n"
        yield "| candidate | value | interval |\n|---|---|---|"
        for one in sorted(story.scores, key=lambda score: -score.value):
            mark = "**" if one.candidate == story.subject else ""
            interval = f"{_percent(one.low)} to {_percent(one.high)}"
            yield f"| {mark}{one.candidate}{mark} | {_percent(one.value)} | {interval} |"
        yield ""
    else:
        yield "Nothing was measured on a task.\n"
    if story.checks:
        yield "This export was compared with the tuned model before it was finished:\n"
        yield "| check | outcome | measured |\n|---|---|---|"
        yield from (f"| {_cell(name)} | {outcome} | {_cell(words)} |" for name, outcome, words in story.checks)
        yield ""


def _data(story: Story) -> Iterator[str]:
    yield "## Data\n"
    if story.rows:
        yield "Rows: " + ", ".join(f"{count:,} {part}" for part, count in story.rows.items()) + ".\n"
    if story.data:
        yield "| source | SHA-256 |\n|---|---|"
        yield from (f"| {part} | `{digest}` |" for part, digest in story.data.items())
        yield ""
    if not story.rows and not story.data:
        yield "Not recorded.\n"


def _making(artifact: Artifact, story: Story) -> Iterator[str]:
    yield "## How it was made\n"
    yield f"- Base: `{artifact.base}`, SHA-256 of its weights `{artifact.base_sha256}`"
    if story.method:
        yield f"- Tuning: {story.method}"
    yield f"- This export: {artifact.target}, {artifact.bytes / 1e6:,.1f} MB, for {artifact.target.device}"
    if artifact.adapters:
        yield f"- Adapters: {', '.join(artifact.adapters)}"
    yield from (f"- {name}: {value}" for name, value in story.made.items())
    yield "- Libraries: `sbom.cdx.json` (CycloneDX)\n"


def _limits(story: Story) -> Iterator[str]:
    yield "## Limits\n"
    said = [
        f"Context: at most what `{MODEL}/artifact.json` says, prompt and answer together.",
        "It was measured on rows like those it learnt from; on others nothing is known.",
        *story.limits,
    ]
    yield from (f"- {limit}" for limit in said)
    yield ""


def _licence(story: Story) -> Iterator[str]:
    yield f"## Licence\n\nThe base: {story.licence}. {story.licence_terms}".rstrip()
    yield "\nThe rights in the training data limit it too; they are not recorded here.\n"


def _files() -> Iterator[str]:
    yield (
        f"## Files\n\n`{MODEL}/` holds the export, `SHA256SUMS` the hashes of all files: `sha256sum -c SHA256SUMS` "
        "finds what was changed on the way.\n"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
