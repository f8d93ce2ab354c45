"""The gate: from a request's headers to the caller they prove, or a refusal that tells nothing about keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cacheproxy.access.limits import Accounts
from cacheproxy.errors import InvalidRequest, NotAuthenticated
from cacheproxy.model import Scope
from cacheproxy.query.scope import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cacheproxy.access.keyring import Key, Keyring
    from cacheproxy.access.limits import Account, Standing
    from cacheproxy.ports import Clock
    from cacheproxy.settings import Secret

    Headers = list[tuple[bytes, bytes]]

_RATE_LIMIT = b"x-ratelimit-"
_WANTED = "send one of this proxy's own (authorization: Bearer sk-cp-...), which its operator hands out"
_MISSING = f"no API key was given; {_WANTED}"
_UNKNOWN = f"this API key is not known here; {_WANTED}"


class Caller:
    """Who sent a request: a virtual key in force, with its account."""

    __slots__ = ("_account", "_clock", "_key")

    def __init__(self, key: Key, account: Account, clock: Clock) -> None:
        self._key = key
        self._account = account
        self._clock = clock

    @property
    def key_id(self) -> str:
        """The key's public id."""
        return self._key.record.id

    @property
    def tenant(self) -> str:
        """The partition this caller shares (hex), as `Scope.tenant`."""
        return self._key.tenant

    @property
    def upstream_key(self) -> Secret | None:
        """What the default backend gets for this caller instead of its own key; None means the backend's own."""
        return self._key.upstream_key

    @property
    def answer_s(self) -> float | None:
        """How long an answer should take, in seconds; None without a limit."""
        limit_ms = self._key.record.answer_ms
        return None if limit_ms is None else limit_ms / 1000

    @property
    def answer_usd(self) -> float | None:
        """What an answer should cost, in US dollars; None without a limit."""
        return self._key.record.answer_usd

    @property
    def consents(self) -> bool:
        """Whether a similarity model may be trained on what this caller asks, as `Scope.consents`."""
        return self._key.record.train

    @property
    def restricted(self) -> bool:
        """Whether only certain models may be asked for."""
        return bool(self._key.record.models)

    @property
    def charge(self) -> Callable[[int], None] | None:
        """What to tell the tokens of an answer; None when nobody counts them."""
        return self._charge if self._account.metered else None

    def check_model(self, model: str) -> None:
        """Raise ModelNotAllowed unless this model ("": one that cannot be seen) may be asked for."""
        self._key.check_model(model)

    def count_request(self) -> None:
        """Use one request. Raises RateLimited."""
        self._account.count_request(self._clock.monotonic())

    def check_tokens(self) -> None:
        """Raise RateLimited when no tokens are left for another answer of the backend."""
        self._account.check_tokens(self._clock.monotonic(), self._clock.now())

    def headers(self, answer: Headers) -> Headers:
        """Return an answer's headers with this key's limits told as OpenAI tells its own, in place of the backend's."""
        now_s, account = self._clock.monotonic(), self._account
        tokens = account.tokens(now_s) or account.day(self._clock.now())
        own = _told(b"requests", account.requests(now_s)) + _told(b"tokens", tokens)
        if not own:
            return answer
        names = {name for name, _ in own}
        return [(name, value) for name, value in answer if name.lower() not in names] + own

    def _charge(self, tokens: int) -> None:
        self._account.charge_tokens(tokens, self._clock.monotonic(), self._clock.now())


class Gate:
    """Lets requests with a virtual key in force pass."""

    def __init__(self, ring: Keyring, clock: Clock) -> None:
        self._clock = clock
        self.accounts = Accounts()
        self.ring = ring
        self.replace(ring)

    def replace(self, ring: Keyring) -> None:
        """Go by another ring from the next request on."""
        self.accounts.adopt(ring.records(), self._clock.monotonic())
        self.ring = ring

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return who sends a request.

        Raises NotAuthenticated without a known key in force, InvalidRequest when a credential header comes twice or two
        of them differ.
        """
        presented = _presented(headers)
        if not presented:
            raise NotAuthenticated(_MISSING)
        key = self.ring.find(presented)
        if key is None:
            raise NotAuthenticated(_UNKNOWN)
        key.check_in_force(self._clock.now())
        return Caller(key, self.accounts.of(key.record.id), self._clock)

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Scope:
        """Return the scope of whoever these headers prove. Raises as `admit`."""
        caller = self.admit(headers)
        return Scope(tenant=caller.tenant, consents=caller.consents)


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key a request carries, b"" without one. The scheme's case does not count, the key's does."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in CREDENTIALS:
            if name in found:
                raise InvalidRequest(f"the header {name.decode()} was sent more than once; send one credential")
            found[name] = value.strip()
    if b"authorization" in found:
        scheme, _, key = found[b"authorization"].partition(b" ")
        if scheme and scheme.lower() != b"bearer":
            raise NotAuthenticated(f"the authorization scheme must be Bearer; {_WANTED}")
        found[b"authorization"] = key.strip()
    keys = {value for value in found.values() if value}
    if len(keys) > 1:
        raise InvalidRequest(f"the headers {', '.join(sorted(n.decode() for n in found))} differ; send one credential")
    return keys.pop() if keys else b""


def _told(kind: bytes, standing: Standing | None) -> Headers:
    if standing is None:
        return []
    return [
        (_RATE_LIMIT + b"limit-" + kind, b"%d" % standing.limit),
        (_RATE_LIMIT + b"remaining-" + kind, b"%d" % standing.remaining),
        (_RATE_LIMIT + b"reset-" + kind, span(standing.reset_s).encode()),
    ]


def span(seconds: float) -> str:
    """Return a time span as OpenAI writes it: `17ms`, `8.64s`, `6m0s`, `1h2m3s`; rounded up."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
