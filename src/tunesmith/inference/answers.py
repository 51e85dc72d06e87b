"""Answers on their way into an engine and out of it: as the tokens they are learnt with, and as a `Generation`."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.label_scores import Ids
from tunesmith.inference.types import Generation
from tunesmith.text.render import Renderer


class AnswerIds:
    """Answers as the tokens they are learnt with. They are the same after most prompts, so they are rendered once and
    then only looked at: a prompt after which the first one is another renders all of its own.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self._known = renderer, dict[str, Ids]()

    def __call__(self, prompt: Sequence[Message], texts: Sequence[str]) -> tuple[Ids, ...]:
        first = self._render(prompt, texts[0])
        if self._known.setdefault(texts[0], first) != first:
            return tuple(self._render(prompt, text) for text in texts)
        for text in texts:
            if text not in self._known:
                self._known[text] = self._render(prompt, text)
        return tuple(self._known[text] for text in texts)

    def _render(self, prompt: Sequence[Message], text: str) -> Ids:
        sample = self._renderer.sample([*prompt, Message("assistant", text)], loss="last")
        ids: Ids = sample.ids[sample.weights > 0].tolist()
        return ids if ids and ids[-1] in self._renderer.stop_ids else [*ids, min(self._renderer.stop_ids)]


def as_generation(
    renderer: Renderer, prompt: Sequence[Message], prompt_ids: Sequence[int], answer: Sequence[int]
) -> Generation:
    """A generated answer, the stop token included where it ended by itself."""
    read = renderer.answer(answer, prompt)
    return Generation(
        text=read.expected_form,
        prompt=renderer.prompt_text(prompt),
        prompt_tokens=len(prompt_ids),
        answer_tokens=len(answer),
        stopped=bool(answer) and answer[-1] in renderer.stop_ids,
        calls=read.calls,
        beside=read.content if read.calls else "",
    )


def refuse_too_long(prompts: Sequence[Ids], said: Sequence[tuple[Ids, ...]], context: int) -> None:
    """Raise `EngineError` where a prompt and the longest of its answers are longer than the context together."""
    longest = max(len(prompt) + max(map(len, texts)) for prompt, texts in zip(prompts, said, strict=True))
    if longest > context:
        raise EngineError(
            f"a prompt and the longest answer to be scored have {longest} tokens together",
            where="evaluate.decoding: scored",
            expected=f"at most {context}, the context of the model",
            fix="raise evaluate.max_new_tokens to the tokens of the longest label, so that prompts leave room",
        )
