"""Check digits: what tells a card, account or identity number from any other number."""

from __future__ import annotations

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_CODICE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_CHINA_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_VERHOEFF_PRODUCT = tuple(
    tuple((a + b) % 5 if a < 5 and b < 5 else (a + b) % 5 + 5 if a < 5 else (a - b) % 5 + 5 if b < 5 else (a - b) % 5
          for b in range(10)) for a in range(10)
)  # fmt: skip
_VERHOEFF_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18,
    "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23,
    "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26,
    "UA": 29, "VG": 24, "XK": 20,
}  # fmt: skip
"""Length of an IBAN by country (the SWIFT registry of ISO 13616)."""


def digits_of(text: str) -> str:
    """The digits 0 to 9 of a text."""
    return "".join(character for character in text if "0" <= character <= "9")


def luhn(digits: str) -> bool:
    """ISO/IEC 7812: from the right, every second digit doubled; the sum of all digits is a multiple of ten."""
    total = 0
    for place, character in enumerate(reversed(digits)):
        value = int(character) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def payment_card(digits: str) -> bool:
    """Whether the digits are a card number of a known scheme, in its length, with a right check digit."""
    length, head = len(digits), int(digits[:4] or 0)
    known = (
        (digits[0] == "4" and length in (13, 16, 19))
        or (length == 16 and (5100 <= head <= 5599 or 2221 <= head <= 2720 or 3528 <= head <= 3589))
        or (length == 15 and digits[:2] in ("34", "37"))
        or (length == 14 and (3000 <= head <= 3059 or digits[:2] in ("36", "38")))
        or (16 <= length <= 19 and (head == 6011 or 6440 <= head <= 6599 or digits[:2] == "62"))
    )
    return known and luhn(digits)


def iban(text: str) -> bool:
    """ISO 13616: the length of the country, and the rearranged number is 1 modulo 97."""
    compact = text.replace(" ", "").replace("-", "")
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def spanish_id(text: str) -> bool:
    """DNI and NIE: the letter is the number modulo 23."""
    compact = text.replace("-", "").upper()
    number = compact[:-1].translate(str.maketrans("XYZ", "012"))
    return _DNI[int(number) % 23] == compact[-1]


def brazilian_cpf(digits: str) -> bool:
    """Both check digits modulo 11, and not one digit eleven times."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        rest = sum(int(d) * (length + 1 - i) for i, d in enumerate(digits[:length])) * 10 % 11 % 10
        if rest != int(digits[length]):
            return False
    return True


def italian_code(text: str) -> bool:
    """Codice fiscale: the last letter from the fifteen characters before it."""
    total = 0
    for place, character in enumerate(text[:15]):
        value = int(character) if character.isdigit() else ord(character) - ord("A")
        total += value if place % 2 else _CODICE_ODD[value]
    return chr(ord("A") + total % 26) == text[15]


def french_nir(text: str) -> bool:
    """Social security number: the key is 97 minus the number modulo 97; 2A and 2B (Corsica) count as 19 and 18."""
    compact = text.replace(" ", "")
    number = int(compact[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(compact[13:])


def chinese_id(text: str) -> bool:
    """Resident identity number: weights modulo 11, the last character X for ten."""
    rest = sum(int(d) * w for d, w in zip(text, _CHINA_WEIGHTS, strict=False)) % 11
    return "10X98765432"[rest] == text[17].upper()


def verhoeff(digits: str) -> bool:
    """Verhoeff's check over the dihedral group of order ten (Aadhaar numbers)."""
    check = 0
    for place, character in enumerate(reversed(digits)):
        value = int(character)
        for _ in range(place % 8):
            value = _VERHOEFF_PERMUTATION[value]
        check = _VERHOEFF_PRODUCT[check][value]
    return check == 0


def dutch_bsn(digits: str) -> bool:
    """The eleven test: weights 9 to 2 and minus 1."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True)) % 11 == 0 and int(digits) > 0
