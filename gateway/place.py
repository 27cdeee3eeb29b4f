"""What a supervisor and its workers say to each other, and what a worker is given."""

import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gateway.settings import Settings

# Blocked while a worker starts: one that comes early waits until it can be heeded.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What ending takes beyond `shutdown_timeout`: the trace log alone may need ten seconds.
LAST_SECONDS = 15.0
# A process that cannot start exits with this, as uvicorn does.
CANNOT_START = 3


@dataclass(frozen=True)
class Place:
    """What every process that becomes worker `number` is given.

    `sockets` are all workers' listening sockets, the one at `number` its own. `settings` are the whole gateway's,
    `metrics` is the folder of the files that workers count in.
    """

    number: int
    settings: Settings
    sockets: Sequence[socket.socket]
    metrics: Path


class Word(StrEnum):
    """What a worker says, with a text."""

    READY = "ready"  # the text is the banner
    LEAVING = "leaving"


@dataclass(frozen=True)
class Order:
    """What a supervisor says: whose sockets to accept from beside one's own; to leave and wait for nobody."""

    beside: frozenset[int] = frozenset()
    at_once: bool = False
