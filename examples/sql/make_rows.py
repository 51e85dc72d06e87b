"""Write the text-to-SQL rows of this example: train.jsonl and test.jsonl, in the chat form of fine-tuning APIs.

    python examples/sql/make_rows.py

Each row is a schema (system), a question (user) and one SQL query (assistant). The tables of the test rows occur in no
training row, so what is measured is writing SQL for a new schema and not remembering one. Every query was run
against SQLite with an empty database of its schema before it was written here.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 7
INSTRUCTION = "You write one SQL query that answers the question, for this schema:\n"


@dataclass(frozen=True)
class Table:
    """A table: its name as people say it (plural), a text column that names rows, groups, numbers, and a date."""

    name: str
    people_say: str
    label: str
    groups: dict[str, tuple[str, ...]]
    numbers: dict[str, str]
    date: str

    @property
    def schema(self) -> str:
        columns = [f"id INTEGER PRIMARY KEY, {self.label} TEXT", *(f"{c} TEXT" for c in self.groups)]
        columns += [f"{c} REAL" for c in self.numbers] + [f"{self.date} DATE"]
        return f"CREATE TABLE {self.name} ({', '.join(columns)});"


TRAIN = (
    Table("books", "books", "title", {"genre": ("crime", "poetry", "history"), "language": ("English", "Czech")},
          {"pages": "pages", "price": "price"}, "published_on"),
    Table("employees", "employees", "full_name", {"department": ("sales", "legal", "research"),
          "city": ("Oslo", "Lyon")}, {"salary": "salary", "vacation_days": "vacation days"}, "hired_on"),
    Table("flights", "flights", "flight_number", {"origin": ("Riga", "Porto", "Malta"), "airline": ("Norva", "Skyla")},
          {"distance_km": "distance", "delay_minutes": "delay"}, "departed_on"),
    Table("patients", "patients", "full_name", {"ward": ("surgery", "cardiology"), "blood_type": ("A", "B", "AB")},
          {"weight_kg": "weight", "temperature": "temperature"}, "admitted_on"),
    Table("orders", "orders", "customer", {"status": ("open", "shipped", "returned"), "country": ("Chile", "Japan")},
          {"total": "total", "items": "number of items"}, "ordered_on"),
    Table("cars", "cars", "model", {"fuel": ("diesel", "electric"), "maker": ("Avana", "Torrel", "Miku")},
          {"mileage": "mileage", "horsepower": "horsepower"}, "registered_on"),
    Table("films", "films", "title", {"director": ("Ines Varga", "Paul Oduya"), "country": ("Italy", "Kenya")},
          {"runtime": "runtime", "budget": "budget"}, "released_on"),
    Table("houses", "houses", "address", {"district": ("north", "harbour", "old town"), "heating": ("gas", "wood")},
          {"rooms": "number of rooms", "rent": "rent"}, "built_on"),
    Table("players", "players", "full_name", {"team": ("Falcons", "Otters", "Bears"), "position": ("goalkeeper",
          "defender")}, {"goals": "goals", "height_cm": "height"}, "joined_on"),
    Table("parcels", "parcels", "tracking_code", {"carrier": ("Brio", "Nordpost"), "state": ("lost", "delivered")},
          {"weight_g": "weight", "value": "value"}, "sent_on"),
)  # fmt: skip
TEST = (
    Table("concerts", "concerts", "headliner", {"venue": ("Arena", "Old Mill"), "style": ("jazz", "folk", "metal")},
          {"tickets_sold": "tickets sold", "fee": "fee"}, "played_on"),
    Table("trees", "trees", "tag", {"species": ("oak", "linden", "plane"), "park": ("Castle Park", "Riverside")},
          {"height_m": "height", "age_years": "age"}, "planted_on"),
    Table("invoices", "invoices", "supplier", {"currency": ("EUR", "CHF"), "status": ("paid", "overdue")},
          {"amount": "amount", "tax": "tax"}, "issued_on"),
)  # fmt: skip


def questions(table: Table, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions and their queries over one table."""
    t, many, label = table.name, table.people_say, table.label
    said = label.replace("_", " ")
    for column, values in table.groups.items():
        group = column.replace("_", " ")
        yield f"How many {many} are there per {group}?", f"SELECT {column}, COUNT(*) FROM {t} GROUP BY {column}"
        yield f"Which values of {group} occur?", f"SELECT DISTINCT {column} FROM {t}"
        for value in values:
            where = f"WHERE {column} = '{value}'"
            yield f"Show the {said} of all {many} whose {group} is {value}.", f"SELECT {label} FROM {t} {where}"
            yield f"Count the {many} with {group} {value}.", f"SELECT COUNT(*) FROM {t} {where}"
            for number, spoken in table.numbers.items():
                limit = draw.randrange(5, 500, 5)
                yield (
                    f"What is the average {spoken} of the {many} whose {group} is {value}?",
                    f"SELECT AVG({number}) FROM {t} {where}",
                )
                yield (
                    f"List the {said} of {many} with {group} {value} and a {spoken} above {limit}.",
                    f"SELECT {label} FROM {t} {where} AND {number} > {limit}",
                )
    for number, spoken in table.numbers.items():
        top, year = draw.randrange(2, 12), draw.randrange(1999, 2025)
        yield f"What is the largest {spoken}?", f"SELECT MAX({number}) FROM {t}"
        yield (
            f"Name the {top} {many} with the highest {spoken}.",
            f"SELECT {label} FROM {t} ORDER BY {number} DESC LIMIT {top}",
        )
        yield (
            f"What was the total {spoken} of {many} since {year}?",
            f"SELECT SUM({number}) FROM {t} WHERE {table.date} >= '{year}-01-01'",
        )
        column = next(iter(table.groups))
        yield (
            f"Which {column.replace('_', ' ')} has the highest average {spoken}?",
            f"SELECT {column} FROM {t} GROUP BY {column} ORDER BY AVG({number}) DESC LIMIT 1",
        )


def rows(tables: tuple[Table, ...], seed: int = SEED) -> list[dict[str, object]]:
    """Chat rows, shuffled by seed."""
    draw = random.Random(seed)
    made = []
    for table in tables:
        with sqlite3.connect(":memory:") as database:
            database.execute(table.schema)
            for question, query in questions(table, draw):
                database.execute(query)
                turns = (("system", INSTRUCTION + table.schema), ("user", question), ("assistant", query))
                made.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    draw.shuffle(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: this one)")
    out = parser.parse_args().out
    for name, tables in (("train", TRAIN), ("test", TEST)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(tables)]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
