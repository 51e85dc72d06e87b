"""An eval of OpenAI's platform as an evaluation here: its items as rows, its graders as metrics, in a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tunesmith.recipe.schema import Base, CustomMetric, Data, Goal, Recipe, Split, Task, TaskType
from tunesmith.runs.atomic import write_bytes, write_json, write_text
from tunesmith.service.grading.templates import TemplateError, fill
from tunesmith.service.json_lines import json_lines
from tunesmith.service.moving.exported import Export, ExportedEval
from tunesmith.service.moving.graders import Mapped, Unmapped, mapped_graders
from tunesmith.service.moving.recipe_text import RECIPE, recipe_name, recipe_text

Json = Mapping[str, Any]
ROWS = "rows.jsonl"
_TEST, _CHOOSE = 0.8, 0.1
_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class MovedEval:
    """What became of an eval. `results` are its runs as they were: model, status, and by grader how many passed."""

    id: str
    name: str
    folder: str
    rows: int
    metrics: tuple[str, ...]
    recipe: bool
    results: tuple[Json, ...]
    notes: tuple[str, ...] = field(default=())


def move_eval(export: Export, one: ExportedEval, folder: Path, place: str, base: str) -> MovedEval:
    """Write an eval's folder: rows and recipe where they can be made, and everything as it was told."""
    notes: list[str] = []
    found = list(mapped_graders(one.told.get("testing_criteria") or []))
    mapped = [grader for grader in found if isinstance(grader, Mapped)]
    notes += [f"{grader.grader}: no metric; {grader.reason}" for grader in found if isinstance(grader, Unmapped)]
    items, run = _items(export, one)
    rows, made = _rows(items, run, mapped, notes)
    write_json(folder / "original" / "eval.json", one.told)
    for told in one.runs:
        write_json(folder / "original" / "runs" / f"{len(list((folder / 'original').glob('runs/*'))):03}.json", told)
    answers = [answer for found_items in one.items.values() for answer in found_items]
    if answers:
        write_bytes(folder / "original" / "answers.jsonl", json_lines(answers))
    name = str(one.told.get("name") or one.id)
    fitting = [grader for grader in mapped if made == "item" or _fits(grader, _reference(mapped))]
    notes += [f"{grader.grader}: its reference is another one" for grader in mapped if grader not in fitting]
    if rows:
        write_bytes(folder / ROWS, json_lines(rows))
        write_text(folder / RECIPE, _recipe(one.id, name, fitting, made, base, notes))
    else:
        notes.append("there are no items in the export, so there is nothing to test with")
    results = tuple(_result(told) for told in one.runs)
    return MovedEval(
        one.id, name, place, len(rows), tuple(grader.metric for grader in fitting), bool(rows), results, tuple(notes)
    )


def _items(export: Export, one: ExportedEval) -> tuple[list[Json], Json | None]:
    """The items of the newest run that has any, with that run."""
    for run in reversed(one.runs):
        kept = [item.get("datasource_item") for item in one.items.get(str(run.get("id")), ())]
        items = [item for item in kept if isinstance(item, Mapping)] or _source(export, run)
        if items:
            return [_bare(item) for item in items], run
    return [], (one.runs[-1] if one.runs else None)


def _source(export: Export, run: Json) -> list[Json]:
    """The items that stand in a run's source, or in a file of it that is in the export."""
    source = (run.get("data_source") or {}).get("source") or {}
    if source.get("type") == "file_content":
        content = source.get("content")
        return [one for one in content if isinstance(one, Mapping)] if isinstance(content, list) else []
    path = export.files.get(str(source.get("id"))) if source.get("type") == "file_id" else None
    if path is None:
        return []
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return [row for line in lines if line.strip() and isinstance(row := _json(line), Mapping)]


def _bare(item: Json) -> Json:
    inner = item.get("item")
    return inner if isinstance(inner, Mapping) else item


def _rows(
    items: Sequence[Json], run: Json | None, mapped: Sequence[Mapped], notes: list[str]
) -> tuple[list[Json], str]:
    """Conversations with the right answer, where the run says how it asks and a grader what is right; else the bare
    items, which the format of OpenAI's evals reads where their fields have well-known names.
    """
    template = _template(run)
    reference = _reference(mapped)
    if template is None or reference is None:
        why = "how the model was asked" if template is None else "what the right answer is"
        notes.append(f"the export does not say {why}: rows are the bare items; set data.columns or data.template")
        return [{"item": dict(item)} for item in items], "item"
    rows: list[Json] = []
    for number, item in enumerate(items, 1):
        values = {"item": item, "sample": {}}
        try:
            turns = [{"role": role, "content": fill(text, values)} for role, text in template]
            right = fill(reference, values)
        except TemplateError as error:
            notes.append(f"item {number} is left out: {error}")
            continue
        rows.append({"messages": [*turns, {"role": "assistant", "content": right}]})
    return rows, "chat"


def _reference(mapped: Sequence[Mapped]) -> str | None:
    """The right answer as the first grader has it that looks into the item."""
    return next((grader.reference for grader in mapped if "{{" in grader.reference), None)


def _fits(grader: Mapped, reference: str | None) -> bool:
    """Whether a metric can be had from the rows: their right answer is the grader's, or the grader brings its own."""
    return grader.reference == reference or (grader.formula is not None and "{{" not in grader.reference)


def _template(run: Json | None) -> list[tuple[str, str]] | None:
    """The turns that a run asks with; None where it samples nothing, or asks with images or earlier conversations."""
    messages = ((run or {}).get("data_source") or {}).get("input_messages") or {}
    if messages.get("type") != "template":
        return None
    turns = []
    template = messages.get("template")
    for turn in template if isinstance(template, list) else ():
        text = _text(turn.get("content")) if isinstance(turn, Mapping) else None
        if text is None:
            return None
        turns.append((_ROLES.get(str(turn.get("role")), str(turn.get("role"))), text))
    return turns or None


def _text(content: Any) -> str | None:
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if known and len(known) == len(texts) else None


def _recipe(id: str, name: str, mapped: Sequence[Mapped], made: str, base: str, notes: list[str]) -> str:
    tasks = list(dict.fromkeys(grader.task for grader in mapped)) or ["generation"]
    # Formulas are of any task; a measure decides which one, the first where they contradict each other.
    task = next((one for one in tasks if one != "generation"), tasks[0])
    usable = [grader for grader in mapped if grader.formula is not None or grader.task == task]
    notes += [
        f"{grader.grader}: {grader.metric} is a metric of {grader.task}, and this recipe is of {task}"
        for grader in mapped
        if grader not in usable
    ]
    recipe = Recipe(
        name=recipe_name(name, id),
        goal=Goal(metric=usable[0].metric if usable else "auto", target=usable[0].threshold if usable else None),
        task=Task(
            type=cast(TaskType, task),
            instruction="" if made == "chat" else None,
            metrics={
                grader.metric: CustomMetric(formula=grader.formula) for grader in usable if grader.formula is not None
            },
        ),
        data=Data(
            train=ROWS,
            format="chat" if made == "chat" else "openai_evals",
            split=Split(validation=_CHOOSE, test=_TEST),
        ),
        base=Base(model=base),
    )
    comments = {
        "data.split": "The items of an eval are there to test with: most of them do. To test a model of yours on all\n"
        "of them, name your own rows as data.train and these as data.test."
    }
    return recipe_text(recipe, f"The eval {id} ({name}) of OpenAI's platform.", comments)


def _result(run: Json) -> Json:
    """A run as it was: the graders by name, each with how many rows passed."""
    criteria = run.get("per_testing_criteria_results") or ()
    return {
        "model": run.get("model") or (run.get("data_source") or {}).get("model"),
        "status": run.get("status"),
        "passed": {
            str(one.get("testing_criteria")): [one.get("passed"), (one.get("passed") or 0) + (one.get("failed") or 0)]
            for one in criteria
            if isinstance(one, Mapping)
        },
    }


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
