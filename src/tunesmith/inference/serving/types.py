"""The nouns of serving: a question with its settings, the pieces in which the answer comes, the engine between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.data.types import Message
from tunesmith.tasks.types import AnswerForm

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What answers: a base (`embedded:NAME`, folder, hub id), with or without an adapter's folder upon it.

    `engine` says by which engine: torch, vllm, remote (then `base` is the name at `url`), onnx (then `base` is the
    folder of an export, and `variant` the adapter of those that it holds; None asks the base alone).
    """

    base: str
    adapter: Path | None = None
    chat_template: str = "auto"
    engine: str = "torch"
    url: str | None = None
    key_variable: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is drawn, in OpenAI's terms.

    temperature 0 is greedy. `top` is how many alternatives are told with every token; None tells no log-probabilities.
    `stop` texts end the answer and are not part of it. `form` holds the answer to a form; `grammar` (llguidance's
    dialect of Lark) to any other; at most one of the two.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    form: AnswerForm | None = None
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `prompt` is a conversation, or for plain completion a text or token ids.

    A text is tokenised as the tokenizer does by itself; with the chat template `raw` as it is trained: nothing is put
    before it.
    `max_new_tokens` None is what the context leaves. `count` answers are drawn, each from random numbers of its own.
    `echo_scores` asks for the log-probabilities of the prompt's tokens too (completions with `echo`).
    """

    model: ModelRef
    prompt: tuple[Message, ...] | str | tuple[int, ...]
    max_new_tokens: int | None = None
    decoding: Decoding = field(default_factory=Decoding)
    count: int = 1
    echo_scores: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token with its log-probability (before temperature and penalties), and the most probable ones in its place.

    `text` and `data` are what it stands for; the bytes of several tokens may make one character.
    """

    id: int
    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of answer `index`. `text` never ends within a character or within what may become a stop text.

    `finish` is set on the last piece of that answer. `ids` are the tokens that were written since the piece before.
    """

    index: int
    text: str
    ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; `cached` of the prompt were not computed again. The end token counts as one of the answer.

    `prompt_scores` where `echo_scores` asked for them, one for each token of the prompt; nothing comes before the
    first, whose `logprob` is NaN.
    """

    prompt: int
    answer: int
    cached: int = 0
    prompt_scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known of a model that can be asked. `renderer` is a `text.render.Renderer`, None where the engine is not
    in this process."""

    ref: ModelRef
    context: int
    renderer: Any | None


class TooLongError(ValueError):
    """Prompt and answer do not fit the context: `prompt`, `asked` (None: what is left) and `context` in tokens."""

    def __init__(self, prompt: int, asked: int | None, context: int) -> None:
        self.prompt, self.asked, self.context = prompt, asked, context
        super().__init__(f"{prompt} tokens of prompt and {asked or 1} of answer in a context of {context}")


NO_TOKEN = "the form of the answer allows no token that the model knows"
"""What an `EngineError` says of a form that compiles and cannot be kept to its end."""


class OverloadedError(RuntimeError):
    """The queue is full; `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__("the queue of requests is full")


class ServingEngine(Protocol):
    """Answers many requests at once. Safe to call from one event loop."""

    async def load(self, ref: ModelRef) -> Loaded:
        """Bring a model into memory if it is not there. Raises `EngineError` where it cannot be loaded."""
        ...

    def submit(self, ask: Ask) -> AsyncIterator[Piece | Usage]:
        """Pieces of all answers as they are written, then one `Usage`. Closing the iterator ends the work at once.

        Raises before the first piece: `TooLongError`, `OverloadedError`, `EngineError` for a form that cannot be
        compiled.
        """
        ...

    def forget(self, ref: ModelRef) -> None:
        """Take an adapter out of memory once nobody asks it any more."""
        ...

    def state(self) -> Mapping[str, float]:
        """Numbers for operations: waiting, running, tokens so far, cached share, adapters resident."""
        ...

    async def drain(self, seconds: float) -> None:
        """Take nothing new, finish what runs for at most so long, then end."""
        ...


def answer_text(pieces: Sequence[Piece], index: int = 0) -> str:
    """The text of one answer from its pieces."""
    return "".join(piece.text for piece in pieces if piece.index == index)
