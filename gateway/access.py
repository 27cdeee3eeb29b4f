"""Who may ask: everybody on this machine, whoever an upstream knows, or the holders of our own keys.

An endpoint asks five things: who calls (`enter`, before the body is read), whether the caller may use a project
(`Caller.may_use`) and ask it for a model (`Caller.may_ask`), whether a call of this caller may be answered here
(`accepts`), and it passes on what the upstream said to the caller (`learned`).
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import re
import secrets
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from starlette.types import Scope

from gateway.errors import HostNotAllowed, InvalidKey, SettingsError
from gateway.headers import KEY_HEADERS
from gateway.keys import KeyRecord, KeysError, find, read_keys
from gateway.metrics import Metrics
from gateway.recognise import MODEL_PREFIX
from gateway.settings import AccessSettings, ProjectSettings, Settings

logger = logging.getLogger(__name__)

_MOST_ACCEPTED = 10_000
_LOOK_SECONDS = 0.5
_SHOWN = 8
# A key shorter than this would be half told by its first characters.
_LONG_ENOUGH = 24
_MOST_HOSTS = 64  # spellings of Host that are remembered
_LONGEST_HOST = 100
_HOST = re.compile(rb"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d*)?")
# Where official clients put a key: OpenAI; Azure, Anthropic and Google.
_BEARER = b"authorization"
_PLAIN = tuple(sorted(KEY_HEADERS - {_BEARER}))
_REFUSED = frozenset({401, 403})

# What tells one state of the keys file from another, and what none has.
_Mark = tuple[int, int, int, int]
_UNREAD: _Mark = (-1, -1, -1, -1)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    `projects` are the names the caller may use, None for everything. `id` is the id of a key of ours, `identity` a
    digest of what the upstream knows the caller by; empty where the mode has no such thing.
    """

    projects: frozenset[str] | None = None
    id: str = ""
    identity: bytes = b""

    def may_use(self, project: str | None) -> bool:
        """Whether a project's calls, or those of none (None), are open to the caller."""
        return self.projects is None or project in self.projects

    def may_ask(self, project: ProjectSettings, model: str) -> bool:
        """Whether a call of a project that the caller may use can go to a model.

        Whose key is for some projects gets no more than their teachers, by name or as `tracer/<project>`. (The name
        in that is the project the call is then taken for, whatever else it says.) Without a teacher any model goes.
        """
        if self.projects is None or project.teacher is None:
            return True
        return model == project.teacher or model.startswith(MODEL_PREFIX)


ANYBODY = Caller()


class Access:
    """What the modes have in common: nobody is refused, nothing is learned."""

    async def start(self) -> None:
        """Open what needs a running loop."""

    async def stop(self) -> None:
        """Close it."""

    def enter(self, _: Scope) -> Caller:
        """Who calls; raises InvalidKey, HostNotAllowed. Credentials that must not travel leave the scope."""
        return ANYBODY

    def check_host(self, scope: Scope) -> None:
        """Raise HostNotAllowed where `enter` would, whoever calls."""

    def accepts(self, _upstream: str | None, _: Caller) -> bool:
        """Whether a call may be answered here instead of by `upstream`."""
        return True

    def learned(self, upstream: str, caller: Caller, status: int) -> None:
        """`upstream` answered a chat, responses or decisions call of `caller` with `status`."""


# What browsers say of the page that calls; with their User-Agent, which all of them begin alike.
_OF_PAGES = frozenset({b"origin", b"sec-fetch-site"})


class OpenAccess(Access):
    """Mode `none`: everybody who reaches the port, which is this machine's own, by a name that is its own.

    A web page can give its own name the address 127.0.0.1 (DNS rebinding) and is then, to the browser, of the same
    origin as the gateway: it could read the answers. The name gives it away. What is no browser may call the gateway by
    any name: it could say any.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._hosts = frozenset(settings.hosts) | {"localhost"}
        self._allows = lru_cache(_MOST_HOSTS)(self._judge)

    def enter(self, scope: Scope) -> Caller:
        """Anybody. Raises HostNotAllowed where a browser calls by a name from elsewhere."""
        given = dict(scope["headers"])
        if _OF_PAGES.isdisjoint(given) and b"Mozilla/" not in given.get(b"user-agent", b""):
            return ANYBODY
        for name, value in scope["headers"]:
            if name == b"host" and not self._allows(value):
                shown = value.decode("latin-1")[:_LONGEST_HOST]
                raise HostNotAllowed(
                    f"This gateway is called as localhost or 127.0.0.1, not as {shown!r}. "
                    "Further names go into access.hosts."
                )
        return ANYBODY

    def check_host(self, scope: Scope) -> None:
        """The same, for who brings another kind of key."""
        self.enter(scope)

    def _judge(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].decode("ascii").strip("[]")
        try:
            return name in self._hosts or _is_own(ipaddress.ip_address(name))
        except ValueError:
            return False


class PassthroughAccess(Access):
    """Mode `passthrough`: the client's own key travels, and an upstream's yes to it holds for a while.

    Keys are held as salted digests only, at most 10,000 of them, the ones accepted longest ago dropped first.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._seconds = settings.key_seconds
        self._names = settings.account_headers
        self._salt = secrets.token_bytes(32)
        self._until: OrderedDict[tuple[str, bytes], float] = OrderedDict()  # on the monotonic clock

    def enter(self, scope: Scope) -> Caller:
        """A caller is what the upstream could tell callers apart by. A call without any key is one as well."""
        digest = hashlib.sha256(self._salt)
        for name, value in scope["headers"]:
            if name in self._names:
                # With its length, so that no two lists of headers read the same.
                digest.update(b"%b:%d:%b" % (name, len(value), value))
        return Caller(identity=digest.digest())

    def accepts(self, upstream: str | None, caller: Caller) -> bool:
        """Whether `upstream` accepted this caller within `key_seconds`."""
        until = self._until.get((upstream or "", caller.identity))
        return until is not None and time.monotonic() < until

    def learned(self, upstream: str, caller: Caller, status: int) -> None:
        """A 2xx is a yes, a 401 or 403 a no; anything else says nothing of the key."""
        key = (upstream, caller.identity)
        if status in _REFUSED:
            self._until.pop(key, None)
        elif 200 <= status < 300:
            self._until[key] = time.monotonic() + self._seconds
            self._until.move_to_end(key)
            if len(self._until) > _MOST_ACCEPTED:
                self._until.popitem(last=False)


class KeyedAccess(Access):
    """Mode `keys`: holders of a `trc_...` key of the keys file, each within the projects of the key."""

    def __init__(self, settings: AccessSettings, metrics: Metrics) -> None:
        self._path = settings.keys_file
        self._metrics = metrics
        self._records: dict[str, KeyRecord] = {}
        self._mark: _Mark | None = None
        self._trouble = ""
        self._watcher: asyncio.Task[None] | None = None
        self._credentials = settings.account_headers
        metrics.keys.set_function(lambda: len(self._records))

    async def start(self) -> None:
        """Read the keys, then watch their file in the background."""
        await self._look(first=True)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    def enter(self, scope: Scope) -> Caller:
        """The key's holder. Raises InvalidKey; whatever held the key is gone from the scope afterwards."""
        key = _given(scope)
        # In place, so that nothing later in the call, whatever it forwards or logs, can meet the key again.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in self._credentials]
        found = find(key, self._records, datetime.now(UTC))
        if found is None:
            raise InvalidKey(_refusal(key))
        key_id, record = found
        return Caller(None if isinstance(record.projects, str) else record.projects, key_id)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._look()
            except Exception:  # the border of a background task: it must outlive one bad look
                self._metrics.internal_errors.labels("key_watch").inc()
                logger.exception("looking for new keys failed")

    async def _look(self, *, first: bool = False) -> None:
        mark = await asyncio.to_thread(_mark, self._path)
        if mark == self._mark and not first:
            return
        try:
            records = await asyncio.to_thread(read_keys, self._path)
        except KeysError as error:
            # Without a mark it is read again until that succeeds: not every mending shows in the file itself.
            trouble = f"{mark}: {error}"
            if trouble != self._trouble:
                self._trouble = trouble
                self._metrics.key_file_reads.labels("damaged").inc()
                logger.error("the keys read before stay in force (%d): %s", len(self._records), error)
            self._mark = _UNREAD
        else:
            self._metrics.key_file_reads.labels("ok" if mark is not None else "missing").inc()
            self._records = records
            what = f"{len(records)} keys" if mark is not None else "no such file: nobody gets in"
            logger.info("%s: %s", self._path, what)
            self._mark, self._trouble = mark, ""


def build_access(settings: Settings, metrics: Metrics) -> Access:
    """The mode `settings` asks for."""
    if settings.access.mode == "keys":
        return KeyedAccess(settings.access, metrics)
    return PassthroughAccess(settings.access) if settings.access.mode == "passthrough" else OpenAccess(settings.access)


def check_access(settings: Settings) -> None:
    """Refuse what would be open to the network without anybody asked for a key, and a damaged keys file.

    Raises SettingsError.
    """
    host = settings.server.host
    if settings.access.mode == "none" and not _is_loopback(host):
        raise SettingsError(
            f"server.host: {host!r} is not loopback, and with access.mode none whoever reaches the port would be "
            "served. Either set access.mode to keys (`tracer keys create --project NAME` makes one; "
            "`tracer serve --access keys`) or to passthrough, or listen on 127.0.0.1: that suffices in a Kubernetes "
            "pod and in a container started with --network container:APP"
        )
    if settings.access.mode == "keys":
        try:
            read_keys(settings.access.keys_file)
        except KeysError as error:
            raise SettingsError(f"access.keys_file: {error}") from error


def _is_loopback(host: str) -> bool:
    """Whether every address of `host` is this machine's own; False where it has none."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(address[0]) for *_, address in found]
    return bool(addresses) and all(map(_is_own, addresses))


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped: ipaddress.IPv4Address | None = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _given(scope: Scope) -> str:
    """The key a call brings, "" where it brings none."""
    headers = dict(reversed(scope["headers"]))  # of a header given twice, the first
    if (bearer := headers.get(_BEARER)) is not None:
        scheme, _, key = bearer.partition(b" ")
        return key.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
    return next((headers[name].decode("latin-1") for name in _PLAIN if name in headers), "")


def _refusal(key: str) -> str:
    if not key:
        return "You didn't provide an API key: give a key of this gateway as 'Authorization: Bearer trc_...'."
    shown = key[:_SHOWN] if len(key) >= _LONG_ENOUGH else ""
    return f"Incorrect API key provided: {shown}***. Give a key of this gateway, made by 'tracer keys create'."


def _mark(path: Path) -> _Mark | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
