"""The HTTP server a gateway runs in: uvicorn, set up from the settings."""

import uvicorn
from starlette.applications import Starlette

from gateway.protocol import GuardedProtocol
from gateway.settings import ServerSettings


def server_config(gateway: Starlette, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to serve `gateway`."""

    class Protocol(GuardedProtocol):
        request_timeout = settings.request_timeout

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
