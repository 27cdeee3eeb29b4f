"""`tracer keys`: make, list and revoke the keys of a gateway with `access.mode: keys`."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway import keys as store
from gateway.keys import EVERY_PROJECT, PREFIX, KeyRecord, KeysError
from gateway.settings import NAME

app = typer.Typer(name="keys", help="Make, list and revoke the gateway's own keys.", no_args_is_help=True)

DEFAULT_FILE = Path(".tracer/keys.json")
KeysFile = Annotated[Path, typer.Option("--keys", help="The keys file: `access.keys_file` of the gateway.")]


@app.command()
def create(
    project: Annotated[list[str] | None, typer.Option(help="A project the key is for; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every project, and calls of none.")] = False,
    name: Annotated[str, typer.Option(help="Whose key it is, for `tracer keys list`.")] = "",
    expires: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days after which it ends.")] = None,
    file: KeysFile = DEFAULT_FILE,
) -> None:
    """Make a key and print it, this once: the file holds only a hash of it."""
    if bool(project) == every:
        _fail("say what the key is for: --project NAME (may be repeated), or --all")
    for given in project or []:
        if not NAME.fullmatch(given):
            _fail(f"{given!r} cannot be a project's name")
    ends = None if expires is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires)
    try:
        key_id, key = store.create(file, EVERY_PROJECT if every else frozenset(project or []), name, ends)
    except KeysError as error:
        _fail(str(error))
    # The key alone on stdout, so that it can be piped to where it is to be kept.
    typer.echo(key)
    scope = "every project" if every else ", ".join(sorted(project or []))
    until = "" if ends is None else f", until {ends:%Y-%m-%d}"
    typer.echo(f"{file}: key {key_id} for {scope}{until}. It is shown only now.", err=True)


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, by id.")] = False,
    file: KeysFile = DEFAULT_FILE,
) -> None:
    """What keys there are. The keys themselves are nowhere, and their hashes are left out."""
    try:
        found = store.read_keys(file)
    except KeysError as error:
        _fail(str(error))
    now = datetime.now(UTC)
    if as_json:
        shown = {
            key_id: record.model_dump(mode="json", exclude={"sha256"}) | {"expired": record.expired(now)}
            for key_id, record in found.items()
        }
        typer.echo(json.dumps(shown))
        return
    for key_id, record in found.items():
        typer.echo(_line(key_id, record, now))
    if not found:
        typer.echo(f"{file}: no keys; `tracer keys create` makes one", err=True)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `tracer keys list` shows it.")],
    file: KeysFile = DEFAULT_FILE,
) -> None:
    """Take a key out of the file. A running gateway refuses it within a second."""
    if key_id.startswith(f"{PREFIX}_"):
        key_id = key_id.split("_")[1]
    try:
        found = store.revoke(file, key_id)
    except KeysError as error:
        _fail(str(error))
    if not found:
        _fail(f"{file}: there is no key {key_id}")
    typer.echo(f"{file}: key {key_id} is revoked", err=True)


def _line(key_id: str, record: KeyRecord, now: datetime) -> str:
    projects = "every project" if isinstance(record.projects, str) else ", ".join(sorted(record.projects))
    ends = "never ends" if record.expires is None else f"ends {record.expires:%Y-%m-%d}"
    if record.expired(now):
        ends = f"ended {record.expires:%Y-%m-%d}"
    return f"{key_id}  {record.created:%Y-%m-%d}  {ends}  {projects}  {record.name}".rstrip()


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
