"""Personal data and secrets: found where they are real, left alone where they only look so, never printed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.makers import by_code, examples
from tunesmith.data.quality import sensitive_findings
from tunesmith.data.quality.check_digits import iban, luhn, payment_card, verhoeff
from tunesmith.data.quality.hits import Hit, apart
from tunesmith.data.quality.masking import masked, sensitive_hits, shown
from tunesmith.data.types import ToolCall

REAL = {
    "personal_email": ["ana.lopez@gmail.com", "o'hara+news@mail.co.uk", "müller@firma.de", "x_1@sub.domain.org"],
    "personal_phone": ["+49 151 2345678", "+1-415-638-0132", "(415) 638-0132", "415.638.0132", "020 7946 0958",
                       "01 23 45 67 89", "tel: 5550132", "call me on 4156380132", "+33612345678", "0044 20 7946 0958"],
    "payment_card": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005",
                     "6011000990139424"],
    "bank_account": ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32", "NL91ABNA0417164300",
                     "FR14 2004 1010 0505 0001 3M02 606"],
    "national_id": ["219-09-1234", "AB 12 34 56 C", "12345678Z", "529.982.247-25", "RSSMRA85T10A562S",
                    "11010519491231002X", "811228-9874"],
    "ip_address": ["8.8.8.8", "93.184.216.34", "2a02:8108:8ac0::1"],
    "api_key": ["sk-proj-" + "aB3dE5gH7jK9mN1pQ3sT5vX7", "AKIAJ5Q2M7XK4W3P9RTZ",
                "AIza" + "SyD4f5G6h7J8k9L0m1N2b3V4c5X6z7Q8w9E",
                "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "hf_" + "qWeRtZuIoPlKjHgFdSaYxCvBnMqWeRtZuI"],
    "access_token": ["ghp_aB3dE5gH7jK9mN1pQ3sT5vX7zA9cE1gI3kM5", "glpat-aB3dE5gH7jK9mN1pQ3sT",
                     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
                     "Authorization: Bearer aB3dE5gH7jK9mN1pQ3sT5vX7zA9c"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
                    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza"],
    "password": ["postgres://app:s3cr3t-Pa55@db.firma.de/x", "password = \"Tr0ub4dor&3\"", "DB_PASSWORD=xK9!mQ2#"],
}  # fmt: skip
LOOKALIKES = {
    "e-mail": ["user@example.com", "icon@2x.png", "@handle", "git@github.com:org/repo", "a@b", "me@host.local"],
    "telephone": ["2024-10-12 10:30", "978-3-16-148410-0", "order 4156380132", "3.14159265", "1999-2024", "12.345.678",
                  "01-02-2023", "page 123-456-7890", "100 200 3000"],
    "card": ["4111111111111112", "1234567812345678", "1700000000000"],
    "account": ["DE89370400440532013001", "AB12 WEST 7788", "GB82 WEST"],
    "identity": ["000-12-3456", "912-12-3456", "12345678A", "529.982.247-26", "RSSMRA85T10A562T", "811228-9875"],
    "address": ["192.168.0.1", "127.0.0.1", "10.1.2.3", "version 4.2.1.12", "v8.8.8.8", "300.1.2.3", "12:30:45",
                "::1", "std::vector"],
    "key": ["sk-xxxxxxxxxxxxxxxxxxxxxxxx", "AKIAIOSFODNN7EXAMPLE", "sk-your-api-key-goes-here-now",
            "task-force-of-the-year",
            "da39a3ee5e6b4b0d3255bfef95601890afd80709"],
    "token": ["Bearer <your token>", "eyJhbGci", "ghp_" + "X" * 36, "123e4567-e89b-42d3-a456-426614174000"],
    "private key": ["-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "my private key"],
    "password": ["https://user:password@host.de/", "password: must be changed", "https://firma.de:8080/a@b",
                 "password = ${DB_PASSWORD}", "The password is wrong."],
}  # fmt: skip


@pytest.mark.parametrize(("code", "value"), [(code, value) for code, values in REAL.items() for value in values])
@pytest.mark.parametrize("sentence", ["{}", "Please use {} today.", "({}), thanks", "was {}\nand 3 more"])
def test_real_values_are_found_and_masked(code: str, value: str, sentence: str) -> None:
    text = sentence.format(value)
    assert code in {hit.code for hit in sensitive_hits(text)}
    secret = value.split("= ")[-1].split(": ")[-1].removeprefix("Bearer ").strip('"')
    if "://" not in value and not value.startswith(("call", "DB_")):
        assert secret not in masked(text)


@pytest.mark.parametrize("value", [value for values in LOOKALIKES.values() for value in values])
@pytest.mark.parametrize("sentence", ["{}", "It says {} on page 3 of 12."])
def test_lookalikes_are_left_alone(value: str, sentence: str) -> None:
    assert sensitive_hits(sentence.format(value)) == []


@given(st.integers(10**14, 10**15 - 1))
def test_luhn_sees_every_single_wrong_digit(number: int) -> None:
    digits = next(f"{number}{check}" for check in range(10) if luhn(f"{number}{check}"))
    for place, digit in enumerate(digits):
        wrong = str((int(digit) + 1) % 10)
        assert not luhn(digits[:place] + wrong + digits[place + 1 :])


def test_check_digits_of_published_examples() -> None:
    assert payment_card("4012888888881881") and not payment_card("4012888888881882")
    assert iban("GB82WEST12345698765432") and not iban("GB82WEST12345698765433") and not iban("GB82WEST1234569876543")
    assert verhoeff("2363") and not verhoeff("2364")


@given(st.text(max_size=200))
def test_any_text_can_be_looked_at(text: str) -> None:
    hits = sensitive_hits(text)
    assert all(0 <= hit.start < hit.end <= len(text) for hit in hits)
    assert all(one.end <= other.start for one, other in itertools.pairwise(hits))


def test_long_texts_do_not_take_long() -> None:
    """Shapes that tempt patterns to backtrack."""
    for text in ("1 " * 50_000, "a@" * 50_000, "a." * 50_000, "+" * 50_000, "0-" * 50_000, ":a" * 50_000, "A1" * 50_000,
                 "password=" * 10_000, "(1)" * 30_000, "a-b_" * 30_000, "://" * 30_000, "<a " * 30_000):  # fmt: skip
        sensitive_hits(text)


def test_overlapping_hits_leave_the_surer_one() -> None:
    assert apart([Hit("a", 5, 9), Hit("b", 8, 12), Hit("c", 0, 5)]) == [Hit("c", 0, 5), Hit("a", 5, 9)]
    (hit,) = sensitive_hits("https://bob:s3cr3t-Pa55@firma.de")
    assert hit.code == "password"


def test_findings_list_lines_and_show_no_secret() -> None:
    rows = examples([
        ("hello", "there"),
        ("Write to ana.lopez@gmail.com or call +49 151 2345678, my card is 4111 1111 1111 1111.", "ok"),
        ("fine", "The key is AKIAJ5Q2M7XK4W3P9RTZ, mail bob@web.de"),
    ])  # fmt: skip
    found = by_code(sensitive_findings("f", rows))
    assert {code: f.lines for code, f in found.items()} == {
        "personal_email": (3, 4), "personal_phone": (3,), "payment_card": (3,), "api_key": (4,)
    }  # fmt: skip
    for finding in found.values():
        for secret in ("ana.lopez", "2345678", "4111", "AKIA", "bob@"):
            assert secret not in str(finding)
    assert found["payment_card"].example == "call [telephone], my card is [card]."


def test_tool_calls_are_read_too() -> None:
    row = examples([("send it", "")])[0]
    call = ToolCall("1", "mail", '{"to": "ana.lopez@gmail.com"}')
    row = replace(row, messages=(row.messages[0], replace(row.messages[1], tool_calls=(call,))))
    assert by_code(sensitive_findings("f", [row]))["personal_email"].lines == (2,)


def test_excerpts_are_masked_before_they_are_cut() -> None:
    key = "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7"
    assert "sk-proj" not in shown("x" * 70 + f" {key}", 80)
    assert shown("a  b\nc") == "a b c"
    assert len(shown("word " * 100, 40)) == 40
