"""Seeded rows for small tasks: what the runs of `diagnosis.py` learn.

Each function gives distinct `(prompt, answer)` rows. Texts are put together from word lists, so that any number of rows
can be drawn and nothing of a real data set is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Row = tuple[str, str]

_TONES = {
    "warm": ("dear", "lovely", "gladly", "thanks", "friend", "kindly", "hugs", "cheerful"),
    "cold": ("refuse", "never", "enough", "complaint", "useless", "stop", "rude", "awful"),
    "neutral": ("attached", "report", "table", "number", "listed", "document", "figure", "annex"),
    "urgent": ("immediately", "asap", "deadline", "hurry", "emergency", "today", "tonight", "overdue"),
}
_FILLERS = (
    "the", "a", "we", "it", "this", "order", "letter", "team", "for", "with", "about", "you", "our", "and", "parcel",
)  # fmt: skip
_INTENTS = {
    "card_lost": ("my card is gone since {when}", "I cannot find my card, {when}", "someone took my card {when}"),
    "card_arrival": ("where is the card you sent {when}", "new card not here {when}", "waiting for my card {when}"),
    "refund": ("please return my money for the {thing}", "I want a refund of the {thing}", "pay back the {thing}"),
    "cancel": ("cancel the {thing} I ordered", "I no longer want the {thing}", "stop my order of the {thing}"),
    "delivery": ("when will the {thing} be delivered", "which day does the {thing} come", "track the {thing} for me"),
    "broken": ("the {thing} does not work {when}", "my {thing} broke {when}", "the {thing} is damaged {when}"),
    "login": ("I cannot sign in {when}", "my password is rejected {when}", "the login page fails {when}"),
    "hours": ("is the shop open {when}", "at what time do you close {when}", "opening hours {when} please"),
}
_WHEN = (
    "today", "since Monday", "this morning", "yesterday", "after lunch", "on Friday", "last week", "tonight", "again",
)  # fmt: skip
_THINGS = (
    "lamp", "chair", "kettle", "phone", "jacket", "bicycle", "printer", "mirror", "guitar", "tent", "watch", "oven",
)  # fmt: skip
_POLITE = ("", "hello, ", "sorry, ", "hi there, ", "quick question: ", "good day, ", "well, ", "listen, ")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_COLOURS = ("red", "blue", "green", "black", "white", "brown")
_GOODS = ("cup", "plate", "fork", "bowl", "glass", "spoon", "pan", "knife")
_PLACES = ("kitchen", "garden", "office", "cellar", "garage", "attic")
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Greta", "Hugo")


def tones(count: int, seed: int, labels: int = 4) -> list[Row]:
    """A sentence with one word that gives its tone away; `labels` tones in equal numbers."""
    names = list(_TONES)[:labels]

    def row(draw: random.Random, i: int) -> Row:
        tone = names[i % labels]
        words = [*draw.choices(_FILLERS, k=5), draw.choice(_TONES[tone])]
        draw.shuffle(words)
        return " ".join(words), tone

    return _distinct(row, count, seed)


def intents(count: int, seed: int, labels: int = 8) -> list[Row]:
    """A customer's question and one of eight intents."""
    names = list(_INTENTS)[:labels]

    def row(draw: random.Random, i: int) -> Row:
        intent = names[i % labels]
        phrase = draw.choice(_INTENTS[intent]).format(when=draw.choice(_WHEN), thing=draw.choice(_THINGS))
        return f"{draw.choice(_POLITE)}{phrase}, number {draw.randint(10, 999)}", intent

    return _distinct(row, count, seed)


def dates(count: int, seed: int) -> list[Row]:
    """A date in words, answered as year-month-day."""

    def row(draw: random.Random, i: int) -> Row:
        day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1990, 2029)
        form = draw.choice(("{m} {d}, {y}", "{d} {m} {y}", "the {d} of {m} {y}"))
        return form.format(d=day, m=_MONTHS[month - 1], y=year), f"{year}-{month:02d}-{day:02d}"

    return _distinct(row, count, seed)


def orders(count: int, seed: int) -> list[Row]:
    """A wish with one to three things, answered as a JSON list of them."""

    def row(draw: random.Random, i: int) -> Row:
        things = [f"{draw.choice(_COLOURS)} {good}" for good in draw.sample(_GOODS, draw.randint(1, 3))]
        listed = " and ".join(f"{draw.choice(('a', 'one', 'another'))} {thing}" for thing in things)
        text = draw.choice(("I need {x} for the {p}", "please send {x} to the {p}", "{x} in the {p}, thanks"))
        quoted = ", ".join(f'"{thing}"' for thing in things)
        return text.format(x=listed, p=draw.choice(_PLACES)), f"[{quoted}]"

    return _distinct(row, count, seed)


def codes(count: int, seed: int, names: int = 96) -> list[Row]:
    """Made-up names and the shelf each lies on, which only memory can know; every name occurs in several phrasings.

    Which name lies where depends on nothing but `names`, so that all parts agree.
    """
    known = random.Random(names)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    things = sorted({"".join(known.choices(syllables, k=3)) for _ in range(2 * names)})
    shelf = {thing: f"{known.choice('ABCDEFGH')}{known.randint(1, 8)}" for thing in known.sample(things, names)}
    order = sorted(shelf)

    def row(draw: random.Random, i: int) -> Row:
        name = order[i % names]
        form = draw.choice(
            ("where is {n}", "which shelf holds {n}", "find {n} please", "I look for {n}", "{n} lies where")
        )
        return f"{draw.choice(_POLITE)}{form.format(n=name)} {draw.choice(_WHEN)}", shelf[name]

    return _distinct(row, count, seed)


def replies(count: int, seed: int) -> list[Row]:
    """A customer's note and a polite reply whose wording is free: nobody could predict all of it."""

    def row(draw: random.Random, i: int) -> Row:
        name, thing, when = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_WHEN)
        hello = draw.choice(("Dear", "Hello", "Good day"))
        regret = draw.choice(
            ("we are sorry about the {t}", "we regret the trouble with the {t}", "thanks for telling us of the {t}")
        )
        close = draw.choice(("We will call you.", "A new one is on its way.", "You will hear from us soon."))
        return f"{name} writes: my {thing} broke {when}", f"{hello} {name}, {regret.format(t=thing)}. {close}"

    return _distinct(row, count, seed)


def uneven(rows: Sequence[Row], label: str, share: float, count: int, seed: int) -> list[Row]:
    """`count` of the rows, mixed: `share` of them with `label` and the others in equal parts."""
    most = round(share * count)
    names = sorted({answer for _, answer in rows} - {label})
    wanted = {label: most} | {name: (count - most) // len(names) for name in names}
    kept = []
    for prompt, answer in rows:
        if wanted[answer]:
            wanted[answer] -= 1
            kept.append((prompt, answer))
    if any(wanted.values()):
        raise ValueError(f"too few rows: {wanted} are missing")
    random.Random(seed).shuffle(kept)
    return kept


def _distinct(make: Callable[[random.Random, int], Row], count: int, seed: int) -> list[Row]:
    """`count` rows with distinct prompts; the number of a row decides its label, so labels stay in their shares."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    tries = 0
    while len(rows) < count:
        prompt, answer = make(draw, len(rows))
        rows.setdefault(prompt, answer)
        tries += 1
        if tries > 50 * count:
            raise ValueError(f"{make.__qualname__} has fewer than {count} distinct rows")
    mixed = list(rows.items())
    draw.shuffle(mixed)
    return mixed


def shuffled_answers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The same prompts and the same answers, no longer belonging together."""
    answers = [answer for _, answer in rows]
    random.Random(seed).shuffle(answers)
    return [(prompt, answer) for (prompt, _), answer in zip(rows, answers, strict=True)]
