"""Which headers travel on: neither what ends at a connection, nor ours, nor a key of ours."""

import base64
import binascii
import re
from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]

# RFC 9110, 7.6.1.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"}
    | {b"trailer", b"transfer-encoding", b"upgrade"}
)
# What belongs to the client's connection to us.
_REQUEST_ONLY = frozenset({b"host", b"expect"})
_OURS = b"x-tracer-"
# Where OpenAI, Azure, Anthropic and Google look for a key.
KEY_HEADERS = frozenset({b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key"})
# Whose account a call is for. What a gateway's settings add stands in `settings.AccessSettings.account_headers`.
ACCOUNT_HEADERS = KEY_HEADERS | {b"openai-organization", b"openai-project"}
# Where keys are given, what only begins like ours is dropped too; elsewhere it may be anything.
_LIKE_OURS = re.compile(rb"(?:^|[\s,:=\"'])trc_", re.IGNORECASE)
_OURS_WHOLE = re.compile(rb"trc_[0-9a-f]{12}_", re.IGNORECASE)


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that travel on: neither hop-by-hop, nor named by Connection, nor ours. Names are lower case."""
    pairs = list(headers)
    named = {token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}
    dropped = _HOP_BY_HOP if named <= _HOP_BY_HOP else _HOP_BY_HOP | named
    return [pair for pair in pairs if pair[0] not in dropped and pair[0][:9] != _OURS]


def forwarded(headers: Headers, secret: bytes = b"") -> list[tuple[bytes, bytes]]:
    """The headers of a client's request that an upstream may see: end to end, and no key of ours among them.

    `secret` is one more key of ours, which does not look like the others; empty where there is none.
    """
    kept = [pair for pair in end_to_end(headers) if pair[0] not in _REQUEST_ONLY]
    # One look at all of them tells that none holds a key, as in nearly every call.
    values = b"\n".join([value for _, value in kept]).lower()
    if b"trc_" not in values and b"basic" not in values and not (secret and secret.lower() in values):
        return kept
    return [(n, v) for n, v in kept if not holds_own_key(n, v, secret)]


def without_account(headers: Headers, account: frozenset[bytes] = ACCOUNT_HEADERS) -> list[tuple[bytes, bytes]]:
    """The headers without what tells who the client is to its own provider: those of `account`, and cookies."""
    return [(n, v) for n, v in headers if n not in account and n != b"cookie"]


def account_only(headers: Headers, account: frozenset[bytes] = ACCOUNT_HEADERS) -> list[tuple[bytes, bytes]]:
    """Of the headers those of `account`, which say who asks: what belongs to a question of the gateway's own."""
    return [(n, v) for n, v in headers if n in account]


def holds_own_key(name: bytes, value: bytes, secret: bytes = b"") -> bool:
    """Whether a header of any name carries a key of this gateway: bare, in other text, or in Basic credentials."""
    pattern = _LIKE_OURS if name in KEY_HEADERS else _OURS_WHOLE
    if pattern.search(value) is not None or (secret and secret in value):
        return True
    scheme, _, credentials = value.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        decoded = base64.b64decode(credentials)
    except binascii.Error:
        return False
    return pattern.search(decoded) is not None or bool(secret and secret in decoded)
