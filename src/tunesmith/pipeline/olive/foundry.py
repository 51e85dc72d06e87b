"""`inference_model.json`, by which Foundry Local knows an ONNX Runtime GenAI model and how it is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.models.artifact import Artifact, hash_files, read_artifact, write_artifact
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import write_json

FILE = "inference_model.json"
KINDS = ("onnx", "onnx-multi")
_ROLES = ("system", "user", "assistant")
_MARK = "{Content}"


def add_foundry(artifact: Artifact, name: str, recipe: Recipe | None = None) -> Artifact:
    """Write the file into a finished export and bring its manifest up to date; returns the artifact as it is now.

    recipe: of the run it comes from, whose text template is put around what is asked.

    The export's files are held against their hashes first. Raises `VerificationError` where they differ, `EngineError`
    where the template cannot be split into turns.
    """
    artifact = read_artifact(artifact.folder)
    write_json(artifact.folder / FILE, foundry_model(artifact.folder, name, _around(recipe)))
    files, size = hash_files(artifact.folder)
    done = replace(artifact, files=files, bytes=size)
    write_artifact(done)
    return done


def foundry_model(folder: Path, name: str, asked: str = _MARK) -> dict[str, Any]:
    """Name and prompt template of the model in a folder, taken from its own chat template.

    asked: a user's turn as the model was trained on it, with `{Content}` in it.

    `prompt` is a user's turn with the beginning of the answer behind it; each role's text has `{Content}` in the place
    of what is said. Roles that the template refuses are left out.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        return {"Name": name, "PromptTemplate": {"prompt": asked}}
    template: dict[str, str] = {}
    for role in _ROLES:
        content = asked if role == "user" else _MARK
        turn = _rendered(tokenizer, [{"role": role, "content": content}], generate=False)
        if turn is not None and _MARK in turn:
            template[role] = turn
    prompt = _rendered(tokenizer, [{"role": "user", "content": asked}], generate=True)
    if prompt is None or _MARK not in prompt:
        raise EngineError("the chat template does not take a user's turn", where=str(folder / "chat_template.jinja"))
    return {"Name": name, "PromptTemplate": {**template, "prompt": prompt}}


def _around(recipe: Recipe | None) -> str:
    """What a recipe's text template makes of an input, where that is one column; else the input as it is."""
    from tunesmith.data.template import parse_template, render_prompt

    if recipe is None or recipe.data.template is None:
        return _MARK
    shape = parse_template(recipe.data.template, recipe.data.answer)
    return render_prompt(shape.prompt, {shape.inputs[0]: _MARK}) if len(shape.inputs) == 1 else _MARK


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, generate: bool) -> str | None:
    """The text of a conversation, or None where the template refuses it."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except TemplateError:
        return None
    return text
