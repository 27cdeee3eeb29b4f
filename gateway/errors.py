"""Everything the gateway raises on purpose, and the one mapping to an OpenAI error body. Imports nothing internal.

GatewayError
├── SettingsError          the configuration cannot be used
├── ScorersBusy            a call would wait too long for what decides on it, or has waited
├── ClientGone             the client left before its last byte; there is nobody to answer
├── AnswerableError        has an HTTP answer in OpenAI error shape
│   ├── InvalidRequest         400  the body is not what the path takes
│   ├── InvalidHttp            400  the bytes are no HTTP request
│   ├── InvalidKey             401  no key, or none that opens this gateway
│   ├── ProjectNotAllowed      403  the key is for other projects
│   ├── ModelNotAllowed        403  the key is for a project, and the model is not the project's
│   ├── HostNotAllowed         403  called by a name that is not this machine's
│   ├── UnknownProject         404  `tracer/<name>` or x-tracer-project names no project
│   ├── NotFound               404  no such path
│   ├── PolicyNotFound         404  the admin API is asked about a policy or a project that is not there
│   ├── MethodNotAllowed       405
│   ├── RequestTimeout         408  the request did not arrive in time
│   ├── PolicyNotMoved         409  the admin API is to move a policy in a way that is not open to it
│   ├── BodyTooLarge           413
│   ├── TooManyRows            413  a batch is over `server.max_batch_rows`
│   ├── UnsupportedEncoding    415  a compressed body, on a path of the gateway's own
│   ├── KeptLocal              422  to be answered locally or not at all, and deferred
│   ├── Overloaded             429  no place for the call with an upstream
│   ├── HeadTooLarge           431
│   ├── InternalError          500  a fault of ours
│   ├── UpstreamUnreachable    502  no answer: refused, unresolved, reset, not HTTP
│   ├── NoUpstream             503  the call was deferred and there is nobody to forward it to
│   ├── StoreAway              503  the admin API cannot reach the store
│   ├── UpstreamUnavailable    503  the upstream failed too often in a row and is left alone for a while
│   └── UpstreamTimeout        504
└── UpstreamBroken         the upstream's answer broke off after it had begun
"""

from typing import ClassVar

import orjson


class GatewayError(Exception):
    """Base of every error raised by `gateway`."""


class SettingsError(GatewayError):
    """The configuration cannot be used; one line a problem, each with its dotted key."""


class ScorersBusy(GatewayError):  # noqa: N818
    """A call would wait too long for what decides on it, or has waited too long: it is deferred."""


class ClientGone(GatewayError):  # noqa: N818 - reads as the state it names
    """The client left before its last byte."""


class UpstreamBroken(GatewayError):  # noqa: N818
    """The upstream's answer broke off after it had begun: no status of ours can be sent any more."""


class AnswerableError(GatewayError):
    """An error with an HTTP answer. `param` names the request field at fault, as OpenAI's errors do.

    `headers` go with the answer.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> bytes:
        """The OpenAI error object as JSON."""
        param = None if self.param is None else printable(self.param)
        fields = {"message": printable(str(self)), "type": self.type, "param": param, "code": self.code}
        return orjson.dumps({"error": fields})


class InvalidRequest(AnswerableError):  # noqa: N818
    """The body is not what the path takes."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidHttp(AnswerableError):  # noqa: N818
    """The bytes are no HTTP request."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_http"


class InvalidKey(AnswerableError):  # noqa: N818
    """No key, or none that opens this gateway."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers = ((b"www-authenticate", b"Bearer"),)


class ProjectNotAllowed(AnswerableError):  # noqa: N818
    """The key is for other projects."""

    status = 403
    type = "invalid_request_error"
    code = "project_not_allowed"


class ModelNotAllowed(AnswerableError):  # noqa: N818
    """The key is for a project, and the model that is asked for is not the project's."""

    status = 403
    type = "invalid_request_error"
    code = "model_not_allowed"


class HostNotAllowed(AnswerableError):  # noqa: N818
    """The call came by a name that is not this machine's: from a web page, perhaps, whose name leads here."""

    status = 403
    type = "invalid_request_error"
    code = "host_not_allowed"


class UnknownProject(AnswerableError):  # noqa: N818
    """A model `tracer/<name>` or a header names no configured project."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(AnswerableError):  # noqa: N818
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class PolicyNotFound(AnswerableError):  # noqa: N818
    """There is no such policy, or no such project: the admin API's answer."""

    status = 404
    type = "invalid_request_error"
    code = "policy_not_found"


class MethodNotAllowed(AnswerableError):  # noqa: N818
    """The path exists, not for this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class PolicyNotMoved(AnswerableError):  # noqa: N818
    """The policy was refused, is live already, or has nothing to go back to. Nothing has changed."""

    status = 409
    type = "invalid_request_error"
    code = "policy_not_moved"


class BodyTooLarge(AnswerableError):  # noqa: N818
    """The body is over `server.max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class KeptLocal(AnswerableError):  # noqa: N818
    """`x-tracer-mode: local`, and the policy defers the call."""

    status = 422
    type = "invalid_request_error"
    code = "deferred"


class RequestTimeout(AnswerableError):  # noqa: N818
    """The request did not arrive within `server.request_timeout`."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    headers = ((b"connection", b"close"),)


class TooManyRows(AnswerableError):  # noqa: N818
    """A batch is over `server.max_batch_rows`."""

    status = 413
    type = "invalid_request_error"
    code = "too_many_rows"


class UnsupportedEncoding(AnswerableError):  # noqa: N818
    """A compressed body where the gateway itself would have to read it: nothing of a client's is inflated here."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_encoding"


class Overloaded(AnswerableError):  # noqa: N818
    """No place for the call with an upstream, and none became free in time."""

    status = 429
    type = "requests"
    code = "gateway_overloaded"
    headers = ((b"retry-after", b"1"),)


class HeadTooLarge(AnswerableError):  # noqa: N818
    """The request line and headers are larger than any client's."""

    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


class InternalError(AnswerableError):
    """A fault of the gateway's own, caught at its border."""


class UpstreamUnreachable(AnswerableError):  # noqa: N818
    """The upstream gave no answer. `sent`: it may have read the call and begun to work on it."""

    status = 502
    code = "upstream_unreachable"

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class NoUpstream(AnswerableError):  # noqa: N818
    """The call was deferred and no upstream is configured."""

    status = 503
    code = "no_upstream"


class StoreAway(AnswerableError):  # noqa: N818
    """The store cannot be reached, or refuses. Nothing has changed."""

    status = 503
    code = "store_unavailable"


class UpstreamUnavailable(AnswerableError):  # noqa: N818
    """The upstream's breaker is open: it is asked again in `retry_after` seconds."""

    status = 503
    code = "upstream_unavailable"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = ((b"retry-after", b"%d" % retry_after),)


class UpstreamTimeout(AnswerableError):  # noqa: N818
    """An answer did not begin in time. `setting` is the limit that was reached, as the upstream's settings name it."""

    status = 504
    code = "upstream_timeout"

    def __init__(self, message: str, setting: str = "read_timeout") -> None:
        super().__init__(message)
        self.setting = setting


def printable(text: str) -> str:
    """`text` with its lone surrogates, which a client's JSON may hold and UTF-8 cannot, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
