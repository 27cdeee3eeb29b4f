"""A gateway on a real socket: in a thread for most tests, as a process where signals and start-up matter."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import uvicorn

from gateway.app import create_app
from gateway.server import server_config
from gateway.services import Services
from gateway.settings import Settings, build_settings
from policies.store import Store
from policies.types import StoredTrace

ROOT = Path(__file__).parent.parent


def make_settings(folder: Path, tree: Mapping[str, Any], upstream: str | None = None) -> Settings:
    """Settings with store and spool in `folder`; `upstream` becomes the default upstream's base URL."""
    found: dict[str, Any] = {"store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"}}
    found |= tree
    if "projects" in found:
        # Most tests are about what a policy does that answers; those about how it comes to that, and stays, say so.
        usual = {"promotion": "immediate", "audit": {"rate": 0}}
        found["projects"] = {name: usual | project for name, project in found["projects"].items()}
    if upstream is not None:
        found.setdefault("upstreams", {"teacher": {"base_url": upstream}})
        found.setdefault("default_upstream", "teacher")
    return build_settings(found, {})


class ThreadedGateway:
    """Serves `settings` from a thread of its own until the context ends."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        app = create_app(settings, environ or {})
        self.services: Services = app.state.services
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.base_url = f"{self.url}/v1"
        config = server_config(app, settings.server)
        config.timeout_graceful_shutdown = 2
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._server.ready.wait(10) or not self._server.started:
            raise RuntimeError("the gateway did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Shut down gracefully; recorded traces are in the store when it returns."""
        self._server.should_exit = True
        self._thread.join(15)
        self._socket.close()

    def tasks(self) -> int:
        """How many tasks its event loop has."""
        return len(asyncio.all_tasks(self._server.loop))

    def stored(self) -> list[StoredTrace]:
        """Stop, and read what has been learned."""
        self.stop()
        with contextlib.closing(Store.open(self.services.settings.store.url)) as store:
            return list(store.traces(training_only=False))

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 where there is none."""
        return self.services.metrics.registry.get_sample_value(name, labels) or 0.0


class GatewayProcess:
    """`tracer serve ARGUMENTS --port 0` as a process; killed when the context ends."""

    def __init__(self, folder: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._command = [sys.executable, "-m", "tracer", "serve", *map(str, arguments)]
        if "--port" not in arguments:
            self._command += ["--port", "0"]
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
        self.banner = ""
        self.url = ""

    def __enter__(self) -> Self:
        self._log = (self.folder / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            self._command, cwd=self.folder, env=self._environ, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner += line
            if line.startswith("ready"):
                break
        found = re.search(r"http://\S+:\d+", self.banner)
        if found is None:
            self.process.wait(10)
            raise RuntimeError(f"the gateway did not start:\n{self.log()}")
        self.url = found[0]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def terminate(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def log(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "gateway.log").read_text()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()
