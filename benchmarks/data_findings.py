"""What `tunesmith check` finds of what was planted: near-duplicates, leaks, wrong labels, personal data and secrets.

    python benchmarks/data_findings.py [--data FOLDER] [--only near leaks labels sensitive copies speed] [--rows 50000]

Everything is planted by seed, so the figures can be had again. Near-duplicates: 20 kinds of edits of rows of dolly15k,
five each mild, medium, strong and copied across rows; recall is counted over planted pairs whose exact Jaccard
likeness (of sets of strings, counted here and not by the code under test) reaches the threshold. Labels: 5 % of
banking77's are flipped. Sensitive: 200 values of ten kinds and 200 look-alikes in sentences. Speed: generated chat rows
with a tenth of near-duplicates. Writes `benchmarks/results/data_findings-DATE.json`; ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import platform
import random
import resource
import string
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.data import Example, Message, load_examples
from tunesmith.data.duplicates import THRESHOLD, find_near_duplicates, leaked_rows, normalised
from tunesmith.data.duplicates.exact import copies_of, lookalikes_of
from tunesmith.data.making import content_key
from tunesmith.data.quality import suspected_labels
from tunesmith.data.quality.masking import sensitive_hits
from tunesmith.recipe.schema import Data

HERE = Path(__file__).resolve().parent
BARS = {"near_recall": 0.95, "false_alarms": 0.01, "leaks": 1.0, "labels_found": 0.6, "labels_right": 0.5,
        "sensitive_recall": 0.95, "sensitive_precision": 0.9}  # fmt: skip

Edit = Callable[[str, random.Random], str]


def example(question: str, answer: str, line: int, source: str = "rows.jsonl") -> Example:
    """One row."""
    messages = (Message("user", question), Message("assistant", answer))
    return Example(f"{content_key(messages)}-{line}", messages, answer, line, source)


# Near-duplicates: what people and scrapers do to a text


def _words(text: str, draw: random.Random, share: float, change: Callable[[str], str]) -> str:
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = change(words[place])
    return " ".join(words)


def _typo(word: str, draw: random.Random) -> str:
    if len(word) < 3:
        return word + draw.choice(string.ascii_lowercase)
    place = draw.randrange(len(word) - 1)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _sentences(text: str) -> list[str]:
    return [part for part in text.replace("! ", ". ").split(". ") if part]


MILD: dict[str, Edit] = {
    "capitals": lambda t, r: t.upper(),
    "double spaces": lambda t, r: t.replace(" ", "  "),
    "punctuation at the end": lambda t, r: t.rstrip(".?!") + r.choice(["!", "…", " ."]),
    "one typing error": lambda t, r: _words(t, r, 0, lambda w: _typo(w, r)),
    "a greeting before it": lambda t, r: f"Hello, {t}",
}
MEDIUM: dict[str, Edit] = {
    "three words in a hundred misspelt": lambda t, r: _words(t, r, 0.03, lambda w: _typo(w, r)),
    "one word left out": lambda t, r: _words(t, r, 0, lambda w: ""),
    "other numbers": lambda t, r: "".join(r.choice(string.digits) if c.isdigit() else c for c in t),
    "a closing sentence added": lambda t, r: f"{t} Please answer in a friendly tone.",
    "last sentence cut off": lambda t, r: ". ".join(_sentences(t)[:-1]) or t[: int(len(t) * 0.9)],
}
STRONG: dict[str, Edit] = {
    "one word in ten replaced": lambda t, r: _words(t, r, 0.1, lambda w: "something"),
    "one word in ten left out": lambda t, r: _words(t, r, 0.1, lambda w: ""),
    "sentences in another order": lambda t, r: ". ".join(r.sample(_sentences(t), len(_sentences(t)))),
    "first half only": lambda t, r: t[: len(t) // 2],
    "one word in four misspelt": lambda t, r: _words(t, r, 0.25, lambda w: _typo(w, r)),
}
ACROSS = ("the answer under another question", "the question with another answer", "both turned round",
          "two rows joined", "the answer with a new opening")  # fmt: skip


def planted_near(
    rows: list[Example], per_kind: int, seed: int
) -> tuple[list[Example], list[tuple[str, str, int, int]]]:
    """Rows with copies behind them, and (level, kind, place of the original, place of the copy)."""
    draw = random.Random(seed)
    out, planted = list(rows), []

    def plant(level: str, kind: str, original: int, question: str, answer: str) -> None:
        planted.append((level, kind, original, len(out)))
        out.append(example(question, answer, len(out) + 1))

    long_enough = [place for place, row in enumerate(rows) if len(row.question) + len(row.expected) > 100]
    for level, edits in (("mild", MILD), ("medium", MEDIUM), ("strong", STRONG)):
        for kind, edit in edits.items():
            for place in draw.sample(long_enough, per_kind):
                row = rows[place]
                plant(level, kind, place, edit(row.question, draw), edit(row.expected, draw))
    for kind in ACROSS:
        for place in draw.sample(long_enough, per_kind):
            row, other = rows[place], rows[draw.choice(long_enough)]
            question, answer = {
                ACROSS[0]: (other.question, row.expected),
                ACROSS[1]: (row.question, other.expected),
                ACROSS[2]: (row.expected, row.question),
                ACROSS[3]: (f"{row.question} {other.question}", f"{row.expected} {other.expected}"),
                ACROSS[4]: (row.question, f"Of course. {row.expected}"),
            }[kind]
            plant("across rows", kind, place, question, answer)
    return out, planted


def likeness(one: Example, other: Example) -> float:
    """Exact Jaccard likeness of the sets of 5-letter strings of two rows."""
    a, b = (normalised(f"{row.question}\n{row.expected}") for row in (one, other))
    left, right = ({text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (a, b))
    return len(left & right) / len(left | right)


def measure_near(rows: list[Example], per_kind: int) -> dict[str, Any]:
    """Recall of planted pairs by kind, and flagged pairs that are below the threshold."""
    rows, planted = planted_near(rows, per_kind, seed=0)
    began = time.perf_counter()
    found = find_near_duplicates(rows)
    seconds = time.perf_counter() - began
    texts = [normalised(f"{row.question}\n{row.expected}") for row in rows]
    group: dict[int, int] = {}
    first: dict[str, int] = {}

    def top(place: int) -> int:
        while group.get(place, place) != place:
            place = group[place]
        return place

    for place, text in enumerate(texts):  # exact copies are joined by the exact check
        group[top(place)] = top(first.setdefault(text, place))
    for pair in found.pairs:
        group[top(pair.second)] = top(pair.first)
    kinds: dict[str, dict[str, int]] = {}
    for level, kind, original, copy in planted:
        above = likeness(rows[original], rows[copy]) >= THRESHOLD
        hit = top(original) == top(copy)
        row = kinds.setdefault(f"{level}: {kind}", {"planted": 0, "above": 0, "found_above": 0, "found_below": 0})
        row["planted"] += 1
        row["above"] += above
        row["found_above"] += above and hit
        row["found_below"] += hit and not above
    above, hits = (sum(row[name] for row in kinds.values()) for name in ("above", "found_above"))
    wrong = sum(likeness(rows[p.first], rows[p.second]) < THRESHOLD for p in found.pairs)
    recall, alarms = hits / above, wrong / len(found.pairs)
    return {
        "rows": len(rows), "threshold": THRESHOLD, "seconds": round(seconds, 2), "kinds": kinds,
        "planted_above_threshold": above, "found": hits, "recall": round(recall, 4),
        "flagged_pairs": len(found.pairs), "false_alarms": round(alarms, 5),
        "met": recall >= BARS["near_recall"] and alarms < BARS["false_alarms"],
    }  # fmt: skip


def measure_leaks(rows: list[Example]) -> dict[str, Any]:
    """One per cent of a test set replaced by training rows: a half exact, a half near, some only in the prompt."""
    draw = random.Random(1)
    # What the file itself repeats is taken out first, or it would count as a false alarm.
    cluster = find_near_duplicates(rows).cluster
    rows = [row for place, row in enumerate(rows) if cluster[place] == place]
    train, test = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
    count = max(8, len(test) // 100)
    sources = draw.sample([row for row in train if len(row.question) > 60], count)
    places = draw.sample(range(len(test)), count)
    edit = MILD["one typing error"]
    for number, (place, row) in enumerate(zip(places, sources, strict=True)):
        near, prompt = number % 2, number % 8 >= 6
        question = edit(row.question, draw) if near else row.question
        answer = "An answer of its own." if prompt else edit(row.expected, draw) if near else row.expected
        test[place] = example(question, answer, test[place].line, "test.jsonl")
    began = time.perf_counter()
    leaks = leaked_rows(test, train)
    above = {test[p].id for p, row in zip(places, sources, strict=True)
             if normalised(test[p].question) == normalised(row.question)
             or max(likeness(test[p], row), likeness(example(test[p].question, "", 0), example(row.question, "", 0)))
             >= THRESHOLD}  # fmt: skip
    found = {leak.id for leak in leaks}
    recall = len(found & above) / len(above)
    return {
        "train": len(train), "test": len(test), "planted": count, "planted_above_threshold": len(above),
        "found": len(found & above), "recall": round(recall, 4), "others_listed": len(found - above),
        "kinds": dict(Counter(leak.kind for leak in leaks)), "seconds": round(time.perf_counter() - began, 2),
        "met": recall >= BARS["leaks"],
    }  # fmt: skip


def measure_labels(rows: list[Example], share: float = 0.05, seed: int = 0) -> dict[str, Any]:
    """A share of the labels flipped at random: how many are suspected, and how many suspicions are right."""
    draw = random.Random(seed)
    names = sorted({row.expected for row in rows})
    flipped = set(draw.sample(range(len(rows)), round(share * len(rows))))
    spoilt = [
        example(r.question, draw.choice([n for n in names if n != r.expected]) if i in flipped else r.expected, i)
        for i, r in enumerate(rows)
    ]
    began, used = time.perf_counter(), time.process_time()
    suspects = suspected_labels(spoilt)
    right = sum(s.line in flipped for s in suspects)
    found, precision = right / len(flipped), right / max(1, len(suspects))
    # The list is ranked: how many of the flipped are among the first so many that half of them are flipped.
    best = 0
    hits = 0
    for rank, suspect in enumerate(suspects, 1):
        hits += suspect.line in flipped
        best = max(best, hits if hits >= BARS["labels_right"] * rank else 0)
    return {
        "rows": len(rows), "labels": len(names), "flipped": len(flipped), "suspects": len(suspects),
        "found_share": round(found, 4), "precision": round(precision, 4),
        "found_share_at_half_precision": round(best / len(flipped), 4),
        "seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - used, 1),
        "met": found >= BARS["labels_found"] and precision >= BARS["labels_right"],
    }  # fmt: skip


# Personal data and secrets: values that are right, and values that only look so


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.digits, k=count))


def _token(draw: random.Random, count: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(draw.choices(letters, k=count))


def _hex(draw: random.Random, count: int) -> str:
    return _token(draw, count, "0123456789abcdef")


def _luhn(head: str, length: int, draw: random.Random) -> str:
    body = head + _digits(draw, length - len(head) - 1)
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return body + str(-total % 10)


def _iban(country: str, body: str) -> str:
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    return f"{country}{check:02}{body}"


def _jwt(draw: random.Random) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': _digits(draw, 10)})}.{_token(draw, 43)}"


def _dni(draw: random.Random) -> str:
    number = _digits(draw, 8)
    return number + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def _public_ip(draw: random.Random) -> str:
    first = draw.choice([8, 23, 34, 52, 81, 93, 142, 185])
    return f"{first}.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def _grouped(number: str, sign: str = " ") -> str:
    return sign.join(number[i : i + 4] for i in range(0, len(number), 4))


def genuine(kind: str, draw: random.Random) -> str:
    """A value of a kind, right in form and check digits."""
    name, mail = (
        draw.choice(["ana", "j.smith", "liu_wei", "o'hara"]),
        draw.choice(["gmail.com", "web.de", "firma.co.uk"]),
    )
    us = f"{draw.randrange(2, 10)}{_digits(draw, 2)}"
    choices: dict[str, list[Callable[[], str]]] = {
        "personal_email": [lambda: f"{name}{_digits(draw, 2)}@{mail}", lambda: f"{name}+news@{mail}"],
        "personal_phone": [
            lambda: f"+49 {draw.randrange(151, 180)} {_digits(draw, 7)}",
            lambda: f"({us}) {draw.randrange(2, 10)}{_digits(draw, 2)}-{_digits(draw, 4)}",
            lambda: f"+1-{us}-{draw.randrange(2, 10)}{_digits(draw, 2)}-{_digits(draw, 4)}",
            lambda: f"020 7{_digits(draw, 3)} {_digits(draw, 4)}",
            lambda: f"+33 6 {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)}",
        ],
        "payment_card": [
            lambda: _luhn("4", 16, draw),
            lambda: _grouped(_luhn("53", 16, draw)),
            lambda: _grouped(_luhn("4", 16, draw), "-"),
            lambda: _luhn("37", 15, draw),
        ],
        "bank_account": [
            lambda: _iban("DE", _digits(draw, 18)),
            lambda: _grouped(_iban("GB", _token(draw, 4, string.ascii_uppercase) + _digits(draw, 14))),
            lambda: _iban("NL", _token(draw, 4, string.ascii_uppercase) + _digits(draw, 10)),
        ],
        "national_id": [
            lambda: f"{draw.randrange(1, 600):03}-{draw.randrange(1, 99):02}-{draw.randrange(1, 9999):04}",
            lambda: _dni(draw),
            lambda: f"AB {_digits(draw, 2)} {_digits(draw, 2)} {_digits(draw, 2)} C",
        ],
        "ip_address": [
            lambda: _public_ip(draw),
            lambda: f"2a02:8108:{_token(draw, 4, '123456789abcdef')}::{_digits(draw, 2)}",
        ],
        "api_key": [
            lambda: f"sk-proj-{_token(draw, 48)}",
            lambda: f"AKIA{_token(draw, 16, string.ascii_uppercase + string.digits)}",
            lambda: f"AIza{_token(draw, 35)}",
            lambda: f"sk_live_{_token(draw, 24)}",
            lambda: f"hf_{_token(draw, 34)}",
        ],
        "access_token": [
            lambda: f"ghp_{_token(draw, 36)}",
            lambda: _jwt(draw),
            lambda: f"xoxb-{_digits(draw, 12)}-{_digits(draw, 12)}-{_token(draw, 24)}",
            lambda: f"glpat-{_token(draw, 20)}",
        ],
        "private_key": [
            lambda: "-----BEGIN {}PRIVATE KEY-----\n{}\n-----END {}PRIVATE KEY-----".format(
                *(lambda k: (k, _token(draw, 64), k))(draw.choice(["RSA ", "EC ", "OPENSSH ", ""]))
            )
        ],
        "password": [
            lambda: f"postgres://app:{_token(draw, 12)}@db.firma.de:5432/shop",
            lambda: f"https://deploy:{_token(draw, 16)}@git.firma.de/repo.git",
            lambda: f'password = "{_token(draw, 6)}!{_digits(draw, 3)}"',
        ],
    }
    return draw.choice(choices[kind])()


def lookalike(kind: str, draw: random.Random) -> str:
    """A value that looks like one of a kind and is none."""
    wrong_card = _luhn("4", 16, draw)
    wrong_iban = _iban("DE", _digits(draw, 18))
    choices: dict[str, list[Callable[[], str]]] = {
        "personal_email": [
            lambda: "user@example.com",
            lambda: "icon@2x.png",
            lambda: "@handle on the forum",
            lambda: "git@github.com:org/repo.git",
        ],
        "personal_phone": [
            lambda: f"order {_digits(draw, 10)}",
            lambda: f"2024-{draw.randrange(10, 13)}-{draw.randrange(10, 28)} 10:30",
            lambda: "978-3-16-148410-0",
            lambda: f"{draw.randrange(10, 99)}.{_digits(draw, 3)}.{_digits(draw, 3)}",
            lambda: f"{draw.randrange(1900, 2000)}-{draw.randrange(2000, 2030)}",
        ],
        "payment_card": [
            lambda: wrong_card[:-1] + str((int(wrong_card[-1]) + 1) % 10),
            lambda: f"tracking 9{_digits(draw, 15)}",
            lambda: f"17{_digits(draw, 11)}",
        ],
        "bank_account": [
            lambda: f"DE{(int(wrong_iban[2:4]) + 1) % 97:02}{wrong_iban[4:]}",
            lambda: f"part AB12 {_token(draw, 4, string.ascii_uppercase)} 7788",
        ],
        "national_id": [
            lambda: f"000-{_digits(draw, 2)}-{_digits(draw, 4)}",
            lambda: f"9{_digits(draw, 2)}-12-{_digits(draw, 4)}",
            lambda: f"page {_digits(draw, 3)}-{_digits(draw, 3)}",
            lambda: f"model {_digits(draw, 3)}-{_digits(draw, 2)}-{_digits(draw, 3)}",
        ],
        "ip_address": [
            lambda: f"192.168.{draw.randrange(256)}.{draw.randrange(256)}",
            lambda: "127.0.0.1",
            lambda: f"version 4.{_digits(draw, 1)}.{_digits(draw, 1)}.12",
            lambda: f"{draw.randrange(256, 999)}.12.7.3",
            lambda: "12:30:45",
        ],
        "api_key": [
            lambda: "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            lambda: "AKIAIOSFODNN7EXAMPLE",
            lambda: "sk-your-api-key-goes-here-please",
            lambda: f"commit {_hex(draw, 40)}",
        ],
        "access_token": [
            lambda: "Bearer <your token here>",
            lambda: "eyJhbGciOi…",
            lambda: "ghp_XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
            lambda: f"id {_hex(draw, 8)}-{_hex(draw, 4)}-4{_hex(draw, 3)}",
        ],
        "private_key": [
            lambda: "-----BEGIN PUBLIC KEY-----\nMIIBIjANBg\n-----END PUBLIC KEY-----",
            lambda: "-----BEGIN CERTIFICATE-----",
            lambda: "never share your private key",
        ],
        "password": [
            lambda: "https://user:password@host.example/",
            lambda: "password: must be changed every month",
            lambda: "https://firma.de:8080/path@v2",
            lambda: "password = ${DB_PASSWORD}",
            lambda: "the password is wrong",
        ],
    }
    return draw.choice(choices[kind])()


SENTENCES = (
    "Please send it to {} before Friday.", "I noted {} in the ticket.", "{}", "The customer wrote: {}\nThanks!",
    "See {} for details, then go on with step 3 of 12.", "Old value {} was replaced on 12.03.2024.",
)  # fmt: skip


def measure_sensitive(seed: int = 0) -> dict[str, Any]:
    """200 genuine values of ten kinds and 200 look-alikes, each in a sentence of its own."""
    draw = random.Random(seed)
    kinds = ("personal_email", "personal_phone", "payment_card", "bank_account", "national_id", "ip_address", "api_key",
             "access_token", "private_key", "password")  # fmt: skip
    by_kind, missed, false = {}, [], []
    for kind in kinds:
        good = [draw.choice(SENTENCES).format(genuine(kind, draw)) for _ in range(20)]
        bad = [draw.choice(SENTENCES).format(lookalike(kind, draw)) for _ in range(20)]
        found = [text for text in good if any(hit.code == kind for hit in sensitive_hits(text))]
        alarms = [text for text in bad if sensitive_hits(text)]
        missed += [(kind, text) for text in good if text not in found]
        false += [(kind, text) for text in alarms]
        by_kind[kind] = {"found": len(found), "of": len(good), "false_alarms": len(alarms), "look_alikes": len(bad)}
    hits, alarms_all = sum(k["found"] for k in by_kind.values()), sum(k["false_alarms"] for k in by_kind.values())
    recall, precision = hits / 200, hits / (hits + alarms_all)
    return {
        "kinds": by_kind, "recall": round(recall, 4), "precision": round(precision, 4), "missed": missed[:20],
        "false": false[:20], "met": recall >= BARS["sensitive_recall"] and precision >= BARS["sensitive_precision"],
    }  # fmt: skip


def measure_copies(rows: list[Example]) -> dict[str, Any]:
    """What repeats itself in dolly15k, exactly and in what nobody sees."""
    return {
        "rows": len(rows),
        "exact_copies": sum(len(group) - 1 for group in copies_of(rows)),
        "normalised_copies": sum(len(group) - 1 for group in lookalikes_of(rows)),
        "lines_of_normalised": [[rows[place].line for place in group] for group in lookalikes_of(rows)],
        "near_pairs": len(find_near_duplicates(rows).pairs),
    }


def measure_speed(count: int) -> dict[str, Any]:
    """Near-duplicates among generated chat rows of about 500 bytes, a tenth of them nearly copies."""
    draw = random.Random(3)
    vocabulary = [_token(draw, draw.randrange(2, 11), string.ascii_lowercase) for _ in range(20_000)]
    rows: list[Example] = []
    for number in range(count):
        if number % 10 == 9:
            row = rows[draw.randrange(len(rows))]
            rows.append(example(row.question + f" {number}", row.expected, number))
        else:
            words = draw.choices(vocabulary, k=75)
            rows.append(example(" ".join(words[:35]), " ".join(words[35:]), number))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.perf_counter(), time.process_time()
    found = find_near_duplicates(rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": count, "seconds": round(seconds, 2), "rows_per_second": round(count / seconds),
        "cpu_seconds": round(cpu, 2), "cpu_seconds_for_a_million": round(1e6 * cpu / count, 1),
        "pairs": len(found.pairs),
        "peak_bytes": peak * 1024, "bytes_with_the_rows_alone": before * 1024,
    }  # fmt: skip


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", choices=("near", "leaks", "labels", "sensitive", "copies", "speed"))
    parser.add_argument("--per-kind", type=int, default=50, help="planted near-duplicates of each kind")
    parser.add_argument("--rows", type=int, default=50_000, help="rows whose near-duplicates are timed")
    default = HERE / "results" / f"data_findings-{datetime.date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    wanted = options.only or ("near", "leaks", "labels", "sensitive", "copies", "speed")

    def load(name: str, **keys: Any) -> list[Example]:
        path = options.data / name
        if not path.is_file():
            raise SystemExit(f"{path} is not there; name the folder of data sets with --data")
        return load_examples(Data.model_validate({"train": str(path), **keys}), path).examples

    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"Python {platform.python_version()}, {platform.machine()}",
        "bars": BARS,
    }
    dolly = "dolly15k/dolly15k.jsonl"
    if "sensitive" in wanted:
        report["sensitive"] = measure_sensitive()
    if "copies" in wanted:
        report["copies"] = measure_copies(load(dolly))
    if "near" in wanted:
        report["near"] = measure_near(load(dolly), options.per_kind)
    if "leaks" in wanted:
        report["leaks"] = measure_leaks(load(dolly))
    if "labels" in wanted:
        report["labels"] = measure_labels(load("banking77/train.csv"))
    if "speed" in wanted:
        report["speed"] = measure_speed(options.rows)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    if not all(part.get("met", True) for part in report.values() if isinstance(part, dict)):
        sys.exit(1)


if __name__ == "__main__":
    main()
