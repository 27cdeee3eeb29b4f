"""Several worker processes on one port: started, watched, started again where one ends, and ended together.

Every worker has a listening socket of its own and the kernel shares connections out among them (SO_REUSEPORT). At one
shared socket the worker that wakes first takes a whole burst: a client with a pool of connections would keep one worker
busy and the others idle. The sockets are made here and outlive any worker: the others take what comes to a dead one's.

uvicorn's own supervisor shares one socket, does not say when all are ready, starts a worker that always fails again
and again without a pause, and leaves its workers behind where it is killed.
"""

import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from gateway.place import CANNOT_START, LAST_SECONDS, SIGNALS, Order, Place, Word
from gateway.settings import Settings
from gateway.shared_metrics import MetricsFolder

logger = logging.getLogger(__name__)

BACKLOG = 2048
# A worker that ends sooner may be one that always will: the one after it waits, and longer each time.
_SOON_SECONDS = 30.0
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_NOT_IN_TIME = 1

# Never forked: a copy of a process with threads holds their locks for ever.
_SPAWN = multiprocessing.get_context("spawn")


class Supervisor:
    """Runs `settings.server.workers` processes that accept from the address `listener` is bound to and listens at.

    `on_ready` is called once, with the banner, when all of them serve. For one use.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, folder: MetricsFolder, on_ready: Callable[[str], None]
    ) -> None:
        workers = range(settings.server.workers)
        self._sockets = _sockets(listener, len(workers))
        self._places = [Place(number, settings, self._sockets, folder.path) for number in workers]
        self._folder = folder
        self._on_ready = on_ready
        self._seconds_to_leave = settings.server.shutdown_timeout + LAST_SECONDS
        self._processes: dict[int, _Process] = {}
        self._start_at = dict.fromkeys(workers, 0.0)  # on the monotonic clock, of those that do not run
        self._early_ends = Counter[int]()
        self._announced = False
        self._code: int | None = None  # what to exit with, once there is a reason to
        self._at_once = False

    def run(self) -> int:
        """Serve until a signal comes, or a worker cannot start at first; the exit code."""
        with self._signals() as woken:
            try:
                while self._code is None:
                    self._start_due()
                    self._wait(woken)
                return self._leave(woken, self._code)
            finally:
                for process in self._processes.values():
                    process.kill()
                self._folder.remove()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Signals are taken note of; the socket has something to read when one has come."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, self._note)  # and for good: once is enough to be told
        previous = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            with woken, wake:
                yield woken
        finally:
            signal.set_wakeup_fd(previous)

    def _note(self, number: int, _: object) -> None:
        if self._code is None:
            self._code = 0
        elif number == signal.SIGINT:
            self._at_once = True  # as uvicorn has it: who presses Ctrl-C twice does not want to wait

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, due in self._start_at.items() if due <= now]:
            del self._start_at[number]
            self._processes[number] = _Process(self._places[number], restarted=self._announced)

    def _wait(self, woken: socket.socket) -> None:
        """Until something happens, and see to it."""
        timeout = max(0.0, min(self._start_at.values()) - time.monotonic()) if self._start_at else None
        happened = self._happened(woken, timeout)
        for process in self._processes.values():
            if process.channel in happened:
                banner = process.hear()
                if not self._announced and all(p.state is _State.SERVING for p in self._processes.values()):
                    self._announced = True
                    self._on_ready(banner)
        for number, process in list(self._processes.items()):
            if process.sentinel in happened:
                self._ended(number, self._processes.pop(number))
        self._share_out()

    def _happened(self, woken: socket.socket, timeout: float | None) -> list[object]:
        running = self._processes.values()
        channels = [process.channel for process in running if process.hears]
        happened: list[object] = list(wait([woken, *channels, *(process.sentinel for process in running)], timeout))
        if woken in happened:
            woken.recv(4096)
        return happened

    def _ended(self, number: int, process: "_Process") -> None:
        code = process.end()
        self._folder.forget(number)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if not self._announced:
            logger.error("worker %d ended %s before it could serve", number, how)
            if self._code is None:
                self._code = code if code > 0 else CANNOT_START
            return
        early = time.monotonic() - process.started_at < _SOON_SECONDS
        self._early_ends[number] = self._early_ends[number] + 1 if early else 0
        wait_seconds = _before_restart(self._early_ends[number])
        self._start_at[number] = time.monotonic() + wait_seconds
        logger.error("worker %d ended %s; another one starts in %g seconds", number, how, wait_seconds)

    def _share_out(self) -> None:
        """Let those that serve accept for those that do not."""
        if self._announced:
            serving = {number for number, process in self._processes.items() if process.state is _State.SERVING}
            order = Order(beside=frozenset(range(len(self._places))) - serving)
            for number in serving:
                self._processes[number].tell(order)

    def _leave(self, woken: socket.socket, code: int) -> int:
        """Let every worker finish its calls, within bounds."""
        for listener in self._sockets:
            listener.close()
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + self._seconds_to_leave
        while self._processes:
            left = deadline - time.monotonic()
            if left <= 0:
                logger.error("workers that did not end in time are killed: %s", sorted(self._processes))
                return code or _NOT_IN_TIME
            happened = self._happened(woken, left)
            for number, process in list(self._processes.items()):
                if self._at_once:
                    process.tell(Order(at_once=True))
                if process.channel in happened:
                    process.hear()
                if process.sentinel in happened:
                    self._processes.pop(number).end()
        return code


class _State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"


class _Process:
    """A worker process, from its start to its end."""

    def __init__(self, place: Place, *, restarted: bool) -> None:
        self.state = _State.STARTING
        self.hears = True
        self.started_at = time.monotonic()
        self.channel, theirs = _SPAWN.Pipe()
        self._told = Order()
        self._process = _SPAWN.Process(target=_become_worker, args=(place, theirs, restarted))
        # Else it would be started below, and end the blocking of signals when it is.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.sentinel = self._process.sentinel

    def hear(self) -> str:
        """Take in what it says; the text that came with it."""
        try:
            word, text = self.channel.recv()
        except (EOFError, OSError):  # it is ending
            self.hears = False
            return ""
        self.state = _State.SERVING if word is Word.READY else _State.LEAVING
        return str(text)

    def tell(self, order: Order) -> None:
        """Give an order, once."""
        if order != self._told:
            self._told = order
            with contextlib.suppress(OSError):  # it has ended
                self.channel.send(order)

    def terminate(self) -> None:
        """Have it leave; one that has no calls yet goes at once."""
        if self.state is _State.STARTING:
            self._process.kill()
        else:
            self._process.terminate()

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self.end()

    def end(self) -> int:
        """See it off; its exit code, or the negative number of the signal that ended it."""
        self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        self.channel.close()
        return code


def _become_worker(place: Place, channel: Connection, restarted: bool) -> None:
    # By name: what serves is some sixty megabytes of modules, and a supervisor does not.
    import_module("gateway.worker").run_worker(place, channel, restarted)


def _sockets(listener: socket.socket, workers: int) -> list[socket.socket]:
    """One for each worker, all of them at the same address."""
    if sys.platform != "linux":
        return [listener] * workers  # elsewhere the kernel does not share connections out
    # Only now that it listens: with this set from the start, another gateway at the same port would not be noticed.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    address = listener.getsockname()
    more = (
        socket.create_server(address, family=listener.family, backlog=BACKLOG, reuse_port=True)
        for _ in range(workers - 1)
    )
    return [listener, *more]


def _before_restart(early_ends: int) -> float:
    """How long to wait: nothing after the first end, which may well be the only one."""
    if early_ends < 2:
        return 0.0
    return float(min(_FIRST_WAIT_SECONDS * 2 ** min(early_ends - 2, 10), _LONGEST_WAIT_SECONDS))
