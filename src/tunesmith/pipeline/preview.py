"""`data preview`: what the model will see and learn, token by token, and the numbers of the training.

The samples shown are those the training learns from: rendered by the same renderer, from the same conversations, with
the same loss (a test compares them with the training's batches token by token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.types import Example, Finding
from tunesmith.errors import DataError
from tunesmith.pipeline.numbers import DataNumbers, data_numbers
from tunesmith.pipeline.prepare import DataFindingsError, Prepared, Rows, prepare, read_data
from tunesmith.recipe.schema import Recipe
from tunesmith.tasks.conversation import training_conversation
from tunesmith.text.numbers import TokenNumbers, sample_counts, token_numbers
from tunesmith.text.preview import TokenPreview, preview
from tunesmith.text.render import Tools
from tunesmith.text.templates import Origin, template_origin
from tunesmith.training.calibration import TimeForecast

LOOKED_AT = 5_000
"""Training rows tokenised for the numbers, where there are more."""
_ABOUT_TOKENS = ("row_too_long", "end_not_learnt")
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row of a part, token by token. `tools` says which it offers and calls, and how they are rendered."""

    part: Part
    source: str
    line: int
    preview: TokenPreview
    tools: str = ""


@dataclass(frozen=True, slots=True)
class DataPreview:
    """What will be learnt.

    template, origin: the chat template's name and where it comes from. limit: the longest row in tokens; longer rows
    are left out, never cut. findings: what only tokens can tell. looked_at: training rows that were tokenised for the
    numbers, of `train_rows`.
    """

    rows: tuple[ShownRow, ...]
    template: str
    origin: Origin
    loss: str
    limit: int
    findings: tuple[Finding, ...]
    numbers: DataNumbers
    looked_at: int
    train_rows: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "template": self.template,
            "template_origin": self.origin,
            "loss": self.loss,
            "limit": self.limit,
            "rows": [_row(shown) for shown in self.rows],
            "findings": [asdict(finding) for finding in self.findings],
            "numbers": self.numbers.to_dict(),
            "looked_at": self.looked_at,
            "train_rows": self.train_rows,
        }


def preview_data(recipe: Recipe, *, rows: int = 3, wanted: Sequence[str] = ()) -> DataPreview:
    """Rows as they will be learnt, and the numbers of the training.

    rows: how many of the training rows are shown, the first ones with something to learn.
    wanted: ids, or line numbers, of rows to show instead; of any part.

    Raises `DataFindingsError` where the data has errors, `DataError` for a row that is not there.
    """
    read = read_data(recipe)
    if any(f.severity == "error" for f in read.findings):
        raise DataFindingsError(read.findings)
    prepared = prepare(recipe, read, at_most=LOOKED_AT)
    return preview_of(prepared, asked=recipe, rows=rows, wanted=wanted)


def preview_of(prepared: Prepared, *, asked: Recipe, rows: int = 3, wanted: Sequence[str] = ()) -> DataPreview:
    """The preview of what is prepared already; `asked` is the recipe before its `auto` was decided."""
    limit = int(prepared.recipe.train.max_length)
    return DataPreview(
        rows=_named(prepared, wanted, limit) if wanted else _first(prepared, rows, limit),
        template=prepared.renderer.template,
        origin=template_origin(asked.base.chat_template, prepared.renderer.template),
        loss=prepared.recipe.train.loss,
        limit=limit,
        findings=tuple(f for f in prepared.findings if f.code in _ABOUT_TOKENS),
        numbers=numbers_of(prepared),
        looked_at=len(prepared.train),
        train_rows=len(prepared.rows.splits.train),
    )


def numbers_of(prepared: Prepared, *, time: TimeForecast | None = None, trained: int | None = None) -> DataNumbers:
    """The numbers of a prepared training; see `data_numbers`."""
    return data_numbers(
        prepared.recipe,
        prepared.base,
        _tokens(prepared, int(prepared.recipe.train.max_length)),
        time=time,
        memory_bytes=prepared.memory.predicted_peak_bytes if prepared.memory is not None else None,
        trained=trained,
    )


def _tokens(prepared: Prepared, limit: int) -> TokenNumbers:
    """Token counts of all training rows: counted, or where only some were tokenised, from rows at equal distances.

    Rows that are too long were all tokenised (see `prepare`), so their number is exact.
    """
    examples = prepared.rows.splits.train
    batch = int(prepared.recipe.train.batch_size)
    whole = token_numbers(*sample_counts(prepared.train), limit=limit, batch_size=batch)
    if len(prepared.train) == len(examples):
        return whole
    even = {example.id for example in examples[:: -(-len(examples) // LOOKED_AT)]}
    looked_at = [sample for sample in prepared.train if sample.example_id in even]
    some = token_numbers(*sample_counts(looked_at), limit=limit, batch_size=batch)
    scaled = some.scaled(len(examples) / len(looked_at))
    return replace(scaled, too_long=whole.too_long, lost=whole.lost)


def _first(prepared: Prepared, count: int, limit: int) -> tuple[ShownRow, ...]:
    """The first training rows with something to learn; at least one of them too long, where there is one."""
    learnt = [s for s in prepared.train if s.supervised]
    chosen = learnt[:count]
    long = next((s for s in learnt if len(s.ids) > limit), None)
    if long is not None and count and not any(s is long for s in chosen):
        chosen = [*chosen[: count - 1], long]
    by_id = {example.id: example for example in prepared.rows.splits.train}
    return tuple(
        _shown("train", by_id[sample.example_id], made, prepared.renderer.tools)
        for sample, made in zip(chosen, preview(prepared.renderer, chosen, limit), strict=True)
    )


def _named(prepared: Prepared, wanted: Sequence[str], limit: int) -> tuple[ShownRow, ...]:
    found = [place for name in wanted for place in _find(prepared.rows, name)]
    turns = [training_conversation(prepared.task, example) for _, example in found]
    samples = list(prepared.renderer.samples(turns, prepared.recipe.train.loss, [example.id for _, example in found]))
    made = preview(prepared.renderer, samples, limit)
    return tuple(
        _shown(part, example, shown, prepared.renderer.tools)
        for (part, example), shown in zip(found, made, strict=True)
    )


def _find(rows: Rows, name: str) -> list[tuple[Part, Example]]:
    """The row with this id, or the rows that begin on this line of one of the files."""
    parts: tuple[Part, ...] = ("train", "validation", "test")
    everything = [(part, example) for part in parts for example in getattr(rows.splits, part)]
    found = [(part, example) for part, example in everything if example.id == name]
    if not found and name.isdecimal():
        found = [(part, example) for part, example in everything if example.line == int(name)]
    if not found:
        raise DataError(
            f"there is no row {name}",
            where="--row",
            expected="the id of a row, or the number of its line",
            fix="a row that `tunesmith check` reports may have been left out",
        )
    return found


def _shown(part: Part, example: Example, made: TokenPreview, tools: Tools) -> ShownRow:
    return ShownRow(part, Path(example.source).name, example.line, made, _about_tools(example, tools))


def _about_tools(example: Example, rendered: Tools) -> str:
    """Nothing for a row without tools."""
    if not example.has_tools:
        return ""
    calls = sum(len(message.tool_calls) for message in example.messages)
    how = "by the chat template" if rendered == "template" else "in plain words, as the chat template has none"
    return f"tools offered: {len(example.tools)}, called: {calls}; rendered {how}"


def _row(shown: ShownRow) -> dict[str, Any]:
    made = shown.preview
    return {
        "id": made.example_id,
        "part": shown.part,
        "source": shown.source,
        "line": shown.line,
        "tools": shown.tools,
        "tokens": [
            {"id": id_, "text": text, "weight": weight, "special": special}
            for id_, (text, weight), special in zip(made.ids, made.tokens, made.special, strict=True)
        ],
        "ends_turn": made.ends_turn,
        "supervised": made.supervised,
        "cut": made.cut,
        "supervised_beyond_the_limit": made.beyond,
        "supervised_lost": made.lost,
    }
