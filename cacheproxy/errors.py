"""Everything that can go wrong, as one tree.

    CacheProxyError
    ├── ConfigError              the operator must change a setting or a file (exit code 2)
    │   ├── PackError            a policy pack is invalid
    │   └── DamagedFile          what a file holds is not what was written
    ├── RequestError             the caller sent something that cannot be served (4xx)
    │   ├── InvalidRequest       400
    │   ├── PolicyRefused        400, a policy with problems; the one in force stays
    │   ├── NotAuthenticated     401, no key of ours (access.mode = "keys")
    │   ├── ModelNotAllowed      403, not with this key
    │   ├── RouteNotFound        404
    │   ├── NotFound             404, the route is right, what it names is not there
    │   ├── MethodNotAllowed     405
    │   ├── NotPromoted          409, what speaks against serving this answer to that question
    │   ├── VersionConflict      412, somebody else changed it first
    │   ├── BodyTooLarge         413
    │   ├── EncodingNotSupported 415
    │   ├── RateLimited          429, more than this key may ask or spend
    │   └── NotCached            504, the caller asked for `only-if-cached`
    ├── NotChanged              503, a change could not be written down, and was not made
    ├── Overloaded               503, this proxy holds all the requests it can
    ├── Stopped                  an operator ended what was under way
    ├── AnsweredElsewhere        another replica has asked the backend meanwhile: its answer is looked for
    ├── UpstreamError            the backend did not answer as it must
    │   ├── UpstreamUnreachable  502, no connection: nothing was sent
    │   │   └── ConnectTimeout   502, and it took its time to fail
    │   ├── UpstreamBroken       502, connection or body ended early, or nonsense
    │   │   └── UpstreamClosed   502, the connection ended before an answer began
    │   ├── UpstreamTimeout      504
    │   └── UpstreamBusy         503, its queue is full, or it takes no connections for now
    └── PartUnavailable          a part of the cache failed: counted, and treated as a miss
        ├── LookupTooSlow
        ├── EmbedderUnavailable
        ├── IndexUnavailable
        ├── StoreUnavailable
        ├── SharedUnavailable    the engine that replicas share
        ├── FeedbackUnavailable  503, a verdict could not be written
        └── AugmentUnavailable   what augmentation learnt could not be written

Each leaf that can reach a caller carries its HTTP status and its OpenAI wire code. Messages say what, where and what to
do, and never hold prompt text or keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class CacheProxyError(Exception):
    """Base of the tree; `status`, `type` and `code` are what a caller would see."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    retry_after_s: float | None = None
    """When asking again may help; becomes `Retry-After` and `retry-after-ms`."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(CacheProxyError):
    """A setting or a file the operator owns is wrong."""

    code = "configuration_error"


class PackError(ConfigError):
    """A policy pack is invalid; the message names file, line and key."""


class DamagedFile(ConfigError):
    """What a file holds is not what was written; where it can be made again, it is moved aside."""


class RequestError(CacheProxyError):
    """The request cannot be served as sent."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    """The request is malformed."""


class PolicyRefused(RequestError):
    """A policy has problems: (key, what is wrong with it), all of them. The one in force stays."""

    code = "invalid_policy"

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key} {problem}" for key, problem in problems), param=problems[0][0])
        self.problems = tuple(problems)


class NotAuthenticated(RequestError):
    """No key, or none that is known and in force. The message never quotes what was sent."""

    status = 401
    code = "invalid_api_key"


class ModelNotAllowed(RequestError):
    """The key is good, but not for this model, or the model cannot be seen."""

    status = 403
    code = "model_not_allowed"


class RouteNotFound(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class NotFound(RequestError):
    """What an operator names is not there."""

    status = 404
    code = "not_found"


class NotPromoted(RequestError):
    """A near miss may not be promoted: policy, expiry or a caller's word speaks against it."""

    status = 409
    code = "not_promoted"


class VersionConflict(RequestError):
    """`If-Match` named another version than the one in force (RFC 9110 section 13.1.1). Read it again, then write."""

    status = 412
    code = "version_conflict"


class MethodNotAllowed(RequestError):
    """The route exists, the method does not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "GET, HEAD") -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(RequestError):
    """The body exceeds the configured cap."""

    status = 413
    code = "request_too_large"


class EncodingNotSupported(RequestError):
    """The body is compressed; only identity is read."""

    status = 415
    code = "unsupported_content_encoding"


class RateLimited(RequestError):
    """The key has asked or spent all it may for now; `kind` is `requests` or `tokens`, as OpenAI's error type is."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, kind: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.type = kind
        self.retry_after_s = retry_after_s


class NotCached(RequestError):
    """`only-if-cached` was asked and nothing may be served (RFC 9111 section 5.2.1.7)."""

    status = 504
    code = "not_cached"


class NotChanged(CacheProxyError):
    """An operator's change could not be made or written down: the disk or the encoder failed. All is as it was."""

    status = 503
    code = "not_changed"


class Overloaded(CacheProxyError):
    """More requests at once than this proxy takes; nothing of this one was done."""

    status = 503
    code = "overloaded"
    retry_after_s = 1.0


class Stopped(CacheProxyError):
    """An operator ended what was under way; all is as it was before. It shows in what is told of its progress."""


class AnsweredElsewhere(CacheProxyError):
    """Another replica asked the backend the same and is done; no caller ever sees this."""


class UpstreamError(CacheProxyError):
    """The backend did not answer as it must."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No connection to the backend: nothing of the request was sent."""

    code = "upstream_unreachable"


class ConnectTimeout(UpstreamUnreachable):
    """The backend neither took nor refused the connection in time."""


class UpstreamBroken(UpstreamError):
    """The backend's answer ended early or made no sense."""

    code = "upstream_broken"


class UpstreamClosed(UpstreamBroken):
    """The backend closed the connection before an answer began; whether it acted on the request is not known."""


class UpstreamTimeout(UpstreamError):
    """The backend took longer than its deadline."""

    status = 504
    code = "upstream_timeout"


class UpstreamBusy(UpstreamError):
    """The backend's queue is full, the wait in it was too long, or the backend takes no connections for now."""

    status = 503
    code = "upstream_busy"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PartUnavailable(CacheProxyError):
    """A part of the cache failed; the request goes on as a miss. Only operators are told: 503."""

    status = 503
    part: str = "cache"
    code = "part_unavailable"


class LookupTooSlow(PartUnavailable):
    """The tiers together took longer than the lookup budget."""

    part = "lookup"


class LookupBroke(PartUnavailable):
    """The lookup ended in an error that nobody foresaw; the log has its traceback."""

    part = "lookup"


class EmbedderUnavailable(PartUnavailable):
    """No usable embedding: busy, failed, late, not finite or of the wrong shape."""

    part = "embedder"


class IndexUnavailable(PartUnavailable):
    """The index cannot answer."""

    part = "index"


class StoreUnavailable(PartUnavailable):
    """The store cannot read or write: full, locked, read-only or corrupt."""

    part = "store"


class SharedUnavailable(PartUnavailable):
    """The engine that replicas share did not do it; `fault` is the kind: the engine's own word (`OOM`), or one of ours.

    Whether a command that failed by a deadline or a lost connection took effect is not known.
    """

    part = "shared"

    def __init__(self, message: str, *, fault: str) -> None:
        super().__init__(message)
        self.fault = fault


class VerifierUnavailable(PartUnavailable):
    """The verifier cannot judge: nothing is served by similarity."""

    part = "verifier"


class PiiUnavailable(PartUnavailable):
    """What an answer holds could not be looked through for personal data; it is not kept."""

    part = "pii"


class FeedbackUnavailable(PartUnavailable):
    """A verdict took effect but could not be written."""

    status = 503
    part = "feedback"
    code = "feedback_unavailable"


class TrainingUnavailable(PartUnavailable):
    """Training pairs could not be written or erased."""

    part = "training"


class AugmentUnavailable(PartUnavailable):
    """What augmentation learnt could not be written: it holds until the next start."""

    part = "augment"
