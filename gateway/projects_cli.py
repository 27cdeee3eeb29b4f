"""The commands that show where projects stand (`tracer projects`, `policies`, `status`, `moves`) and that move them.

They (`promote`, `rollback`, `pause`, `resume`) work on the store; every gateway that uses it follows within a second.
"""

import getpass
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import projects_text as text
from gateway.encoding import encoded
from gateway.errors import SettingsError
from gateway.settings import StoreSettings, read_settings
from policies.errors import LifecycleError, PolicyError
from policies.projects import Projects

app = typer.Typer(add_completion=False)

DEFAULT_STORE = StoreSettings().url

StoreUrl = Annotated[str, typer.Option(envvar="TRACER_STORE", help="sqlite:///PATH or postgresql://...")]
Config = Annotated[Path | None, typer.Option(help="The gateway's YAML file: its store.url is used.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project.")]
OneName = Annotated[str | None, typer.Argument(metavar="[PROJECT]", help="The project; may be left out of one.")]
Version = Annotated[
    str | None, typer.Argument(metavar="[VERSION]", help="A policy's version, as `tracer policies` has it.")
]


@app.command("projects")
def projects_(store: StoreUrl = DEFAULT_STORE, config: Config = None, as_json: Json = False) -> None:
    """Every project of the store: its state, what is live, and what audits say of it."""
    with _opened(store, config) as projects:
        found = projects.summaries()
    _print(found, as_json, text.listing(found.values()))


@app.command("policies")
def policies_(
    project: OneName = None, store: StoreUrl = DEFAULT_STORE, config: Config = None, as_json: Json = False
) -> None:
    """A project's policies, the newest first: the state of each, and why."""
    with _opened(store, config) as projects:
        found = projects.summary(_one(projects, project))
    _print(found["policies"], as_json, text.policies(found))


@app.command()
def status(
    project: OneName = None, store: StoreUrl = DEFAULT_STORE, config: Config = None, as_json: Json = False
) -> None:
    """Where a project stands: its state, the live bound on its agreement, shadow, audits, and what can be done."""
    with _opened(store, config) as projects:
        found = projects.summary(_one(projects, project))
    _print(found, as_json, text.status(found, datetime.now(UTC).date().isoformat()))


@app.command()
def moves(
    project: OneName = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, at most.")] = 20,
    store: StoreUrl = DEFAULT_STORE,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What has moved a project: the latest moves, each with its time, its cause and its evidence."""
    with _opened(store, config) as projects:
        found = projects.moves(_one(projects, project), limit)
    _print(found, as_json, text.moves(found))


@app.command()
def promote(
    project: Name,
    version: Version = None,
    store: StoreUrl = DEFAULT_STORE,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Have a policy answer without waiting for its proof: the one that waits, or VERSION."""
    _change(store, config, as_json, lambda projects: projects.promote(project, version, _by()))


@app.command()
def rollback(
    project: Name,
    version: Version = None,
    store: StoreUrl = DEFAULT_STORE,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Have the policy answer that did before, or VERSION, if it ever did."""
    _change(store, config, as_json, lambda projects: projects.rollback(project, version, _by()))


@app.command()
def pause(project: Name, store: StoreUrl = DEFAULT_STORE, config: Config = None, as_json: Json = False) -> None:
    """Forward every call of a project until `tracer resume`."""
    _change(store, config, as_json, lambda projects: projects.pause(project, _by()))


@app.command()
def resume(project: Name, store: StoreUrl = DEFAULT_STORE, config: Config = None, as_json: Json = False) -> None:
    """Have what is live answer again."""
    _change(store, config, as_json, lambda projects: projects.resume(project, _by()))


def _change(store: str, config: Path | None, as_json: bool, change: Callable[[Projects], dict[str, Any]]) -> None:
    with _opened(store, config) as projects:
        found = change(projects)
    _print(found, as_json, [text.headline(found)])


@contextmanager
def _opened(store: str, config: Path | None) -> Iterator[Projects]:
    """The projects of the store. What a user can mend is one line on stderr and exit code 1; nothing has changed."""
    try:
        url = store if config is None else read_settings(config, os.environ).store.url
        with closing(Projects.open(url)) as projects:
            yield projects
    except (PolicyError, SettingsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _one(projects: Projects, name: str | None) -> str:
    """The project that is named, or the only one there is. Raises LifecycleError."""
    if name is not None:
        return name
    names = projects.names()
    if len(names) != 1:
        known = ", ".join(names) or "none: no gateway has used this store yet"
        raise LifecycleError(f"say which project is meant; the store knows {known}")
    return names[0]


def _by() -> str:
    try:
        return f"command:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"command:{os.getuid()}"


def _print(value: Any, as_json: bool, lines: Sequence[str]) -> None:
    if as_json:
        sys.stdout.write(encoded(value).decode() + "\n")
        return
    for line in lines:
        typer.echo(line)
