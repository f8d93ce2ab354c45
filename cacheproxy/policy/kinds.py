"""Kinds of personal data that a category may forbid keeping, by the names that Presidio gives them."""

from __future__ import annotations

PII_KINDS = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MEDICAL_LICENSE",
    "PHONE_NUMBER",
    "UK_NHS",
    "UK_NINO",
    "US_ITIN",
    "US_SSN",
)
"""Told by form and check digits alone. Names of people take a language model, bare numbers of banks and passports the
words around them: these are not among them."""
