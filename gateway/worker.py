"""One of several processes that serve one gateway, as its supervisor starts it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from asyncio.base_events import Server
from multiprocessing.connection import Connection
from types import FrameType

from gateway.app import Gateway, create_app
from gateway.errors import SettingsError
from gateway.logs import log_to_stderr
from gateway.place import CANNOT_START, LAST_SECONDS, SIGNALS, Order, Place, Word
from gateway.server import GatewayServer
from gateway.settings import Settings
from gateway.shared_metrics import MetricsFolder
from gateway.shares import share

logger = logging.getLogger(__name__)


def run_worker(place: Place, supervisor: Connection, restarted: bool) -> None:
    """A worker's whole life. Exits with 0 when it was told to leave, with CANNOT_START where it cannot start."""
    log_to_stderr(place.number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # uvicorn raises the signal that stopped it again when it is done: then it is time to leave, with a good conscience.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = share(place.settings, place.number)
    try:
        folder = MetricsFolder(place.metrics)
        folder.join(place.number)
        gateway = create_app(settings, os.environ, folder)
    except (SettingsError, OSError) as error:
        logger.error("cannot start: %s", error)
        sys.exit(CANNOT_START)
    if restarted:
        gateway.state.services.metrics.worker_restarts.inc()
    server = _Server(gateway, settings, place, folder, supervisor)
    threading.Thread(target=server.listen_to_supervisor, name="supervisor", daemon=True).start()
    try:
        server.run(sockets=[place.sockets[place.number]])
    finally:
        if server.orphaned:
            folder.remove()
    if not server.started:
        sys.exit(CANNOT_START)


class _Server(GatewayServer):
    def __init__(
        self, gateway: Gateway, settings: Settings, place: Place, folder: MetricsFolder, supervisor: Connection
    ) -> None:
        super().__init__(gateway, settings.server, place.sockets[place.number].getsockname()[:2], self._ready)
        self.orphaned = False
        self._place = place
        self._folder = folder
        self._supervisor = supervisor
        self._order = Order()
        self._beside: dict[int, Server] = {}

    def listen_to_supervisor(self) -> None:
        """Take orders, for ever; leave where nobody is there to give any. A thread's work: the loop may hang."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._order = self._supervisor.recv()
                if self._order.at_once:
                    self.should_exit = self.force_exit = True
        self.orphaned = self.should_exit = True
        logger.warning("the supervisor is gone: leaving")
        time.sleep(self._place.settings.server.shutdown_timeout + LAST_SECONDS)
        os._exit(1)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A terminal sends its SIGINT to the supervisor as well, who knows whether it is the first.
        if sig == signal.SIGTERM:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        # Ten times a second.
        self.services.metrics.sample()
        await self._accept_beside(self._order.beside)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._say(Word.LEAVING)
        await self._accept_beside(frozenset())
        # Whoever holds a listening socket keeps clients waiting at it.
        await super().shutdown([*(sockets or []), *self._place.sockets])

    def _ready(self, banner: str) -> None:
        self._folder.announce(self._place.number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._say(Word.READY, banner)

    def _say(self, word: Word, text: str = "") -> None:
        with contextlib.suppress(OSError):  # it is gone, which is noticed elsewhere
            self._supervisor.send((word, text))

    async def _accept_beside(self, others: frozenset[int]) -> None:
        for number in self._beside.keys() - others:
            self._beside.pop(number).close()
        for number in others - self._beside.keys() - {self._place.number}:
            with contextlib.suppress(OSError):  # no descriptor is free: the next tick tries again
                listener = self._place.sockets[number].dup()
                self._beside[number] = await asyncio.get_running_loop().create_server(
                    self._protocol, sock=listener, backlog=self.config.backlog
                )

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore
