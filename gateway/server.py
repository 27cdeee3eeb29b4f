"""The HTTP server a gateway runs in: uvicorn, set up from the settings."""

import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from gateway.app import Gateway, create_app
from gateway.memory import keep_large_blocks_apart, settle
from gateway.place import CANNOT_START
from gateway.protocol import GuardedProtocol
from gateway.services import Services
from gateway.settings import ServerSettings, Settings
from gateway.turns import Turns

# For so long at most the interpreter's lock is another thread's (that writes traces, or scores) while the event loop
# wants it; ten times as long where nobody says otherwise.
_GIL_SECONDS = 0.0005
_ACCESS = {
    "keys": "keys of {0.keys_file}",
    "passthrough": "the upstream judges the client's own key, for {0.key_seconds:g} seconds at a time",
}


def serve(settings: Settings, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve in this process until a signal comes. Raises SettingsError; exits with CANNOT_START where it cannot."""
    # uvicorn raises the signal that stopped it again when it is done: then it is time to leave, with a good conscience.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    gateway = create_app(settings, os.environ)
    server = GatewayServer(gateway, settings.server, listener.getsockname()[:2], on_ready)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(CANNOT_START)


def server_config(gateway: Gateway, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to serve `gateway`."""

    class Protocol(GuardedProtocol):
        request_timeout = settings.request_timeout
        begin = staticmethod(gateway.begin)
        turns = Turns()

    return uvicorn.Config(
        gateway,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=settings.access_log,
        # Upstream answers bring their own; a second one would be ours to explain.
        server_header=False,
        date_header=False,
        # Behind a proxy nobody here reads the client's address.
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )


class GatewayServer(uvicorn.Server):
    """Calls `on_ready` with the banner when it has started."""

    def __init__(
        self, gateway: Gateway, settings: ServerSettings, address: tuple[str, int], on_ready: Callable[[str], None]
    ) -> None:
        super().__init__(server_config(gateway, settings))
        self.services: Services = gateway.state.services
        self._address = address
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        sys.setswitchinterval(_GIL_SECONDS)
        keep_large_blocks_apart()
        await super().startup(sockets)
        if self.started:
            settle()
            self._on_ready(_banner(self.services, *self._address))


def _banner(services: Services, host: str, port: int) -> str:
    settings = services.settings
    shown = f"[{host}]" if ":" in host else host
    lines = [f"tracer gateway on http://{shown}:{port} (OpenAI base URL http://{shown}:{port}/v1)"]
    for name in settings.projects:
        serving = services.registry.serving(name)
        version = f" {serving.version}" if serving.version else ""
        shadow = f", {serving.shadow} in shadow" if serving.shadow and serving.version else ""
        upstream = settings.upstream_of(name)
        forwards = f"forwards to {upstream}" if upstream else "decision server: no upstream, deferred calls get 503"
        lines.append(f"  project {name}: {serving.state}{version}{shadow}; {forwards}")
        if serving.detail:
            lines.append(f"    {serving.detail}")
    if settings.access.mode != "none":
        lines.append(f"  access: {_ACCESS[settings.access.mode].format(settings.access)}")
    for name, upstream_settings in settings.upstreams.items():
        lines.append(f"  upstream {name}: {upstream_settings.base_url or upstream_settings.provider}")
    if settings.server.workers > 1:
        lines.append(f"  workers: {settings.server.workers}")
    return "\n".join([*lines, "ready"])
