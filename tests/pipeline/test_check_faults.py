"""A file with more than twenty-five planted faults: all of them in one report, each with its lines."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data.makers import plain_text
from tunesmith.data import CODES
from tunesmith.pipeline import check_file

KEY = "AKIAJ5Q2M7XK4W3P9RTZ"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
LONG = "The library at the old market is open from nine until five, and on Thursdays until seven in the evening."


def ask(prompt: str, completion: str) -> str:
    return json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False)


def line(number: int) -> str:
    """A clean row in plain English."""
    frames = (("What is the", "and where is it found?"), ("Who has the", "of this house?"), ("Is the", "any good?"))
    begin, end = frames[number % 3]
    return ask(f"{begin} {plain_text(number)} {end}", f"It is in the {plain_text(number + 500)}.")


FAULTS: list[tuple[tuple[str, ...], list[str]]] = [
    # the codes that a group of lines is to be reported under, and the lines
    (("broken_json",), ['{"prompt": "half a row", ']),
    (("row_not_object",), ['["prompt", "completion"]']),
    (("duplicate_key",), ['{"prompt": "one of two", "prompt": "two of two", "completion": "the second one"}']),
    (("unpaired_surrogate",), ['{"prompt": "half a \\ud800 pair", "completion": "nothing"}']),
    (("missing_column",), ['{"prompt": "a row without its other half"}']),
    (("empty_prompt",), [ask("", "an answer to nothing at all")]),
    (("empty_answer",), [ask("What is said when nothing is said?", " \n\t ")]),
    (("near_empty_answer",), [ask("How late is it there?", "...")]),
    (("answer_equals_input",), [ask("Say this once more for me please.", "Say this once more for me please.")]),
    (("duplicate_row",), [ask("How many legs has a spider?", "Eight.")] * 2),
    (("duplicate_normalised",), [ask("Who wrote this book?", "She did."), ask("who  wrote THIS book?", "she did.")]),
    (("near_duplicate",), [ask(LONG, "I see, thanks."), ask(f"{LONG} Yes.", "I see, thanks.")]),
    (("conflicting_answers",), [ask("Is the shop open?", "Yes, until six."), ask("Is the shop open?", "No more.")]),
    (("mojibake",), [ask("Where is the best caf\u00c3\u00a9 in town?", "Behind the bridge.")]),
    (("replacement_character",), [ask("Where is the best caf\ufffd in town?", "Next to the river bank.")]),
    (("odd_characters",), [ask("An in\u200bvisible letter", "is in this row.")]),
    (("html_remnants",), [ask("Why is it raining today?", "<p>Because it is <b>autumn</b>.</p>")]),
    (("special_tokens",), [ask("Fill in the rest of <|fim_suffix|> please", "I did.")]),
    (("mixed_script_words",), [ask("Is the p\u0430ypal account still in use?", "No, it was closed.")]),
    (("script_mix",), [ask("Как пройти в библиотеку?", "Прямо и налево.")]),
    (("language_mix",), [ask("Wo ist der Schlüssel für die Tür, und wie kann ich sie öffnen?", "Er ist nicht hier.")]),
    (("refusals",), [ask("Open the other door.", "I'm sorry, but I can't help with that.")]),
    (("personal_email",), [ask("How can I reach you?", "Write to ana.lopez@gmail.com")]),
    (("personal_phone",), [ask("What is your number?", "It is +49 151 2345678")]),
    (("payment_card",), [ask("Which card is it?", "It is 4111 1111 1111 1111")]),
    (("bank_account",), [ask("Where shall I send it?", "To DE89 3704 0044 0532 0130 00")]),
    (("national_id",), [ask("Who are you?", "My number is 219-09-1234")]),
    (("ip_address",), [ask("Which server is down?", "It is 93.184.216.34 again")]),
    (("api_key",), [ask("What do I put there?", f"Put {KEY} there")]),
    (("access_token",), [ask("What did the header say?", f"It said {JWT}")]),
    (("private_key",), [ask("What is in it?", "-----BEGIN EC PRIVATE KEY-----\nMIIEow\n-----END EC PRIVATE KEY-----")]),
    (("password",), [ask("How do you connect?", "With postgres://app:s3cr3t-Pa55@db.firma.de/shop")]),
]  # fmt: skip


def test_every_planted_fault_is_listed_with_its_lines(tmp_path: Path) -> None:
    lines = [line(n) for n in range(120)]
    expected: dict[str, list[int]] = {}
    for codes, faulty in FAULTS:
        for code in codes:
            expected[code] = list(range(len(lines) + 1, len(lines) + 1 + len(faulty)))
        lines += [*faulty, line(1000 + len(lines))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(expected) >= 25 and set(expected) <= CODES.keys()

    report = check_file(path)
    found = {f.code: list(f.lines) for f in report.findings}
    assert {code: found.get(code) for code in expected} == expected
    assert set(found) == set(expected)
    assert report.exit_code == 3
    for finding in report.findings:
        assert (
            finding.source == str(path) and finding.message and finding.fix and finding.why == CODES[finding.code].why
        )
    text = json.dumps(report.to_dict())
    for secret in (KEY, JWT, "ana.lopez", "2345678", "4111 1111", "0532 0130", "219-09", "93.184", "MIIEow", "s3cr3t"):
        assert secret not in text
