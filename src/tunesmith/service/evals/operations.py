"""Making, reading, changing and removing evals and their runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError, invalid, not_found
from tunesmith.service.evals.asking import asks_model, messages_of, request_of
from tunesmith.service.evals.rows import Row, bounded, item_problems, keep_rows, rows_of
from tunesmith.service.evals.schemas import schema_problem
from tunesmith.service.evals.shapes import (
    CompletionsData,
    Config,
    CustomConfig,
    ItemReference,
    JsonlData,
    RunData,
    Template,
)
from tunesmith.service.evals.summary import summarise
from tunesmith.service.filing import drop_blob
from tunesmith.service.grading import Grader, all_texts, check_grader, read_grader
from tunesmith.service.grading.templates import TemplateError, fill, namespaces_of, read_path, template_problems
from tunesmith.service.store.nouns import Eval, EvalRun, OutputItem
from tunesmith.service.validation import Problem, problems_of, refusal

MOST_CRITERIA = 64
LIVE = ("queued", "in_progress")
"""States of a run that goes on."""


def create_eval(
    service: Service,
    config: Config,
    criteria: Sequence[Mapping[str, Any]],
    name: str | None,
    metadata: Mapping[str, str] | None,
) -> Eval:
    """Keep an eval. Raises `ApiError` 400 with everything that is wrong with its schema and its graders."""
    problems: list[Problem] = []
    if isinstance(config, CustomConfig):
        wrong = schema_problem(config.item_schema)
        if wrong is not None:
            problems.append(_invalid("data_source_config.item_schema", wrong))
    if not 1 <= len(criteria) <= MOST_CRITERIA:
        problems.append(_invalid("testing_criteria", f"expected 1 to {MOST_CRITERIA} graders, but got {len(criteria)}"))
    for place, one in enumerate(criteria):
        problems += check_grader(one, where="evals", service=service, param=f"testing_criteria[{place}]")
    if problems:
        raise refusal(problems)
    made = Eval(
        id=f"eval_{uuid.uuid4().hex}",
        created_at=service.now(),
        name=name or "Unnamed eval",
        data_source_config=config.model_dump(exclude_unset=True),
        # Two graders may have one name, so each gets an id that results are told by, as at the hosted service.
        testing_criteria=tuple({**one, "id": f"{one['name']}-{uuid.uuid4()}"} for one in criteria),
        metadata=metadata,
    )
    service.store.add(made)
    return made


def get_eval(service: Service, id: str) -> Eval:
    """Raises `ApiError` 404."""
    found = service.store.get(Eval, id)
    if found is None:
        raise not_found("Eval object", id[:100], param="eval_id")
    return found


def update_eval(service: Service, id: str, **changes: Any) -> Eval:
    """Rename it or change its metadata."""
    get_eval(service, id)
    changed = service.store.update(Eval, id, **changes)
    if changed is None:
        raise not_found("Eval object", id[:100], param="eval_id")
    return changed


def delete_eval(service: Service, id: str) -> None:
    """Remove an eval with its runs; those that go on are stopped."""
    get_eval(service, id)
    for run in service.store.all(EvalRun, {"eval_id": id}):
        remove_run(service, run)
    service.store.remove(Eval, id)


def create_run(
    service: Service, eval_id: str, data: RunData, name: str | None, metadata: Mapping[str, str] | None
) -> EvalRun:
    """Keep a run with its rows as they are now, and wake whoever does it.

    Everything that can be known to fail is refused here: rows that do not keep the schema, names in templates that a
    row has not, a model that is not there. Raises `ApiError` 404 for no such eval, 400 with all problems.
    """
    found = get_eval(service, eval_id)
    graders = graders_of(found)
    rows, problems = rows_of(service, data.source)
    problems = (*problems, *_data_problems(service, data))
    config = found.data_source_config
    if config["type"] == "custom" and not problems:
        problems = bounded(item_problems(rows, config["item_schema"], "data_source.source"))
    if not problems:
        problems = bounded((*_row_problems(data, rows, list(graders.values())), *_settings_problems(data, rows)))
    if problems:
        raise refusal(problems)
    model = None if isinstance(data, JsonlData) else data.model
    with keep_rows(service, rows) as items:
        made = EvalRun(
            id=f"evalrun_{uuid.uuid4().hex}",
            created_at=service.now(),
            eval_id=eval_id,
            name=name or model or "Unnamed run",
            model=model,
            status="queued",
            data_source=data.model_dump(exclude_unset=True),
            result_counts={"total": 0, "passed": 0, "failed": 0, "errored": 0},
            metadata=metadata,
            items=items,
        )
        service.store.add(made)
    service.bell.ring()
    return made


def get_run(service: Service, eval_id: str, id: str) -> EvalRun:
    """Raises `ApiError` 404, also for a run of another eval."""
    get_eval(service, eval_id)
    found = service.store.get(EvalRun, id)
    if found is None or found.eval_id != eval_id:
        raise not_found("Eval run object", id[:100], param="run_id")
    return found


def cancel_run(service: Service, eval_id: str, id: str) -> EvalRun:
    """Stop a run; finished items stay. Raises `ApiError` 400 for one that has ended."""
    run = get_run(service, eval_id, id)
    moved = service.store.move(EvalRun, id, "canceled", only_from=LIVE)
    if moved is None:
        now = service.store.get(EvalRun, id) or run
        raise invalid(f"Cannot cancel an eval run that has ended: its status is '{now.status}'.", param="run_id")
    service.bell.ring()
    # What a server had finished that is gone by now is summed up here; one that works sums up once more when it stops.
    items = service.store.all(OutputItem, {"run_id": id})
    fields = summarise(items, get_eval(service, eval_id).testing_criteria).fields()
    return service.store.update(EvalRun, id, **fields) or moved


def delete_run(service: Service, eval_id: str, id: str) -> None:
    """Remove a run with its items; one that goes on is stopped."""
    remove_run(service, get_run(service, eval_id, id))


def get_item(service: Service, eval_id: str, run_id: str, id: str) -> OutputItem:
    """Raises `ApiError` 404."""
    get_run(service, eval_id, run_id)
    found = service.store.get(OutputItem, id)
    if found is None or found.run_id != run_id:
        raise not_found("Eval run output item object", id[:100], param="output_item_id")
    return found


def graders_of(found: Eval) -> dict[str, Grader]:
    """The graders of an eval by the id of their criterion."""
    made = {}
    for one in found.testing_criteria:
        # They were checked when the eval was made.
        made[str(one["id"])] = cast(Grader, read_grader({k: v for k, v in one.items() if k != "id"}))
    return made


def remove_run(service: Service, run: EvalRun) -> None:
    """Take a run away with its items and rows."""
    # The run first: what still works on it stops, and an item that it finishes now is removed with the others.
    service.store.remove(EvalRun, run.id)
    service.bell.ring()
    service.store.remove_all(OutputItem, {"run_id": run.id})
    drop_blob(service, run.items)


def _data_problems(service: Service, data: RunData) -> Iterator[Problem]:
    """What is wrong with how answers are to be drawn, whatever the rows."""
    if isinstance(data, JsonlData):
        return
    if data.input_messages is not None and data.model is None:
        yield Problem(
            "Missing required parameter: 'data_source.model'.", "data_source.model", "missing_required_parameter"
        )
    if data.input_messages is None and (data.model is not None or data.sampling_params is not None):
        # Grading what is stored while a model is named would look like grading that model.
        param = "data_source.input_messages"
        yield Problem(f"Missing required parameter: {param!r}.", param, "missing_required_parameter")
    if data.model is not None:
        try:
            service.catalogue.resolve(data.model)
        except ApiError as error:
            yield Problem(error.message, "data_source.model", error.code)
    if isinstance(data.input_messages, Template):
        for place, message in enumerate(data.input_messages.template):
            param = f"data_source.input_messages.template[{place}].content"
            for problem in template_problems(message.text):
                yield _invalid(param, problem)
            if "sample" in namespaces_of(message.text):
                yield _invalid(param, "there is no 'sample' before the model has answered")
    elif isinstance(data.input_messages, ItemReference):
        try:
            read_path(data.input_messages.item_reference)
        except TemplateError as error:
            yield _invalid("data_source.input_messages.item_reference", str(error))


def _settings_problems(data: RunData, rows: Sequence[Row]) -> Iterator[Problem]:
    """What the route would say of the tools and forms of every row's request, asked of the first."""
    from tunesmith.service.asking.chat_request import ChatRequest, check_chat
    from tunesmith.service.asking.response_request import ResponseRequest
    from tunesmith.service.asking.tools import offer_of

    if isinstance(data, JsonlData) or data.input_messages is None:
        return
    try:
        _, body = request_of(data, messages_of(data.input_messages, rows[0]))
    except TemplateError:
        return  # told of the row
    try:
        if isinstance(data, CompletionsData):
            request = ChatRequest.model_validate(body)
            check_chat(request)
            offer_of(request)
        else:
            ResponseRequest.model_validate(body)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        yield from problems_of(errors, body)
    except ApiError as error:
        yield Problem(error.message, error.param, error.code)


def _row_problems(data: RunData, rows: Sequence[Row], graders: Sequence[Grader]) -> Iterator[Problem]:
    """Names that templates ask for and a row has not."""
    texts = {text for grader in graders for text in all_texts(grader)}
    of_item = sorted(text for text in texts if namespaces_of(text) == {"item"})
    needs_sample = any("sample" in namespaces_of(text) for text in texts)
    drawn = asks_model(data)
    for number, row in enumerate(rows, 1):
        if needs_sample and not drawn and row.sample is None:
            yield _invalid(
                "data_source.source",
                f"row {number} has no 'sample', which a grader asks for, and no model is asked for one",
            )
        for text in of_item:
            try:
                fill(text, {"item": row.item})
            except TemplateError as error:
                yield _invalid("data_source.source", f"row {number}: {error}")
        if not isinstance(data, JsonlData) and data.input_messages is not None:
            try:
                messages_of(data.input_messages, row)
            except TemplateError as error:
                yield _invalid("data_source.input_messages", f"row {number}: {error}")


def _invalid(param: str, why: str) -> Problem:
    return Problem(f"Invalid value for {param!r}: {why}.", param, "invalid_value")
