"""Making, reading and cancelling batches."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from tunesmith.service.batches.checking import AZURE_ENDPOINTS, ENDPOINTS
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError, invalid, not_found
from tunesmith.service.filing import get_file
from tunesmith.service.ids import Flavour
from tunesmith.service.store.nouns import Batch

WINDOW_SECONDS = 24 * 60 * 60
CANCELLABLE = ("validating", "in_progress", "finalizing")


def create_batch(
    service: Service,
    endpoint: str,
    input_file_id: str,
    completion_window: str,
    metadata: Mapping[str, str] | None,
    output_seconds: int | None,
    flavour: Flavour = "openai",
) -> Batch:
    """Keep a batch and wake whoever does it. What its file says is checked afterwards; here only that there is one.

    Raises `ApiError` 400: another endpoint or window, no such file, a file of another purpose.
    """
    known = (*ENDPOINTS, *AZURE_ENDPOINTS) if flavour == "azure" else ENDPOINTS
    if endpoint not in known:
        raise invalid(
            f"Invalid value for 'endpoint': {endpoint[:60]!r} is not one of {', '.join(map(repr, known))}.",
            param="endpoint",
            code="invalid_value",
        )
    try:
        file = get_file(service, input_file_id[:100])
    except ApiError as error:
        # The file is an argument here, and not what the address names.
        raise ApiError(400, error.message, param="input_file_id", code="file_not_found") from None
    if file.purpose != "batch":
        raise invalid(
            f"The file {file.id} has the purpose '{file.purpose}'; upload it with the purpose 'batch'.",
            param="input_file_id",
            code="invalid_file_purpose",
        )
    now = service.now()
    made = Batch(
        id=f"batch_{uuid.uuid4().hex}",
        created_at=now,
        endpoint=endpoint,
        input_file_id=file.id,
        completion_window=completion_window,
        status="validating",
        metadata=metadata,
        moments={"expires_at": now + WINDOW_SECONDS},
        output_seconds=output_seconds,
    )
    service.store.add(made)
    service.bell.ring()
    return made


def get_batch(service: Service, id: str) -> Batch:
    """Raises `ApiError` 404."""
    found = service.store.get(Batch, id)
    if found is None:
        raise not_found("Batch object", id[:100], param="batch_id")
    return found


def cancel_batch(service: Service, id: str) -> Batch:
    """Ask for its end; what is finished is kept. Raises `ApiError` 400 for one that has ended."""
    batch = get_batch(service, id)
    if batch.status in ("cancelling", "cancelled"):
        return batch
    moments = {**batch.moments, "cancelling_at": service.now()}
    moved = service.store.move(Batch, id, "cancelling", only_from=CANCELLABLE, moments=moments)
    if moved is None:
        now = get_batch(service, id)
        raise invalid(f"Cannot cancel a batch with status '{now.status}'.", param="batch_id")
    service.bell.ring()
    return moved
