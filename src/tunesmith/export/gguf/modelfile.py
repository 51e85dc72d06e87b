"""A `Modelfile`, by which Ollama takes up the GGUF file beside it: `ollama create NAME -f Modelfile`.

Ollama writes prompts by templates of its own language. The chat template is translated where the translation can be
proved: both must give the same text for conversations of every shape. Where it cannot, TEMPLATE is left out, Ollama
goes by the template in the GGUF file, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tunesmith.export.types import StepError, Work

MODELFILE = "Modelfile"
_MOST_CONTEXT = 8192
"""Ollama reserves memory for all of `num_ctx` when it loads a model."""
_ROLES = ("system", "user", "assistant")
_CONTENTS = ("Good morning", "two\nlines and \ttab", "  edges  ", "Zoë → 茶", 'a "quoted" {brace}')
Turns = Sequence[Mapping[str, str]]
Render = Callable[[Turns, bool], str]
"""Turns, and whether an answer is to begin, to the chat template's text."""


class _NotTranslatedError(ValueError):
    """Why a chat template has no equal in Ollama's language."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A chat template taken apart: what begins a text, what stands around each role's turns, what begins an answer.

    only_without_system: the beginning is written where no system message is (a default one).
    """

    beginning: str
    around: Mapping[str, tuple[str, str]]
    answer: str
    only_without_system: bool = False

    def render(self, turns: Turns) -> str:
        """The text of a conversation, as Ollama's template says it."""
        has_system = any(turn["role"] == "system" for turn in turns)
        said = [] if self.only_without_system and has_system else [self.beginning]
        for turn in turns:
            before, after = self.around[turn["role"]]
            said += [before, turn["content"], after]
        return "".join([*said, self.answer])

    def without_start(self, token: str) -> Pieces:
        """The same without the start token that the tokenizer writes by itself."""
        before, after = self.around["system"]
        system = (before.removeprefix(token), after) if self.only_without_system else (before, after)
        around = {**self.around, "system": system}
        return Pieces(self.beginning.removeprefix(token), around, self.answer, self.only_without_system)

    def in_go(self) -> str:
        """The text in Ollama's language (Go's templates)."""
        turns = "".join(
            f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}{self.around[role][0]}'
            f"{{{{ .Content }}}}{self.around[role][1]}"
            for i, role in enumerate(role for role in _ROLES if role in self.around)
        )
        beginning = self.beginning
        if self.only_without_system and beginning:
            beginning = f"{{{{ if not .System }}}}{beginning}{{{{ end }}}}"
        return f"{beginning}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def write_modelfile(work: Work, folder: Path) -> dict[str, Any]:
    """Write the `Modelfile`; returns whether it has a template, and why not where it has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template, why = translate(tokenizer, work.source.template)
    stops = [str(tokenizer.decode([i])) for i in work.source.stop_ids]
    lines = ["FROM ./model.gguf"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {min(work.source.context, _MOST_CONTEXT)}", "PARAMETER temperature 0"]
    if system := work.source.recipe.data.system:
        if any(line.rstrip().endswith('"""') for line in system.splitlines()[:-1]):
            reason = 'a Modelfile cannot hold the system message (data.system), for a line of it ends with """'
            raise StepError("Modelfile", reason, "export merged weights (--to merged)")
        lines.append(f'SYSTEM """{system}"""')
    (work.staged / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"modelfile_template": why or "proved equal to the chat template"}


def translate(tokenizer: Any, source: str | None) -> tuple[str | None, str]:
    """The chat template in Ollama's language; or None, and why."""
    if source is None:
        return None, "left out: the model is not asked by a template"
    if "strftime_now" in source:
        return None, "left out: the chat template writes today's date"

    def render(turns: Turns, answer: bool) -> str:
        text = tokenizer.apply_chat_template(
            list(turns), chat_template=source, tokenize=False, add_generation_prompt=answer
        )
        return str(text)

    try:
        pieces = take_apart(render)
        _prove(pieces, render)
    except (_NotTranslatedError, TemplateError) as problem:
        return None, f"left out, Ollama goes by the one in the GGUF file: {problem}"
    start = tokenizer.bos_token
    if start and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        pieces = pieces.without_start(start)
    text = pieces.in_go()
    literals = [pieces.beginning, pieces.answer, *(part for both in pieces.around.values() for part in both)]
    if any(mark in literal for literal in literals for mark in ("{{", "}}", '"""')):
        return None, "left out: the chat template writes braces or quotes that Ollama's language reads as its own"
    if not all(char.isprintable() or char in "\n\t" for literal in literals for char in literal):
        return None, "left out: the chat template writes characters that Ollama drops from a Modelfile"
    return text, ""


def take_apart(render: Render) -> Pieces:
    """What a chat template writes around the turns, found by rendering. Raises `_NotTranslatedError`."""
    one, two, three = ("MARKONE", "MARKTWO", "MARKTHREE")
    user, again = {"role": "user", "content": one}, {"role": "user", "content": three}
    told = {"role": "assistant", "content": two}
    first, between, back, after_user = _between(render([user, told, again], False), (one, two, three))
    after_answer = _between(render([user, told], False), (one, two))[2]
    answer = _less(_between(render([user], True), (one,))[1], after_user)
    before_answer, before_user = _less(between, after_user), _less(back, after_answer)
    if not first.endswith(before_user):
        raise _NotTranslatedError("it writes the first turn otherwise than others")
    beginning = first[: len(first) - len(before_user)]
    ruled = {"role": "system", "content": two}
    system_first, system_after, _ = _between(render([ruled, user], False), (two, one))
    if not system_after.endswith(before_user):
        raise _NotTranslatedError("it writes the turn after a system message otherwise than others")
    after_system = system_after[: len(system_after) - len(before_user)]
    default = not system_first.startswith(beginning)
    before_system = system_first if default else system_first[len(beginning) :]
    around = {
        "system": (before_system, after_system),
        "user": (before_user, after_user),
        "assistant": (before_answer, after_answer),
    }
    return Pieces(beginning, around, answer, default)


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and behind the marks."""
    found, rest = [], text
    for mark in marks:
        before, there, rest = rest.partition(mark)
        if not there:
            raise _NotTranslatedError("it does not write every turn's text as it is")
        found.append(before)
    return [*found, rest]


def _less(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise _NotTranslatedError("what it writes after a turn depends on what follows")
    return text[len(beginning) :]


def _prove(pieces: Pieces, render: Render) -> None:
    """Raise unless both give the same text for conversations of every shape."""
    for turns in _conversations():
        text = render(turns, True)
        if pieces.render(turns) != text:
            trimmed = [{**turn, "content": turn["content"].strip()} for turn in turns]
            trims = pieces.render(trimmed) == text
            said = "it trims what is said" if trims else f"a conversation of {len(turns)} turns comes out otherwise"
            raise _NotTranslatedError(said)


def _conversations() -> Iterator[Turns]:
    for shape in (("user",), ("user", "assistant", "user"), ("user", "assistant", "user", "assistant", "user")):
        for roles in (shape, ("system", *shape)):
            for i in range(len(_CONTENTS)):
                yield [{"role": r, "content": _CONTENTS[(i + j) % len(_CONTENTS)]} for j, r in enumerate(roles)]


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
