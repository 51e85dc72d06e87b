"""OpenAI's `evals`, their runs and output items; beside them a run's page, and the comparison of two runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import Field

from tunesmith.service.context import Service, service_of
from tunesmith.service.evals.compare import compare_runs
from tunesmith.service.evals.operations import (
    cancel_run,
    create_eval,
    create_run,
    delete_eval,
    delete_run,
    get_eval,
    get_item,
    get_run,
    update_eval,
)
from tunesmith.service.evals.report import report_page
from tunesmith.service.evals.shapes import CompletionsData, Config, JsonlData, ResponsesData
from tunesmith.service.http import Body, Metadata, list_body, paging
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import Eval, EvalRun, OutputItem

router = APIRouter(prefix="/evals", tags=["Evals"])
Parts = Annotated[Service, Depends(service_of)]
_OBJECT = {"type": "object"}


class CreateEval(Body):
    data_source_config: Config
    testing_criteria: list[dict[str, Any]]
    name: str | None = Field(None, max_length=1_024)
    metadata: Metadata | None = None


class UpdateEval(Body):
    name: str | None = Field(None, max_length=1_024)
    metadata: Metadata | None = None


class CreateRun(Body):
    data_source: Annotated[JsonlData | CompletionsData | ResponsesData, Field(discriminator="type")]
    name: str | None = Field(None, max_length=1_024)
    metadata: Metadata | None = None


@router.post("", status_code=201)
def create(body: CreateEval, service: Parts) -> dict[str, Any]:
    made = create_eval(service, body.data_source_config, body.testing_criteria, body.name, body.metadata)
    return eval_body(made)


@router.get("")
def list_evals(
    service: Parts,
    page: Annotated[Page, Depends(paging(order="asc"))],
    # Evals are ordered by the time of creation either way: the store keeps no time of change.
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> dict[str, Any]:
    found = service.store.page(Eval, page)
    return list_body([eval_body(one) for one in found.items], found.has_more)


@router.get("/{eval_id}")
def retrieve(eval_id: str, service: Parts) -> dict[str, Any]:
    return eval_body(get_eval(service, eval_id))


@router.post("/{eval_id}")
def update(eval_id: str, body: UpdateEval, service: Parts) -> dict[str, Any]:
    """Fields that are not sent stay as they are."""
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if body.name is None:
        changes.pop("name", None)  # an eval always has a name
    return eval_body(update_eval(service, eval_id, **changes))


@router.delete("/{eval_id}")
def delete(eval_id: str, service: Parts) -> dict[str, Any]:
    """Also its runs and their items."""
    delete_eval(service, eval_id)
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


@router.post("/{eval_id}/runs", status_code=201)
def create_a_run(eval_id: str, body: CreateRun, request: Request, service: Parts) -> dict[str, Any]:
    return run_body(create_run(service, eval_id, body.data_source, body.name, body.metadata), request)


@router.get("/{eval_id}/runs")
def list_runs(
    eval_id: str,
    request: Request,
    service: Parts,
    page: Annotated[Page, Depends(paging(order="asc"))],
    status: Literal["queued", "in_progress", "completed", "canceled", "failed"] | None = None,
) -> dict[str, Any]:
    get_eval(service, eval_id)
    where = {"eval_id": eval_id} | ({"status": status} if status else {})
    found = service.store.page(EvalRun, page, where)
    return list_body([run_body(one, request) for one in found.items], found.has_more)


@router.get("/{eval_id}/runs/{run_id}")
def retrieve_run(eval_id: str, run_id: str, request: Request, service: Parts) -> dict[str, Any]:
    return run_body(get_run(service, eval_id, run_id), request)


# The client cancels at `…/cancel`; OpenAI's reference names the run itself.
@router.post("/{eval_id}/runs/{run_id}", include_in_schema=False)
@router.post("/{eval_id}/runs/{run_id}/cancel")
def cancel(eval_id: str, run_id: str, request: Request, service: Parts) -> dict[str, Any]:
    """Finished items stay."""
    return run_body(cancel_run(service, eval_id, run_id), request)


@router.delete("/{eval_id}/runs/{run_id}")
def delete_a_run(eval_id: str, run_id: str, service: Parts) -> dict[str, Any]:
    """Also its items."""
    delete_run(service, eval_id, run_id)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get("/{eval_id}/runs/{run_id}/output_items")
def list_items(
    eval_id: str,
    run_id: str,
    service: Parts,
    page: Annotated[Page, Depends(paging(order="asc"))],
    status: Annotated[
        Literal["pass", "fail", "failed", "error"] | None, Query(description="`failed` is `fail`.")
    ] = None,
) -> dict[str, Any]:
    """In the order of the rows."""
    get_run(service, eval_id, run_id)
    where = {"run_id": run_id} | ({"status": "fail" if status == "failed" else status} if status else {})
    found = service.store.page(OutputItem, page, where)
    return list_body([item_body(one, eval_id) for one in found.items], found.has_more)


@router.get("/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
def retrieve_item(eval_id: str, run_id: str, output_item_id: str, service: Parts) -> dict[str, Any]:
    return item_body(get_item(service, eval_id, run_id, output_item_id), eval_id)


@router.get("/{eval_id}/runs/{run_id}/compare/{other_id}")
def compare(eval_id: str, run_id: str, other_id: str, service: Parts) -> dict[str, Any]:
    """The two runs, row by row: differences of each criterion with intervals and p-values."""
    return compare_runs(service, get_run(service, eval_id, run_id), get_run(service, eval_id, other_id))


@router.get("/{eval_id}/runs/{run_id}/report", response_class=HTMLResponse)
def report(eval_id: str, run_id: str, service: Parts) -> HTMLResponse:
    """A page for people: shares with intervals, and the failures to look at."""
    page = report_page(service, get_eval(service, eval_id), get_run(service, eval_id, run_id))
    # What models and rows said is shown as text; nothing on this page may run or be fetched.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return HTMLResponse(page, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


def eval_body(found: Eval) -> dict[str, Any]:
    return {
        "object": "eval",
        "id": found.id,
        "created_at": found.created_at,
        "name": found.name,
        "data_source_config": _config_body(found.data_source_config),
        "testing_criteria": [dict(one) for one in found.testing_criteria],
        "metadata": found.metadata or {},
    }


def run_body(run: EvalRun, request: Request) -> dict[str, Any]:
    root = "/openai/v1" if request.url.path.startswith("/openai/") else "/v1"
    address = f"{str(request.base_url).rstrip('/')}{root}/evals/{run.eval_id}/runs/{run.id}/report"
    return {
        "object": "eval.run",
        "id": run.id,
        "eval_id": run.eval_id,
        "report_url": address,
        "status": run.status,
        "model": run.model or "",
        "name": run.name,
        "created_at": run.created_at,
        "result_counts": dict(run.result_counts),
        "per_model_usage": [dict(one) for one in run.per_model_usage],
        "per_testing_criteria_results": [dict(one) for one in run.per_testing_criteria_results],
        "data_source": dict(run.data_source),
        "error": run.error,
        "metadata": run.metadata or {},
    }


def item_body(item: OutputItem, eval_id: str) -> dict[str, Any]:
    return {
        "object": "eval.run.output_item",
        "id": item.id,
        "created_at": item.created_at,
        "run_id": item.run_id,
        "eval_id": eval_id,
        "status": item.status,
        "datasource_item_id": item.place,
        "datasource_item": dict(item.datasource_item),
        "results": [dict(one) for one in item.results],
        "sample": dict(item.sample),
    }


def _config_body(config: Any) -> dict[str, Any]:
    """A config as it is shown: with the schema of a whole row."""
    if config["type"] != "custom":
        properties: dict[str, Any] = {"item": _OBJECT, "sample": _OBJECT}
        shown: dict[str, Any] = {"metadata": config.get("metadata") or {}}
    else:
        properties = {"item": config["item_schema"]} | (
            {"sample": _OBJECT} if config.get("include_sample_schema") else {}
        )
        shown = {}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": config["type"], "schema": schema, **shown}
