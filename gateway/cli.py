"""`tracer serve` and `tracer check-config`."""

import os
import socket
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gateway.access import check_access
from gateway.errors import SettingsError
from gateway.logs import log_to_stderr
from gateway.settings import MOST_WORKERS, Settings, admin_key, api_key, build_settings, load_settings
from gateway.shared_metrics import MetricsFolder
from gateway.shares import check_shares
from gateway.supervisor import BACKLOG, Supervisor

app = typer.Typer(add_completion=False)


class Mode(StrEnum):
    """What `access.mode` may say."""

    NONE = "none"
    PASSTHROUGH = "passthrough"
    KEYS = "keys"


class Promotion(StrEnum):
    """What `promotion` of a project may say."""

    SHADOW = "shadow"
    IMMEDIATE = "immediate"
    MANUAL = "manual"


_DEFAULT_POLICY = Path(".tracer")
_ONLY_UPSTREAM = "default"


@app.command()
def serve(
    policy: Annotated[Path | None, typer.Argument(help="A policy folder. Default: .tracer")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file; see config.example.yaml.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one. [default: 8000]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_WORKERS, help="Processes to serve with. [default: 1]")
    ] = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible API to forward to.")] = None,
    project: Annotated[str | None, typer.Option(help="Name of the policy's project. [default: default]")] = None,
    teacher: Annotated[str | None, typer.Option(help="Model to ask where a call's model is tracer/<project>.")] = None,
    promotion: Annotated[
        Promotion | None, typer.Option(help="When a certified policy answers; see docs/lifecycle.md. [default: shadow]")
    ] = None,
    access: Annotated[Mode | None, typer.Option(help="Who may ask; see docs/access.md. [default: none]")] = None,
    keys: Annotated[Path | None, typer.Option(help="The keys file. [default: .tracer/keys.json]")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the upstream's key; '' where it takes none.")
    ] = None,
) -> None:
    """Answer calls a policy is certified for, and forward the rest."""
    log_to_stderr()
    try:
        if config is not None:
            _refuse_beside_config(policy, upstream, project, teacher, promotion, access, keys, api_key_env)
            settings = load_settings(config, os.environ)
        else:
            tree = _tree(policy, upstream, project or "default", teacher, promotion, api_key_env) | _access(
                access, keys
            )
            settings = build_settings(tree, os.environ)
        settings = _on_this_machine(settings, host, port, workers)
        _check(settings)
    except SettingsError as error:
        _fail(str(error))
    _run(settings)


@app.command("check-config")
def check_config(file: Annotated[Path, typer.Argument(help="The YAML file to check.")]) -> None:
    """Say whether a configuration is valid; exit 1 with the offending keys where it is not."""
    try:
        settings = load_settings(file, os.environ)
        _check(settings)
    except SettingsError as error:
        _fail(str(error))
    typer.echo(f"{file}: valid; {len(settings.projects)} projects, {len(settings.upstreams)} upstreams")


def _tree(
    policy: Path | None,
    upstream: str | None,
    project: str,
    teacher: str | None,
    promotion: Promotion | None,
    api_key_env: str | None,
) -> dict[str, Any]:
    folder = policy or _DEFAULT_POLICY
    # With an upstream there is something to do without a policy: forward, and gather the traces of one.
    if upstream is None and not folder.is_dir():
        raise SettingsError(
            f"nothing to serve: there is no policy folder {folder} (`tracer fit TRACES --out {folder}` makes one); "
            "give a policy folder, --config FILE, or --upstream URL to forward to"
        )
    served: dict[str, Any] = {"policy": str(folder), "teacher": teacher}
    if promotion is not None:
        served["promotion"] = promotion.value
    tree: dict[str, Any] = {"projects": {project: served}}
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


def _on_this_machine(settings: Settings, host: str | None, port: int | None, workers: int | None) -> Settings:
    options = {"host": host, "port": port, "workers": workers}
    given = {key: value for key, value in options.items() if value is not None}
    return settings.model_copy(update={"server": settings.server.model_copy(update=given)})


def _check(settings: Settings) -> None:
    check_access(settings)
    check_shares(settings)
    admin_key(settings, os.environ)
    for name in settings.upstreams:
        api_key(settings, name, os.environ)


def _run(settings: Settings) -> None:
    server = settings.server
    try:
        listener = socket.create_server((server.host, server.port), family=_family(server.host), backlog=BACKLOG)
    except OSError as error:
        _fail(f"cannot listen on {server.host}:{server.port}: {error.strerror or error}")
    if server.workers > 1:
        sys.exit(_supervise(settings, listener))
    # By name: the supervisor of several workers needs nothing of what serves.
    import_module("gateway.server").serve(settings, listener, _say_ready)


def _supervise(settings: Settings, listener: socket.socket) -> int:
    try:
        folder = MetricsFolder.create()
    except OSError as error:
        _fail(f"there is no place for the metrics of several workers: {error}")
    return Supervisor(settings, listener, folder, _say_ready).run()


def _say_ready(banner: str) -> None:
    typer.echo(banner)
    sys.stdout.flush()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
