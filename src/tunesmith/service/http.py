"""What every router of the two dialects shares: strict bodies, lists and their cursors, metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from fastapi import Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from tunesmith.service.errors import ApiError, invalid
from tunesmith.service.store.interface import Page

METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
"""Most pairs, and the most characters of a key and of a value."""
MOST_FAULTS = 1_000
"""Of a body, beyond which they are counted only."""


class Body(BaseModel):
    """A JSON body: unknown fields, numbers in quotes, truth as a number and NaN are refused.

    JSON has lists, so fields are `list[...]`: a strict `tuple[...]` takes none.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _with_few_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """To tell a hundred thousand problems would take minutes, in which nobody else is answered."""
        try:
            return handler(value)
        except ValidationError as error:
            if error.error_count() > MOST_FAULTS:
                raise invalid(
                    f"Your request has {error.error_count():,} problems, too many to tell. Compare it with the API's "
                    "reference.",
                    code="invalid_value",
                ) from None
            raise


def metadata_faults(metadata: Mapping[str, str]) -> list[str]:
    """What OpenAI would refuse of it: more than 16 pairs, keys over 64 characters, values over 512."""
    faults = []
    if len(metadata) > METADATA_PAIRS:
        faults.append(f"expected at most {METADATA_PAIRS} pairs, but got {len(metadata)}")
    for key, value in metadata.items():
        if len(key) > METADATA_KEY:
            faults.append(f"key {key[:20]!r}… has {len(key)} characters, but may have at most {METADATA_KEY}")
        if len(value) > METADATA_VALUE:
            faults.append(f"value of {key[:20]!r} has {len(value)} characters, but may have at most {METADATA_VALUE}")
    return faults


def _checked_metadata(metadata: dict[str, str]) -> dict[str, str]:
    faults = metadata_faults(metadata)
    if faults:
        raise ValueError("; ".join(faults))
    return metadata


Metadata = Annotated[dict[str, str], AfterValidator(_checked_metadata)]
"""`metadata: Metadata | None = None` in a body."""


def paging(
    *, default: int = 20, largest: int = 100, order: Literal["asc", "desc"] = "desc", smallest: int = 1
) -> Callable[..., Page]:
    """A dependency that reads `limit`, `after` and `order`: `page: Annotated[Page, Depends(paging())]`.

    A value out of range is 400. Whether `after` names an object of the list is the store's to say
    (`UnknownCursorError`, which the application answers with 400).
    """
    usual = order

    def asked(
        limit: int = Query(default, ge=smallest, le=largest, description="Most objects on a page."),
        after: str | None = Query(None, max_length=512, description="Id of the last object of the page before."),
        order: Literal["asc", "desc"] = Query(usual, description="By the time of creation."),
    ) -> Page:
        # `after=` with nothing behind it begins at the beginning, as at OpenAI.
        return Page(limit=limit, after=after or None, order=order)

    return asked


def list_body(items: Sequence[Mapping[str, Any]], has_more: bool, *, ends: bool = True) -> dict[str, Any]:
    """OpenAI's list object; `ends` adds `first_id` and `last_id`, which not every list has."""
    body: dict[str, Any] = {"object": "list", "data": list(items), "has_more": has_more}
    if ends:
        body["first_id"] = items[0]["id"] if items else None
        body["last_id"] = items[-1]["id"] if items else None
    return body


def metadata_query(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v` of a list's address, as a dependency; None where nothing is asked for.

    Raises `ApiError` 400 for a metadata filter that is written otherwise, or is no possible metadata.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata"):
            continue
        key = name[len("metadata[") : -1]
        if not (name.startswith("metadata[") and name.endswith("]") and key):
            raise invalid(
                f"Invalid value for 'metadata': {name[:80]!r} is no filter; write metadata[key]=value.",
                param="metadata",
                code="invalid_value",
            )
        found[key] = value
    faults = metadata_faults(found)
    if faults:
        raise invalid(f"Invalid value for 'metadata': {'; '.join(faults)}.", param="metadata", code="invalid_value")
    return found or None


def unknown_cursor(after: str | None) -> ApiError:
    """400 for an `after` that names nothing in the list that is paged."""
    shown = f"{(after or '')[:80]!r}"
    return invalid(
        f"Invalid value for 'after': {shown} names no object of this list.", param="after", code="invalid_value"
    )
