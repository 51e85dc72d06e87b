"""The one renderer: conversations to token ids, for training, evaluation and chat alike (decision D3).

A conversation is rendered turn by turn. The text up to an assistant turn, start of the answer included, is tokenised on
its own, and so is the answer: the ids before an answer in training are therefore exactly the ids a model is asked with,
and which tokens are learnt is known from how they came to be, never from searching.

Tools are rendered by the template where it has a place for them and its calls can be read (`answers`), else in plain
words (`plain_tools`); what is learnt of an assistant's turn then includes its calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunesmith.data.types import Message, Toolset
from tunesmith.errors import EngineError, RecipeError
from tunesmith.text.answers import ReadAnswer, read_answer
from tunesmith.text.plain_tools import in_plain_words
from tunesmith.text.template_tools import PROBE, Turns, template_turns, tool_form, tool_objects
from tunesmith.text.templates import choose_template, tool_template
from tunesmith.text.types import Sample

_TOGETHER = 2_000
"""Conversations rendered and tokenised in one call, at most."""
_CHARACTERS = 8_000_000
"""Rendered characters held in one call: a conversation of many answers is rendered once for each of them."""
_TRIED = 64
"""Texts on which the tokenizer's quick door must give what its usual one gives before it is used."""
TOOLS_VERSION = 1
"""Of how tools are rendered and calls learnt; a change must change it: what was trained before is then not done."""
Loss = Literal["assistant", "last", "all"]
Tools = Literal["template", "plain"]
"""How tools are rendered: by the chat template, or in plain words where it has no place for them, or writes calls in a
way that `read_answer` does not read."""
Render = Callable[[int, bool], str]
"""`(end, start)` to the template's text of `messages[:end]`, with the start of an answer or without."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of rendered text; `message` is the index of the assistant turn it holds, or None.

    The index counts the turns as they are rendered: in plain words the results of several calls are one turn.
    """

    text: str
    message: int | None


class Renderer:
    """Turns conversations into ids with a tokenizer and a chat template.

    Attributes
    ----------
    template: name of the chat template in use.
    folds_system: the template refuses system messages (Gemma's does); their text then begins the first user turn.
    stop_ids: tokens that end an answer.
    special_ids: tokens that are no text: the tokenizer's special ones, and those added to its vocabulary.
    tools: how tools are rendered.
    """

    def __init__(self, tokenizer: Any, chat_template: str = "auto") -> None:
        self.tokenizer = tokenizer
        self.template, self._source = choose_template(tokenizer, chat_template)
        self._tool_source = tool_template(tokenizer, chat_template) or self._source
        self._form = tool_form(lambda turns, offered, start: self._apply([turns], start, offered, self._tool_source)[0])
        self.tools: Tools = "plain" if self._form is None else "template"
        self.folds_system = not self._takes_system()
        self.special_ids = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.get_added_vocab().values())
        self.stop_ids = self._find_stops()
        if self._form is not None and not self._reads_calls():
            self._form, self.tools = None, "plain"
            self.stop_ids = self._find_stops()
        self._quick: bool | None = None

    @property
    def source(self) -> str:
        """The template's Jinja text; of a tokenizer that brings one of its own for tools, both."""
        return self._source if self._tool_source == self._source else f"{self._source}\n{self._tool_source}"

    def segments(self, messages: Sequence[Message], last_only: bool = False) -> list[Segment]:
        """The rendered conversation, cut where assistant turns begin and end; joined, it is the template's text.

        With `last_only`, turns before the last answer may be one segment, where the template rewrites them. Raises
        `EngineError` for a template that rewrites turns that are to be cut.
        """
        turns = self._turned(messages)
        return self._cut(turns, last_only, lambda end, start: self._render(turns[:end], start=start))

    def _turned(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The turns that are rendered: those given, or where tools are told in plain words, with them as text."""
        if self._form is None and speaks_of_tools(messages):
            return in_plain_words(messages, offered_by(messages))
        return messages

    def _cut(self, messages: Sequence[Message], last_only: bool, render: Render) -> list[Segment]:
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is None:
            return [Segment(render(len(messages), False), None)]
        cut = self._cut_prompt(messages[:last], render, strict=not last_only)
        before = "".join(segment.text for segment in cut)
        after = render(last + 1, False)
        whole = render(len(messages), False) if last < len(messages) - 1 else after
        if not (after.startswith(before) and whole.startswith(after)):
            raise EngineError(
                f"the chat template {self.template!r} renders an answer in another way than it is asked for",
                where=f"message {last + 1}",
                fix="choose another base.chat_template",
            )
        cut.append(Segment(after[len(before) :], last))
        return [*cut, Segment(whole[len(after) :], None)] if whole != after else cut

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt: all turns, then the start of the answer."""
        turns = self._turned(messages)
        return [i for segment in self._prompt_segments(turns, strict=False) for i in self._tokenise(segment.text)]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, as the model sees it."""
        return self._render(self._turned(messages), start=True)

    def sample(self, messages: Sequence[Message], loss: Loss = "assistant", example_id: str = "") -> Sample:
        """Ids and loss weights of a conversation.

        An assistant turn is learnt up to and including its end-of-turn token; what the template writes after it is not.
        """
        return next(self.samples([messages], loss, [example_id]))

    def samples(
        self, conversations: Sequence[Sequence[Message]], loss: Loss = "assistant", ids: Sequence[str] | None = None
    ) -> Iterator[Sample]:
        """As `sample`, for many: tokenised together, which is several times faster."""
        names = ids if ids is not None else [""] * len(conversations)
        for some in _batches(conversations):
            part = [self._turned(messages) for messages in conversations[some]]
            cuts = self._cut_together(part, last_only=loss == "last")
            pieces = iter(self._tokenise_together([segment.text for cut in cuts for segment in cut]))
            for messages, cut, name in zip(part, cuts, names[some], strict=True):
                yield self._weigh(messages, [(segment, next(pieces)) for segment in cut], loss, name)

    def _weigh(
        self, messages: Sequence[Message], cut: Sequence[tuple[Segment, list[int]]], loss: Loss, example_id: str
    ) -> Sample:
        ids: list[int] = []
        weights: list[float] = []
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        for segment, piece in cut:
            weight = 1.0 if loss == "all" else 0.0
            if loss != "all" and segment.message is not None and (loss == "assistant" or segment.message == last):
                weight = messages[segment.message].weight
            end = len(piece)
            if loss != "all" and weight:
                end = next((i + 1 for i in range(len(piece) - 1, -1, -1) if piece[i] in self.stop_ids), end)
            ids += piece
            weights += [weight] * end + [0.0] * (len(piece) - end)
        if weights:
            weights[0] = 0.0  # nothing comes before the first token
        return Sample(np.asarray(ids, dtype=np.int64), np.asarray(weights, dtype=np.float32), example_id)

    def answer(self, ids: Sequence[int], asked: Sequence[Message]) -> ReadAnswer:
        """Generated ids as an answer to `asked`: its text, and where tools are spoken of, the calls in it."""
        text = self.decode(ids)
        return read_answer(text) if speaks_of_tools(asked) else ReadAnswer(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Answer text of generated ids as they were written, without the end-of-turn token."""
        kept = list(ids)
        while kept and kept[-1] in self.stop_ids:
            kept.pop()
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """One readable piece per token; special tokens by their name.

        Where several tokens make one character, it is shown at the last of them and the others are empty.
        """
        pieces: list[str] = []
        pending: list[int] = []
        for i in ids:
            pending.append(int(i))
            text = self.tokenizer.decode(pending, clean_up_tokenization_spaces=False)
            whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or len(pending) == 4
            pieces.append(text if whole else "")
            if whole:
                pending = []
        if pending:
            pieces[-1] = self.tokenizer.decode(pending, clean_up_tokenization_spaces=False)
        return pieces

    def ends_turn(self, sample: Sample) -> bool:
        """Whether some learnt token of the sample ends a turn; else the model would not learn to stop."""
        learnt = sample.ids[sample.weights > 0]
        return bool(np.isin(learnt, list(self.stop_ids)).any())

    def _prompt_segments(self, messages: Sequence[Message], *, strict: bool) -> list[Segment]:
        """A prompt, cut where its answers begin and end: training and asking tokenise the same pieces.

        Where the template changes earlier turns when later ones are added, a `strict` cut raises `EngineError`;
        else the prompt is one piece.
        """
        return self._cut_prompt(messages, lambda end, start: self._render(messages[:end], start=start), strict=strict)

    def _cut_prompt(self, messages: Sequence[Message], render: Render, *, strict: bool) -> list[Segment]:
        text = render(len(messages), True)
        cut: list[Segment] = []
        done = ""
        for i in (i for i, m in enumerate(messages) if m.role == "assistant"):
            before = render(i, True)
            after = render(i + 1, False)
            if before.startswith(done) and after.startswith(before) and text.startswith(after):
                cut += [Segment(before[len(done) :], None), Segment(after[len(before) :], i)]
                done = after
            elif strict:
                raise EngineError(
                    f"the chat template {self.template!r} changes earlier turns when later ones are added",
                    where=f"message {i + 1}",
                    fix="set train.loss: last, or choose another base.chat_template",
                )
            else:
                return [Segment(text, None)]
        return [*cut, Segment(text[len(done) :], None)]

    def _cut_together(self, conversations: Sequence[Sequence[Message]], *, last_only: bool) -> list[list[Segment]]:
        """The segments of each conversation, from two calls of the template for all of them."""
        known: list[dict[tuple[int, bool], str]] = [{} for _ in conversations]
        for start in (True, False):
            places = [(i, end) for i, turns in enumerate(conversations) for end, s in _renders(turns) if s is start]
            texts = self._render_together([conversations[i][:end] for i, end in places], start)
            for (i, end), text in zip(places, texts, strict=True):
                known[i][end, start] = text
        return [
            self._cut(turns, last_only, _looked_up(texts)) for turns, texts in zip(conversations, known, strict=True)
        ]

    def _render_together(self, conversations: Sequence[Sequence[Message]], start: bool) -> list[str]:
        from jinja2 import TemplateError

        alike: dict[tuple[Toolset | None, bool], list[int]] = {}  # the template is told of tools once per call
        for place, messages in enumerate(conversations):
            alike.setdefault((offered_by(messages), speaks_of_tools(messages)), []).append(place)
        texts = [""] * len(conversations)
        for (offered, with_tools), places in alike.items():
            some = [conversations[place] for place in places]
            source = self._tool_source if with_tools else self._source
            try:
                made = self._apply([self._turns(messages) for messages in some], start, offered, source)
            except (TemplateError, TypeError):  # which of them it is, and why, is said by rendering one by one
                made = [self._render(messages, start) for messages in some]
            for place, text in zip(places, made, strict=True):
                texts[place] = text
        return texts

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tokenise_together(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; through the tokenizer's quick door (no offsets, no masks) once that has proved alike."""
        if not texts:
            return []
        if self._quick:
            return self._encode(texts)
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        if self._quick is None and getattr(self.tokenizer, "is_fast", False):
            tried = texts[:_TRIED]
            self._quick = self._encode(tried) == found[: len(tried)]
        return found

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _render(self, messages: Sequence[Message], start: bool) -> str:
        from jinja2 import TemplateError

        with_tools = speaks_of_tools(messages)
        source = self._tool_source if with_tools else self._source
        try:
            return self._apply([self._turns(messages)], start, offered_by(messages), source)[0]
        except (TemplateError, TypeError) as error:  # TypeError: a template that joins a text and something else
            raise RecipeError(
                f"the chat template cannot render these turns: {error}",
                where=self.template,
                fix="base.chat_template: plain renders tools in plain words" if with_tools else None,
            ) from error

    def _apply(self, conversations: Sequence[Turns], start: bool, offered: Toolset | None, source: str) -> list[str]:
        more = {} if offered is None or offered.parallel is None else {"parallel_tool_calls": offered.parallel}
        texts: list[str] = self.tokenizer.apply_chat_template(
            conversations,
            tools=tool_objects(offered),
            chat_template=source,
            tokenize=False,
            add_generation_prompt=start,
            **more,
        )
        return texts

    def _turns(self, messages: Sequence[Message]) -> Turns:
        """The messages as templates take them."""
        if self._form is not None and speaks_of_tools(messages):
            turns = template_turns(messages, self._form)
        else:
            turns = [{"role": m.role, "content": m.content} for m in messages]
        if self.folds_system and len(turns) > 1 and (turns[0]["role"], turns[1]["role"]) == ("system", "user"):
            turns[:2] = [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}]
        return turns

    def _takes_system(self) -> bool:
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": "rule"}, {"role": "user", "content": "question"}]
        try:
            self.tokenizer.apply_chat_template(turns, chat_template=self._source, tokenize=False)
        except TemplateError:
            return False
        return True

    def _find_stops(self) -> frozenset[int]:
        """The end token, and the first special token the template writes after an answer."""
        stops = set()
        if self.tokenizer.eos_token_id is not None:
            stops.add(int(self.tokenizer.eos_token_id))
        marker = "answer"
        text = self._render([Message("user", "question"), Message("assistant", marker)], start=False)
        if marker not in text:
            raise EngineError(
                f"the chat template {self.template!r} leaves out what the assistant says",
                expected="a template that renders every turn",
                fix="choose another base.chat_template",
            )
        for token in self._tokenise(text[text.rindex(marker) + len(marker) :]):
            if token in self.special_ids:
                stops.add(token)
                break
        if self._form is not None:  # a call may end in another way; tags inside it are tokens too, so the last counts
            call = self._render(PROBE[:2], start=False).removeprefix(self._render(PROBE[:1], start=True))
            stops.update([token for token in self._tokenise(call) if token in self.special_ids][-1:])
        return frozenset(stops)

    def _reads_calls(self) -> bool:
        """Whether a call, as it is learnt and would be generated, is read back with its name and arguments."""
        text = self._render(PROBE[:2], start=False).removeprefix(self._render(PROBE[:1], start=True))
        ids = self._tokenise(text)
        end = next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in self.stop_ids), len(ids))
        read = self.answer(ids[:end], PROBE[:1]).calls
        return [(c.name, json.loads(c.arguments)) for c in read] == [
            (c.name, json.loads(c.arguments)) for c in PROBE[1].tool_calls
        ]


def _batches(conversations: Sequence[Sequence[Message]]) -> Iterator[slice]:
    """Which conversations are rendered and tokenised together."""
    begin = held = 0
    for i, messages in enumerate(conversations):
        answers = sum(m.role == "assistant" for m in messages)
        size = 2 * max(1, answers) * sum(map(_size, messages))
        if i > begin and (i - begin == _TOGETHER or held + size > _CHARACTERS):
            yield slice(begin, i)
            begin, held = i, 0
        held += size
    if begin < len(conversations):
        yield slice(begin, len(conversations))


def _size(message: Message) -> int:
    """About how long a turn is when it is rendered."""
    offered = sum(map(len, message.tools.definitions)) if message.tools is not None else 0
    return len(message.content) + offered + sum(len(call.arguments) for call in message.tool_calls)


def offered_by(messages: Sequence[Message]) -> Toolset | None:
    """The tools that may be called at the end of these turns: those offered last."""
    return next((message.tools for message in reversed(messages) if message.tools is not None), None)


def speaks_of_tools(messages: Sequence[Message]) -> bool:
    """Whether tools are offered or called, or answer."""
    return any(m.tools is not None or m.tool_calls or m.role == "tool" for m in messages)


def _looked_up(texts: dict[tuple[int, bool], str]) -> Render:
    return lambda end, start: texts[end, start]


def _renders(messages: Sequence[Message]) -> Iterator[tuple[int, bool]]:
    """What of a conversation a cut may render: see `Render`."""
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    for i in answers:
        yield i, True
        yield i + 1, False
    if not answers or answers[-1] < len(messages) - 1:
        yield len(messages), False
