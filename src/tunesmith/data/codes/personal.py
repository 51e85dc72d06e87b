"""Findings about personal data and secrets, which are never shown in full."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tunesmith.data.codes.code import Code

PERSONAL: Mapping[str, Code] = MappingProxyType(
    {
        "personal_email": Code(
            "warning",
            "e-mail addresses",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "personal_phone": Code(
            "warning",
            "telephone numbers",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "payment_card": Code(
            "warning",
            "payment card numbers (the check digit is right)",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "bank_account": Code(
            "warning",
            "bank account numbers (IBAN, the check digits are right)",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "national_id": Code(
            "warning",
            "national identity numbers",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "ip_address": Code(
            "warning",
            "public IP addresses",
            "A tuned model can repeat it word for word to anybody who asks.",
            "remove or mask it, unless it is public and belongs to the task",
        ),
        "api_key": Code(
            "warning",
            "keys of services",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "access_token": Code(
            "warning",
            "access tokens",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "private_key": Code(
            "warning",
            "private keys",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
        "password": Code(
            "warning",
            "passwords",
            "A tuned model can repeat it word for word, and the file itself is a leak.",
            "revoke the secret, then remove it from the rows",
        ),
    }
)
