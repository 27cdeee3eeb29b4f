"""Which handled calls are audited: a draw that a client can neither avoid nor force, the same for a call and its retry.

All processes with one key draw alike, so that a retry that reaches another one is known there by its id.
"""

import hashlib

# Seconds in which a call that is the same is a retry of it.
_BUCKET = 60
_ID_BYTES = 16
_LEAST_KEY = 16
# Hex digits that a float holds exactly.
_DIGITS = 13
_SCALE = 16.0**-_DIGITS


class Draw:
    """The draws of one key."""

    def __init__(self, key: bytes) -> None:
        """`key` is secret, 16 to 64 bytes, and the same in all processes on one store. Raises ValueError."""
        if len(key) < _LEAST_KEY:
            raise ValueError(f"a key of {len(key)} bytes can be guessed: it should have {_LEAST_KEY} or more")
        # A copy of it costs half of what a new one with the key would.
        self._keyed = hashlib.blake2b(key=key, digest_size=_ID_BYTES)

    def id(self, project: str, fingerprint: str, text: str, now: float) -> str:
        """The id of an audit of this call, 32 hex digits; `now` in seconds since the epoch.

        The same text (but for white space) to the same prompt within the same minute has the same id.
        """
        # Neither names of projects nor fingerprints hold a zero, so no two calls are written alike.
        call = f"{project}\0{fingerprint}\0{int(now // _BUCKET)}\0{' '.join(text.split())}"
        drawn = self._keyed.copy()
        drawn.update(call.encode("utf-8", "surrogatepass"))
        return drawn.hexdigest()


def share(audit_id: str) -> float:
    """Where the draw of an audit's id fell: uniform in [0, 1). With probability p it is below p."""
    return int(audit_id[:_DIGITS], 16) * _SCALE


class Seen:
    """The last ids that came by; the oldest are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids: dict[str, None] = {}

    def add(self, audit_id: str) -> bool:
        """Whether the id is new."""
        if audit_id in self._ids:
            return False
        self._ids[audit_id] = None
        if len(self._ids) > self._most:
            del self._ids[next(iter(self._ids))]
        return True
