"""The gateway's own keys, `trc_<id>_<secret>`, and the JSON file that holds what is needed to know them again.

The file holds a SHA-256 of each secret. A slow, salted hash (bcrypt, argon2) protects secrets that can be guessed; ours
are 256 random bits, so there is nothing to guess and one fast hash gives nothing away.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import GatewayError

PREFIX = "trc"
EVERY_PROJECT: Literal["*"] = "*"
_SECRET_BYTES = 32
_ID_BYTES = 6
# What an unknown id is compared with, so that it takes as long as a known one.
_NOBODY = "0" * 64


class KeysError(GatewayError):
    """The keys file cannot be read or written, or is not what `tracer keys` writes."""


class KeyRecord(BaseModel):
    """What the file holds of one key. `projects` is a list of names, or "*" for every project and every other call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: str = ""
    projects: frozenset[str] | Literal["*"]
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    keys: dict[str, KeyRecord]


def find(key: str, known: Mapping[str, KeyRecord], now: datetime) -> tuple[str, KeyRecord] | None:
    """The id and record of `key`; None where it is unknown, wrong or expired.

    Every key costs one hash and one comparison in constant time, whether its id is known or it is a key at all.
    """
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    record = known.get(key_id) if prefix == PREFIX else None
    right = compare_digest(_digest(secret), _NOBODY if record is None else record.sha256)
    return (key_id, record) if right and record is not None and not record.expired(now) else None


def read_keys(path: Path) -> dict[str, KeyRecord]:
    """The records by id, none where there is no file; raises KeysError."""
    try:
        return _Content.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeysError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KeysError(f"{path}: not a keys file: {where}: {first['msg']}") from None


def create(path: Path, projects: frozenset[str] | Literal["*"], name: str, expires: datetime | None) -> tuple[str, str]:
    """Add a key to the file; returns its id and the key itself, which is written nowhere. Raises KeysError."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    record = KeyRecord(sha256=_digest(secret), name=name, projects=projects, created=now, expires=expires)
    made = ""

    def add(keys: dict[str, KeyRecord]) -> None:
        nonlocal made
        while not made or made in keys:
            made = secrets.token_hex(_ID_BYTES)
        keys[made] = record

    _change(path, add)
    return made, f"{PREFIX}_{made}_{secret}"


def revoke(path: Path, key_id: str) -> bool:
    """Take a key out of the file; False where there is none of that id. Raises KeysError."""
    found = False

    def remove(keys: dict[str, KeyRecord]) -> None:
        nonlocal found
        found = keys.pop(key_id, None) is not None

    _change(path, remove)
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _change(path: Path, change: Callable[[dict[str, KeyRecord]], None]) -> None:
    """Read, change and replace the file, one writer at a time: readers see the old one or the new one, whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            keys = dict(read_keys(path))
            change(keys)
            _replace(path, _Content(version=1, keys=keys).model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as file:
        _take_after(file.fileno(), path)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take_after(descriptor: int, path: Path) -> None:
    """Give a file the owner and mode of `path`, where there is one and as far as the system lets us.

    Or a key revoked as root would leave a file that the gateway cannot read.
    """
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(old.st_mode)
    try:
        os.fchown(descriptor, old.st_uid, old.st_gid)
    except OSError:
        try:
            os.fchown(descriptor, -1, old.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG  # not for another group
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, mode)


def _replace(path: Path, content: bytes) -> None:
    # mkstemp makes a file that its owner alone can read; where there was one, what its owner made of it holds.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _take_after(file.fileno(), path)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
