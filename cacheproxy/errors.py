"""Everything that can go wrong, as one tree.

    CacheProxyError
    ├── ConfigError              the operator must change a setting or a file (exit code 2)
    │   └── PackError            a policy pack is invalid
    ├── RequestError             the caller sent something that cannot be served (4xx)
    │   ├── InvalidRequest       400
    │   ├── RouteNotFound        404
    │   ├── MethodNotAllowed     405
    │   ├── BodyTooLarge         413
    │   ├── EncodingNotSupported 415
    │   └── NotCached            504, the caller asked for `only-if-cached`
    ├── UpstreamError            the backend did not answer as it must
    │   ├── UpstreamUnreachable  502, no connection
    │   ├── UpstreamBroken       502, connection or body ended early, or nonsense
    │   ├── UpstreamTimeout      504
    │   └── UpstreamBusy         503, its queue is full
    └── PartUnavailable          a part of the cache failed: counted, and treated as a miss
        ├── LookupTooSlow
        ├── EmbedderUnavailable
        ├── IndexUnavailable
        └── StoreUnavailable

Each leaf that can reach a caller carries its HTTP status and its OpenAI wire code. Messages say what, where and what to
do, and never hold prompt text or keys.
"""


class CacheProxyError(Exception):
    """Base of the tree; `status`, `type` and `code` are what a caller would see."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(CacheProxyError):
    """A setting or a file the operator owns is wrong."""

    code = "configuration_error"


class PackError(ConfigError):
    """A policy pack is invalid; the message names file, line and key."""


class RequestError(CacheProxyError):
    """The request cannot be served as sent."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    """The request is malformed."""


class RouteNotFound(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The route exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class BodyTooLarge(RequestError):
    """The body exceeds the configured cap."""

    status = 413
    code = "request_too_large"


class EncodingNotSupported(RequestError):
    """The body is compressed; only identity is read."""

    status = 415
    code = "unsupported_content_encoding"


class NotCached(RequestError):
    """`only-if-cached` was asked and nothing may be served (RFC 9111 section 5.2.1.7)."""

    status = 504
    code = "not_cached"


class UpstreamError(CacheProxyError):
    """The backend did not answer as it must."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamUnreachable(UpstreamError):
    """No connection to the backend."""

    code = "upstream_unreachable"


class UpstreamBroken(UpstreamError):
    """The backend's answer ended early or made no sense."""

    code = "upstream_broken"


class UpstreamTimeout(UpstreamError):
    """The backend took longer than its deadline."""

    status = 504
    code = "upstream_timeout"


class UpstreamBusy(UpstreamError):
    """The backend's queue is full."""

    status = 503
    code = "upstream_busy"


class PartUnavailable(CacheProxyError):
    """A part of the cache failed; the request goes on as a miss."""

    part: str = "cache"
    code = "part_unavailable"


class LookupTooSlow(PartUnavailable):
    """The tiers together took longer than the lookup budget."""

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
