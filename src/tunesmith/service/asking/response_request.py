"""The body of `POST /responses`, and its input items as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema

from tunesmith.service.asking.chat_request import Call, CalledFunction, ChatMessage, Function
from tunesmith.service.asking.fields import FunctionName, ModelName, Temperature, Tokens, Top, TopP, unsupported
from tunesmith.service.asking.tools import Offer, offer_from
from tunesmith.service.asking.turn_plan import AnswerFormat
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body, Metadata
from tunesmith.service.validation import Problem, problems_of, refusal

Json = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_IDLE_FIELDS = ("allowed_callers", "async", "defer_loading", "output_schema")
"""Of functions: how and when OpenAI's own programs call them. Here a model is told of them all, and its asker calls."""
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What a response may be asked to carry beside its text; of all but the log-probabilities there is nothing here."""


def _input(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ValueError("expected a string, or an array of at least one item, each an object")
    return value


Input = Annotated[
    Any,
    AfterValidator(_input),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}),
]
"""A text, or items: messages, calls and their results."""


class TextFormat(Body):
    """What the text of an answer is held to."""

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextFormat | None = None
    # Models here say as much as they have learnt to say.
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseStreamOptions(Body):
    # Random characters against guessing texts from the sizes of packets: nothing is added here.
    include_obfuscation: bool | None = None


class AskedItems(Body):
    """What decides the tokens that a model is asked with."""

    model: ModelName
    input: Input
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # How models that reason do so.
    reasoning: dict[str, Any] | None = None
    # Refused: it would be more to answer than is here.
    conversation: str | dict[str, Any] | None = None


class CountRequest(AskedItems):
    """A request for the number of tokens that such a request would be."""

    # A way of speaking that OpenAI's models are told of.
    personality: Annotated[str, Field(max_length=64)] | None = None


class ResponseRequest(AskedItems):
    """A request for a response."""

    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Top | None = None
    include: list[Includable] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    # Nothing here depends on these: who asks, how OpenAI bills and caches, how often its own tools may be used, and
    # how responses in the background go on.
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    max_tool_calls: int | None = None
    access_programs: dict[str, Any] | None = None
    background_options: dict[str, Any] | None = None

    # These would change the answer or the way it comes, and are refused.
    background: bool | None = None
    context_management: list[dict[str, Any]] | None = None
    image: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None

    @property
    def with_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


def check_items(request: AskedItems) -> None:
    """Raises `ApiError` 400 for a conversation that is kept elsewhere."""
    if request.conversation is not None:
        raise unsupported("conversation", "conversations are continued by 'previous_response_id'")


def check_response(request: ResponseRequest) -> None:
    """Raises `ApiError` 400 for what no model here can do."""
    if request.background:
        raise unsupported("background", "a response is answered while the request is open")
    for name, why in (
        ("prompt", "prompts are not kept on this server; send their text"),
        ("moderation", "no moderation model is registered"),
        ("context_management", "nothing is left out of a conversation unasked"),
        ("image", "it answers in text"),
    ):
        if getattr(request, name) is not None:
            raise unsupported(name, why)


def response_offer(request: AskedItems) -> Offer:
    """The tools of a request. Raises `ApiError` 400 for tools other than functions."""
    problems: list[Problem] = []
    functions: list[Function] = []
    for place, tool in enumerate(request.tools or ()):
        kind = tool.get("type")
        if kind != "function":
            text = (
                f"Invalid value for 'tools[{place}].type': expected 'function', but got {str(kind)[:60]!r} instead; "
                "this server has no tools of its own."
            )
            problems.append(Problem(text, f"tools[{place}].type", "invalid_value"))
            continue
        unknown = sorted(set(tool) - {"type", *_FUNCTION_FIELDS, *_IDLE_FIELDS})
        if unknown:
            name = f"tools[{place}].{unknown[0]}"
            problems.append(Problem(f"Unknown parameter: '{name}'.", name, "unknown_parameter"))
            continue
        made = _function({key: value for key, value in tool.items() if key in _FUNCTION_FIELDS}, place)
        if isinstance(made, Problem):
            problems.append(made)
        else:
            functions.append(made)
    if problems:
        raise refusal(problems)
    return offer_from(functions, _choice(request.tool_choice), request.parallel_tool_calls)


def response_format(request: AskedItems) -> AnswerFormat:
    """What the text is held to. Raises `ApiError` 400 for a schema without name or body."""
    wanted = request.text.format if request.text is not None else None
    if wanted is None or wanted.type == "text":
        return AnswerFormat()
    if wanted.type == "json_object":
        return AnswerFormat({"type": "object"}, param="text.format")
    for field_name, value in (("name", wanted.name), ("schema", wanted.schema_)):
        if value is None:
            raise ApiError(
                400,
                f"Missing required parameter: 'text.format.{field_name}'.",
                param=f"text.format.{field_name}",
                code="missing_required_parameter",
            )
    return AnswerFormat(wanted.schema_, wanted.name or "", "text.format.schema")


@dataclass(slots=True)
class Items:
    """Input items as messages, with what the request calls each."""

    messages: list[ChatMessage] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add_all(self, items: Sequence[Mapping[str, Any]], named: str) -> None:
        """Read items; calls that follow each other, or a message of the assistant, are one turn."""
        for place, item in enumerate(items):
            where = f"{named}[{place}]"
            kind = item.get("type", "message" if "role" in item else None)
            if kind == "message":
                self._message(where, item)
            elif kind == "function_call":
                self._call(where, item)
            elif kind == "function_call_output":
                self._output(where, item)
            elif kind != "reasoning":  # of other models' reasoning nothing can be read here
                self._add(
                    f"Invalid value for '{where}.type': expected 'message', 'function_call' or "
                    f"'function_call_output', but got {str(kind)[:60]!r} instead.",
                    f"{where}.type",
                )

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in _ROLES:
            expected = ", ".join(map(repr, _ROLES))
            self._add(f"Invalid value for '{where}.role': expected one of {expected}.", f"{where}.role")
        elif isinstance(content, str) or (
            isinstance(content, list) and all(isinstance(part, dict) for part in content)
        ):
            self._append(where, ChatMessage(role=role, content=content))
        else:
            self._add(
                f"Invalid type for '{where}.content': expected a string or an array of parts.", f"{where}.content"
            )

    def _call(self, where: str, item: Mapping[str, Any]) -> None:
        texts = self._texts(where, item, ("call_id", "name", "arguments"))
        if texts is None:
            return
        call = Call(id=texts[0], function=CalledFunction(name=texts[1], arguments=texts[2]))
        if self.messages and self.messages[-1].role == "assistant":
            last = self.messages[-1]
            self.messages[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or ()), call]})
        else:
            self._append(where, ChatMessage(role="assistant", tool_calls=[call]))

    def _output(self, where: str, item: Mapping[str, Any]) -> None:
        output = item.get("output")
        texts = self._texts(where, item, ("call_id",))
        if texts is None:
            return
        if not _is_content(output):
            self._add_type(f"{where}.output", "a string or an array of parts")
            return
        self._append(where, ChatMessage(role="tool", content=output, tool_call_id=texts[0]))

    def _texts(self, where: str, item: Mapping[str, Any], names: Sequence[str]) -> list[str] | None:
        wrong = [name for name in names if not isinstance(item.get(name), str)]
        for name in wrong:
            param = f"{where}.{name}"
            if name in item:
                self._add_type(param, "a string")
            else:
                missing = f"Missing required parameter: '{param}'."
                self.problems.append(Problem(missing, param, "missing_required_parameter"))
        return None if wrong else [str(item[name]) for name in names]

    def _append(self, where: str, message: ChatMessage) -> None:
        self.messages.append(message)
        self.places.append(where)

    def _add_type(self, param: str, expected: str) -> None:
        self.problems.append(Problem(f"Invalid type for '{param}': expected {expected}.", param, "invalid_type"))

    def _add(self, message: str, param: str) -> None:
        self.problems.append(Problem(message, param, "invalid_value"))


def _is_content(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, dict) for part in value))


def own_items(request: AskedItems) -> list[Json]:
    """The input as items; a text is a message of the user."""
    if isinstance(request.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": request.input}]}]
    return [dict(item) for item in request.input]


def _function(value: Json, place: int) -> Function | Problem:
    try:
        return Function.model_validate({key: one for key, one in value.items() if one is not None})
    except ValidationError as error:
        body: list[Any] = [{}] * place + [value]
        errors = [{**one, "loc": ("body", "tools", place, *one["loc"])} for one in error.errors()]
        return problems_of(errors, {"tools": body})[0]


def _choice(choice: Any) -> Any:
    """A choice in the words of chat completions."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
