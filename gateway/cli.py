"""`tracer serve` and `tracer check-config`."""

import gc
import logging
import os
import signal
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from starlette.applications import Starlette

from gateway.access import check_access
from gateway.allocation import keep_large_blocks_apart
from gateway.app import create_app
from gateway.errors import SettingsError
from gateway.server import server_config
from gateway.services import Services
from gateway.settings import Settings, build_settings, load_settings

app = typer.Typer(add_completion=False)


class Mode(StrEnum):
    """What `access.mode` may say."""

    NONE = "none"
    PASSTHROUGH = "passthrough"
    KEYS = "keys"


_DEFAULT_POLICY = Path(".tracer")
_ONLY_UPSTREAM = "default"
_ACCESS = {
    "keys": "keys of {0.keys_file}",
    "passthrough": "the upstream judges the client's own key, for {0.key_seconds:g} seconds at a time",
}


@app.command()
def serve(
    policy: Annotated[Path | None, typer.Argument(help="A policy folder. Default: .tracer")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file; see config.example.yaml.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one. [default: 8000]")
    ] = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible API to forward to.")] = None,
    project: Annotated[str | None, typer.Option(help="Name of the policy's project. [default: default]")] = None,
    teacher: Annotated[str | None, typer.Option(help="Model to ask where a call's model is tracer/<project>.")] = None,
    access: Annotated[Mode | None, typer.Option(help="Who may ask; see docs/access.md. [default: none]")] = None,
    keys: Annotated[Path | None, typer.Option(help="The keys file. [default: .tracer/keys.json]")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the upstream's key; '' where it takes none.")
    ] = None,
) -> None:
    """Answer calls a policy is certified for, and forward the rest."""
    _log_to_stderr()
    try:
        if config is not None:
            _refuse_beside_config(policy, upstream, project, teacher, access, keys, api_key_env)
            settings = load_settings(config, os.environ)
        else:
            tree = _tree(policy, upstream, project or "default", teacher, api_key_env) | _access(access, keys)
            settings = build_settings(tree, os.environ)
        settings = _listening_on(settings, host, port)
        gateway = create_app(settings, os.environ)
    except SettingsError as error:
        _fail(str(error))
    _run(gateway, settings)


@app.command("check-config")
def check_config(file: Annotated[Path, typer.Argument(help="The YAML file to check.")]) -> None:
    """Say whether a configuration is valid; exit 1 with the offending keys where it is not."""
    try:
        settings = load_settings(file, os.environ)
        check_access(settings)
    except SettingsError as error:
        _fail(str(error))
    typer.echo(f"{file}: valid; {len(settings.projects)} projects, {len(settings.upstreams)} upstreams")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _tree(
    policy: Path | None, upstream: str | None, project: str, teacher: str | None, api_key_env: str | None
) -> dict[str, Any]:
    folder = policy or _DEFAULT_POLICY
    # With an upstream there is something to do without a policy: forward, and gather the traces of one.
    if upstream is None and not folder.is_dir():
        raise SettingsError(
            f"nothing to serve: there is no policy folder {folder} (`tracer fit TRACES --out {folder}` makes one); "
            "give a policy folder, --config FILE, or --upstream URL to forward to"
        )
    tree: dict[str, Any] = {"projects": {project: {"policy": str(folder), "teacher": teacher}}}
    if upstream is not None:
        asked: dict[str, Any] = {"base_url": upstream}
        if api_key_env is not None:
            asked["api_key_env"] = api_key_env or None
        tree |= {"upstreams": {_ONLY_UPSTREAM: asked}, "default_upstream": _ONLY_UPSTREAM}
    return tree


def _access(mode: Mode | None, keys: Path | None) -> dict[str, Any]:
    given = {"mode": mode and mode.value, "keys_file": keys and str(keys)}
    return {"access": {key: value for key, value in given.items() if value is not None}}


def _refuse_beside_config(*given: object) -> None:
    if any(value is not None for value in given):
        raise SettingsError(
            "with --config, policies, upstreams, projects and access are named in the file; leave them out here"
        )


def _listening_on(settings: Settings, host: str | None, port: int | None) -> Settings:
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    return settings.model_copy(update={"server": settings.server.model_copy(update=given)})


def _run(gateway: Starlette, settings: Settings) -> None:
    server = settings.server
    try:
        listener = socket.create_server((server.host, server.port), family=_family(server.host), backlog=2048)
    except OSError as error:
        _fail(f"cannot listen on {server.host}:{server.port}: {error.strerror or error}")
    config = server_config(gateway, server)
    # uvicorn raises the signal that stopped it again when it is done: then it is time to leave, with a good conscience.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    running = _Server(config, gateway.state.services, listener.getsockname()[:2])
    running.run(sockets=[listener])
    if not running.started:
        sys.exit(3)


class _Server(uvicorn.Server):
    """Says what it serves when it has started."""

    def __init__(self, config: uvicorn.Config, services: Services, address: tuple[str, int]) -> None:
        super().__init__(config)
        self._services = services
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        keep_large_blocks_apart()
        await super().startup(sockets)
        if self.started:
            # What start-up made stays: no collection need look at it again while a call waits.
            gc.collect()
            gc.freeze()
            typer.echo(_banner(self._services, *self._address))
            sys.stdout.flush()


def _banner(services: Services, host: str, port: int) -> str:
    settings = services.settings
    shown = f"[{host}]" if ":" in host else host
    lines = [f"tracer gateway on http://{shown}:{port} (OpenAI base URL http://{shown}:{port}/v1)"]
    for name in settings.projects:
        serving = services.registry.serving(name)
        version = f" {serving.version}" if serving.version else ""
        upstream = settings.upstream_of(name)
        forwards = f"forwards to {upstream}" if upstream else "decision server: no upstream, deferred calls get 503"
        lines.append(f"  project {name}: {serving.state}{version}; {forwards}")
        if serving.detail:
            lines.append(f"    {serving.detail}")
    if settings.access.mode != "none":
        lines.append(f"  access: {_ACCESS[settings.access.mode].format(settings.access)}")
    for name, upstream_settings in settings.upstreams.items():
        lines.append(f"  upstream {name}: {upstream_settings.base_url or upstream_settings.provider}")
    return "\n".join([*lines, "ready"])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
