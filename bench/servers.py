"""The servers that `peers.py` asks: how each is configured and started, and what has to be installed for it.

Every server is one worker process on 127.0.0.1, at its documented defaults for production; what is set beside them is
said where it is set.
"""

import http.client
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from bench import installs, nginx, wrk
from gateway.demo import processes
from gateway.demo.errors import DemoError
from gateway.demo.processes import Child

MODEL = "gpt-4.1-mini"
PROJECT = "banking77"
START_SECONDS = 120.0
KEY = "sk-bench"
ALWAYS = {"Authorization": f"Bearer {KEY}"}
"""Headers of every request."""

# Portkey listens on every address of the machine and has no option for another.
_LOOPBACK = (
    "data:text/javascript,import net from 'node:net'; const listen = net.Server.prototype.listen;"
    "net.Server.prototype.listen = function (port, ...rest) {"
    "return listen.call(this, port, '127.0.0.1', ...rest.filter((each) => typeof each === 'function')) }"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the servers write and listen. `behind` is the port of the upstream that the forwarding ones ask."""

    folder: Path
    peers: Path  # environments of the peers, kept between runs
    system_prompt: str
    policy: Path
    behind: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one request."""

    status: int
    headers: dict[str, str]
    body: bytes


class Server:
    """One server of `SERVERS`, running until the context ends. `cores`: where its processes may run; None: anywhere.

    Raises NotInstalledError, or DemoError where it does not start.
    """

    def __init__(self, name: str, place: Place, cores: Sequence[int] | None = None) -> None:
        self.name = name
        self.port = processes.free_port()
        folder = place.folder / name
        folder.mkdir()
        self._child = Child(name, [*pinned(cores), *SERVERS[name](place, folder, self.port)], folder / "log")
        self._probe = wrk.http_request(self.port, "/v1/chat/completions", ALWAYS, chat(place.system_prompt, "hello"))

    def __enter__(self) -> Self:
        self._child.__enter__()
        try:
            self._child.wait_until(self._listens, "it answered", START_SECONDS)
        except DemoError:
            self._child.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._child.pid

    def tail(self) -> str:
        """The last lines it wrote."""
        return self._child.tail()

    def ask(self, request: bytes) -> Answer:
        """The answer to one whole request, on a connection of its own. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.connect()
            connection.sock.sendall(request)
            response = http.client.HTTPResponse(connection.sock, method="POST")
            response.begin()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def _listens(self) -> bool:
        try:
            return self.ask(self._probe).status < 500
        except (OSError, http.client.HTTPException):
            return False


def chat(system_prompt: str, message: str, stream: bool = False) -> bytes:
    """A classifier's request."""
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": message}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0}
    return json.dumps(body | ({"stream": True} if stream else {})).encode()


def pinned(cores: Sequence[int] | None) -> list[str]:
    """The start of a command that may run on these cores alone."""
    return [] if cores is None else ["taskset", "-c", ",".join(map(str, cores))]


def tracer_has(option: str) -> bool:
    """Whether `tracer serve` knows this option."""
    return option in processes.run(["env", "COLUMNS=200", sys.executable, "-m", "tracer", "serve", "--help"])


def _bare(app: str) -> Callable[[Place, Path, int], list[str]]:
    def command(place: Place, _: Path, port: int) -> list[str]:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        serve = [sys.executable, "-m", "uvicorn", f"bench.bare:{app}", "--port", str(port), *options]
        return ["env", f"BARE_UPSTREAM=http://127.0.0.1:{place.behind}", *serve]

    return command


def _gateway(fitted: bool, *options: str) -> Callable[[Place, Path, int], list[str]]:
    def command(place: Place, folder: Path, port: int) -> list[str]:
        recognised = {"system_prompt": place.system_prompt, "mode": "exact"}
        policy = place.policy if fitted else folder / "none-yet"
        tree = {
            "store": {"url": f"sqlite:///{folder}/traces.db", "spool": f"{folder}/spool.jsonl"},
            "upstreams": {"upstream": {"base_url": f"http://127.0.0.1:{place.behind}/v1"}},
            "default_upstream": "upstream",
            "projects": {PROJECT: {"policy": str(policy), "match": recognised, "promotion": "immediate"}},
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return [sys.executable, "-m", "tracer", "serve", "--config", str(file), "--port", str(port), *options]

    return command


def _litellm(place: Place, folder: Path, port: int) -> list[str]:
    python = installs.install_litellm(place.peers)
    asked = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{place.behind}/v1", "api_key": KEY}
    file = folder / "config.yaml"
    tree = {
        "model_list": [{"model_name": MODEL, "litellm_params": asked}],
        "general_settings": {"master_key": KEY},  # it does not start without one
    }
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    options = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Without these it fetches a price list from the network, and prints each call.
    environ = ["LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR", "LITELLM_MODE=PRODUCTION"]
    return ["env", *environ, str(python), "-I", str(python.with_name("litellm")), *options, "--telemetry", "False"]


def _portkey(place: Place, _: Path, port: int) -> list[str]:
    script = installs.install_portkey(place.peers)
    return ["env", "NODE_ENV=production", "node", "--import", _LOOPBACK, str(script), f"--port={port}", "--headless"]


def _tracer_llm(place: Place, _: Path, port: int) -> list[str]:
    python, policy, _vectors = installs.fit_tracer_llm(place.peers)
    serve = [str(python), "-I", str(python.with_name("tracer")), "serve", str(policy)]
    return [*serve, "--host", "127.0.0.1", "--port", str(port)]


SERVERS: dict[str, Callable[[Place, Path, int], list[str]]] = {
    "behind": lambda _, folder, port: nginx.upstream(folder, port),
    "upstream": lambda _, folder, port: nginx.upstream(folder, port),
    "nginx": lambda place, folder, port: nginx.proxy(folder, port, place.behind),
    "empty": _bare("empty"),
    "relay": _bare("relay"),
    "gateway": _gateway(True),
    "forwarding": _gateway(True),
    "observing": _gateway(False),
    "gateway-2": _gateway(True, "--workers", "2"),
    "forwarding-2": _gateway(True, "--workers", "2"),
    "litellm": _litellm,
    "portkey": _portkey,
    "tracer-llm": _tracer_llm,
}
"""Each server's command, by place, its own folder and its port."""
