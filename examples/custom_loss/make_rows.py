"""Writes tickets.csv: 240 made-up tickets for four teams, two of which get few. The same rows every time."""

from __future__ import annotations

import csv
import random
from pathlib import Path

ROWS = 240
SHARES = {"accounts": 0.5, "network": 0.3, "payroll": 0.12, "safety": 0.08}
OPENINGS = ("Hello,", "Hi team,", "Good morning,", "Sorry to bother you,", "Quick question:", "Urgent:")
PROBLEMS = {
    "accounts": (
        "I cannot log in to {thing} since {time}",
        "my password for {thing} was refused {time}",
        "please unlock my user for {thing}, it was closed {time}",
        "I need access to {thing}, my colleague got it {time}",
    ),
    "network": (
        "the connection to {thing} drops since {time}",
        "{thing} has been slow on the office wifi since {time}",
        "the cable at my desk went dead {time}, so I cannot reach {thing}",
        "through the VPN {thing} has not answered since {time}",
    ),
    "payroll": (
        "the overtime I entered in {thing} {time} is missing from my salary",
        "my tax class was changed {time} and the payslip in {thing} is wrong",
        "the refund for the trip I claimed in {thing} {time} has not been paid",
    ),
    "safety": (
        "the alarm beside the room with {thing} has been beeping since {time}",
        "I smelled smoke near the printer for {thing} {time}",
        "the emergency exit behind the desk with {thing} was blocked {time}",
    ),
}
THINGS = ("the calendar", "the wiki", "the shop", "the archive", "the planner", "the mail", "the map", "the tracker")
TIMES = ("yesterday", "Monday", "this morning", "last week", "the update", "noon", "Friday", "the holidays")
ENDINGS = ("Thanks!", "Can you help?", "Please call me.", "It blocks my work.", "No hurry.", "What should I do?")


def rows(seed: int = 0) -> list[tuple[str, str]]:
    """Distinct tickets with their team, in random order."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    for team, share in SHARES.items():
        wanted = len(found) + round(ROWS * share)
        while len(found) < wanted:
            problem = draw.choice(PROBLEMS[team]).format(thing=draw.choice(THINGS), time=draw.choice(TIMES))
            found[f"{draw.choice(OPENINGS)} {problem}. {draw.choice(ENDINGS)}"] = team
    mixed = list(found.items())
    draw.shuffle(mixed)
    return mixed


def write(path: Path) -> None:
    """The file with its header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("ticket", "team"))
        writer.writerows(rows())


if __name__ == "__main__":
    write(Path(__file__).parent / "tickets.csv")
