"""The graders as a request writes them: one closed shape for each type, after the official client's types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from tunesmith.service.validation import Problem, problems_of

Measure = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
]  # fmt: skip
Text = Annotated[str, Field(max_length=1_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Shape(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Shape):
    """A part of a message. Images and audio are not offered here."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputMessage(Shape):
    """A message whose texts may hold templates."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text | TextPart | list[Text | TextPart]
    type: Literal["message"] | None = None

    @property
    def text(self) -> str:
        """Its content as one text."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "".join(part if isinstance(part, str) else part.text for part in parts)


class Sampling(Shape):
    """How a grading model answers."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    max_completions_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    # Models here do not reason before they answer, so an effort changes nothing.
    reasoning_effort: str | None = None

    @property
    def most_tokens(self) -> int | None:
        """Either spelling."""
        return self.max_completion_tokens or self.max_completions_tokens


class StringCheck(Shape):
    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Shape):
    type: Literal["text_similarity"]
    name: Name
    input: Text
    reference: Text
    evaluation_metric: Measure
    pass_threshold: float | None = None


class Python(Shape):
    type: Literal["python"]
    name: Name
    source: str
    # There is one sandbox, without third-party packages, whatever the tag.
    image_tag: str | None = None
    pass_threshold: float | None = None


class ScoreModel(Shape):
    type: Literal["score_model"]
    name: Name
    model: Name
    input: Annotated[list[InputMessage], Field(min_length=1)]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sampling_params: Sampling | None = None
    pass_threshold: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return (self.range[0], self.range[1]) if self.range else (0.0, 1.0)


class LabelModel(Shape):
    type: Literal["label_model"]
    name: Name
    model: Name
    input: Annotated[list[InputMessage], Field(min_length=1)]
    labels: Annotated[list[Name], Field(min_length=1)]
    passing_labels: list[Name]
    sampling_params: Sampling | None = None


Single = Annotated[StringCheck | TextSimilarity | Python | ScoreModel | LabelModel, Field(discriminator="type")]


def _how_many(graders: Any) -> str:
    return "one" if isinstance(graders, Mapping) and isinstance(graders.get("type"), str) else "several"


class Multi(Shape):
    """Several graders by name, and a formula over their rewards. The client's types show one grader in place of the
    mapping; that is read as a mapping of its name to it.
    """

    type: Literal["multi"]
    name: Name
    graders: Annotated[
        Annotated[dict[str, Single], Tag("several")] | Annotated[Single, Tag("one")], Discriminator(_how_many)
    ]
    calculate_output: str
    pass_threshold: float | None = None

    @property
    def parts(self) -> Mapping[str, SingleGrader]:
        """The graders by the names that the formula knows them by."""
        return self.graders if isinstance(self.graders, dict) else {self.graders.name: self.graders}


SingleGrader = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel
Grader = SingleGrader | Multi
AnyGrader = Annotated[Grader, Field(discriminator="type")]

_ANY: TypeAdapter[Grader] = TypeAdapter(AnyGrader)


def read_grader(grader: Any, param: str = "grader") -> Grader | tuple[Problem, ...]:
    """The grader, or everything that is wrong with its shape; `param` is its place in the request."""
    try:
        return _ANY.validate_python(grader)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", param, *one["loc"])} for one in error.errors(include_url=False)]
        return tuple(problems_of(errors, {param: grader}))
