"""Completions that are kept, through the real client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.service.asking.conftest import House
from tests.service.scripted import ScriptedEngine

ASKED: list[Any] = [
    {"role": "developer", "content": "Name the country."},
    {"role": "user", "content": [{"type": "text", "text": "A white "}, {"type": "text", "text": "wine"}]},
]


@pytest.fixture(scope="module")
def kept(open_house: Any) -> House:
    """A house in which five completions were kept, two of them streamed, and one not kept."""
    house: House = open_house(ScriptedEngine("Chardonnay"))
    for number in range(5):
        stream = house.client.chat.completions.create(
            model="gpt-4o" if number < 3 else "gpt-4o-mini", messages=ASKED, store=True, stream=number % 2 == 1,
            metadata={"number": str(number), "kind": "even" if number % 2 == 0 else "odd"}, temperature=0.5,
        )  # fmt: skip
        if number % 2:
            list(stream)
    house.client.chat.completions.create(model="gpt-4o", messages=ASKED)
    house.client.chat.completions.create(model="gpt-4o", messages=ASKED, store=False)
    return house


def test_lists_oldest_first_and_follows_pages(kept: House) -> None:
    listed = list(kept.client.chat.completions.list(limit=2))
    assert [one.metadata and one.metadata["number"] for one in listed] == ["0", "1", "2", "3", "4"]
    assert all(one.choices[0].message.content == "Chardonnay" for one in listed)
    newest = kept.client.chat.completions.list(limit=2, order="desc")
    assert [one.metadata and one.metadata["number"] for one in newest.data] == ["4", "3"] and newest.has_more
    assert listed[0].usage and listed[1].usage and listed[0].usage.total_tokens == listed[1].usage.total_tokens
    assert listed[0].model_extra and listed[0].model_extra["temperature"] == 0.5


def test_finds_by_model_and_metadata(kept: House) -> None:
    mini = list(kept.client.chat.completions.list(model="gpt-4o-mini-2024-07-18"))
    assert [one.metadata and one.metadata["number"] for one in mini] == ["3", "4"]
    asked = list(kept.client.chat.completions.list(model="gpt-4o-mini"))
    assert [one.id for one in asked] == [one.id for one in mini], "by the name that was asked for, too"
    even = list(kept.client.chat.completions.list(metadata={"kind": "even"}))
    assert [one.metadata and one.metadata["number"] for one in even] == ["0", "2", "4"]
    assert list(kept.client.chat.completions.list(metadata={"kind": "none"})) == []


def test_tells_messages(kept: House) -> None:
    first = kept.client.chat.completions.list(limit=1).data[0]
    messages = kept.client.chat.completions.messages.list(first.id)
    assert [(one.id, one.role, one.content) for one in messages] == [
        (f"{first.id}-0", "developer", "Name the country."), (f"{first.id}-1", "user", "A white wine")
    ]  # fmt: skip
    assert len(list(kept.client.chat.completions.messages.list(first.id, limit=1))) == 2
    with pytest.raises(openai.BadRequestError, match="names no object"):
        kept.client.chat.completions.messages.list(first.id, after="nothing")


def test_changes_and_forgets(kept: House) -> None:
    made = kept.client.chat.completions.create(model="gpt-4o", messages=ASKED, store=True)
    assert made.metadata == {}
    changed = kept.client.chat.completions.update(made.id, metadata={"new": "yes"})
    assert changed.metadata == {"new": "yes"} and changed.choices == made.choices
    assert kept.client.chat.completions.retrieve(made.id).metadata == {"new": "yes"}
    assert kept.client.chat.completions.delete(made.id).deleted
    for call in (kept.client.chat.completions.retrieve, kept.client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError, match="No such Chat Completion"):
            call(made.id)
    with pytest.raises(openai.BadRequestError, match="names no object"):
        kept.client.chat.completions.list(after="chatcmpl-none")
    with pytest.raises(openai.BadRequestError, match="512"):
        kept.client.chat.completions.create(model="gpt-4o", messages=ASKED, store=True, metadata={"a": "b" * 513})
