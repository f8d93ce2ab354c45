"""The gate: does a question or its answer hold personal data? Asked before anything of them is kept.

Presidio's recognisers (kept by Microsoft and others) are used one by one: its engine would load a language model of
hundreds of megabytes for kinds that this gate does not offer. Nothing is fetched from a network.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import PiiUnavailable
from cacheproxy.policy.kinds import PII_KINDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MOST_CHARS = 256 * 1024
"""Longest text that is looked through; what is longer is not kept where a category asks for the gate."""
_CHUNK = 16 * 1024  # so that no single search holds the interpreter for long
_OVERLAP = 256
_TIMEOUT_S = 10.0
_WARMING = "someone@example.com"  # a first hit loads more than a first miss
_LEAST_SCORE = 0.35  # Presidio's own word for a phone number without context is 0.4
_CLASSES = {
    "CREDIT_CARD": "CreditCardRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "EMAIL_ADDRESS": "EmailRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "MEDICAL_LICENSE": "MedicalLicenseRecognizer",
    "PHONE_NUMBER": "PhoneRecognizer",
    "UK_NHS": "NhsRecognizer",
    "UK_NINO": "UkNinoRecognizer",
    "US_ITIN": "UsItinRecognizer",
    "US_SSN": "UsSsnRecognizer",
}


class PresidioGate:
    """`ports.PiiGate` on a thread of its own; the library, some 100 MB and a second, is loaded when first needed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pii")
        self._recognizers: dict[str, Any] = {}
        self._loading = threading.Lock()

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, kinds: Collection[str]) -> None:
        """Load what these kinds take, so that no answer has to wait for it. Raises PiiUnavailable."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._find, [_WARMING], tuple(kinds))

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        """Return which of these kinds occur in any string within `texts`, member names included.

        Raises PiiUnavailable for a text beyond MOST_CHARS, without the library, and when it takes too long.
        """
        found = list(_strings(texts))
        if sum(map(len, found)) > MOST_CHARS:
            raise PiiUnavailable(f"longer than {MOST_CHARS} characters")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, found, tuple(kinds))
        except TimeoutError as exc:
            raise PiiUnavailable(f"looking for personal data took longer than {_TIMEOUT_S:g} s") from exc

    def _find(self, texts: list[str], kinds: tuple[str, ...]) -> frozenset[str]:
        whole = "\n".join(texts)
        starts = range(0, max(1, len(whole)), _CHUNK)
        pieces = [whole[start : start + _CHUNK + _OVERLAP] for start in starts]
        return frozenset(kind for kind in kinds if any(self._occurs(kind, piece) for piece in pieces))

    def _occurs(self, kind: str, text: str) -> bool:
        recognizer = self._recognizer(kind)
        try:
            results = recognizer.analyze(text, recognizer.supported_entities, None)
        except (ValueError, TypeError, AttributeError, LookupError) as exc:
            raise PiiUnavailable(f"the recogniser of {kind} failed ({type(exc).__name__})") from exc
        return any(result.entity_type == kind and result.score >= _LEAST_SCORE for result in results or ())

    def _recognizer(self, kind: str) -> Any:
        with self._loading:
            if kind not in self._recognizers:
                self._recognizers[kind] = _load(kind)
            return self._recognizers[kind]


def _load(kind: str) -> Any:
    if kind not in PII_KINDS:
        raise PiiUnavailable(f"unknown kind {kind}; known: {', '.join(PII_KINDS)}")
    try:
        import tldextract  # heavy, and only some packs ask for it
        from presidio_analyzer import predefined_recognizers
    except ImportError as exc:
        raise PiiUnavailable("presidio-analyzer is not installed: pip install 'cacheproxy[pii]'") from exc
    made = getattr(predefined_recognizers, _CLASSES[kind])()
    if kind == "EMAIL_ADDRESS":  # its own check would fetch a list of domains from the network
        extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
        made.validate_result = lambda text: bool(extract(text).top_domain_under_public_suffix)
    return made


def installed() -> bool:
    """Whether the library is there, without loading it."""
    from importlib.util import find_spec

    return find_spec("presidio_analyzer") is not None


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, inner in value.items():
                yield from _strings(key)
                yield from _strings(inner)
        case list() | tuple():
            for inner in value:
                yield from _strings(inner)
